"""A run with a viewer: it trains on a thread of its own, and its windows look and give commands.

The thread drives the trainer's own loop (``Trainer.run``) in the order of any run. Between two steps it carries out commands
and, while somebody looks, copies the weights for the frames, which another thread renders. So a window never waits for a step,
and the training has the same bits with a viewer and without one.
"""

import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Protocol

import torch

from nerf.config.config import Config
from nerf.core import progress
from nerf.core.errors import Stopped, UserError
from nerf.core.structs import StepPlan
from nerf.run.signals import StopRequest
from nerf.utils import StepRecord, Trainer
from nerf.viewer.frames import Request
from nerf.viewer.front_ends import Show
from nerf.viewer.history import History
from nerf.viewer.renderer import FrameRenderer
from nerf.viewer.snapshot import Snapshots
from nerf.viewer.start import start_request
from nerf.viewer.status import Message, Phase, Status
from nerf.viewer.view import View

MESSAGES = 200  # lines that are kept
SMOOTHING = 0.2  # weight of the newest step in the time of a step
READ_EVERY = 10  # steps between two points of the losses on a GPU, which has to be waited for


class Job(Protocol):
    """The run that a session drives; ``main.Run`` is one. Its methods are called on the session's thread, between steps."""

    @property
    def config(self) -> Config:
        """The options of the run."""

    def go_through(self, trainer: Trainer, attendant: "Session") -> None:
        """Train all stages from that of ``trainer`` on, and write the results; ``attendant`` is told, and may end it."""

    def start_over(self, trainer: Trainer) -> Trainer:
        """A trainer of the same stage as it was before its first step."""

    def edit_prompt(self, trainer: Trainer, text: str, negative: str) -> None:
        """Go on with another prompt."""

    def export(self, trainer: Trainer) -> Any:
        """Write the mesh."""

    def sentence(self, error: BaseException) -> str:
        """What an exception means, for people."""

    def log(self, line: str) -> None:
        """Write a line to the log of the run."""


class _StartOver(Exception):
    """The training begins anew."""

    def __init__(self, answer: "Future[Any]"):
        super().__init__()
        self.answer = answer


class _Close(Exception):
    """The windows are closed."""


class _Doing:
    """A listener of long loops that remembers the innermost one, for the status."""

    def __init__(self) -> None:
        self.tasks: list[progress.Task] = []

    def task_begins(self, task: progress.Task) -> None:
        """Add it."""
        self.tasks = [*self.tasks, task]

    def task_advances(self, task: progress.Task) -> None:
        """The task itself has its number."""

    def task_ends(self, task: progress.Task) -> None:
        """Remove it."""
        self.tasks = [one for one in self.tasks if one is not task]

    def text(self) -> str:
        """ "rendering the video 3/60"; empty if nothing long is done."""
        tasks = self.tasks
        return f"{tasks[0].doing} {tasks[0].done}/{tasks[0].total}" if tasks else ""


