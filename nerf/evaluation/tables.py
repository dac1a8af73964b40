"""The report of an evaluation: a row a run, means with confidence intervals over prompts and seeds; JSON and Markdown."""

from collections.abc import Sequence
from typing import Any

from nerf.core.words import counted
from nerf.evaluation.judge import Row
from nerf.evaluation.statistics import LEVEL, Interval, interval

# Figure -> title of its column, and digits; a figure that is not here is in the JSON alone. NAME stands for a scorer.
COLUMNS: dict[str, tuple[str, int]] = {
    "r_precision_NAME": ("R-precision, NAME", 3),
    "r_precision_NAME_true": ("of the true shape", 3),
    "r_precision_NAME_chance": ("of a guess", 3),
    "clip_score": ("CLIP score", 4),
    "janus_NAME": ("Janus, NAME", 3),
    "janus_NAME_true": ("Janus of the true shape", 3),
    "region_NAME": ("best region, NAME", 3),
    "drift_NAME": ("drift, NAME", 3),
    "drift_lpips": ("A-LPIPS", 4),
    "drift_ssim": ("drift, 1 - SSIM", 4),
    "watertight": ("closed", 0),
    "parts": ("parts", 0),
    "faces": ("triangles", 0),
    "crossing": ("crossing", 4),
    "iou": ("IoU", 3),
    "chamfer": ("Chamfer, %", 3),
    "f_score": ("F-score", 3),
    "mesh_psnr": ("mesh PSNR", 2),
    "mesh_psnr_inside": ("mesh PSNR inside", 2),
    "mesh_ssim": ("mesh SSIM", 4),
    "mesh_lpips": ("mesh LPIPS", 4),
    "mesh_iou": ("silhouette IoU", 4),
    "test_psnr": ("field PSNR", 2),
    "test_ssim": ("field SSIM", 4),
}
LARGE = {"faces"}  # counts that are shown with separators


def columns_of(rows: Sequence[Row], scorers: Sequence[str]) -> dict[str, tuple[str, int]]:
    """Figure -> (title, digits) of those columns that some row has."""
    found: dict[str, tuple[str, int]] = {}
    for figure, (title, digits) in COLUMNS.items():
        for name in scorers if "NAME" in figure else [""]:
            found[figure.replace("NAME", name.lower())] = (title.replace("NAME", name), digits)
    return {figure: column for figure, column in found.items() if any(figure in row.figures for row in rows)}


def means(rows: Sequence[Row], figures: Sequence[str], seed: int) -> dict[str, Interval]:
    """Mean and interval of figures over the rows that did not fail.

    Rows of one prompt are drawn together, as they are not independent; of rows with one prompt alone the seeds are drawn.
    """
    rows = [row for row in rows if not row.failure]
    prompts = [row.prompt or row.workspace for row in rows]
    groups = prompts if len(set(prompts)) > 1 else None
    found = {figure: interval([row.figures.get(figure, float("nan")) for row in rows], groups, seed) for figure in figures}
    return {figure: one for figure, one in found.items() if one is not None}


def by_prompt(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows of each prompt, in the order in which they came; runs without a prompt stand for themselves."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row.prompt or row.workspace, []).append(row)
    return found


def as_json(rows: Sequence[Row], settings: dict[str, Any], seed: int) -> dict[str, Any]:
    """All figures: of each run, of each prompt over its seeds, and of all."""
    names = sorted({figure for row in rows for figure in row.figures})

    def summary(some: Sequence[Row]) -> dict[str, Any]:
        return {name: one.as_dict() for name, one in means(some, names, seed).items()}

    return {
        "settings": settings,
        "rows": [row.as_dict() for row in rows],
        "prompts": {prompt: summary(some) for prompt, some in by_prompt(rows).items()},
        "all": summary(rows),
        "failures": sum(bool(row.failure) for row in rows),
    }


def as_markdown(rows: Sequence[Row], settings: dict[str, Any], scorers: Sequence[str], seed: int) -> str:
    """The same as tables for people; see :data:`COLUMNS`."""
    columns = columns_of(rows, scorers)
    head = ["workspace", "prompt", "seed", *(title for title, _ in columns.values())]
    lines = [_line(head), _line(["---"] * len(head))]
    for row in rows:
        shown = [_cell(row.figures.get(figure), figure, digits) for figure, (_, digits) in columns.items()]
        if row.failure:
            shown = [f"failed: {row.failure}", *shown[1:]] if shown else [f"failed: {row.failure}"]
        lines.append(_line([row.workspace, row.prompt or "", "" if row.seed is None else str(row.seed), *shown]))
    groups = {prompt: some for prompt, some in by_prompt(rows).items() if len(some) > 1}
    failed = sum(bool(row.failure) for row in rows)
    lines += [
        "",
        f"Means and {100 * LEVEL:g} % intervals (bootstrap) over {counted(len(rows) - failed, 'run')}, {failed} failed:",
        "",
    ]
    lines += [_line(["runs of", *head[3:]]), _line(["---"] * (len(head) - 2))]
    for name, some in ({"all": list(rows)} | (groups if len(groups) < len(by_prompt(rows)) or len(groups) > 1 else {})).items():
        found = means(some, list(columns), seed)
        shown = [found[figure].shown(digits) if figure in found else "" for figure, (_, digits) in columns.items()]
        lines.append(_line([name, *shown]))
    lines += ["", *(f"- {name}: {_said(value)}" for name, value in settings.items()), ""]
    lines += [f"- {row.workspace}: {note}" for row in rows for note in row.notes]
    return "\n".join(lines).rstrip() + "\n"


def _line(cells: Sequence[str]) -> str:
    """A line of a Markdown table."""
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def _cell(value: float | None, figure: str, digits: int) -> str:
    """A figure in a table."""
    if value is None:
        return ""
    return f"{value:,.0f}" if figure in LARGE else f"{value:.{digits}f}"


def _said(value: Any) -> str:
    """A setting in words."""
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return "none" if value is None else str(value)
