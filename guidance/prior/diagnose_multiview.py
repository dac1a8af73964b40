"""Measures of the multi-view prior: ``python -m guidance.prior.diagnose_multiview`` prints a line for each timestep.

Does it help that four views see each other? The error of the x_0 prediction for held-out objects: of the text-conditioned
prior, of the multi-view prior on each view by itself, and on linked views; with their cameras, and with these withheld. The
errors are mean squares for images in [-1, 1]; light and background are those of ``diagnose``. G groups of 4 views.
"""

import argparse
import json
import random
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from guidance.diffusion.multiview import LINKED
from guidance.prior import GRID_SIZE, MULTIVIEW_WEIGHTS, UNSHUFFLE, WEIGHTS
from guidance.prior import model as text_model
from guidance.prior.camera import conditions
from guidance.prior.captions import KIND_NAMES, random_caption
from guidance.prior.dataset import VIEW_KINDS
from guidance.prior.diagnose import renders
from guidance.prior.model import Prior
from guidance.prior.multiview_dataset import linked_cameras
from guidance.prior.multiview_model import join, load
from nerf.core.console import protected
from nerf.core.ranges import between
from nerf.core.script import Parser, run

TIMESTEPS = (300, 500, 700, 850, 950)


@dataclass(frozen=True)
class Held:
    """Held-out groups of linked views: one object each, of proportions from a seed that no shard has."""

    image: Tensor  # [4 G, 3, 64, 64] in [-1, 1]
    cameras: dict[str, Tensor]  # polar, azimuth, radius, fovy, each [4 G]
    captions: list[str]  # of each view


def held_out(kinds: tuple[str, ...], count: int, seed: int = 1) -> Held:
    """``count`` groups of each kind; the four views of a group are of one object in one colour over white."""
    images, cameras, captions = [], [], []
    for i, kind in enumerate(kinds):
        caption = random_caption(kind, random.Random(seed + i))
        given = linked_cameras(count, torch.Generator().manual_seed(seed + 100 * i))
        images.append(renders(caption, given, seed + i, views=LINKED))
        cameras.append(given)
        captions += [caption.text] * (LINKED * count)
    return Held(torch.cat(images), {name: torch.cat([c[name] for c in cameras]) for name in cameras[0]}, captions)


@torch.no_grad()
def error(prior: Prior, held: Held, t: int, camera: bool = True, joined: bool = False, seed: int = 0) -> float:
    """Mean squared error of the x_0 prediction.

    Args:
        prior: the text-conditioned or the multi-view prior.
        held: groups of views.
        t: timestep.
        camera: whether the cameras are given.
        joined: whether the views of a group see each other, in the multi-view prior.
        seed: of the noise.
    """
    noise = torch.randn(held.image.shape, generator=torch.Generator().manual_seed(seed))
    abar = prior.scheduler.alphas_cumprod[t]
    noisy = pixel_unshuffle(abar.sqrt() * held.image + (1 - abar).sqrt() * noise, UNSHUFFLE)
    text, (vector, ray) = prior.encode_text(held.captions), conditions(held.cameras, GRID_SIZE)
    if joined:
        join(prior.unet, True)
    if not camera:
        vector, ray = torch.zeros_like(vector), torch.zeros_like(ray)
    x0 = prior.predict(noisy, torch.full((len(noisy),), t), text, vector, ray)
    if joined:
        join(prior.unet, False)
    return float((pixel_shuffle(x0, UNSHUFFLE) - held.image).square().mean())


def measure(base: Prior, prior: Prior, held: Held, t: int) -> dict[str, float]:
    """All errors at one timestep, see the module; the detail network is left out."""
    base, prior = replace(base, detail=None), replace(prior, detail=None)
    join(prior.unet, False)
    row = {
        "text prior": error(base, held, t),
        "separate": error(prior, held, t),
        "joined": error(prior, held, t, joined=True),
        "text prior, no camera": error(base, held, t, camera=False),
        "separate, no camera": error(prior, held, t, camera=False),
        "joined, no camera": error(prior, held, t, camera=False, joined=True),
    }
    return {name: round(value, 5) for name, value in row.items()}


def main() -> None:
    """Print the errors at several timesteps, over all kinds asked for."""
    parser = Parser(description=main.__doc__)
    parser.add_argument("--weights", type=Path, default=MULTIVIEW_WEIGHTS, help="folder of the weights")
    parser.number("--timesteps", int, list(TIMESTEPS), between(0, 999), "timesteps", nargs="*")
    parser.number("--count", int, 8, between(1, 10_000), "groups of each kind")
    parser.add_argument("--kinds", nargs="*", default=list(VIEW_KINDS), choices=KIND_NAMES, metavar="KIND")
    parser.add_argument("--each", action=argparse.BooleanOptionalAction, default=False, help="a line for each kind")
    args = parser.parse_args()
    base, prior = text_model.load(WEIGHTS), load(args.weights)
    for kinds in [(kind,) for kind in args.kinds] if args.each else [tuple(args.kinds)]:
        held = held_out(kinds, args.count)
        for t in args.timesteps:
            print(json.dumps({"kinds": ", ".join(kinds), "t": t, **measure(base, prior, held, t)}), flush=True)


if __name__ == "__main__":
    with protected():
        sys.exit(run(main))
