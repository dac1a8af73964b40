"""Cameras of plain pictures by structure from motion (Schoenberger and Frahm 2016), with COLMAP as the package pycolmap.

Features of each picture, matches of pairs, then incremental mapping; the largest model is kept in ``sparse/0`` beside the
pictures, from where :mod:`nerf.data.colmap` reads it, whole or not at all.
"""

import hashlib
import importlib.util
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch
from filelock import FileLock

from nerf.config.photographs import SfmConfig
from nerf.core.errors import UserError
from nerf.core.files import as_shape, read_json, replace_folder, write_json
from nerf.core.pictures import exif_tags, open_picture
from nerf.core.progress import task
from nerf.core.words import counted
from nerf.data import sfm_process
from nerf.data.folder import check_folder, plain_pictures, recognise

log = logging.getLogger("somnia.photographs")

FEWEST = 3  # pictures from which a scene is found
MANY = 200  # pictures from which only neighbours in the order of names are compared
OVERLAP = 10  # neighbours that a picture is compared with then; also those 2, 4, 8 ... places away
SEED = 0  # of every random choice: the same pictures give the same cameras
RECORD = "somnia.json"  # beside the model: what it was made from
MODEL_FILES = tuple(
    f"{stem}.{suffix}" for stem in ("cameras", "images", "points3D", "rigs", "frames") for suffix in ("bin", "txt")
)
HASHED_BYTES = 1 << 16  # of the beginning of a picture, which with its size tells whether it is the same
SHOWN_NAMES = 5  # of pictures without a camera
LONGEST_REASON = 200  # characters of COLMAP's own message that are repeated
EXIF_FOCAL, EXIF_MODEL = 0x920A, 0x0110  # tags: focal length and camera model


@dataclass(frozen=True)
class Found:
    """What structure from motion found."""

    registered: int
    pictures: int
    points: int
    error: float  # mean reprojection error, pixels
    seconds: float

    def __str__(self) -> str:
        share = 100 * self.registered / self.pictures
        return (
            f"structure from motion found the cameras of {self.registered} of {self.pictures} pictures ({share:.0f} %), "
            f"{self.points:,} points, mean reprojection error {self.error:.2f} pixels, in {self.seconds:.0f} s"
        )


def find_cameras(folder: Path, options: SfmConfig) -> Found | None:
    """Find the cameras of a folder of plain pictures and keep them in its ``sparse/0``; None if it has cameras already.

    Args:
        folder: holds at least three pictures, in itself or in ``images``.
        options: the flags ``--sfm_matching``, ``--sfm_cameras`` and ``--sfm_size``.

    Raises:
        UserError: pycolmap is not installed, there are too few pictures, they do not connect, or the folder cannot be written.
    """
    name = hashlib.sha256(str(folder.resolve()).encode(errors="surrogateescape")).hexdigest()[:16]
    with FileLock(Path(tempfile.gettempdir()) / f"somnia_sfm_{name}.lock"):  # of several processes one looks, and all read
        found = check_pictures(folder)
        return None if found is None else _find(folder, *found, options)


def _find(folder: Path, images: Path, pictures: list[Path], options: SfmConfig) -> Found:
    """:func:`find_cameras` of the pictures that were found in ``images``."""
    names, began = [path.name for path in pictures], time.monotonic()
    single = _one_camera(pictures, options.sfm_cameras)
    log.info(
        "--sfm: looking for the cameras of %d pictures in %s, %s",
        len(names),
        images,
        "one lens" if single else "a lens for each",
    )
    with tempfile.TemporaryDirectory(prefix="somnia_sfm_") as scratch:
        model = _reconstruct(images, names, Path(scratch), options, single)
        result = Found(len(model.names), len(names), model.points, model.error, time.monotonic() - began)
        _keep(folder, images, Path(scratch) / "model", names, result)
    log.info("--sfm: %s; kept in %s", result, folder / "sparse" / "0")
    if lost := sorted(set(names) - set(model.names)):
        log.warning(
            "--sfm: %s no camera and %s left out: %s%s; pictures that overlap them would connect them",
            counted(len(lost), "picture has", "pictures have"),
            "is" if len(lost) == 1 else "are",
            ", ".join(lost[:SHOWN_NAMES]),
            " and others" if len(lost) > SHOWN_NAMES else "",
        )
    return result


def check_pictures(folder: Path) -> tuple[Path, list[Path]] | None:
    """The folder of the pictures whose cameras are to be found, and the pictures; None if there are cameras already.

    Raises:
        UserError: there is no such folder, pycolmap is not installed, or there are too few pictures.
    """
    check_folder(folder)
    known = recognise(folder)
    if known is not None:
        log.info("--sfm: %s has cameras already, in the format of %s, and they are used", folder, known[0].name)
        return None
    images, pictures = plain_pictures(folder)
    if len(pictures) < FEWEST:
        raise UserError(
            f"--sfm needs at least {FEWEST} pictures of one scene from different positions, and there "
            f"{'is' if len(pictures) == 1 else 'are'} {len(pictures)} in {images}; add more"
        )
    if importlib.util.find_spec("pycolmap") is None:
        raise UserError("--sfm needs the package pycolmap; run: pip install 'somnia[sfm]', or pip install 'pycolmap>=4.2,<5'")
    sparse = folder / "sparse"
    if sparse.exists() and not sparse.is_dir():
        raise UserError(f"--sfm keeps the cameras in the folder {sparse}, which is a file; remove or rename it")
    if not all(os.access(path, os.W_OK) for path in (folder, sparse) if path.exists()):
        raise UserError(f"--sfm keeps the cameras in {folder}, which cannot be written to; give a copy of the folder")
    return images, pictures


