"""Ctrl-C while a program still imports what it needs ends it without a traceback; imported and called before the rest."""

import sys
from types import TracebackType


def end_quietly() -> None:
    """Let an interrupt that nothing catches end the program without a traceback; shells see 130, as after any Ctrl-C."""
    before = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if not issubclass(kind, KeyboardInterrupt):
            before(kind, error, trace)

    sys.excepthook = hook
