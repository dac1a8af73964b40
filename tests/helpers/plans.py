"""Run plans for tests: the words of a command line, resolved against what is on disk."""

from types import SimpleNamespace

import main
from nerf.config.config import parse
from nerf.config.resolve import RunPlan, resolve
from nerf.run import workspace

EMBEDDED = SimpleNamespace(kind="embedded", version="embedded")


def planned(*words: object, weights: object = None) -> RunPlan:
    """The plan of a command line, read from the disk as main.py does; ``weights`` are those of SD."""
    asked = parse([str(word) for word in words])
    return resolve(asked, main.read_disk(asked), None if weights is None else lambda _: {"SD": weights})


def opened(*words: object, weights: object = None) -> RunPlan:
    """A plan whose workspace is open, as at the beginning of training."""
    plan = planned(*words, weights=weights)
    workspace.open_workspace(plan)
    return plan
