"""Ctrl-C and SIGTERM ask a run to stop after the current step; a second Ctrl-C stops it at once."""

import signal
from types import FrameType
from typing import Any


class StopRequest:
    """Context in which SIGINT and SIGTERM only set ``number``; the previous handlers are restored on leaving it."""

    def __init__(self) -> None:
        self.number: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.number is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.number = number
