"""Measures of the view-conditioned prior: ``python -m guidance.prior.diagnose_view`` prints a table and can write a sheet.

For each kind: how far the reference's azimuth is estimated right, and the error of the x_0 prediction at t = 850 under the
right pose and reference, and, divided by it, under a pose that is wrong by 90 or 180 degrees and under the reference of another
object of the kind, in other colours. 1 means that the pose or the reference is ignored. Beside it stands the error of the
text-conditioned prior, which is given the true kind, colours and azimuth, and no proportions. B images, V views.
"""

import argparse
import json
import random
import sys
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from guidance.prior import UNSHUFFLE, VIEW_WEIGHTS, WEIGHTS, references
from guidance.prior import model as text_model
from guidance.prior.camera import random_cameras
from guidance.prior.captions import KIND_NAMES, random_caption
from guidance.prior.dataset import VIEW_KINDS
from guidance.prior.references import REFERENCES, Reference, cameras_at, true_layers
from guidance.prior.shapes import KINDS, Shape, palette, random_proportions
from guidance.prior.view_model import ViewPrior, azimuth_of, cameras_of, load
from nerf.core.ranges import between
from nerf.core.script import Parser, run

FIRST_SEED = 700_000  # of the proportions of the measured objects, which no shard has
TURNS = (0, 90, 180)
NEAR = 20.0  # degrees, an estimate that counts as right
SHEET_AZIMUTHS = (0.0, 45.0, 90.0, 135.0, 180.0, 225.0, 270.0, 315.0)
FRONT = 40.0  # degrees: the references are taken from within so far of the front


def over_white(layers: Tensor) -> Tensor:
    """Images [B, 3, S, S] in [-1, 1] of layers [B, 4, S, S]."""
    return (layers[:, :3] + 1 - layers[:, 3:]) * 2 - 1


def as_reference(layers: Tensor) -> Tensor:
    """References [B, 4, S, S] in [-1, 1] of layers [B, 4, S, S]."""
    return torch.cat([over_white(layers), layers[:, 3:] * 2 - 1], 1)


def objects(kind: str, count: int, seed: int) -> tuple[list[Shape], list[str]]:
    """Random members of a kind, each in its own trained colours, and the captions of these."""
    rng = random.Random(seed)
    captions = [random_caption(kind, rng) for _ in range(count)]
    drawn = random_proportions(kind, count, torch.Generator().manual_seed(FIRST_SEED + seed))
    shapes = [Shape(kind, {k: float(v[i]) for k, v in drawn.items()}, palette(c)) for i, c in enumerate(captions)]
    return shapes, [caption.text for caption in captions]


def _views(shapes: list[Shape], cameras: dict[str, Tensor]) -> Tensor:
    """A view of each shape, layers [B, 4, 64, 64]."""
    return torch.cat([true_layers(shape, {k: v[i : i + 1] for k, v in cameras.items()}, 64) for i, shape in enumerate(shapes)])


def _noisy(image: Tensor, abar: Tensor, seed: int) -> Tensor:
    """Packed x_t of images [B, 3, 64, 64]."""
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(seed))
    return pixel_unshuffle(abar.sqrt() * image + (1 - abar).sqrt() * noise, UNSHUFFLE)


@torch.no_grad()
def measure_kind(
    prior: ViewPrior, kind: str, t: int = 850, count: int = 24, seed: int = 1, text: text_model.Prior | None = None
) -> dict[str, float]:
    """The measures of one kind, see the module."""
    shapes, captions = objects(kind, count, seed)
    generator = torch.Generator().manual_seed(seed)
    target, source = random_cameras(count, generator), random_cameras(count, generator)
    source["azimuth"] = FRONT * (2 * torch.rand(count, generator=generator) - 1)
    image, shown = over_white(_views(shapes, target)), as_reference(_views(shapes, source))
    noisy, timesteps = _noisy(image, prior.scheduler.alphas_cumprod[t], seed), torch.full((count,), t)
    reading = prior.read(shown, source)
    seen = prior.see(shown, source, reading)

    def error(predicted: Tensor) -> float:
        return float((pixel_shuffle(predicted, UNSHUFFLE) - image).square().mean())

    def turned(degrees: float, order: Tensor) -> float:
        wrong = {**target, "azimuth": target["azimuth"] + degrees}
        given = seen[order]
        # Another object's reference stands for this one's: its own azimuth counts, not that it was taken elsewhere.
        conditions = cameras_of(wrong, given.offset + source["azimuth"][order] - source["azimuth"])
        return error(prior.predict(noisy, timesteps, given, *conditions))

    same, other = torch.arange(count), torch.arange(count).roll(1)
    errors = {turn: turned(turn, same) for turn in TURNS}
    miss = ((azimuth_of(reading.heading) - source["azimuth"] + 180) % 360 - 180).abs()
    row = {
        "error": errors[0],
        **{f"plus{turn}": errors[turn] / errors[0] for turn in TURNS[1:]},
        "other": turned(0, other) / errors[0],
        "near": float((miss < NEAR).float().mean()) if KINDS[kind].symmetry != "round" else 1.0,
    }
    if text is not None:
        words = text.encode_text(captions)
        row["text_error"] = error(text.predict(noisy, timesteps, words, *cameras_of(target, torch.zeros(count))))
    return {name: round(value, 4) for name, value in row.items()}


