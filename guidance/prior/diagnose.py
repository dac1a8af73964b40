"""Measures of the prior: ``python -m guidance.prior.diagnose`` prints two tables and can write a sheet of samples.

The first table measures how far the prior depends on the camera: the error of the x_0 prediction under a camera that is wrong
by 90 or 180 degrees, over the error under the right one, at t = 850, where the noise hides which way the object faces. 1 means
that the camera is ignored. Beside it stands the ceiling: the same ratio for the optimal denoiser, the posterior mean over
renders of the family. The second table is the error of the x_0 prediction at several timesteps, without and with the detail
network, from noise on clean images and on degraded ones. B images; the networks may be on another device, all else is on the
CPU.
"""

import argparse
import functools
import json
import random
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from guidance.prior import GRID_SIZE, IMAGE_SIZE, UNSHUFFLE, WEIGHTS
from guidance.prior.benchmark import recolored
from guidance.prior.camera import conditions, random_cameras
from guidance.prior.captions import BENCHMARK_PROMPTS, Caption, parse, random_caption
from guidance.prior.dataset import over, shaded
from guidance.prior.degrade import degrade
from guidance.prior.model import Prior, load
from guidance.prior.references import LIGHT
from guidance.prior.render import Seen, render
from guidance.prior.shapes import caption_of, palette, random_proportions
from nerf.core.console import protected
from nerf.core.ranges import between
from nerf.core.script import Parser, run

KINDS = ("chair", "car", "house", "mug")
TURNS = (0, 90, 180)
TIMESTEPS = (50, 100, 200, 300, 500, 700)
KIND_TIMESTEPS = (100, 300, 500, 850)  # of the errors of each kind
KIND_COLORS = ("blue", "red")  # in which they are measured, as far as a kind has them
VIEWS = ((75.0, 0.0), (75.0, 90.0), (75.0, 180.0), (75.0, 270.0), (55.0, 35.0), (55.0, 215.0))


def renders(caption: Caption, cameras: dict[str, Tensor], seed: int = 0, degraded: bool = False, views: int = 1) -> Tensor:
    """Renders [B, 3, 64, 64] in [-1, 1] of random members of the family: soft light, white background.

    Args:
        caption: kind and colours.
        cameras: of B views.
        seed: of the proportions.
        degraded: with the defects of an unfinished mesh.
        views: consecutive ones of one object.
    """
    layers, _ = members(caption, cameras, torch.Generator().manual_seed(seed), views)
    if degraded:
        layers = degrade(layers, torch.Generator().manual_seed(seed))
    return over(layers, torch.ones(len(layers), 3)) * 2 - 1


def members(caption: Caption, cameras: dict[str, Tensor], generator: torch.Generator, views: int = 1) -> tuple[Tensor, Seen]:
    """Random members of the family in soft light: layers [B, 4, 128, 128] as those of :func:`shaded`, and what is seen.

    Args:
        caption, cameras, views: see :func:`renders`.
        generator: of the proportions.
    """
    count = len(cameras["polar"])
    proportions = random_proportions(caption.kind, count // views, generator)
    proportions = {name: value.repeat_interleave(views) for name, value in proportions.items()}
    seen = render(caption.kind, proportions, cameras, IMAGE_SIZE)
    light = torch.nn.functional.normalize(torch.tensor(LIGHT), dim=0).expand(count, 3)
    colours = palette(caption).expand(count, -1, -1)
    return shaded(seen.material, seen.normal, colours, light, torch.full((count,), 0.5)), seen


@functools.lru_cache(maxsize=256)
def family_renders(caption: Caption, count: int, seed: int, degraded: bool = False) -> tuple[dict[str, Tensor], Tensor]:
    """Random cameras, ``count`` of each, and :func:`renders` [B, 3, 64, 64] by them; kept, so do not change them."""
    cameras = random_cameras(count, torch.Generator().manual_seed(seed))
    return cameras, renders(caption, cameras, seed, degraded)


def rotated(cameras: dict[str, Tensor], degrees: float) -> dict[str, Tensor]:
    """The same cameras at another azimuth."""
    return {**cameras, "azimuth": cameras["azimuth"] + degrees}


def add_noise(prior: Prior, image: Tensor, t: int, seed: int) -> Tensor:
    """x_t [B, 3, 64, 64] of an image, unpacked."""
    abar = prior.scheduler.alphas_cumprod[t]
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(seed))
    noisy: Tensor = abar.sqrt() * image + (1 - abar).sqrt() * noise
    return noisy


