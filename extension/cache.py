"""The folders that compiled kernels are kept in, and whether a library there is as it was written."""

import contextlib
import errno
import hashlib
import logging
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

log = logging.getLogger("somnia.extension")

# What compilers and linkers print where the folder, and not the source, is at fault.
_OF_THE_FOLDER = re.compile(
    "no space left|quota exceeded|read-only file system|file too large|permission denied", re.IGNORECASE
)
_refused: dict[Path, str] = {}  # folder -> why it is of no use to this process


def candidates() -> Iterator[Path]:
    """Folders in the order in which they are tried, without those that were refused before.

    SOMNIA_KERNEL_CACHE, ``somnia/kernels`` in the user's cache folder, and a private folder of the temporary directory.
    """
    base = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA") or Path.home() / ".cache"
    chosen = os.environ.get("SOMNIA_KERNEL_CACHE")
    user = str(os.getuid()) if hasattr(os, "getuid") else "user"
    places = [Path(chosen)] if chosen else [Path(base, "somnia", "kernels")]
    for place in [*places, Path(tempfile.gettempdir(), f"somnia-kernels-{user}")]:
        if place not in _refused:
            yield place


def make_writable(place: Path) -> bool:
    """Make a folder if need be; whether it is the user's own and can be written. If not, the next one is tried from now on."""
    try:
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        refuse(place, error.strerror or str(error))
        return False
    if not is_own(place):
        refuse(place, "it belongs to another user")
    elif not os.access(place, os.W_OK | os.X_OK):
        refuse(place, os.strerror(errno.EACCES))
    return place not in _refused


def is_own(place: Path) -> bool:
    """Whether a folder belongs to this user: a library of another one is not run."""
    return not hasattr(os, "getuid") or place.stat().st_uid == os.getuid()


def refuse(place: Path, reason: str) -> None:
    """Use a folder no more in this process; one warning says so and why."""
    _refused[place] = reason
    following = next(candidates(), None)
    instead = "there is no other one" if following is None else f"{following} is used instead"
    log.warning("the folder of compiled kernels %s cannot be used (%s); %s", place, reason, instead)


def nowhere() -> str:
    """The sentence where every folder was refused."""
    tried = ", ".join(f"{place} ({reason})" for place, reason in _refused.items())
    return f"compiled kernels can be kept nowhere: {tried}; free some space there, or set SOMNIA_KERNEL_CACHE to another folder"


def folder_at_fault(output: str) -> str | None:
    """What a failed compiler said of the folder it wrote to; None if the source is at fault."""
    found = _OF_THE_FOLDER.search(output)
    return None if found is None else found[0].lower()


def write_checksum(library: Path) -> None:
    """Write the checksum of a library beside it.

    Raises:
        OSError: it cannot be written.
    """
    _checksum_path(library).write_text(_checksum(library))


def is_whole(library: Path, unknown: bool = False) -> bool:
    """Whether a library is as it was written; loading a damaged one may end the process.

    Args:
        library: its file.
        unknown: the answer where there is no checksum.
    """
    try:
        expected = _checksum_path(library).read_text()
    except (OSError, UnicodeDecodeError):
        expected = None
    with contextlib.suppress(OSError):
        return unknown and library.is_file() if expected is None else _checksum(library) == expected
    return False


def _checksum(library: Path) -> str:
    return hashlib.sha256(library.read_bytes()).hexdigest()


def _checksum_path(library: Path) -> Path:
    return library.with_name(f"{library.name}.sha256")