class Session:
    """A trainer on a thread of its own, with commands and views. Its methods may be called from any thread.

    Args:
        job: the run.
        trainer: of its first stage.
    """

    def __init__(self, job: Job, trainer: Trainer):
        self.job, self._trainer = job, trainer
        self.history = History()
        self.snapshots = Snapshots()
        self.renderer = FrameRenderer(self.snapshots, trainer.device, self._changes, self._want, self._frame_sentence)
        self._phase = Phase.PAUSED if job.config.trains else Phase.SHOWING
        self._running, self._closing = True, False
        self._wanted = True
        self._commands: queue.SimpleQueue[tuple[str, Callable[[], Any] | None, Future[Any]]] = queue.SimpleQueue()
        self._stirred = threading.Event()  # a command came, or the training was started, stopped or closed
        self._busy = ""
        self._doing = _Doing()
        self._step_seconds, self._trained = 0.0, trainer.seconds
        self._messages: deque[Message] = deque(maxlen=MESSAGES)
        self._said = 0
        self._error: BaseException | None = None  # what ended the training
        self._problem = ""  # what is wrong, for the status
        self._frame_errors: dict[str, str] = {}
        self._plan: StepPlan | None = None  # whose weights say which of the terms of a step are losses
        self._thread = threading.Thread(target=self._work, name="somnia-training", daemon=True)

    # ---- for the windows --------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Begin to train, if the run does, and to render."""
        progress.listen(self._doing)
        self.renderer.start()
        self._thread.start()

    def open_view(self, request: Request | None = None) -> View:
        """A view of the scene; without a request from the camera of the flags, or that of the photographs."""
        return self.renderer.open(request or self.start_request())

    def start_request(self) -> Request:
        """What a window shows first."""
        return start_request(self.job.config, self._trainer.evaluator)

    @property
    def status(self) -> Status:
        """How it stands."""
        trainer = self._trainer
        prompt = trainer.config.prompt
        busy, doing = self._busy, self._doing.text()
        return Status(
            phase=self._phase,
            stage=trainer.stage.name,
            step=trainer.step,
            total=trainer.config.optim.iters,
            trains=self.job.config.trains,
            busy=f"{busy}: {doing}" if busy and doing else busy or doing,
            queued=self._commands.qsize(),
            step_seconds=self._step_seconds,
            prompt=prompt.text if self.job.config.trains and trainer.guidance else None,
            negative=prompt.negative,
            error=self._problem,
            workspace=str(trainer.workspace),
        )

    def messages(self, after: int = 0) -> list[Message]:
        """The newest lines for people, those with a number above ``after``."""
        return [message for message in list(self._messages) if message.number > after]

    @property
    def bound(self) -> float:
        """Half the side of the box that the object is in, scene units."""
        return self._trainer.model.bound

    def say(self, text: str, error: bool = False) -> None:
        """Show a line in the windows, and write it to the log."""
        self._said += 1
        self._messages.append(Message(self._said, time.time(), text, error))
        self.job.log(text)

    def start(self) -> None:
        """Go on with the training; where it is over, a line says so."""
        self._running = True
        if self._phase is Phase.FAILED:
            self.say("the training ended with an error: start over, or close the viewer")
        elif self.job.config.trains and self._phase is Phase.SHOWING:
            self.say("nothing is left to train: start over, or close the viewer and give more steps")
        self._stirred.set()

    def stop(self) -> None:
        """Let the training wait after its current step."""
        self._running = False
        self._stirred.set()

    @property
    def running(self) -> bool:
        """Whether the training goes on by itself."""
        return self._running

    def reset(self) -> "Future[Any]":
        """Begin the training of the stage anew, with the weights, the optimiser and the grids that it began with.

        Its checkpoints are set aside and removed when the first new one is written, as with ``--ckpt scratch``.
        """
        return self._submit("starting over", None)

    def save(self) -> "Future[Any]":
        """Write a checkpoint; the future has its path."""
        return self._submit("saving a checkpoint", self._save)

    def export(self) -> "Future[Any]":
        """Write the textured mesh; the future has the report of the export."""
        return self._submit("exporting the mesh", self._export)

    def edit_prompt(self, text: str, negative: str = "") -> "Future[Any]":
        """Go on with another prompt, which the workspace keeps."""
        return self._submit("preparing the prompt", lambda: self._edit_prompt(text, negative))

    def close(self) -> None:
        """End the session: the training stops after its step and saves a checkpoint. May be called twice.

        Waits for the thread; what it writes is finished first.
        """
        self._closing = True
        self._stirred.set()
        self.renderer.end()
        if self._thread.is_alive():
            self._thread.join()
        progress.ignore(self._doing)
        self._phase = Phase.CLOSED
        while not self._commands.empty():
            doing, _, answer = self._commands.get()
            answer.set_exception(_closed(doing))

    def raise_error(self) -> None:
        """Raise what ended the training, if an error did and it was not begun anew since."""
        if self._error is not None:
            raise self._error

    # ---- what the run tells it, on the training's thread -------------------------------------------------------------

    def begin_stage(self, trainer: Trainer) -> None:
        """A stage begins, or goes on."""
        self._trainer, self._trained, self._plan = trainer, trainer.seconds, None
        self._look()
        self._wait_while_stopped()

    def after_step(self, trainer: Trainer, record: StepRecord) -> None:
        """A step was taken."""
        seconds, self._trained = trainer.seconds - self._trained, trainer.seconds
        before = self._step_seconds
        self._step_seconds = seconds if before == 0.0 else before + SMOOTHING * (seconds - before)
        self._note_losses(trainer, record)
        self._carry_out()
        self._wait_while_stopped()
        if self._wanted and self.renderer.looked_at:
            self._look()
        if self._closing:
            self._save_and_close()

    def before_results(self, trainer: Trainer) -> None:
        """The training is over; its results are about to be written."""
        self._phase = Phase.RESULTS
        self._look()
        self._carry_out()

    # ---- on the training's thread ------------------------------------------------------------------------------------

    def _work(self) -> None:
        try:
            self._go_on()
        except BaseException as error:  # also what a library written in Rust raises
            self._fail(error)

    def _go_on(self) -> None:
        if self._trainer.device.type == "cuda":
            torch.cuda.set_device(self._trainer.device)
        trains = self.job.config.trains
        if not trains:
            self._look()
        while not self._closing:
            try:
                if trains:
                    self._phase = Phase.TRAINING
                    self.job.go_through(self._trainer, self)
                    self._phase = Phase.SHOWING
                    self.say(f"done; the results are in {self._trainer.workspace}")
                self._wait_for_commands()
            except _StartOver as asked:
                trains = self._start_over(asked.answer)
            except _Close:
                return
            except Exception as error:
                trains = False
                self._fail(error)

    def _wait_for_commands(self) -> None:
        """Carry out commands until the session is closed or the training begins anew."""
        while not self._closing:
            self._carry_out()
            self._stirred.wait()
            self._stirred.clear()

    def _wait_while_stopped(self) -> None:
        """Carry out commands until the training goes on."""
        if self._running or self._closing:
            return
        self._phase = Phase.PAUSED
        self._look()
        while not (self._running or self._closing):
            self._carry_out()
            self._stirred.wait()
            self._stirred.clear()
        self._phase = Phase.TRAINING

    def _carry_out(self) -> None:
        """Carry out the commands that have come."""
        while not self._closing:
            try:
                doing, work, answer = self._commands.get_nowait()
            except queue.Empty:
                return
            if work is None:
                raise _StartOver(answer)
            self._busy, self._problem = doing, ""
            try:
                with torch.random.fork_rng(self._devices()):  # the random numbers of training stay as they are
                    answer.set_result(work())
            except Exception as error:  # of whatever kind: it is shown, and the training goes on
                self._problem = self.job.sentence(error)
                self.say(f"{doing} failed: {self._problem}", error=True)
                answer.set_exception(error)
            finally:
                self._busy = ""

    def _devices(self) -> list[torch.device]:
        return [self._trainer.device] if self._trainer.device.type == "cuda" else []

    def _save(self) -> Any:
        path = self._trainer.save()
        self.say(f"saved {path}")
        return path

    def _export(self) -> Any:
        report = self.job.export(self._trainer)
        self.say(f"exported the mesh: {report}")
        return report

    def _edit_prompt(self, text: str, negative: str) -> None:
        if not self.job.config.trains:
            raise UserError("this run only shows; start it without --test to train with another prompt")
        self.job.edit_prompt(self._trainer, text, negative)
        self.say(f'the prompt is "{text}" from step {self._trainer.step} on')

    def _start_over(self, answer: "Future[Any]") -> bool:
        """Make a fresh trainer; returns whether it trains."""
        self._busy = "starting over"
        try:
            self._trainer = self.job.start_over(self._trainer)
        except Exception as error:  # it is shown; the training goes on as it was
            self._problem = self.job.sentence(error)
            self.say(f"starting over failed: {self._problem}", error=True)
            answer.set_exception(error)
            return self._error is None and self.job.config.trains and self._trainer.step < self._trainer.config.optim.iters
        else:
            self._error, self._problem, self._step_seconds = None, "", 0.0
            self.history.clear()
            self._look()
            self.say(f"stage {self._trainer.stage.name} starts over")
            answer.set_result(None)
            return True
        finally:
            self._busy = ""

    def _save_and_close(self) -> None:
        """Leave a workspace that the same command goes on from."""
        trainer = self._trainer
        path = trainer.save()
        self.say(f"the viewer was closed after step {trainer.step}, saved {path}; the same command goes on from there")
        raise _Close

    def _fail(self, error: BaseException) -> None:
        """The training ended by an error: show it, and what was reached."""
        self._error, self._problem, self._phase = error, self.job.sentence(error), Phase.FAILED
        self.say(f"the training ended: {self._problem}", error=True)

    def _look(self) -> None:
        """Show the weights as they are."""
        if self.snapshots.take(self._trainer):
            self._wanted = False
            self.renderer.wake()

    def _note_losses(self, trainer: Trainer, record: StepRecord) -> None:
        """Add the losses of a step to the history."""
        step = record.step + 1
        if not self.history.wants(step) or (trainer.device.type == "cuda" and step % READ_EVERY):
            return
        if self._plan is None:
            self._plan = trainer.plan(record.total - 1)
        losses = {name: value for name, value in record.terms.items() if name in self._plan.weights}
        self.history.add(step, losses)

    # ---- of other threads --------------------------------------------------------------------------------------------

    def _submit(self, doing: str, work: Callable[[], Any] | None) -> "Future[Any]":
        answer: Future[Any] = Future()
        if self._closing or self._phase is Phase.CLOSED:
            answer.set_exception(_closed(doing))
            return answer
        self._commands.put((doing, work, answer))
        self._stirred.set()
        return answer

    def _changes(self) -> bool:
        """Whether the weights will soon change."""
        return self._phase is Phase.TRAINING and self._running

    def _want(self) -> None:
        self._wanted = True

    def _frame_sentence(self, error: Exception) -> str:
        """What an exception of a frame means; the same one is written down once."""
        key = f"{type(error).__name__}: {error}"
        if key not in self._frame_errors:
            self._frame_errors = dict(list(self._frame_errors.items())[-MESSAGES:])
            self._frame_errors[key] = self.job.sentence(error)
            self.say(f"a picture could not be rendered: {self._frame_errors[key]}", error=True)
        return self._frame_errors[key]


def _closed(doing: str) -> UserError:
    """What a command is answered that comes too late."""
    return UserError(f"{doing}: the viewer is closed; start the same command again")


def show_run(job: Job, trainer: Trainer, show: Show) -> None:
    """Train beside a window until that is closed, or a signal comes.

    Args:
        job: what is trained and shown.
        trainer: of its first stage.
        show: of the front end.

    Raises:
        Stopped: a signal came; a training that went on has written a checkpoint.
    """
    session = Session(job, trainer)
    with StopRequest() as request:
        session.begin()
        try:
            if job.config.asked("save_mesh") and job.config.output.save_mesh and not job.config.trains:
                session.export()
            show(session, job.config, lambda: request.number is not None)
        finally:
            session.close()
    session.raise_error()
    if request.number is not None:
        raise Stopped(request.number)
