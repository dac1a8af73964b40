"""What runs the jobs of a batch in one process, one after the other, with guidance models that stay loaded."""

import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from batch_jobs import state
from batch_jobs.scores import Judging
from batch_jobs.state import State
from nerf.core.errors import DivergenceError, ExportError, Stopped, UserError

if TYPE_CHECKING:
    from batch_jobs.shared_guidance import SharedGuidance
    from nerf.utils import StepRecord, Trainer

WRITE_SECONDS = 1.0  # between two notes of how far a job is
LOCK_SECONDS = 120.0  # to wait for a process of a batch that was killed, which may still write
WRITING = "writing the results"


class Outcome(TypedDict):
    """What came of a try."""

    error: str  # the sentence of what ended it; empty if the job is done
    final: bool  # another try would end in the same way
    loaded: int  # times that the process has loaded guidance models


class Worker:
    """Runs jobs; Ray makes one in a process of its own.

    Args:
        folder: where the program runs, as relative paths in flags mean it; "" for where the process is.
    """

    def __init__(self, folder: str = "") -> None:
        if folder and os.path.isdir(folder):
            os.chdir(folder)
        self._shared: SharedGuidance | None = None  # made with the first job, as it imports torch

    def run(self, workspace: str, words: list[str], key: list[str], tries: int, judging: Judging | None = None) -> Outcome:
        """One try of a job: train to the end from its newest checkpoint, and write the results.

        Args:
            workspace: its folder.
            words: the whole command line.
            key: flags of the job as its batch lists them, for ``job.json``.
            tries: processes that have begun it, with this one.
            judging: how it is judged when it is done; None: it is not.
        """
        from batch_jobs.shared_guidance import SharedGuidance

        shared = self._shared = self._shared or SharedGuidance()
        folder = Path(workspace)
        try:
            with _alone(folder):
                found = state.read(folder)
                if not state.is_finished(found):  # a process of a killed batch may have finished it
                    found = State("running", key, tries, process=os.getpid(), host=socket.gethostname())
                    state.write(folder, found)
                    _run(folder, words, shared, found)
                if judging is not None and found is not None and not state.is_finished(found, judging.scorer):
                    _judge(folder, judging, found)
            return Outcome(error="", final=False, loaded=shared.loaded)
        except Exception as error:
            return Outcome(error=sentence_of(error, folder), final=is_final(error), loaded=shared.loaded)


def _run(folder: Path, words: list[str], shared: "SharedGuidance", note: State) -> None:
    """Train, and write the results; ``note`` is written to ``job.json`` as it goes on, and says at the end that it is done."""
    import main
    from nerf.config import config as options

    started = time.monotonic()
    with main.ready(options.parse(words), shared.build) as (run, trainer, _):
        run.go_through(trainer, _Notes(folder, note))
    note.state, note.stage, note.seconds = "done", "", round(time.monotonic() - started, 2)
    state.write(folder, note, durable=True)


def _judge(folder: Path, judging: Judging, found: State) -> None:
    """Add the scores of a finished job to ``job.json``, or why there are none."""
    from batch_jobs import scores

    try:
        found.scores, found.unjudged = scores.judge(folder, judging), ""
    except UserError as error:
        found.unjudged = str(error)
    state.write(folder, found, durable=True)


class _Notes:
    """Notes in ``job.json`` how far a run is; see :class:`nerf.run.attendant.Attendant`."""

    def __init__(self, folder: Path, note: State) -> None:
        self.folder, self.note = folder, note
        self._last, self._began, self._first = 0.0, 0.0, 0

    def begin_stage(self, trainer: "Trainer") -> None:
        """A stage begins, or goes on."""
        config, self.note.stage, self.note.step = trainer.config, trainer.stage.name, trainer.step
        self.note.total = config.dmtet.dmtet_iters if trainer.stage.kind.triangles else config.optim.iters
        self._began, self._first = time.monotonic(), trainer.step
        self._write()

    def after_step(self, trainer: "Trainer", record: "StepRecord") -> None:
        """A step was taken.

        Raises:
            Stopped: the batch is being stopped; the checkpoint is written.
        """
        now = time.monotonic()
        if now - self._last < WRITE_SECONDS:
            return
        if (self.folder.parent / state.STOP_FILE).exists():
            trainer.save()
            raise Stopped(signal.SIGTERM)
        self.note.step, self.note.total = trainer.step, record.total
        self.note.rate = round((trainer.step - self._first) / max(now - self._began, 1e-9), 4)
        self._write()

    def before_results(self, trainer: "Trainer") -> None:
        """The training is over; its results are about to be written."""
        self.note.step = trainer.step
        self.note.stage = WRITING
        self._write()

    def _write(self) -> None:
        self._last = time.monotonic()
        state.write(self.folder, self.note)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the folder of a job; one that another process holds is waited for, as it may outlive a killed batch for a moment.

    Raises:
        UserError: it stays in use.
    """
    from nerf.run import lock

    end = time.monotonic() + LOCK_SECONDS
    with ExitStack() as stack:
        while True:
            try:
                stack.enter_context(lock.hold(folder))
                break
            except lock.InUseError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.5)
        yield


def sentence_of(error: Exception, folder: Path) -> str:
    """What an exception means, for people."""
    from nerf.core import crash

    if isinstance(error, UserError | DivergenceError | Stopped):
        return str(error)
    return crash.sentence_of(error, folder)


def is_final(error: Exception) -> bool:
    """Whether another try would end in the same way: the input is bad.

    A folder that is in use will be free, and a scene without a surface may have one after all.
    """
    from nerf.run import lock

    return isinstance(error, UserError) and not isinstance(error, ExportError | lock.InUseError)
