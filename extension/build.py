"""Build and load a kernel folder's shared library: ahead of time by setup.py, or on first use into a per-user cache.

A library's file name carries the fingerprint of its sources, headers, flags and compiler, so a stale one is never
loaded; a checksum beside it tells a damaged one, which is built again. A build happens in a directory of its own and the
result is moved into place in one step; an advisory lock, which the system frees when its holder dies, only keeps two
processes from doing the same work twice. Where a folder cannot be written to, is full or cannot hold programs, the next one
is used (:mod:`extension.cache`).
"""

import contextlib
import ctypes
import logging
import os
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from extension import cache, toolchain
from extension.toolchain import KERNEL_FOLDERS, ROOT, BuildError, Target, include_dir

log = logging.getLogger("somnia.extension")

_ERROR_LINES, _ERROR_CHARACTERS = 3, 600  # of a compiler's output that an error message quotes

_loaded: dict[tuple[str, str], ctypes.CDLL | BuildError] = {}
_not_loaded: set[Path] = set()  # libraries that are whole and do not load


def load_library(folder: str, device_type: str) -> ctypes.CDLL:
    """The loaded native library of a kernel folder, built first if need be.

    Args:
        folder: "raymarching", "gridencoder", ...
        device_type: "cpu" or "cuda".

    Raises:
        BuildError: no compiler, a failed build, or a library that does not load. The outcome is remembered: the
            second call for the same library raises at once.
    """
    key = (folder, device_type)
    if key not in _loaded:
        try:
            _loaded[key] = _load(folder, device_type)
        except BuildError as error:
            _loaded[key] = error
    found = _loaded[key]
    if isinstance(found, BuildError):
        raise found
    return found


def shared_object(folder: str, device_type: str, archs: tuple[str, ...] | None = None) -> Path:
    """Path of a folder's shared library: a prebuilt one, a cached one, or one compiled now.

    Args:
        folder, device_type: as in :func:`load_library`.
        archs: CUDA architectures to compile for; None: the present GPU's.

    Raises:
        BuildError: it is neither there nor can it be built.
    """
    target = toolchain.target(folder, device_type, archs)
    for prebuilt in target.files(_prebuilt_folder(ROOT, target)):
        if prebuilt not in _not_loaded and cache.is_whole(prebuilt, unknown=True):
            return prebuilt
    path, version = toolchain.compiler(device_type)
    for place in cache.candidates():
        try:
            if place.is_dir() and cache.is_own(place):
                for cached in filter(cache.is_whole, target.files(place, version)):
                    return cached
            if cache.make_writable(place):
                output = place / target.file_name(version)
                _build_once(target, path, output)
                return output
        except OSError as error:
            cache.refuse(place, error.strerror or str(error))
    raise BuildError(cache.nowhere())


def built(folder: str, device_type: str) -> Path | None:
    """Path of a folder's shared library that :func:`shared_object` would find; builds nothing.

    Args:
        folder, device_type: as in :func:`load_library`.

    Returns:
        None: it would have to be compiled, or there is no source for the device.
    """
    if not toolchain.sources(folder, device_type):
        return None
    target = toolchain.target(folder, device_type)
    for prebuilt in target.files(_prebuilt_folder(ROOT, target)):
        if cache.is_whole(prebuilt, unknown=True):
            return prebuilt
    try:
        version = toolchain.compiler(device_type)[1]
    except BuildError:
        return None
    places = [place for place in cache.candidates() if place.is_dir() and cache.is_own(place)]
    return next((path for place in places for path in target.files(place, version) if cache.is_whole(path)), None)


def _build_once(target: Target, compiler: str, output: Path) -> None:
    """Compile ``target`` unless another process has done so meanwhile.

    Raises:
        BuildError: it does not compile.
        OSError: the folder is full, or cannot be written to.
    """
    with _lock(output.with_suffix(".lock")) as locked:
        if not cache.is_whole(output):
            _build(target, compiler, output, remove_leftovers=locked)


def build_ahead(target_dir: str | os.PathLike[str], device_types: tuple[str, ...] = ("cpu",)) -> list[Path]:
    """Compile every kernel folder into ``target_dir/<folder>/prebuilt``; for setup.py.

    ``load_library`` finds such files beside the installed package when their fingerprint (without the compiler's version)
    still matches the sources there. What cannot be built is skipped with a warning: it is built on first use, or
    backend torch runs instead.

    Args:
        target_dir: the folder that holds (or will hold) the packages, such as setuptools' ``build_lib``.
        device_types: which of "cpu" and "cuda"; CUDA code is compiled for the architectures in TORCH_CUDA_ARCH_LIST, or for
            the present GPUs, or sm_80 and sm_90. It is found on every machine whose GPUs it serves.

    Returns:
        The files written.
    """
    requested = [(f, d) for d in device_types for f in KERNEL_FOLDERS if toolchain.sources(f, d)]

    def one(item: tuple[str, str]) -> Path | None:
        try:
            target = toolchain.target(*item, toolchain.cuda_archs_to_build())
            output = _prebuilt_folder(Path(target_dir).resolve(), target) / target.file_name()
            output.parent.mkdir(parents=True, exist_ok=True)
            _build(target, toolchain.compiler(target.device_type)[0], output, remove_leftovers=True)
        except (BuildError, OSError) as error:
            log.warning("kernels of %s for %s are not built ahead of time: %s", *item, error)
            return None
        return output

    with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        return [path for path in pool.map(one, requested) if path is not None]


