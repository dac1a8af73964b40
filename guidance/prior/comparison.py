"""Figures of two sets of weights of an embedded prior and what lies beside it: are the new ones clearly better?

Both see the same images and the same noise, so that their errors differ by the weights alone. The pictures that the prior
expects have figures of one kind, the geometry that it expects behind them has others.
"""

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any, ClassVar, NamedTuple

from guidance.prior import diagnose, diagnose_geometry
from guidance.prior.captions import BENCHMARK_PROMPTS, KIND_NAMES
from guidance.prior.model import Prior
from nerf.core.files import write_json

BLIND = 500  # timestep from which on the errors say which kinds are sampled more often: there the prior decides, not the image


class Table(NamedTuple):
    """Some figures of one set of weights."""

    title: str
    note: str  # what the figures are, a sentence
    corner: str  # what the rows are
    rows: Mapping[str, Mapping[str, float]]  # row -> column -> figure
    digits: int


@dataclass(frozen=True)
class Figures(ABC):
    """What is measured of some weights."""

    kinds: dict[str, dict[int, float]]  # kind -> timestep -> error
    error: ClassVar[str]  # what that is, a sentence

    @abstractmethod
    def hardness(self) -> dict[str, float]:
        """Error of each kind that says how often it is sampled."""

    @abstractmethod
    def tables(self) -> list[Table]:
        """What else there is."""


@dataclass(frozen=True)
class PictureFigures(Figures):
    """Errors of the pictures that a prior expects, by :mod:`guidance.prior.diagnose`."""

    timesteps: dict[int, dict[str, float]]  # of diagnose.x0_errors
    camera: dict[str, dict[str, float]]  # of diagnose.camera_ratios
    error = "Root mean squared errors of the x_0 prediction, as a share of the contrast of the images."

    def hardness(self) -> dict[str, float]:
        """Mean error of each kind at the timesteps from :data:`BLIND` on."""
        return {kind: fmean(error for t, error in row.items() if t >= BLIND) for kind, row in self.kinds.items()}

    def tables(self) -> list[Table]:
        """See :meth:`Figures.tables`."""
        timesteps = {str(t): row for t, row in self.timesteps.items()}
        turned = {kind: {"+90": row["plus90"], "+180": row["plus180"]} for kind, row in self.camera.items()}
        ratio = "Error under a camera that is wrong by 90 and by 180 degrees over that under the right one, t = 850."
        return [
            Table("Over the timesteps", "Mean over the benchmark's prompts, images in [-1, 1].", "t", timesteps, 3),
            Table("Dependence on the camera", ratio, "kind", turned, 2),
        ]


@dataclass(frozen=True)
class GeometryFigures(Figures):
    """Errors of the geometry that a prior expects, by :mod:`guidance.prior.diagnose_geometry`; ``kinds`` has depths."""

    normals: dict[str, dict[int, float]]  # degrees
    silhouettes: dict[str, dict[int, float]]  # IoU
    error = "Mean errors of depth in scene units."

    def hardness(self) -> dict[str, float]:
        """Mean error of the depth of each kind."""
        return {kind: fmean(row.values()) for kind, row in self.kinds.items()}

    def tables(self) -> list[Table]:
        """See :meth:`Figures.tables`."""
        return [
            Table("Normals", "Mean errors in degrees.", "kind", _named(self.normals), 1),
            Table("Silhouettes", "IoU; higher is better.", "kind", _named(self.silhouettes), 3),
        ]


def _named(rows: Mapping[str, Mapping[int, float]]) -> dict[str, dict[str, float]]:
    """Rows whose columns are timesteps, as a table has them."""
    return {name: {f"t = {t}": value for t, value in row.items()} for name, row in rows.items()}


