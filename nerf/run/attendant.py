"""Who is told how a run goes on, between its steps: the signals of a run without a viewer, or the session of a viewer."""

from typing import TYPE_CHECKING, Protocol

from nerf.core.errors import Stopped
from nerf.run import checkpoint
from nerf.run.signals import StopRequest

if TYPE_CHECKING:
    from nerf.utils import StepRecord, Trainer


class Attendant(Protocol):
    """What it raises ends the training."""

    def begin_stage(self, trainer: "Trainer") -> None:
        """A stage begins, or goes on."""

    def after_step(self, trainer: "Trainer", record: "StepRecord") -> None:
        """A step was taken."""

    def before_results(self, trainer: "Trainer") -> None:
        """The training is over; its results are about to be written."""


class SignalAttendant:
    """Lets a signal stop the training after the current step, with a checkpoint.

    Args:
        request: what the signals set.
    """

    def __init__(self, request: StopRequest):
        self.request = request

    def begin_stage(self, trainer: "Trainer") -> None:
        """See :meth:`Attendant.begin_stage`."""

    def after_step(self, trainer: "Trainer", record: "StepRecord") -> None:
        """See :meth:`Attendant.after_step`.

        Raises:
            Stopped: a signal came; the checkpoint is written.
        """
        number = int(trainer.agreed(self.request.number or 0))  # what came to one process stops all after the same step
        if number:
            path = trainer.save()
            again = checkpoint.same_command(trainer.config.runtime.ckpt)
            trainer.report.log(f"stopped after step {trainer.step}, saved {path}; {again} resumes from there")
            raise Stopped(number)

    def before_results(self, trainer: "Trainer") -> None:
        """See :meth:`Attendant.before_results`."""
