"""Progress of long loops: whoever loops says how far it is, and whoever shows it listens.

    for view in track(views, "rendering the video"):
        ...
    with task("baking colours", rows) as advance:
        advance(row)                                # how much of it is done by now

Without a listener nothing happens. :class:`nerf.run.logger.Report` is the listener of a run.
"""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

T = TypeVar("T")


@dataclass(eq=False)
class Task:
    """A loop that runs."""

    doing: str  # for the user, such as "rendering the video"
    total: int
    done: int = 0
    started: float = field(default_factory=time.monotonic)


class Listener(Protocol):
    """Shows tasks; they are nested, the newest ends first."""

    def task_begins(self, task: Task) -> None:
        """A task begins."""

    def task_advances(self, task: Task) -> None:
        """``task.done`` has changed."""

    def task_ends(self, task: Task) -> None:
        """A task ends, also by an exception."""


_listeners: list[Listener] = []
_of_thread = threading.local()  # ``quiet``: whether the loops of this thread are told to nobody


def listen(listener: Listener) -> None:
    """Tell a listener of all tasks from now on."""
    _listeners.append(listener)


def ignore(listener: Listener) -> None:
    """Undo :func:`listen`; a listener that does not listen is ignored already."""
    if listener in _listeners:
        _listeners.remove(listener)


@contextmanager
def quiet() -> Iterator[None]:
    """A block whose loops are told to nobody: those of a thread that works beside the one that listeners show."""
    before = getattr(_of_thread, "quiet", False)
    _of_thread.quiet = True
    try:
        yield
    finally:
        _of_thread.quiet = before


@contextmanager
def task(doing: str, total: int) -> Iterator[Callable[[int], None]]:
    """A loop of ``total`` steps; yields the function to call with the number of those that are done."""
    this, told = Task(doing, total), [] if getattr(_of_thread, "quiet", False) else list(_listeners)

    def advance(done: int) -> None:
        this.done = done
        for listener in told:
            listener.task_advances(this)

    for listener in told:
        listener.task_begins(this)
    try:
        yield advance
    finally:
        for listener in told:
            listener.task_ends(this)


def track(items: Sequence[T], doing: str) -> Iterator[T]:
    """The items of a sequence, with a task that counts them."""
    with task(doing, len(items)) as advance:
        for done, item in enumerate(items, 1):
            yield item
            advance(done)
