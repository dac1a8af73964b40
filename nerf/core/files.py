"""Files that are whole or absent: written to a temporary name beside the target, then renamed over it."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nerf.core.errors import UserError


def write_atomically(path: str | Path, write: Callable[[Path], object], durable: bool = False) -> Path:
    """Let ``write`` fill a temporary file beside ``path``, then rename it; a failed write leaves nothing behind.

    Args:
        path: the file to make or to replace; its folder is made if need be.
        write: gets the temporary name, which has the suffix of ``path``.
        durable: the bytes are on the disk before the name is, so that a power cut leaves the old file or the new one.

    Raises:
        OSError: the folder cannot be made or written to, or the disk is full; the old file is as it was. It names ``path``.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        write(temporary)
        if durable:
            _sync(temporary)
        os.replace(temporary, path)
        if durable:
            _sync_folder(path.parent)
    except OSError as error:  # a full disk names no file, others the temporary one
        if error.errno is None:  # a library's own, with a sentence that says all
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)
    return path


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
        hint: what the user can do if it is broken; the end of the sentence.

    Raises:
        UserError: the file cannot be read or is not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}; {hint}") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path} is not valid JSON ({error}); {hint}") from None


def _sync(path: Path) -> None:
    """Have the system write a file's bytes to the disk now."""
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    """The same for a rename inside a folder, where the system knows folders as files (not Windows)."""
    if os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
