"""Does the prior obey the camera? ``python -m guidance.prior.diagnose`` answers with figures and a sheet of samples.

The figure is the error of the denoised image when the camera it is told is wrong by 90 or 180 degrees, over the error
with the right one, at t = 850, where the noise hides which way the object faces. One means that the camera is ignored.
Beside it stands the ceiling: the same ratio for the best denoiser there could be, the posterior mean over renders of
the family seen by the right or the wrong camera. A second table says how far from the clean image the denoised one is at
several times, without and with the detail network, and where the noise lies on a worn image. B images.
"""

import argparse
import json
import random
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from guidance.prior import GRID_SIZE, IMAGE_SIZE, UNSHUFFLE, WEIGHTS
from guidance.prior.camera import condition, look_at, random_cameras, ray_map
from guidance.prior.captions import BENCHMARK_PROMPTS, Caption, parse, random_caption
from guidance.prior.dataset import over, shaded
from guidance.prior.model import Prior, load
from guidance.prior.render import render
from guidance.prior.shapes import palette, random_proportions
from guidance.prior.wear import worn

KINDS = ("chair", "car", "house", "mug")
TURNS = (0, 90, 180)
TIMES = (50, 100, 200, 300, 500, 700)
VIEWS = ((75.0, 0.0), (75.0, 90.0), (75.0, 180.0), (75.0, 270.0), (55.0, 35.0), (55.0, 215.0))


def pictures(caption: Caption, cameras: dict[str, Tensor], seed: int = 0, wear: bool = False) -> Tensor:
    """Renders [B, 3, 64, 64] in [-1, 1] of random members of the family, soft light, white background; worn or not."""
    count = len(cameras["polar"])
    proportions = random_proportions(caption.kind, count, torch.Generator().manual_seed(seed))
    material, normal = render(caption.kind, proportions, cameras, IMAGE_SIZE)
    light = torch.nn.functional.normalize(torch.tensor([0.0, 0.25, 1.0]), dim=0).expand(count, 3)
    layers = shaded(material, normal, palette(caption).expand(count, -1, -1), light, torch.full((count,), 0.5))
    if wear:
        layers = worn(layers, torch.Generator().manual_seed(seed))
    return over(layers, torch.ones(count, 3)) * 2 - 1


def turned(cameras: dict[str, Tensor], degrees: float) -> dict[str, Tensor]:
    """The same cameras with another azimuth."""
    return {**cameras, "azimuth": cameras["azimuth"] + degrees}


