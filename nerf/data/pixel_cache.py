"""Decoded photographs in one memory-mapped file, so that a large set is decoded once and needs little memory. P pixels.

The file is a safetensors file, named by what it was decoded from; it is there as a whole or not at all. While it is
made it has another name and says which photographs are decoded, so that a run that was killed goes on from there.
"""

import hashlib
import json
import logging
import os
import shutil
import struct
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from nerf.core.errors import UserError
from nerf.core.files import cache_folder
from nerf.core.progress import task

log = logging.getLogger("somnia.photographs")

VERSION = 1  # of what is in the file; raise it when photographs are decoded differently
AUTO_BYTES = 1 << 27  # of decoded photographs from which "auto" keeps them; less is decoded in seconds
TOGETHER = 64  # photographs between two syncs with the disk
DECODE_THREADS = 4
ALIGNMENT = 64  # bytes
DECODED = "decoded"  # a byte for each photograph: 1 once it is in the file
UNFINISHED = ".unfinished"
Planes = dict[str, Tensor]
_TYPES: dict[str, tuple[type, torch.dtype]] = {"U8": (np.uint8, torch.uint8), "BOOL": (np.bool_, torch.bool)}


@dataclass(frozen=True)
class Layout:
    """What a set of photographs is decoded to: planes with a row for each pixel of all photographs."""

    count: int  # photographs
    pixels: int  # P
    planes: Mapping[str, tuple[str, int]]  # name -> type ("U8" or "BOOL") and values of a pixel; 0: a single one, [P]

    @property
    def size(self) -> int:
        """Bytes of all planes."""
        return self.pixels * sum(max(width, 1) for _, width in self.planes.values())

    def shape(self, name: str) -> list[int]:
        """Of a plane."""
        width = self.planes[name][1]
        return [self.pixels, width] if width else [self.pixels]

    def header(self) -> bytes:
        """The beginning of the file in the format of safetensors."""
        entries: dict[str, Any] = {}
        start = 0
        sizes = [(DECODED, "U8", [self.count]), *((name, kind, self.shape(name)) for name, (kind, _) in self.planes.items())]
        for name, kind, shape in sizes:
            end = start + int(np.prod(shape))
            entries[name] = {"dtype": kind, "shape": shape, "data_offsets": [start, end]}
            start = end
        text = json.dumps(entries).encode()
        text += b" " * (-(len(text) + 8) % ALIGNMENT)
        return struct.pack("<Q", len(text)) + text

    def fresh(self, fill: Mapping[str, int]) -> Planes:
        """Planes in memory, with what they hold before anything is decoded."""
        made = {}
        for name, (kind, _) in self.planes.items():
            shape, dtype = self.shape(name), _TYPES[kind][1]
            made[name] = torch.full(shape, fill[name], dtype=dtype) if name in fill else torch.empty(shape, dtype=dtype)
        return made


def fingerprint(files: Sequence[Sequence[Path | None]], settings: Any) -> str:
    """What decoded photographs are told apart by: names, sizes and times of change of files, and how they are decoded."""

    def one(path: Path | None) -> list[Any] | None:
        if path is None:
            return None
        status = path.stat()
        return [path.name, status.st_size, status.st_mtime_ns]

    listed = [[one(path) for path in group] for group in files]
    return hashlib.sha256(json.dumps([VERSION, listed, settings]).encode(errors="surrogateescape")).hexdigest()


def chosen_folder(option: str, layout: Layout) -> Path | None:
    """Where decoded photographs are kept after ``--photo_cache``; None: nowhere.

    Raises:
        UserError: a file has the name of the folder that was asked for.
    """
    if option == "off" or (option == "auto" and layout.size < AUTO_BYTES):
        return None
    if option == "auto":
        return cache_folder("photographs", "SOMNIA_PHOTO_CACHE")
    if Path(option).exists() and not Path(option).is_dir():
        raise UserError(f"--photo_cache {option} is a file; give a folder for decoded photographs, or off")
    return Path(option)


def decode(layout: Layout, load: Callable[[int, Planes], None], fill: Mapping[str, int]) -> Planes:
    """Decode all photographs into memory.

    Args:
        layout: of the planes.
        load: decodes one photograph into its rows of the planes; it is called in several threads.
        fill: name -> the value of rows that nothing is decoded into; other planes are filled by ``load``.
    """
    planes = layout.fresh(fill)
    with ThreadPoolExecutor(DECODE_THREADS) as pool, task("reading photographs", layout.count) as advance:
        for done, _ in enumerate(pool.map(lambda i: load(i, planes), range(layout.count)), 1):
            advance(done)
    return planes


