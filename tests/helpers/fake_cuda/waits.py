"""What the host waits for, and how many operations and kernels are launched, with the line of the project that is the cause."""

import collections
import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
_OURS, _HERE = f"{ROOT}/", f"{Path(__file__).resolve().parent}/"


class SynchronizationError(RuntimeError):
    """The host waited where ``torch.cuda.set_sync_debug_mode("error")`` forbids it."""


@dataclass(frozen=True)
class Wait:
    """One reason to wait for the device, at one line."""

    kind: str  # such as "item" or "copy to the device"
    function: str  # qualified name of the innermost function of the project
    path: str  # of its file, inside the project
    line: int

    def __str__(self) -> str:
        return f"{self.path}:{self.line} {self.function}: {self.kind}"


@dataclass
class Record:
    """What happened since it was made."""

    waits: collections.Counter[Wait] = field(default_factory=collections.Counter)
    operations: collections.Counter[str] = field(default_factory=collections.Counter)  # torch's; each launches a kernel or more
    kernels: collections.Counter[str] = field(default_factory=collections.Counter)  # calls of the project's own

    def by_function(self) -> dict[tuple[str, str], int]:
        """(function, kind) -> number of waits: what stays the same when lines move."""
        found: collections.Counter[tuple[str, str]] = collections.Counter()
        for wait, times in self.waits.items():
            found[wait.function, wait.kind] += times
        return dict(found)

    def lines(self) -> list[str]:
        """The waits as text, the most frequent first."""
        return [f"{times:6d}  {wait}" for wait, times in self.waits.most_common()]


_records: list[Record] = [Record()]  # the first is of the whole process
forbidden = False  # torch.cuda.set_sync_debug_mode


def whole_process() -> Record:
    """What happened since the process began."""
    return _records[0]


@contextlib.contextmanager
def record() -> Iterator[Record]:
    """Record what happens in a block."""
    made = Record()
    _records.append(made)
    try:
        yield made
    finally:
        _records.remove(made)


def wait(kind: str, explicit: bool = False) -> None:
    """The host waits for the device.

    Args:
        kind: what it waits for.
        explicit: it asked to wait (for an event, say), which set_sync_debug_mode does not forbid.

    Raises:
        SynchronizationError: waits are forbidden.
    """
    found = Wait(kind, *_cause())
    for each in _records:
        each.waits[found] += 1
    if forbidden and not explicit:
        raise SynchronizationError(f"called a synchronizing CUDA operation: {found}")


def launched(operation: str) -> None:
    """An operation of torch was launched."""
    for each in _records:
        each.operations[operation] += 1


def called(kernel: str) -> None:
    """One of the project's kernels was called."""
    for each in _records:
        each.kernels[kernel] += 1


def _cause() -> tuple[str, str, int]:
    """Function, file and line of the innermost frame of the project."""
    frame = sys._getframe(2)
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith(_OURS) and not name.startswith(_HERE) and "/site-packages/" not in name:
            function = frame.f_code.co_qualname.partition(".<locals>")[0]  # of a lambda or a comprehension: what it is in
            return function, name[len(_OURS) :], frame.f_lineno
        frame = frame.f_back
    return "?", "?", 0
