"""What a session tells its windows: the phase of the run, its numbers, and lines for people. Frozen records."""

from dataclasses import dataclass
from enum import StrEnum


class Phase(StrEnum):
    """What the run does."""

    TRAINING = "training"
    PAUSED = "paused"
    RESULTS = "writing results"  # the training is over; videos and the mesh are written
    SHOWING = "showing"  # nothing is left to do, or the run only shows
    FAILED = "failed"  # the training ended with an error, which the status has
    CLOSED = "closed"


@dataclass(frozen=True)
class Message:
    """A line for people."""

    number: int  # counted from 1
    time: float  # of ``time.time``
    text: str
    error: bool = False


@dataclass(frozen=True)
class Status:
    """A moment of a session."""

    phase: Phase
    stage: str
    step: int
    total: int
    trains: bool  # the run trains; otherwise it shows a finished one
    busy: str  # what is done beside the training steps, such as "exporting the mesh: baking colours 12/64"; "" if nothing
    queued: int  # commands that wait
    step_seconds: float  # of the newest training steps, 0 before the first
    prompt: str | None  # None: it learns from no words, and there is no prompt to edit
    negative: str
    error: str  # of the training or of the newest command that failed; "" if none
    workspace: str