@torch.no_grad()
def sample(
    prior: ViewPrior,
    reference: Tensor,
    source: dict[str, Tensor],
    target: dict[str, Tensor],
    steps: int = 20,
    scale: float = 2.0,
    seed: int = 0,
) -> Tensor:
    """Views [V, 3, 64, 64] in [0, 1] of the object of one reference by DDIM, all from one noise.

    Args:
        prior: the model.
        reference: [1, 4, 64, 64] in [-1, 1].
        source: its camera, each [1].
        target: cameras of the views, each [V], azimuths in the frame of the source.
        steps: denoising steps.
        scale: of classifier-free guidance.
        seed: of the noise.
    """
    from guidance.diffusion.codecs import PixelCodec
    from guidance.diffusion.distiller import Distiller
    from guidance.distillation import NoiseSchedule, classifier_free

    count = len(target["polar"])
    seen = prior.see(reference, source)[torch.zeros(2 * count, dtype=torch.long)]
    vector, ray = cameras_of({k: torch.cat([v, v]) for k, v in target.items()}, seen.offset)
    keep = torch.cat([torch.zeros(count), torch.ones(count)])

    def predict(noisy: Tensor, t: Tensor) -> Tensor:
        out = prior.predict(noisy.repeat(2, 1, 1, 1), t.repeat(2), seen, vector, ray, keep)
        return out.unflatten(0, (2, count))

    schedule = NoiseSchedule(prior.scheduler.alphas_cumprod, "sample", 1.0)
    distiller = Distiller(PixelCodec(64, UNSHUFFLE), schedule, torch.device("cpu"))
    return distiller.sample(predict, classifier_free(scale), count, torch.Generator().manual_seed(seed), steps)


def sheet(prior: ViewPrior, chosen: tuple[Reference, ...] = REFERENCES, scale: float = 2.0, steps: int = 20) -> Tensor:
    """The held-out references and samples of eight views of each, above the true views: [H, W, 3] uint8."""
    azimuth = torch.tensor(SHEET_AZIMUTHS)
    rows = []
    for reference in chosen:
        source = cameras_at(torch.tensor([reference.polar]), torch.zeros(1))
        target = cameras_at(torch.full_like(azimuth, reference.polar), azimuth)
        shape = references.shape_of(reference)
        own = references.seen_from(reference, target["polar"], azimuth)
        truth = true_layers(shape, own, 64)
        views = sample(prior, as_reference(truth[:1]), source, target, steps, scale)
        white = (over_white(truth) + 1) / 2
        rows += [torch.cat([white[0], *views], 2), torch.cat([torch.ones(3, 64, 64), *white], 2)]
    return (torch.cat(rows, 1).permute(1, 2, 0) * 255).round().to(torch.uint8)


def main() -> None:
    """Print the measures of each kind; write a sheet of samples."""
    parser = Parser(description=main.__doc__)
    parser.add_argument("--weights", type=Path, default=VIEW_WEIGHTS, help="folder of the weights")
    parser.number("--t", int, 850, between(0, 999), "timestep")
    parser.number("--count", int, 24, between(1, 10_000), "objects of each kind")
    parser.add_argument("--kinds", nargs="*", default=list(VIEW_KINDS), choices=KIND_NAMES, metavar="KIND")
    parser.add_argument("--text", action=argparse.BooleanOptionalAction, default=True, help="measure the text prior beside it")
    parser.add_argument("--sheet", type=Path, default=None, help="PNG to write samples to")
    parser.number("--scale", float, 2.0, between(0, 1e6), "guidance scale of the samples")
    args = parser.parse_args()
    prior, text = load(args.weights), text_model.load(WEIGHTS) if args.text else None
    for kind in args.kinds:
        print(json.dumps({"kind": kind, **measure_kind(prior, kind, args.t, args.count, text=text)}), flush=True)
    if args.sheet:
        import imageio.v3 as imageio

        imageio.imwrite(args.sheet, sheet(prior, scale=args.scale).numpy())


if __name__ == "__main__":
    sys.exit(run(main))
