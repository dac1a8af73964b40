"""Shows the tasks of :mod:`nerf.core.progress`: a bar each on a terminal, else a line every few seconds."""

import time
from collections.abc import Callable
from io import TextIOBase

from tqdm import tqdm  # type: ignore[import-untyped]

from nerf.core.progress import Task

LINE_SECONDS = 10.0  # without a terminal: a line this often
BAR_DELAY = 0.5  # seconds before a bar appears, so that short tasks do not flicker


class TaskDisplay:
    """A listener of tasks.

    Args:
        screen: where bars are drawn.
        terminal: draw bars; otherwise lines are logged.
        log: takes a line.
    """

    def __init__(self, screen: TextIOBase, terminal: bool, log: Callable[[str], None]) -> None:
        self.screen, self.terminal, self.log = screen, terminal, log
        self._open: list[tuple[Task, tqdm | None]] = []  # the outermost first
        self._last_line = 0.0

    def task_begins(self, task: Task) -> None:
        """Make its bar, which appears if the task lasts."""
        bar = None
        if self.terminal:
            bar = tqdm(total=task.total, desc=task.doing, leave=False, dynamic_ncols=True, delay=BAR_DELAY, file=self.screen)
        elif not self._open:
            self._last_line = time.monotonic()
        self._open.append((task, bar))

    def task_advances(self, task: Task) -> None:
        """Move its bar, or log a line if one is due."""
        for opened, bar in self._open:
            if opened is task and bar is not None:
                bar.update(task.done - bar.n)
        now = time.monotonic()
        if not self.terminal and now - self._last_line >= LINE_SECONDS:
            self._last_line = now
            self.log(self._line())

    def task_ends(self, task: Task) -> None:
        """Remove its bar."""
        for opened, bar in self._open:
            if opened is task and bar is not None:
                bar.close()
        self._open = [(opened, bar) for opened, bar in self._open if opened is not task]

    def _line(self) -> str:
        """ "rendering the video 3/60 (rendering a view 12/157), 04:10 left"."""
        shown = [f"{opened.doing} {opened.done}/{opened.total}" for opened, _ in self._open]
        inside = "".join(f" ({text})" for text in shown[1:])
        return f"{shown[0]}{inside}, {tqdm.format_interval(self._left())} left"

    def _left(self) -> float:
        """Seconds to the end of the outermost task, counting the finished part of the inner ones."""
        part = 0.0
        for task, _ in reversed(self._open):
            part = (task.done + part) / max(task.total, 1)
        elapsed = time.monotonic() - self._open[0][0].started
        return elapsed * (1.0 - part) / max(part, 1e-9)
