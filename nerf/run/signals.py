"""Ctrl-C, SIGTERM and a closed terminal ask a run to stop after the current step; a second Ctrl-C stops it at once."""

import signal
from types import FrameType
from typing import Any

from nerf.core.errors import PeerError
from nerf.core.torchrun import world_size

STOPPING = ("SIGINT", "SIGTERM", "SIGHUP")  # SIGHUP says that the terminal was closed; not on every system


class StopRequest:
    """Context in which the signals of :data:`STOPPING` only set ``number``; leaving it restores the previous handlers.

    A signal that is ignored stays ignored: ``nohup`` lets a run outlive its terminal in this way.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        for number in (getattr(signal, name) for name in STOPPING if hasattr(signal, name)):
            if signal.getsignal(number) != signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        # A process that another one left alone is about to say so and to end; torchrun, which asks it to, must wait.
        alone = kind is not None and issubclass(kind, PeerError)
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_IGN if alone and number != signal.SIGINT else handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.number is not None and number == signal.SIGINT and world_size() == 1:  # torchrun sends it again
            raise KeyboardInterrupt
        self.number = number
