"""Atomic file writes (a temporary file beside the target, renamed over it) and JSON."""

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
        write: receives the temporary path, which has the suffix of ``path``.
        durable: sync the bytes before the rename, so that a power failure leaves either the old file or the new one.

    Raises:
        OSError: the folder cannot be made or written to, or the disk is full; the old file is unchanged. It names ``path``.
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
    except OSError as error:  # the error of a full disk names no file, others name the temporary one
        if error.errno is None:  # raised by a library, with a complete message
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
        hint: what the user can do if it is broken; the end of the message.

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