def estimate(prior: Prior, noisy: Tensor, t: int, text: Tensor, cameras: dict[str, Tensor]) -> Tensor:
    """The x_0 prediction [B, 3, 64, 64] for x_t of that shape under text [B, L, D] and cameras, unpacked."""
    packed = torch.nn.functional.pixel_unshuffle(noisy, UNSHUFFLE)
    given = (packed, torch.full((len(noisy),), t), text, *conditions(cameras, GRID_SIZE))
    x0 = prior.predict(*(value.to(prior.unet.device) for value in given))
    return torch.nn.functional.pixel_shuffle(x0, UNSHUFFLE).to(noisy.device)


@torch.no_grad()
def camera_error(
    prior: Prior,
    caption: Caption,
    t: int = 850,
    count: int = 40,
    seed: int = 1,
    turns: tuple[int, ...] = TURNS,
    degraded: bool = False,
) -> dict[int, float]:
    """Mean squared error of the x_0 prediction ([-1, 1] scale) for a camera wrong by each of ``turns``, in degrees."""
    cameras, image = family_renders(caption, count, seed)
    _, source = family_renders(caption, count, seed, degraded)
    noisy = add_noise(prior, source, t, seed)
    text = prior.encode_text([caption.text]).expand(count, -1, -1)
    errors = {}
    for turn in turns:
        x0 = estimate(prior, noisy, t, text, rotated(cameras, turn))
        errors[turn] = float((x0 - image).square().mean())
    return errors


@torch.no_grad()
def ceiling_error(
    prior: Prior, caption: Caption, t: int = 850, count: int = 8, references: int = 48, seed: int = 1
) -> dict[int, float]:
    """As :func:`camera_error`, for the posterior mean over ``references`` renders of the family by the given camera."""
    cameras = random_cameras(count, torch.Generator().manual_seed(seed))
    image = renders(caption, cameras, seed)
    noisy = add_noise(prior, image, t, seed)
    abar = prior.scheduler.alphas_cumprod[t]
    errors = dict.fromkeys(TURNS, 0.0)
    for i in range(count):
        for turn in TURNS:
            given = {k: v[i : i + 1].expand(references) for k, v in rotated(cameras, turn).items()}
            members = renders(caption, given, seed + 1000 + i)
            likelihood = -(noisy[i] - abar.sqrt() * members).square().sum((1, 2, 3)) / (2 * (1 - abar))
            mean = (torch.softmax(likelihood, 0)[:, None, None, None] * members).sum(0)
            errors[turn] += float((mean - image[i]).square().mean()) / count
    return errors


@torch.no_grad()
def sample(
    prior: Prior, prompts: list[str], cameras: dict[str, Tensor], steps: int = 25, scale: float = 3.0, seed: int = 0
) -> Tensor:
    """Images [B, 3, 64, 64] in [0, 1] by DDIM (Song et al. 2021, arXiv 2010.02502, eq. 12, eta = 0), all from one noise."""
    count = len(prompts)
    camera, ray = (torch.cat([c, c]) for c in conditions(cameras, GRID_SIZE))
    text = prior.encode_text([*prompts, *[""] * count])
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(1, 3, IMAGE_SIZE, IMAGE_SIZE, generator=generator).expand(count, -1, -1, -1)
    x = torch.nn.functional.pixel_unshuffle(x, UNSHUFFLE)
    timesteps = torch.linspace(999, 0, steps + 1).long().tolist()
    x0 = x
    for now, following in zip(timesteps, timesteps[1:], strict=False):
        abar, abar_next = prior.scheduler.alphas_cumprod[now], prior.scheduler.alphas_cumprod[following]
        t = torch.full((2 * count,), now)
        conditional, unconditional = prior.predict(torch.cat([x, x]), t, text, camera, ray).chunk(2)
        x0 = (unconditional + scale * (conditional - unconditional)).clamp(-1, 1)
        noise = (x - abar.sqrt() * x0) / (1 - abar).sqrt()
        x = abar_next.sqrt() * x0 + (1 - abar_next).sqrt() * noise
    return (torch.nn.functional.pixel_shuffle(x0, UNSHUFFLE) + 1) / 2