def warn_of_changes(folder: Path) -> None:
    """Log a warning if pictures were added, removed or changed since their cameras were found by :func:`find_cameras`."""
    record = folder / "sparse" / "0" / RECORD
    if not record.is_file():
        return
    stored = read_json(record, f"remove {folder / 'sparse'} to find the cameras again with --sfm", dict[str, Any]).get(
        "pictures"
    )
    if not isinstance(stored, dict):
        return
    now = {path.name: _fingerprint(path) for path in plain_pictures(folder)[1]}
    changes = (
        (len(now.keys() - stored.keys()), "added"),
        (len(stored.keys() - now.keys()), "removed"),
        (sum(now[name] != stored[name] for name in now.keys() & stored.keys()), "changed"),
    )
    words = [f"{counted(count, 'picture')} {done}" for count, done in changes if count]
    if words:
        log.warning(
            "%s: %s since the cameras in sparse/0 were found, which are used as they are; remove %s and give --sfm to find "
            "them again, in a new --workspace",
            folder,
            ", ".join(words),
            folder / "sparse",
        )


def _fingerprint(path: Path) -> str:
    """The size of a file and a hash of its beginning."""
    with path.open("rb") as file:
        return f"{path.stat().st_size} {hashlib.sha256(file.read(HASHED_BYTES)).hexdigest()}"


def _keep(folder: Path, images: Path, model: Path, names: list[str], found: Found) -> None:
    """Copy a model and write the record of what it was made from to ``sparse/0``."""
    try:
        with replace_folder(folder / "sparse" / "0", (*MODEL_FILES, RECORD)) as fresh:
            for path in model.iterdir():
                shutil.copyfile(path, fresh / path.name)
            record = {name: _fingerprint(images / name) for name in names}
            write_json(fresh / RECORD, {"pictures": record, "registered": found.registered, "reprojection_error": found.error})
    except OSError as error:
        raise UserError(
            f"--sfm: the cameras cannot be kept in {folder / 'sparse'}: {error.strerror or error}; give a copy of the folder "
            "that can be written to"
        ) from error


def _one_camera(pictures: list[Path], asked: str) -> bool:
    """Whether all pictures have the same lens and zoom: as asked, or judged by their size and EXIF; each one is opened."""
    seen = set()
    for path in pictures:
        with open_picture(path, f"picture {path}", "replace the file, or remove it from the folder") as image:
            model, focal = exif_tags(image).get(EXIF_MODEL), exif_tags(image, details=True).get(EXIF_FOCAL)
            seen.add((image.size, str(model), str(focal)))
    return asked == "single" or (asked == "auto" and len(seen) == 1)


def _reconstruct(images: Path, names: list[str], scratch: Path, options: SfmConfig, single: bool) -> "_Model":
    """The largest model, in ``model`` of the scratch folder, found by a process of its own whose progress is shown here."""
    sequential = options.sfm_matching == "sequential" or (options.sfm_matching == "auto" and len(names) >= MANY)
    request = {
        "images": str(images),
        "names": names,
        "scratch": str(scratch),
        "size": options.sfm_size,
        "single": single,
        "overlap": OVERLAP if sequential else None,
        "threads": torch.get_num_threads(),
        "fewest": FEWEST,
        "seed": SEED,
    }
    words = [sys.executable, str(Path(sfm_process.__file__)), json.dumps(request)]
    with (scratch / "errors.txt").open("w+b") as errors:
        process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=errors, text=True, encoding="utf-8")
        try:
            said = _follow(process)
        finally:
            process.kill()
            process.wait()
        errors.seek(0)
        complaints = [line for line in errors.read().decode(errors="replace").splitlines() if line.strip()]
    if said is None:
        raise UserError(
            f"--sfm: COLMAP failed: {' '.join(complaints[:2])[:LONGEST_REASON] or 'it said nothing'}; replace pictures that "
            "may be damaged, or remove them"
        )
    if not said.get("model"):
        raise UserError(
            f"--sfm could not find the camera of any of the {len(names)} pictures in {images}: too few details are seen in two "
            "of them; give sharp pictures that overlap, taken from different positions"
        )
    return as_shape(said["model"], "what COLMAP found", "run it again", _Model)


class _Model(msgspec.Struct):
    """What the process says of the model."""

    names: list[str]  # of the pictures with a camera
    points: int
    error: float  # mean reprojection error, pixels


def _follow(process: "subprocess.Popen[str]") -> dict[str, Any] | None:
    """Show the progress that a process says; returns its line about the model, None if it ended without one."""
    assert process.stdout is not None, "it is a pipe"
    found = None
    with ExitStack() as shown:
        advance: Callable[[int], None] = lambda done: None  # noqa: E731
        for line in process.stdout:
            said = json.loads(line)
            if "doing" in said:
                shown.close()
                advance = shown.enter_context(task(said["doing"], max(said["total"], 1)))
            elif "done" in said:
                advance(said["done"])
            elif "model" in said:
                found = said
    return found if process.wait() == 0 else None
