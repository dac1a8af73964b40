"""Measured runs of the benchmarks that compare ways of training, made up."""

from benchmarks.comparison import key

BUDGET = "5 steps"


def row(method, prompt, **changes):
    """A measured run."""
    found = {"method": method, "prompt": prompt, "group": "view", "budget": BUDGET, "seed": 0, "steps": 5, "janus": None}
    measures = {"iou": 0.5, "silhouette": 0.6, "albedo": 0.1, "facing": 1.0}
    return found | measures | {"seconds": 9.0, "train_seconds": 6.0, "megabytes": 800} | changes


def record(*rows):
    """Runs by name."""
    return {key(r["method"], r["prompt"], r["seed"], r["budget"]): r for r in rows}