def sheet(prior: Prior, prompts: list[str], scale: float = 3.0, steps: int = 25) -> Tensor:
    """Samples in a grid [H, W, 3] uint8: a row per prompt, a column per view of :data:`VIEWS`."""
    polar, azimuth = torch.tensor(VIEWS).T
    cameras = {
        "polar": polar,
        "azimuth": azimuth,
        "radius": torch.full_like(polar, 3.2),
        "fovy": torch.full_like(polar, 20.0),
    }
    rows = [torch.cat(list(sample(prior, [prompt] * len(VIEWS), cameras, steps, scale)), 2) for prompt in prompts]
    return (torch.cat(rows, 1).permute(1, 2, 0) * 255).round().to(torch.uint8)


def camera_ratios(prior: Prior, t: int = 850, count: int = 40, ceiling: bool = True) -> dict[str, dict[str, float]]:
    """For four kinds: error ratios of cameras wrong by 90 and 180 degrees, error of the right one, and the ceiling of each."""
    table = {}
    for kind in KINDS:
        caption = random_caption(kind, random.Random(0))
        errors = camera_error(prior, caption, t, count)
        row = {"plus90": errors[90] / errors[0], "plus180": errors[180] / errors[0], "error": errors[0]}
        if ceiling:
            best = ceiling_error(prior, caption, t)
            row |= {"ceiling90": best[90] / best[0], "ceiling180": best[180] / best[0], "floor": best[0]}
        table[kind] = {name: round(value, 4) for name, value in row.items()}
    return table


def x0_errors(
    prior: Prior, prompts: list[str], timesteps: tuple[int, ...] = TIMESTEPS, count: int = 8
) -> dict[int, dict[str, float]]:
    """Root mean squared error of the x_0 prediction ([-1, 1] scale) at each timestep.

    Returns:
        For each timestep ``patches`` and ``details``, without and with the detail network, and ``degraded patches`` and
        ``degraded details``, from noise on degraded images (:mod:`guidance.prior.degrade`).
    """

    captions = [caption_of(prompt) for prompt in prompts]

    def error(prior: Prior, t: int, degraded: bool) -> float:
        errors = [camera_error(prior, caption, t, count, turns=(0,), degraded=degraded)[0] for caption in captions]
        return round((sum(errors) / len(errors)) ** 0.5, 4)

    kinds = {"patches": replace(prior, detail=None), "details": prior}
    return {
        t: {start + name: error(kind, t, bool(start)) for start in ("", "degraded ") for name, kind in kinds.items()}
        for t in timesteps
    }


def kind_errors(
    prior: Prior, kinds: Iterable[str], timesteps: tuple[int, ...] = KIND_TIMESTEPS, count: int = 16
) -> dict[str, dict[int, float]]:
    """Errors of the x_0 prediction for each kind at each timestep: root mean squared, as shares of the contrast.

    The contrast is the root mean square of what the images differ from their white background, so that small kinds and large
    ones are alike. Proportions are random ones.
    """
    found = {}
    for kind in kinds:
        caption = recolored(kind, KIND_COLORS)
        contrast = float((1 - family_renders(caption, count, 1)[1]).square().mean())
        errors = {t: camera_error(prior, caption, t, count, turns=(0,))[0] for t in timesteps}
        found[kind] = {t: round((error / contrast) ** 0.5, 4) for t, error in errors.items()}
    return found


def main() -> None:
    """Print the camera ratios (target: 2.0 at 90 degrees, 1.3 at 180) and the errors of x_0; write a sheet of samples."""
    parser = Parser(description=main.__doc__)
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="diffusers folder")
    parser.number("--t", int, 850, between(0, 999), "timestep")
    parser.number("--count", int, 40, between(1, 10_000), "renders of each kind")
    parser.add_argument("--ceiling", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--sheet", type=Path, default=None, help="PNG to write samples to")
    parser.add_argument("--prompts", nargs="*", default=[prompt for prompt, _ in BENCHMARK_PROMPTS])
    parser.number("--scale", float, 3.0, between(0, 1e6), "guidance scale of the samples")
    args = parser.parse_args()
    prior = load(args.weights)
    print(json.dumps(camera_ratios(prior, args.t, args.count, args.ceiling), indent=1))
    print(json.dumps(x0_errors(prior, args.prompts), indent=1))
    if args.sheet:
        import imageio.v3 as imageio

        imageio.imwrite(args.sheet, sheet(prior, [parse(prompt).text for prompt in args.prompts], args.scale).numpy())


if __name__ == "__main__":
    with protected():
        sys.exit(run(main))
