"""The lock of a workspace: one program at a time writes there."""

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from nerf.core.errors import UserError
from nerf.core.files import read_json, write_json
from nerf.run.distributed import is_main

LOCK_FILE = ".lock"
OWNER_FILE = ".lock.json"  # who holds the lock: "pid", "host", "since"
OWNER_SECONDS = 2.0  # how long to wait for the owner to say who it is; it does so right after it has the lock


_held: set[Path] = set()  # folders that this process holds


class InUseError(UserError):
    """Another program holds a workspace; ``owner`` says which one, as words of a sentence."""

    def __init__(self, folder: Path, owner: str) -> None:
        super().__init__(
            f"workspace {folder} is in use by {owner}; wait until it has ended or stop it (its previews are in validation/), "
            "or choose another --workspace"
        )
        self.owner = owner


@contextmanager
def hold(folder: str | Path) -> Iterator[None]:
    """Hold a workspace in a ``with`` block; on rank 0 alone. A block inside another one of the same process does nothing.

    The system gives the lock back when a process dies, however it dies. The folder is made if need be, and removed again at
    the end if nothing is in it.

    Raises:
        InUseError: another program holds it.
        UserError: the lock cannot be made.
    """
    if not is_main():
        yield
        return
    folder = Path(os.path.abspath(folder))
    if folder in _held:
        yield
        return
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    lock = FileLock(folder / LOCK_FILE)
    try:
        try:
            _acquire(lock, folder)
        except OSError as error:
            reason = error.strerror or error
            raise UserError(f"--workspace {folder} cannot be written to ({reason}); choose a folder of your own") from None
        _held.add(folder)
        try:
            yield
        finally:
            _held.discard(folder)
            for name in (OWNER_FILE, LOCK_FILE):  # while the lock is held: whoever waits for the old file makes a new one
                (folder / name).unlink(missing_ok=True)
            lock.release()
    finally:
        for place in made:
            with suppress(OSError):  # it has files by now
                place.rmdir()


def is_held(folder: str | Path) -> bool:
    """Whether a block of :func:`hold` in this process holds a workspace."""
    return Path(os.path.abspath(folder)) in _held


def _acquire(lock: FileLock, folder: Path) -> None:
    """Take the lock and leave a note who has it."""
    for _ in range(10):  # another program may remove the folder that it made and did not need
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
            break
        except FileNotFoundError:
            time.sleep(0.05)
        except Timeout:
            raise InUseError(folder, _owner(folder)) from None
    else:
        raise UserError(
            f"--workspace {folder} cannot be made, or does not stay: there is no file in it a moment later; choose a folder on "
            "a disk of your own"
        )
    try:
        now = time.strftime("%Y-%m-%d %H:%M:%S")
        write_json(folder / OWNER_FILE, {"pid": os.getpid(), "host": socket.gethostname(), "since": now})
    except OSError:
        lock.release()
        raise


def _owner(folder: Path) -> str:
    """Who holds the lock of a folder; a note of a dead process is not believed."""
    end = time.monotonic() + OWNER_SECONDS
    while time.monotonic() < end:
        with suppress(UserError):
            note = read_json(folder / OWNER_FILE, "")
            if isinstance(note, dict) and isinstance(note.get("pid"), int) and _may_live(note):
                return f"process {note['pid']} on {note.get('host')}, since {note.get('since')}"
        time.sleep(0.05)
    return "another program, which has not said who it is"


def _may_live(note: dict) -> bool:
    """Whether the process of a note runs, as far as can be told from here."""
    if note.get("host") != socket.gethostname() or os.name != "posix":
        return True
    try:
        os.kill(note["pid"], 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True