def measure(
    prior: Prior, with_detail: bool, count: int = 16, kinds: Iterable[str] = KIND_NAMES, prompts: int = len(BENCHMARK_PROMPTS)
) -> PictureFigures:
    """The figures of the pictures that a prior expects.

    Args:
        prior: on any device.
        with_detail: whether the errors of the kinds are those with the detail network.
        count: renders of each kind; half as many of each prompt.
        kinds: which.
        prompts: how many of the benchmark's the errors over the timesteps are measured on.
    """
    half = max(1, count // 2)
    return PictureFigures(
        diagnose.kind_errors(prior if with_detail else replace(prior, detail=None), kinds, count=count),
        diagnose.x0_errors(prior, [prompt for prompt, _ in BENCHMARK_PROMPTS[:prompts]], count=half),
        diagnose.camera_ratios(prior, count=count, ceiling=False),
    )


def measure_geometry(
    prior: Prior,
    count: int = 16,
    kinds: Iterable[str] = KIND_NAMES,
    timesteps: tuple[int, ...] = diagnose_geometry.TIMESTEPS,
) -> GeometryFigures:
    """The figures of the geometry that a prior on the CPU expects.

    Args:
        prior: with a geometry network.
        count: renders of each kind.
        kinds: which.
        timesteps: where.
    """
    found = diagnose_geometry.kind_errors(prior, kinds, timesteps, count)

    def of(name: str) -> dict[str, dict[int, float]]:
        return {kind: {t: each[name] for t, each in row.items()} for kind, row in found.items()}

    return GeometryFigures(of("depth"), of("normal"), of("silhouette"))


def ratios(before: Figures, after: Figures) -> dict[int, dict[str, float]]:
    """For each timestep: the geometric ``mean`` over the kinds of the new error over the old one, how many kinds are ``lower``,
    and the ``worst`` ratio."""
    found = {}
    for t in next(iter(before.kinds.values())):
        shares = [after.kinds[kind][t] / before.kinds[kind][t] for kind in before.kinds]
        mean = math.exp(sum(map(math.log, shares)) / len(shares))
        found[t] = {"mean": round(mean, 4), "lower": sum(share < 1 for share in shares), "worst": round(max(shares), 4)}
    return found


def write_report(path: Path, before: Figures, after: Figures, run: Mapping[str, Any]) -> str:
    """Write a report as Markdown, and as JSON beside it.

    Args:
        path: of the Markdown file.
        before: of the weights that are compared with.
        after: of the new ones.
        run: what else there is to say of the run, by name.

    Returns:
        The Markdown.
    """
    found = ratios(before, after)
    content = {"run": dict(run), "ratios": found, "before": asdict(before), "after": asdict(after)}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path.with_suffix(".json"), json.loads(json.dumps(content)))
    text = "\n".join(_markdown(before, after, found, run)) + "\n"
    path.write_text(text, encoding="utf-8")
    return text


def _markdown(before: Figures, after: Figures, found: dict[int, dict[str, float]], run: Mapping[str, Any]) -> Iterable[str]:
    """The lines of the report."""
    yield "# New weights of the embedded prior\n"
    yield from (f"- {name.replace('_', ' ')}: {value}" for name, value in run.items() if not isinstance(value, Mapping))
    yield "\nIn each cell: old / new.\n\n## Over the kinds\n\nNew error over old error.\n"
    yield "| t | mean | lower in | worst |\n|---|---|---|---|"
    for t, row in found.items():
        yield f"| {t} | {row['mean']:.3f} | {row['lower']} of {len(before.kinds)} kinds | {row['worst']:.3f} |"
    last = list(found)[-1]
    order = sorted(after.kinds, key=lambda kind: -after.kinds[kind][last])
    old, new = ([Table("Each kind", each.error, "kind", _named(each.kinds), 3), *each.tables()] for each in (before, after))
    for table, other in zip(old, new, strict=True):
        yield from _side_by_side(table, other.rows, order if table.corner == "kind" else list(table.rows))


def _side_by_side(table: Table, after: Mapping[str, Mapping[str, float]], order: list[str]) -> Iterable[str]:
    """The lines of a table with the figures of two sets of weights in each cell, its rows in an order."""
    columns = list(next(iter(table.rows.values())))
    yield f"\n## {table.title}\n\n{table.note}\n"
    yield f"| {table.corner} | {' | '.join(columns)} |\n|---{'|---' * len(columns)}|"
    for name in (name for name in order if name in table.rows):
        row = table.rows[name]
        cells = [f"{row[column]:.{table.digits}f} / {after[name][column]:.{table.digits}f}" for column in columns]
        yield f"| {name} | {' | '.join(cells)} |"