def conditions(cameras: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Camera vector [B, 8] and ray map [B, 13, g, g] of cameras of :func:`guidance.prior.camera.random_cameras`."""
    pose = look_at(cameras["polar"], cameras["azimuth"], cameras["radius"])
    return condition(**cameras), ray_map(pose, cameras["fovy"], GRID_SIZE)


def _noisy(prior: Prior, image: Tensor, t: int, seed: int) -> Tensor:
    level = prior.scheduler.alphas_cumprod[t]
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(seed))
    return level.sqrt() * image + (1 - level).sqrt() * noise


@torch.no_grad()
def camera_error(
    prior: Prior,
    caption: Caption,
    t: int = 850,
    count: int = 40,
    seed: int = 1,
    turns: tuple[int, ...] = TURNS,
    wear: bool = False,
) -> dict[int, float]:
    """Mean squared error of the denoised image ([-1, 1] scale) for a camera wrong by each of ``turns``, in degrees."""
    cameras = random_cameras(count, torch.Generator().manual_seed(seed))
    image = pictures(caption, cameras, seed)
    shown = pictures(caption, cameras, seed, wear)
    noisy = torch.nn.functional.pixel_unshuffle(_noisy(prior, shown, t, seed), UNSHUFFLE)
    text = prior.encode_text([caption.text]).expand(count, -1, -1)
    steps = torch.full((count,), t)
    errors = {}
    for turn in turns:
        estimate = prior.predict(noisy, steps, text, *conditions(turned(cameras, turn)))
        estimate = torch.nn.functional.pixel_shuffle(estimate, UNSHUFFLE)
        errors[turn] = float((estimate - image).square().mean())
    return errors


@torch.no_grad()
def ceiling_error(
    prior: Prior, caption: Caption, t: int = 850, count: int = 8, references: int = 48, seed: int = 1
) -> dict[int, float]:
    """As :func:`camera_error`, for the posterior mean over ``references`` renders of the family by the told camera."""
    cameras = random_cameras(count, torch.Generator().manual_seed(seed))
    image = pictures(caption, cameras, seed)
    noisy = _noisy(prior, image, t, seed)
    level = prior.scheduler.alphas_cumprod[t]
    errors = dict.fromkeys(TURNS, 0.0)
    for i in range(count):
        for turn in TURNS:
            told = {k: v[i : i + 1].expand(references) for k, v in turned(cameras, turn).items()}
            choices = pictures(caption, told, seed + 1000 + i)
            likelihood = -(noisy[i] - level.sqrt() * choices).square().sum((1, 2, 3)) / (2 * (1 - level))
            estimate = (torch.softmax(likelihood, 0)[:, None, None, None] * choices).sum(0)
            errors[turn] += float((estimate - image[i]).square().mean()) / count
    return errors


@torch.no_grad()
def sample(
    prior: Prior, prompts: list[str], cameras: dict[str, Tensor], steps: int = 25, scale: float = 3.0, seed: int = 0
) -> Tensor:
    """Pictures [B, 3, 64, 64] in [0, 1] by DDIM (Song et al. 2021, eq. 12, eta = 0), the same noise for each."""
    count = len(prompts)
    camera, ray = (torch.cat([c, c]) for c in conditions(cameras))
    text = prior.encode_text([*prompts, *[""] * count])
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(1, 3, IMAGE_SIZE, IMAGE_SIZE, generator=generator).expand(count, -1, -1, -1)
    x = torch.nn.functional.pixel_unshuffle(x, UNSHUFFLE)
    times = torch.linspace(999, 0, steps + 1).long().tolist()
    for now, after in zip(times, times[1:], strict=False):
        level, target = prior.scheduler.alphas_cumprod[now], prior.scheduler.alphas_cumprod[after]
        told, free = prior.predict(torch.cat([x, x]), torch.full((2 * count,), now), text, camera, ray).chunk(2)
        clean = (free + scale * (told - free)).clamp(-1, 1)
        noise = (x - level.sqrt() * clean) / (1 - level).sqrt()
        x = target.sqrt() * clean + (1 - target).sqrt() * noise
    return (torch.nn.functional.pixel_shuffle(clean, UNSHUFFLE) + 1) / 2


def sheet(prior: Prior, prompts: list[str], scale: float = 3.0, steps: int = 25) -> Tensor:
    """Samples in a grid [H, W, 3] uint8: a row for each prompt, a column for each of six views."""
    polar, azimuth = torch.tensor(VIEWS).T
    cameras = {
        "polar": polar,
        "azimuth": azimuth,
        "radius": torch.full_like(polar, 3.2),
        "fovy": torch.full_like(polar, 20.0),
    }
    rows = [torch.cat(list(sample(prior, [prompt] * len(VIEWS), cameras, steps, scale)), 2) for prompt in prompts]
    return (torch.cat(rows, 1).permute(1, 2, 0) * 255).round().to(torch.uint8)


def gate(prior: Prior, t: int = 850, count: int = 40, ceiling: bool = True) -> dict[str, dict[str, float]]:
    """Ratios for the four kinds: wrong by 90 and 180 over right, the error with the right camera, and the ceiling."""
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


def sharpness(prior: Prior, prompts: list[str], times: tuple[int, ...] = TIMES, count: int = 8) -> dict[int, dict[str, float]]:
    """Root mean squared error of the denoised image ([-1, 1] scale) at each time.

    Returns:
        For each time ``patches`` and ``details``, without and with the detail network, and ``worn patches`` and ``worn
        details``, where the noise lies on a worn image (:mod:`guidance.prior.wear`).
    """

    def error(prior: Prior, t: int, wear: bool) -> float:
        errors = [camera_error(prior, parse(prompt).caption, t, count, turns=(0,), wear=wear)[0] for prompt in prompts]
        return round((sum(errors) / len(errors)) ** 0.5, 4)

    kinds = {"patches": replace(prior, detail=None), "details": prior}
    return {
        t: {start + name: error(kind, t, bool(start)) for start in ("", "worn ") for name, kind in kinds.items()} for t in times
    }


def main() -> None:
    """Print the camera ratios (aim: 2.0 at 90 degrees, 1.3 at 180) and the errors; write a sheet of samples."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="diffusers folder")
    parser.add_argument("--t", type=int, default=850)
    parser.add_argument("--count", type=int, default=40, help="renders of each kind")
    parser.add_argument("--ceiling", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--sheet", type=Path, default=None, help="PNG to write samples to")
    parser.add_argument("--prompts", nargs="*", default=[prompt for prompt, _ in BENCHMARK_PROMPTS])
    parser.add_argument("--scale", type=float, default=3.0, help="guidance scale of the samples")
    args = parser.parse_args()
    prior = load(args.weights)
    print(json.dumps(gate(prior, args.t, args.count, args.ceiling), indent=1))
    print(json.dumps(sharpness(prior, args.prompts), indent=1))
    if args.sheet:
        import imageio.v3 as imageio

        imageio.imwrite(args.sheet, sheet(prior, [parse(prompt).text for prompt in args.prompts], args.scale).numpy())


if __name__ == "__main__":
    main()
