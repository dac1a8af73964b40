"""Atomic writes of files and folders (a temporary one beside the target, renamed over it), and JSON."""

import json
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nerf.core.errors import UserError

# Names of what is not finished: ".mesh.4711.unfinished.glb" of process 4711, and ".mesh.4711.replaced" of a folder that is
# being replaced. A process that is killed leaves them behind.
UNFINISHED = re.compile(r"\..+\.\d+\.unfinished(\.[^.]*)?")
REPLACED = re.compile(r"\.(?P<name>.+)\.\d+\.replaced")


def write_atomically(path: str | Path, write: Callable[[Path], object], durable: bool = False) -> Path:
    """Let ``write`` fill a temporary file beside ``path``, then rename it; a failed write leaves nothing behind.

    Args:
        path: the file to make or to replace; its folder is made if need be.
        write: receives the temporary path, which has the suffix of ``path``.
        durable: sync the bytes before the rename, so that a power failure leaves either the old file or the new one.

    Raises:
        OSError: the folder cannot be made or written to, or the disk is full; the old file is unchanged. It names ``path``.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.unfinished{path.suffix}")
    try:
        write(temporary)
        if durable:
            _sync(temporary)
        os.replace(temporary, path)
        if durable:
            _sync_folder(path.parent)
    except OSError as error:  # the error of a full disk names no file, others name the temporary one
        if error.errno is None:  # raised by a library, with a complete message
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)
    return path


@contextmanager
def replace_folder(folder: str | Path, names: Collection[str]) -> Iterator[Path]:
    """A new folder to fill in a ``with`` block, which takes the place of ``folder`` as a whole at its end.

    If the block fails, the folder stays as it was. Files in it under other names than ``names`` are not of the program and are
    kept.

    Args:
        folder: to make or to replace; the folders above it are made if need be.
        names: of all files that the program may write there.

    Raises:
        OSError: a folder cannot be made or written to, or ``folder`` is a file.
    """
    folder = Path(os.path.realpath(folder))  # a link to a folder on another disk stays one
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(20, "it is a file and not a folder", str(folder))
    fresh, old = (folder.with_name(f".{folder.name}.{os.getpid()}.{state}") for state in ("unfinished", "replaced"))
    for left in (fresh, old):
        shutil.rmtree(left, ignore_errors=True)
    fresh.mkdir(parents=True)
    try:
        yield fresh
        for path in fresh.iterdir():
            _sync(path)
        for path in folder.iterdir() if folder.exists() else ():
            if path.name not in names and not UNFINISHED.fullmatch(path.name):
                _keep_too(path, fresh / path.name)
        if folder.exists():
            os.rename(folder, old)
        try:
            os.rename(fresh, folder)
        except OSError:
            if old.exists():
                os.rename(old, folder)
            raise
        _sync_folder(folder.parent)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def remove_unfinished(folder: str | Path) -> list[Path]:
    """Remove what killed processes left unfinished in a folder and the folders in it; call it while no other writes there.

    A folder that such a process was replacing is put back where the new one is not in its place.

    Returns:
        What was removed or put back.
    """
    folder, found = Path(folder), []
    for place in (folder, *(path for path in folder.iterdir() if path.is_dir() and not path.is_symlink())):
        if not os.access(place, os.R_OK | os.W_OK | os.X_OK):  # of another user, so no run writes there
            continue
        for path in list(place.iterdir()) if place.exists() else ():
            replaced = REPLACED.fullmatch(path.name)
            if replaced is None and not UNFINISHED.fullmatch(path.name):
                continue
            if replaced is not None and not (place / replaced["name"]).exists():
                os.rename(path, place / replaced["name"])
            elif path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
            found.append(path)
    return found


def _keep_too(path: Path, copy: Path) -> None:
    """A second name for a file, or a folder of second names; a copy where the disk has no hard links."""
    if path.is_dir() and not path.is_symlink():
        shutil.copytree(path, copy, symlinks=True, copy_function=_link)
    else:
        _link(str(path), str(copy))


def _link(path: str, copy: str) -> None:
    try:
        os.link(path, copy, follow_symlinks=False)
    except OSError:
        shutil.copy2(path, copy, follow_symlinks=False)


def write_json(path: str | Path, value: Any) -> Path:
    """Write ``value`` as indented JSON, atomically.

    Raises:
        OSError: it cannot be written.
    """
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    return write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def read_json(path: str | Path, hint: str) -> Any:
    """The value in a JSON file.

    Args:
        path: the file.
        hint: what the user can do if it is broken; the end of the message.

    Raises:
        UserError: the file cannot be read or is not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}; {hint}") from None
    except (ValueError, RecursionError) as error:  # of text that is not UTF-8, numbers of 5,000 digits, and all that is no JSON
        raise UserError(f"{path} is not valid JSON ({error}); {hint}") from None


def _sync(path: Path) -> None:
    """Write a file's bytes to the disk now."""
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    """Write a rename inside a folder to the disk now; only where folders can be opened (not Windows)."""
    if os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
