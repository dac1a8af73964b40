"""Ctrl-C while a program still imports what it needs ends it without a traceback; imported and called before the rest."""

import sys
from pathlib import Path
from types import TracebackType


def end_quietly() -> None:
    """Let an interrupt that nothing catches end the program without a traceback; shells see 130, as after any Ctrl-C."""
    before = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if not issubclass(kind, KeyboardInterrupt):
            before(kind, error, trace)

    sys.excepthook = hook


def sentence(workspace: str | None) -> str:
    """What Ctrl-C meant to a run that ended at once: while it started or wrote its results, or a second time in training."""
    folder = None if workspace is None else Path(workspace, "checkpoints")  # nothing may be imported any more
    if folder is None or not any(folder.glob("*.safetensors")):
        return "interrupted before the first checkpoint; the same command starts again"
    return f"interrupted; the same command goes on from the newest checkpoint in {folder}"
