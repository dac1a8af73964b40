"""What the code under test says of its progress."""

from collections.abc import Iterator
from contextlib import contextmanager

from nerf.core import progress
from nerf.core.progress import Task


class _Listener(list):
    """Collects the tasks that begin."""

    def task_begins(self, task: Task) -> None:
        self.append(task)

    def task_advances(self, task: Task) -> None:
        assert self and 0 <= task.done <= task.total

    def task_ends(self, task: Task) -> None:
        pass


@contextmanager
def listening() -> Iterator[list[Task]]:
    """The tasks that begin in a ``with`` block, in their order."""
    found = _Listener()
    progress.listen(found)
    try:
        yield found
    finally:
        progress.ignore(found)
