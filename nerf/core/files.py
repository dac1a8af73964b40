"""Files: atomic writes (a temporary file beside the target, renamed over it), and reading that ends in a value or a UserError.

Whatever a user gives may be damaged. :func:`read_text` and :func:`read_json` are the one way to read text; a JSON value is
checked against a declared shape, so that the code after it need not look at types again. :func:`reading` does the same for
the parsers of libraries, which raise exceptions of any kind.
"""

import errno
import json
import os
import re
import shutil
import stat
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from nerf.core.errors import UserError

# Names of what is not finished: ".mesh.4711.unfinished.glb" of process 4711, and ".mesh.4711.replaced" of a folder that is
# being replaced. A process that is killed leaves them behind.
UNFINISHED = re.compile(r"\..+\.\d+\.unfinished(\.[^.]*)?")
REPLACED = re.compile(r"\.(?P<name>.+)\.\d+\.replaced")
T = TypeVar("T")

MAX_BYTES = 1 << 28  # of a file that is read as a whole; the JSON of ten thousand photographs stays below a tenth of it
MAX_DEPTH = 64  # of nested lists and objects in JSON
UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
_NO_SUCH_FILE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EBADF, errno.ENAMETOOLONG, errno.EINVAL)  # nobody's file
_REASON_LENGTH = 200  # characters of another library's message that are repeated in ours


def unfinished_name(path: Path) -> Path:
    """The name beside a path of what this process has not finished; :func:`remove_unfinished` removes what is left of it."""
    return path.with_name(f".{path.stem}.{os.getpid()}.unfinished{path.suffix}")


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
    temporary = unfinished_name(path)
    try:
        temporary.touch()
        mode = stat.S_IMODE(temporary.stat().st_mode)  # of the umask; safetensors would give 0600
        write(temporary)
        os.chmod(temporary, mode)
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


def cache_folder(name: str, variable: str) -> Path:
    """A folder of the program in the user's cache folder; it need not exist.

    Args:
        name: of the folder.
        variable: of the environment, which names another place.
    """
    base = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA") or Path.home() / ".cache"
    return Path(os.environ.get(variable) or Path(base, "somnia", name))


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


def check_writable(folder: str | Path, flag: str) -> None:
    """Check that a folder can be made or written to, without making it.

    Args:
        folder: as the user typed it.
        flag: and where.

    Raises:
        UserError: it cannot.
    """
    path = Path(folder).absolute()
    existing = next(place for place in (path, *path.parents) if place.exists())
    if not existing.is_dir():
        reason = f"{existing} is not a folder"
    elif not os.access(existing, os.W_OK | os.X_OK):
        reason = f"no permission for {existing}"
    else:
        return
    raise UserError(f"{flag} {folder} cannot be written to ({reason}); choose a folder of your own")


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder to fill in a ``with`` block; it gets the name ``folder`` as a whole at its end, and vanishes if the block fails.

    Raises:
        UserError: ``folder`` exists and is not empty, is a file, or cannot be made.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        what = "is not empty" if folder.is_dir() else "is a file"
        raise UserError(f"{folder} {what}; give the name of a folder that does not exist")
    unfinished = unfinished_name(folder)
    try:
        unfinished.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be made: {error.strerror}; give a folder that can be written to") from error
    try:
        yield unfinished
        if folder.exists():
            folder.rmdir()
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


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


def write_json(path: str | Path, value: Any, durable: bool = False) -> Path:
    """Write ``value`` as indented JSON; see :func:`write_atomically`.

    Raises:
        OSError: it cannot be written.
    """
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    if any("\ud800" <= letter <= "\udfff" for letter in text):  # a path that is not UTF-8 has lone surrogates
        text = json.dumps(value, indent=2) + "\n"
    return write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"), durable)


@contextmanager
def reading(what: object, hint: str, kind: type[UserError] = UserError, problem: str = "cannot be read") -> Iterator[None]:
    """Run a parser in this block: whatever it raises on damaged bytes becomes one sentence.

    Only for code that parses a file. A list of the exceptions of a library is never complete, and a damaged file must not
    end in a traceback, so nothing is let through but a UserError and an interruption.

    Args:
        what: the file, as the sentence begins.
        hint: what the user can do; the end of the sentence.
        kind: of the error.
        problem: what the sentence says of the file.

    Raises:
        UserError: the block raised anything else.
    """
    try:
        yield
    except UserError:
        raise
    except MemoryError as error:
        raise kind(f"{what} {problem}: it needs more memory than there is; {hint}") from error
    except Exception as error:
        raise kind(f"{what} {problem}: {reason_of(error)}; {hint}") from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # an error inside a library written in Rust
            raise
        raise kind(f"{what} {problem}: {reason_of(error)}; {hint}") from error


