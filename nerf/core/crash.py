"""The last net: an exception that nobody foresaw ends as one sentence, and its traceback in a file that can be sent."""

import errno
import platform
import sys
import tempfile
import time
import traceback
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from nerf.core.files import reason_of
from nerf.core.memory import OutOfMemoryError, is_out_of_memory

WITHOUT_MEMORY = "the machine has not enough memory; close other programs, or lower the flags that size the run"
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
PACKAGES = ("torch", "numpy", "pillow", "trimesh", "safetensors", "diffusers", "transformers")  # whose versions are recorded


def sentence_of(error: BaseException, folder: str | Path | None) -> str:
    """Write the traceback of an exception to a file; returns the sentence for the user.

    Memory that ran out and an error of the disk are none of the program, and make no file.

    Args:
        error: the exception.
        folder: the workspace of the run, where the file goes if the folder exists; else it goes to the temporary folder.
    """
    if is_out_of_memory(error):
        return str(error) if isinstance(error, OutOfMemoryError) else f"{WITHOUT_MEMORY} ({reason_of(error)})"
    if isinstance(error, OSError):
        return sentence_of_file(error)
    what = f"an error that was not foreseen ({reason_of(error)})"
    text = _report(error)
    for place in (folder, tempfile.gettempdir()):
        path = None if place is None or not Path(place).is_dir() else _written(Path(place), text)
        if path is not None:
            return f"{what}; {path} has its traceback: please report it with that file"
    print(text, file=sys.stderr)
    return f"{what}; its traceback could be written nowhere, and is above: please report it"


def sentence_of_file(error: OSError) -> str:
    """What an error of the disk means, for people."""
    way_out = "; free some space, or choose another --workspace, and start again" if error.errno in DISK_FULL else ""
    return f"{error.filename or 'a file'} could not be read or written: {error.strerror or error}{way_out}"


def _report(error: BaseException) -> str:
    """The command, the versions and the traceback."""
    versions = [f"python {platform.python_version()}", platform.platform(), *map(_version, PACKAGES)]
    trace = "".join(traceback.format_exception(error))
    return f"command: {sys.argv!r}\nversions: {', '.join(versions)}\n\n{trace}"


def _version(package: str) -> str:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return f"no {package}"


def _written(folder: Path, text: str) -> Path | None:
    """Write the report under a name of its own; None if that is impossible."""
    path = folder / f"crash_{time.strftime('%Y%m%d_%H%M%S')}_{time.monotonic_ns()}.txt"
    try:
        path.write_text(text, encoding="utf-8", errors="backslashreplace")
    except OSError:
        return None
    return path
