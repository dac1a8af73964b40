"""How far the jobs of a batch are: a bar for each that runs on a terminal, else a line for each every few seconds."""

import sys
import time
from collections.abc import Mapping

from tqdm import tqdm  # type: ignore[import-untyped]

from batch_jobs.jobs import Job
from batch_jobs.state import State
from nerf.core.console import SafeStream
from nerf.core.errors import visible
from nerf.core.words import counted

LINE_SECONDS = 10.0
NAME_WIDTH = 32


class Display:
    """Prints to stderr.

    Args:
        total: jobs of the batch.
        done: those that were done before.
        terminal: draw bars; None asks stderr whether it is a terminal.
    """

    def __init__(self, total: int, done: int = 0, terminal: bool | None = None) -> None:
        self.screen = SafeStream(lambda: sys.stderr)
        self.terminal = self.screen.isatty() if terminal is None else terminal
        self.total, self.done, self.failed = total, done, 0
        self._bars: dict[str, tqdm] = {}
        self._last_line = time.monotonic()
        self._said: dict[str, str] = {}  # the last line of each job, which is not said again

    def log(self, line: str) -> None:
        """Print a line above the bars."""
        if self.terminal:
            tqdm.write(visible(line), file=self.screen)
        else:
            print(visible(line), file=self.screen)

    def update(self, running: Mapping[Job, State | None]) -> None:
        """Show how far the jobs are that run."""
        if self.terminal:
            self._draw(running)
        elif time.monotonic() - self._last_line >= LINE_SECONDS:
            self._last_line = time.monotonic()
            for job, found in running.items():
                line = f"{job.name}: {progress_of(found)}"
                if self._said.get(job.name) != line:
                    self.log(line)
                self._said[job.name] = line

    def ended(self, job: Job, found: State) -> None:
        """A job is done, or has failed for good."""
        self._remove(job.name)
        self.done, self.failed = self.done + (found.state == "done"), self.failed + (found.state != "done")
        count = f"{self.done + self.failed} of {self.total}"
        tries = f", {counted(found.tries, 'try', 'tries')}" if found.tries > 1 else ""
        if found.state == "done":
            judged = ", ".join(f"{name} {value:.3g}" for name, value in found.scores.items()) or found.unjudged
            self.log(f"{job.name}: done in {tqdm.format_interval(found.seconds)}{tries}{judged and f', {judged}'} ({count})")
        else:
            self.log(f"{job.name}: failed{tries}: {found.error} ({count})")

    def again(self, job: Job, found: State) -> None:
        """A try has failed, and another one follows."""
        self._remove(job.name)
        self.log(f"{job.name}: {found.error}; it goes on from its newest checkpoint")

    def close(self) -> None:
        """Remove the bars."""
        for name in list(self._bars):
            self._remove(name)

    def _draw(self, running: Mapping[Job, State | None]) -> None:
        for job, found in running.items():
            bar = self._bars.get(job.name)
            if bar is None:
                layout = "{desc} {bar} {n_fmt}/{total_fmt}{postfix}"
                bar = tqdm(total=1, leave=False, dynamic_ncols=True, file=self.screen, bar_format=layout)
                self._bars[job.name] = bar
            bar.set_description_str(f"{job.name[:NAME_WIDTH]:<{NAME_WIDTH}}", refresh=False)
            if found is not None and found.state == "running":
                bar.total, bar.n = max(found.total, 1), min(found.step, max(found.total, 1))
            bar.set_postfix_str(_rest(found), refresh=False)
            bar.refresh()

    def _remove(self, name: str) -> None:
        bar = self._bars.pop(name, None)
        if bar is not None:
            bar.close()


def progress_of(found: State | None) -> str:
    """ "nerf 120/500 steps, 3.2 it/s, 02:01 left"."""
    if found is not None and found.state == "done":
        return "being judged"
    if found is None or found.state != "running" or not found.total:
        return "starting"
    if found.step >= found.total:
        return found.stage
    return f"{found.stage} {found.step}/{found.total} steps{_rest(found)}"


def _rest(found: State | None) -> str:
    """ ", 3.2 it/s, 02:01 left"; empty if nothing is known."""
    if found is None or found.rate <= 0 or found.step >= found.total:
        return ""
    return f", {found.rate:.3g} it/s, {tqdm.format_interval((found.total - found.step) / found.rate)} left"
