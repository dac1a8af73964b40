"""Measures of the geometry network: ``python -m guidance.prior.diagnose_geometry`` prints its errors for each kind.

Renders of random members of each family that no training saw, from all sides and from below, clean images with noise on top.
B images, all on the CPU.
"""

import math
import sys
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, pixel_unshuffle

from guidance.prior import GRID_SIZE, UNSHUFFLE, WEIGHTS
from guidance.prior.benchmark import recolored
from guidance.prior.camera import GEOMETRY_POLAR_RANGE, conditions, random_cameras
from guidance.prior.captions import KIND_NAMES, Caption
from guidance.prior.dataset import over
from guidance.prior.diagnose import KIND_COLORS, add_noise, members
from guidance.prior.geometry import Geometry, predict
from guidance.prior.model import Prior, load
from nerf.core.errors import UserError
from nerf.core.ranges import between
from nerf.core.script import Parser, run

TIMESTEPS = (100, 300, 500, 850)
SEED = 100_003  # of the renders; those of training have the numbers of their shards


def seen_images(caption: Caption, count: int, seed: int = SEED) -> tuple[dict[str, Tensor], Tensor, Geometry]:
    """Cameras, images [B, 3, 64, 64] in [-1, 1] over white in a soft light, and the true geometry of them."""
    generator = torch.Generator().manual_seed(seed)
    cameras = random_cameras(count, generator, GEOMETRY_POLAR_RANGE)
    layers, seen = members(caption, cameras, generator)
    truth = Geometry(seen.relief, seen.normal.movedim(-1, 1), avg_pool2d(layers[:, 3:], 2)[:, 0])
    return cameras, over(layers, torch.ones(count, 3)) * 2 - 1, truth


def errors(found: Geometry, truth: Geometry) -> dict[str, float]:
    """Mean errors over what the object covers, ``depth`` (scene units) and ``normal`` (degrees), and ``silhouette``, an IoU."""
    covered, said = truth.coverage > 0.5, found.coverage > 0.5
    cosine = (found.normal * truth.normal).sum(1)[covered].clamp(-1, 1)
    return {
        "depth": float((found.relief - truth.relief).abs()[covered].mean()),
        "normal": math.degrees(float(cosine.acos().mean())),
        "silhouette": float((covered & said).sum() / (covered | said).sum()),
    }


@torch.no_grad()
def kind_errors(
    prior: Prior, kinds: Iterable[str] = KIND_NAMES, timesteps: tuple[int, ...] = TIMESTEPS, count: int = 16
) -> dict[str, dict[int, dict[str, float]]]:
    """:func:`errors` of each kind at each timestep.

    Raises:
        UserError: the prior has no geometry network.
    """
    if prior.geometry is None:
        raise UserError("the weights have no folder geometry/; train one by python -m guidance.prior.train_geometry")
    found = {}
    for kind in kinds:
        caption = recolored(kind, KIND_COLORS)
        cameras, image, truth = seen_images(caption, count)
        text, given = prior.encode_text([caption.text]).expand(count, -1, -1), conditions(cameras, GRID_SIZE)
        found[kind] = {
            t: errors(
                predict(
                    prior.geometry,
                    pixel_unshuffle(add_noise(prior, image, t, SEED), UNSHUFFLE),
                    torch.full((count,), t),
                    text,
                    *given,
                    UNSHUFFLE,
                ),
                truth,
            )
            for t in timesteps
        }
    return found


def table(found: dict[str, dict[int, dict[str, float]]]) -> str:
    """In Markdown, the worst depth first; the last row is the mean over the kinds."""
    timesteps, names = list(next(iter(found.values()))), ("depth", "normal", "silhouette")
    rows = {kind: [row[t][name] for name in names for t in timesteps] for kind, row in found.items()}
    order = sorted(rows, key=lambda kind: -rows[kind][0])
    rows["**mean**"] = [sum(column) / len(order) for column in zip(*(rows[kind] for kind in order), strict=True)]
    digits = [("{:.3f}", "{:.0f}", "{:.2f}")[i // len(timesteps)] for i in range(3 * len(timesteps))]
    lines = [f"| kind | {' | '.join(f'{name} {t}' for name in names for t in timesteps)} |"]
    lines.append("|---" * (1 + 3 * len(timesteps)) + "|")
    for kind in (*order, "**mean**"):
        lines.append(f"| {kind} | {' | '.join(f.format(v) for f, v in zip(digits, rows[kind], strict=True))} |")
    return "\n".join(lines)


def main() -> None:
    """Print the errors of depth (scene units), normals (degrees) and silhouettes (IoU) at several timesteps."""
    parser = Parser(description=main.__doc__)
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="diffusers folder")
    parser.number("--count", int, 16, between(1, 10_000), "renders of each kind")
    args = parser.parse_args()
    print(table(kind_errors(load(args.weights), count=args.count)))


if __name__ == "__main__":
    sys.exit(run(main))