def reason_of(error: BaseException) -> str:
    """The message of another library's exception in one line; the exception's name where the message says too little."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    try:
        text = str(error)
    except Exception:  # of a damaged file, even the message of the error may not be printable
        text = ""
    line = " ".join(text.split()).rstrip(".;: ")
    line = line if len(line) <= _REASON_LENGTH else f"{line[:_REASON_LENGTH]} ..."
    if isinstance(error, KeyError):
        return f"there is no {line}"
    return line if " " in line else " ".join(filter(None, (type(error).__name__, line)))


def read_bytes(path: str | Path, hint: str, limit: int = MAX_BYTES, pipe: bool = False, what: str = "") -> bytes:
    """The bytes of a regular file.

    Args:
        path: the file.
        hint: what the user can do; the end of the message.
        limit: in bytes.
        pipe: it may also be a pipe, such as a shell makes for ``<(command)``; it is waited for.
        what: the file, as the message begins, if that is not its path.

    Raises:
        UserError: it does not exist, cannot be read, is larger than ``limit``, or is no file (a pipe might never end).
    """
    what = what or str(path)
    too_large = UserError(f"{what} is larger than {limit >> 20} MiB, which no such file is; {hint}")
    with reading(what, hint), open(path, "rb", opener=None if pipe else _open_without_waiting) as file:
        status = os.fstat(file.fileno())
        if not pipe and not stat.S_ISREG(status.st_mode):
            raise UserError(f"{what} cannot be read: it is not a file; {hint}")
        if status.st_size > limit:
            raise too_large
        data = file.read(limit + 1) if pipe else file.read()
    if len(data) > limit:
        raise too_large
    return data


def is_file(path: str | Path) -> bool:
    """Whether a path that a user or a file gives is that of a file; a name that no file can have is that of none."""
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except ValueError:  # a name with a byte 0
        return False
    except OSError as error:
        if error.errno in _NO_SUCH_FILE:
            return False
        raise


def _open_without_waiting(path: str, flags: int) -> int:
    """Open a file; of a pipe that nobody writes to, return at once."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def decode_text(data: bytes, what: object, hint: str) -> str:
    """UTF-8 bytes as text, without a byte order mark.

    Args:
        data: the content of a file.
        what: the file, as the message begins.
        hint: what the user can do; the end of the message.

    Raises:
        UserError: they are not UTF-8.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if data.startswith(UTF16_MARKS):
            raise UserError(
                f"{what} is not a text file in UTF-8, but one in UTF-16; save it as UTF-8, and start again"
            ) from None
        raise UserError(f"{what} is not a text file in UTF-8 (byte {error.start}: {error.reason}); {hint}") from None


def read_text(path: str | Path, hint: str, limit: int = MAX_BYTES) -> str:
    """The text of a UTF-8 file without its byte order mark; see :func:`read_bytes`.

    Raises:
        UserError: it cannot be read, is not UTF-8, or is larger than ``limit`` bytes.
    """
    return decode_text(read_bytes(path, hint, limit), path, hint)


def parse_json(text: str | bytes, what: object, hint: str) -> Any:
    """The value of a JSON text, of whatever shape; NaN and Infinity are numbers, as Python writes them.

    Args:
        text: the JSON, in UTF-8 if bytes.
        what: where it is from, as the message begins.
        hint: what the user can do; the end of the message.

    Raises:
        UserError: it is not JSON, has a number of thousands of digits, or is nested deeper than :data:`MAX_DEPTH`.
    """
    text = decode_text(text, what, hint) if isinstance(text, bytes) else text
    try:
        value = json.loads(text.removeprefix("\ufeff"))
    except json.JSONDecodeError as error:
        raise UserError(f"{what} is not valid JSON, line {error.lineno} column {error.colno}: {error.msg}; {hint}") from None
    except RecursionError:
        raise UserError(f"{what}: its JSON is nested too deeply; {hint}") from None
    except ValueError:
        raise UserError(f"{what}: its JSON has a number of thousands of digits; {hint}") from None
    if _deeper_than(value, MAX_DEPTH):
        raise UserError(f"{what}: its JSON is nested too deeply; {hint}")
    return value


def _deeper_than(value: Any, limit: int) -> bool:
    """Whether lists and dicts are nested more than ``limit`` deep; level by level, as recursion might not come back."""
    level = [value]
    for _ in range(limit):
        level = [inside for v in level if isinstance(v, dict | list) for inside in (v.values() if isinstance(v, dict) else v)]
        if not level:
            return False
    return any(isinstance(v, dict | list) for v in level)


def as_shape(value: Any, what: object, hint: str, shape: type[T]) -> T:
    """A parsed JSON value as a declared shape: a ``msgspec.Struct``, or ``dict[str, float]`` and the like.

    Args:
        value: of :func:`parse_json`.
        what: where it is from, as the message begins.
        hint: what the user can do; the end of the message.
        shape: keys that a Struct does not declare are left out.

    Raises:
        UserError: it has another shape; the message names the place inside it.
    """
    try:
        return msgspec.convert(value, shape)
    except UnicodeEncodeError as error:  # a lone surrogate, written as an escape
        raise UserError(f"{what} holds text that is not UTF-8 ({error.object!r:.40}); {hint}") from None
    except msgspec.ValidationError as error:
        found = re.fullmatch(r"(.*?)(?: - at `(.*)`)?", str(error), re.DOTALL)
        text, place = (str(error), None) if found is None else found.groups()
        inside = "" if place in (None, "$") else f", {str(place).removeprefix('$').removeprefix('.')}"
        text = text.replace("`", "")
        raise UserError(f"{what}{inside}: {text[:1].lower()}{text[1:]}; {hint}") from None


def read_json(path: str | Path, hint: str, shape: Any = Any, limit: int = MAX_BYTES) -> Any:
    """The value in a JSON file.

    Args:
        path: the file.
        hint: what the user can do if it is broken; the end of the message.
        shape: see :func:`as_shape`; without it, the value may be anything.
        limit: in bytes.

    Raises:
        UserError: the file cannot be read, is too large, is not JSON, or holds a value of another shape.
    """
    return as_shape(parse_json(read_text(path, hint, limit), path, hint), path, hint, shape)


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
