"""What benchmarks share that compare ways of making a shape: named sets of flags of ``main.py`` on the same prompts and seeds.

A record holds a row for each run, under the name that :func:`key` gives it; its ``method`` is the name of the way.
"""

import shlex
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from benchmarks import mesh_measure
from benchmarks.records import read_result
from benchmarks.text_to_3d import one_run, slug
from nerf.core.images import to_uint8

Results = dict[str, dict]
DIGITS = {"seconds": 0, "train_seconds": 0, "megabytes": 0, "steps": 0, "facing": 2, "janus": 2}  # of a mean; others have 3


def key(method: str, prompt: str, seed: int, budget: str) -> str:
    """Name of a run in the record."""
    return f"{method} | {slug(prompt, seed)} | {budget}"


def workspace_of(work: Path, method: str, budget: str) -> Path:
    """Folder of the workspaces of one way."""
    return work / f"{method} {budget}".replace(" ", "_").replace(",", "")


def measured(
    method: str, words: str, prompt: str, seed: int, work: Path, steps: int, budget: str, extra: list[str]
) -> dict[str, object]:
    """Run and measure one way on one prompt; a failure is recorded as a result.

    Args:
        method: name of the way.
        words: its flags.
        prompt, seed: of the run.
        work: where the workspaces are.
        steps: of training.
        budget: of all runs, in words.
        extra: more flags.
    """
    folder = workspace_of(work, method, budget)
    folder.mkdir(parents=True, exist_ok=True)
    flags = [*shlex.split(words), "--iters", str(steps), "--ckpt", "scratch", *extra]
    found = {"method": method, "budget": budget, "steps": steps, **one_run(prompt, seed, folder, flags)}
    if "iou" in found:
        found["train_seconds"] = read_result(folder / slug(prompt, seed)).train_seconds
    return found


def mean(rows: list[dict], name: str) -> str:
    """The mean of a measure over runs, those where it is not defined left out, with so many digits as it has meaning."""
    values = [row[name] for row in rows if row.get(name) is not None]
    return f"{np.mean(values):.{DIGITS.get(name, 3)}f}" if values else "-"


def ways_in(results: Results, ways: Mapping[str, str], budget: str) -> list[str]:
    """Names of the ways, in their order, that have a run under this budget."""
    return [name for name in ways if any(row["method"] == name and row["budget"] == budget for row in results.values())]


def table(
    results: Results,
    ways: Mapping[str, str],
    budget: str,
    heading: str,
    columns: Mapping[str, str],
    each: str,
    groups: Mapping[str, tuple[str, ...]],
) -> str:
    """The means of every way as a Markdown table, and beneath it one of the measures by groups of prompts.

    Args:
        results, ways, budget: what :func:`ways_in` takes.
        heading: of the names of the ways.
        columns: title -> measure.
        each: title of the measure that is given by groups.
        groups: title -> prompts.
    """
    titles = [heading, *columns, "runs"]
    means = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    apart = ["| " + " | ".join([each, *groups]) + " |", "|---" * (len(groups) + 1) + "|"]
    for way in ways_in(results, ways, budget):
        own = [row for row in results.values() if row["method"] == way and row["budget"] == budget]
        done = [row for row in own if "iou" in row]
        failed = f", {len(own) - len(done)} failed" if len(done) < len(own) else ""
        means.append(f"| {way} | " + " | ".join(mean(done, name) for name in columns.values()) + f" | {len(done)}{failed} |")
        cells = [mean([row for row in done if row["prompt"] in group], columns[each]) for group in groups.values()]
        apart.append(f"| {way} | " + " | ".join(cells) + " |")
    return "\n".join(means) + "\n\n" + "\n".join(apart) + "\n"


def prompts_in(results: Results, budget: str) -> dict[str, tuple[str, ...]]:
    """The prompts that have a run under this budget, each a group of its own."""
    return {row["prompt"]: (row["prompt"],) for row in results.values() if row["budget"] == budget}


def sheet(results: Results, ways: Mapping[str, str], budget: str, work: Path, size: int = 64) -> np.ndarray:
    """Front and back of the true shape, then of what each way made; a row for each prompt, grey where nothing came out."""
    from guidance.prior.shapes import canonical

    first = min(row["seed"] for row in results.values() if row["budget"] == budget)
    cameras = mesh_measure.view_angles(2)
    rows = []
    for prompt in prompts_in(results, budget):
        truth, _ = mesh_measure.true_views(canonical(prompt), cameras, size)
        cells = [*truth]
        for method in ways_in(results, ways, budget):
            path = workspace_of(work, method, budget) / slug(prompt, first) / "mesh" / "mesh.glb"
            known = "iou" in results.get(key(method, prompt, first, budget), {}) and path.is_file()
            views = (
                mesh_measure.mesh_views(mesh_measure.read_mesh(path), cameras, size)[0] if known else np.full_like(truth, 0.5)
            )
            cells += [*views]
        rows.append(np.concatenate(cells, 1))
    return to_uint8(np.concatenate(rows, 0))
