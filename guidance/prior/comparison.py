"""Figures of two sets of weights of the text-conditioned prior side by side: are the new ones clearly better?

Both see the same images and the same noise, so that their errors differ by the weights alone.
"""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from guidance.prior import diagnose
from guidance.prior.captions import BENCHMARK_PROMPTS, KIND_NAMES
from guidance.prior.model import Prior
from nerf.core.files import write_json

BLIND = 500  # timestep from which on the errors say which kinds are sampled more often: there the prior decides, not the image


@dataclass(frozen=True)
class Figures:
    """What :mod:`guidance.prior.diagnose` measures of some weights."""

    timesteps: dict[int, dict[str, float]]  # of diagnose.x0_errors
    kinds: dict[str, dict[int, float]]  # of diagnose.kind_errors
    camera: dict[str, dict[str, float]]  # of diagnose.camera_ratios

    def hardness(self) -> dict[str, float]:
        """Mean error of each kind at the timesteps from :data:`BLIND` on."""
        found = {}
        for kind, errors in self.kinds.items():
            high = [error for t, error in errors.items() if t >= BLIND]
            found[kind] = sum(high) / len(high)
        return found


def measure(
    prior: Prior, with_detail: bool, count: int = 16, kinds: Iterable[str] = KIND_NAMES, prompts: int = len(BENCHMARK_PROMPTS)
) -> Figures:
    """The figures of a prior.

    Args:
        prior: on any device.
        with_detail: whether the errors of the kinds are those with the detail network.
        count: renders of each kind; half as many of each prompt.
        kinds: which.
        prompts: how many of the benchmark's the errors over the timesteps are measured on.
    """
    half = max(1, count // 2)
    return Figures(
        diagnose.x0_errors(prior, [prompt for prompt, _ in BENCHMARK_PROMPTS[:prompts]], count=half),
        diagnose.kind_errors(prior if with_detail else replace(prior, detail=None), kinds, count=count),
        diagnose.camera_ratios(prior, count=count, ceiling=False),
    )


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
    yield "\nErrors are root mean squared, of the x_0 prediction; old / new.\n\n## Over the kinds\n"
    yield "New error over old error, as a share of the contrast of the images.\n"
    yield "| t | mean | lower in | worst |\n|---|---|---|---|"
    for t, row in found.items():
        yield f"| {t} | {row['mean']:.3f} | {row['lower']} of {len(before.kinds)} kinds | {row['worst']:.3f} |"
    columns = list(found)
    yield f"\n## Each kind\n\n| kind | {' | '.join(f't = {t}' for t in columns)} |\n|---{'|---' * len(columns)}|"
    for kind in sorted(after.kinds, key=lambda kind: -after.kinds[kind][columns[-1]]):
        cells = [f"{before.kinds[kind][t]:.3f} / {after.kinds[kind][t]:.3f}" for t in columns]
        yield f"| {kind} | {' | '.join(cells)} |"
    names = list(next(iter(before.timesteps.values())))
    yield "\n## Over the timesteps\n\nMean over the benchmark's prompts, images in [-1, 1].\n"
    yield f"| t | {' | '.join(names)} |\n|---{'|---' * len(names)}|"
    for t, row in before.timesteps.items():
        yield f"| {t} | {' | '.join(f'{row[name]:.3f} / {after.timesteps[t][name]:.3f}' for name in names)} |"
    yield "\n## Dependence on the camera\n"
    yield "Error under a camera that is wrong by 90 and by 180 degrees over that under the right one, t = 850.\n"
    yield "| kind | +90 | +180 |\n|---|---|---|"
    for kind, row in before.camera.items():
        new = after.camera[kind]
        yield f"| {kind} | {row['plus90']:.2f} / {new['plus90']:.2f} | {row['plus180']:.2f} / {new['plus180']:.2f} |"