def _prebuilt_folder(root: Path, target: Target) -> Path:
    """Where an ahead-of-time build of ``target`` lies under ``root``."""
    return root / target.folder / "prebuilt"


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[bool]:
    """Hold an advisory lock on ``path``; yields False where the system (Windows) or the file system has none.

    Two processes may then both build, which wastes a second and is otherwise harmless.
    """
    with open(path, "a") as file:
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
            locked = True
        except (ImportError, OSError):
            locked = False
        yield locked


def _build(target: Target, compiler: str, output: Path, remove_leftovers: bool) -> None:
    """Compile ``target`` in a temporary folder beside ``output`` and move the result there, with its checksum.

    Raises:
        BuildError: with the first lines of the compiler's error output.
        OSError: the folder is full, or cannot be written to.
    """
    if remove_leftovers:  # of a build that was killed; no other process builds while we hold the lock
        for leftover in output.parent.glob(f"{output.stem}.build-*"):
            shutil.rmtree(leftover, ignore_errors=True)
    work = Path(tempfile.mkdtemp(prefix=f"{output.stem}.build-", dir=output.parent))
    start = time.monotonic()
    try:
        error = _compile(target, compiler, target.all_flags, work)
        if error is not None and "-fopenmp" in target.flags:
            flags = tuple(flag for flag in target.flags if flag != "-fopenmp")
            if _compile(target, compiler, flags, work) is None:
                log.warning("%s: the compiler has no OpenMP; kernels run on one thread", target.folder)
                error = None
        if error is not None:
            raise BuildError(f"{target.folder}: the {target.device_type} kernels do not compile: {error}")
        os.replace(work / "out.so", output)
        cache.write_checksum(output)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    log.info("built the %s kernels of %s in %.1f s", target.device_type, target.folder, time.monotonic() - start)


def _compile(target: Target, compiler: str, flags: tuple[str, ...], work: Path) -> str | None:
    """Compile to ``work/out.so``, sources in parallel through ninja; returns None, or the compiler's first errors.

    Where there is no ninja, the same commands run one after the other.

    Raises:
        OSError: the folder is full, or cannot be written to.
    """
    include = f"-I{include_dir}"
    objects = {f"{source.stem}.o": str(source) for source in target.sources}
    commands = {o: [compiler, *flags, include, "-c", source, "-o", o] for o, source in objects.items()}
    commands["out.so"] = [compiler, *flags, "-shared", *objects, "-o", "out.so"]
    to_run = list(commands.values())
    ninja = toolchain.ninja()
    if ninja is not None:
        (work / "build.ninja").write_text(_ninja_file(commands))
        to_run = [[ninja]]
    # The compiler's own temporary files go there as well, and its messages are in English.
    environment = os.environ | {"TMPDIR": str(work), "LC_ALL": "C"}
    for command in to_run:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", cwd=work, check=False, env=environment)
        if done.returncode != 0:
            output = done.stdout + done.stderr
            if (fault := cache.folder_at_fault(output)) is not None:
                raise OSError(fault)
            lines = [line for line in output.splitlines() if line.strip()]
            errors = [line for line in lines if "error" in line.lower()] or lines
            return " | ".join(errors[:_ERROR_LINES])[:_ERROR_CHARACTERS]
    return None


def _ninja_file(commands: dict[str, list[str]]) -> str:
    """A build file: each output with its command; the last one is made from all the others."""
    text: list[str] = []
    before: list[str] = []
    for number, (output, command) in enumerate(commands.items()):
        needs = " ".join(before) if number == len(commands) - 1 else ""
        text.append(f"rule step{number}\n  command = {shlex.join(command).replace('$', '$$')}\n")
        text.append(f"build {output}: step{number} {needs}\n")
        before.append(output)
    return "".join(text)


def _load(folder: str, device_type: str) -> ctypes.CDLL:
    """Open the shared library of a kernel folder, from the first place where it loads.

    Raises:
        BuildError: there is none.
    """
    while True:
        path = shared_object(folder, device_type)
        try:
            return ctypes.CDLL(str(path))
        except OSError as error:  # a folder whose files may not be run as programs, or a library that it needs is missing
            if path in _not_loaded:
                raise BuildError(f"{path} does not load ({error})") from error
            _not_loaded.add(path)
            if path.parent in cache.candidates():
                cache.refuse(path.parent, f"{path.name} does not load: {error}")