def decode_into(
    folder: Path, place: str, key: str, layout: Layout, load: Callable[[int, Planes], None], fill: Mapping[str, int]
) -> Planes:
    """:func:`decode` into a file of a folder, or what that file holds already. What is written to the result stays in memory.

    Args:
        folder: of the cache; it is made if need be.
        place: tells data sets apart; the file of a data set that has changed is replaced.
        key: of :func:`fingerprint`.
        layout, load, fill: see :func:`decode`.

    Returns:
        The planes, memory-mapped. Where the file cannot be made, as the disk is full, they are in memory, and that is logged.
    """
    stem = hashlib.sha256(place.encode(errors="surrogateescape")).hexdigest()[:16]
    path = folder / f"{stem}-{key[:24]}.safetensors"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f"{stem}.lock"):
            _remove_damaged(path, layout)
            if not path.exists():
                _make(path, layout, load, fill)
                for old in folder.glob(f"{stem}-*"):
                    if old != path:
                        old.unlink()
        _, planes = _opened(path, layout, "c")
    except OSError as error:
        log.warning("--photo_cache %s cannot be used (%s), so photographs are decoded into memory", folder, error)
        return decode(layout, load, fill)
    return {name: torch.from_numpy(array) for name, array in planes.items() if name != DECODED}


def _remove_damaged(path: Path, layout: Layout) -> None:
    """Remove the file and the unfinished one beside it where their header, length or marks are not what they should be."""
    for one in (path, path.with_name(path.name + UNFINISHED)):
        if not one.exists():
            continue
        try:
            _, arrays = _opened(one, layout, "c")
            if one == path and not arrays[DECODED].all():
                raise OSError(f"{path} lacks photographs")
        except OSError as error:
            log.warning("--photo_cache: %s, so it is made again", error)
            one.unlink()


def _opened(path: Path, layout: Layout, mode: str) -> tuple[np.memmap, dict[str, np.ndarray]]:
    """A file with this layout, mapped into memory, and its arrays: "r+" to write, "c" to keep what is written to oneself."""
    header = layout.header()
    with path.open("rb") as file:
        if file.read(len(header)) != header:
            raise OSError(f"{path} is not what it should be")
    entries = json.loads(header[8:])
    if path.stat().st_size != len(header) + max(entry["data_offsets"][1] for entry in entries.values()):
        raise OSError(f"{path} is not as long as it should be")
    mapped = np.memmap(path, np.uint8, mode, offset=len(header))  # type: ignore[call-overload]  # of a mode in a variable
    arrays = {}
    for name, entry in entries.items():
        start, end = entry["data_offsets"]
        arrays[name] = mapped[start:end].view(_TYPES[entry["dtype"]][0]).reshape(entry["shape"])
    return mapped, arrays


def _make(path: Path, layout: Layout, load: Callable[[int, Planes], None], fill: Mapping[str, int]) -> None:
    """Decode what is not decoded yet into the unfinished file beside ``path``, and rename it at the end."""
    unfinished = path.with_name(path.name + UNFINISHED)
    if not unfinished.exists():
        _allocate(unfinished, layout, fill)
    _decode_rest(unfinished, layout, load)
    os.replace(unfinished, path)
    log.info("kept %d decoded photographs, %.0f MiB, in %s", layout.count, layout.size / 2**20, path)


def _decode_rest(path: Path, layout: Layout, load: Callable[[int, Planes], None]) -> None:
    """Decode the photographs that an unfinished file lacks."""
    mapped, arrays = _opened(path, layout, "r+")
    decoded, planes = arrays[DECODED], {name: torch.from_numpy(a) for name, a in arrays.items() if name != DECODED}
    left = [i for i in range(layout.count) if not decoded[i]]
    before = layout.count - len(left)
    if before:
        log.info("decoding goes on: %d of %d photographs are in %s", before, layout.count, path.parent)
    with ThreadPoolExecutor(DECODE_THREADS) as pool, task("decoding photographs", layout.count) as advance:
        for first in range(0, len(left), TOGETHER):
            some = left[first : first + TOGETHER]
            for done, _ in enumerate(pool.map(lambda i: load(i, planes), some), before + first + 1):
                advance(done)
            mapped.flush()  # before it is said that they are there, so that this holds after a power failure too
            decoded[some] = 1
    mapped.flush()


def _allocate(path: Path, layout: Layout, fill: Mapping[str, int]) -> None:
    """Make the file with nothing decoded. Its blocks are taken from the disk now: a mapped file cannot say that it is full."""
    header = layout.header()
    size = len(header) + layout.count + layout.size
    if shutil.disk_usage(path.parent).free < size:
        raise OSError(f"{size / 2**20:.0f} MiB are needed there and {shutil.disk_usage(path.parent).free / 2**20:.0f} are free")
    fresh = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        with fresh.open("wb") as file:
            file.truncate(size)
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            file.write(header)
        _, arrays = _opened(fresh, layout, "r+")
        for name, value in fill.items():
            if name in arrays:
                arrays[name][:] = value
        os.replace(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)
