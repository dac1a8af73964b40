"""The embedded prior as a classifier: which of K captions explains B pictures of an object best.

A caption explains a picture as well as the prior, given the caption, predicts the picture behind noise (Li et al. 2023,
"Your Diffusion Model is Secretly a Zero-Shot Classifier", arXiv 2303.16203, eq. 9). All captions see the same noise, so that
their errors differ by the caption alone.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import pixel_unshuffle

from guidance.diffusion.codecs import resized
from guidance.prior import IMAGE_SIZE, UNSHUFFLE, WEIGHTS
from guidance.prior.benchmark import alike
from guidance.prior.camera import CONDITION_DIM, RAY_CHANNELS, conditions
from guidance.prior.captions import Caption, parse
from guidance.prior.model import Prior, load
from guidance.prior.references import cameras_at
from guidance.prior.vocabulary import KIND_NAMES

# At these, 4 views are enough to recognise all 36 true shapes of the benchmark; at 100, noise hides too little of the picture.
TIMESTEPS = (500, 700, 900)
POLAR, AZIMUTH = (70.0, 70.0, 70.0, 50.0), (25.0, 145.0, 265.0, 325.0)  # degrees, of the views that an object is recognised by
BATCH = 64  # captions at once
_EPSILON = 1e-9  # lower limit of an error


def load_classifier(folder: Path | str = WEIGHTS) -> Prior:
    """The text-conditioned prior without its detail network, which costs twice as much and depends little on the caption."""
    prior = load(folder)
    prior.detail = None
    return prior


def views() -> dict[str, Tensor]:
    """The cameras [4] of the views that an object is recognised by: ``polar``, ``azimuth``, ``radius``, ``fovy``."""
    return cameras_at(torch.tensor(POLAR), torch.tensor(AZIMUTH))


@torch.no_grad()
def scores(
    prior: Prior,
    images: Tensor,
    cameras: dict[str, Tensor] | None,
    captions: Sequence[str],
    timesteps: Sequence[int] = TIMESTEPS,
    seed: int = 0,
) -> Tensor:
    """How well each caption explains each picture.

    Args:
        prior: from :func:`load_classifier`.
        images: [B, 3, H, H] in [0, 1], the object in front of one colour, as far away as the prior saw its objects.
        cameras: ``polar``, ``azimuth`` (degrees), ``radius`` (scene units) and ``fovy`` (degrees), each [B]; None: unknown.
        captions: K prompts; each is read as a prompt of a run is.
        timesteps: of the noise, each in [0, 1000).
        seed: of the noise.

    Returns:
        [B, K] minus the mean over the timesteps of the logarithm of the squared error of the predicted picture. The logarithm
        lets every timestep count alike. Higher is better; compare within a row. The mean over the views of an object says
        which caption the object has. Not differentiable.

    Raises:
        ValueError: images or cameras of another shape, or no captions.
    """
    _check(images, cameras, captions)
    packed = pixel_unshuffle(resized(images, IMAGE_SIZE, IMAGE_SIZE).clamp(0, 1) * 2 - 1, UNSHUFFLE)
    vector, rays = _conditions(cameras, packed)
    text = prior.encode_text([parse(caption).text for caption in captions])
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros(len(images), len(captions))
    for t in timesteps:
        abar = prior.scheduler.alphas_cumprod[t]
        noise = torch.randn(packed.shape, generator=generator)
        noisy = abar.sqrt() * packed + (1 - abar).sqrt() * noise
        for i in range(len(packed)):
            errors = [_errors(prior, noisy[i], t, part, vector[i], rays[i], packed[i]) for part in text.split(BATCH)]
            total[i] -= torch.cat(errors).clamp(min=_EPSILON).log() / len(timesteps)
    return total


def recognise(prior: Prior, images: Tensor, cameras: dict[str, Tensor], caption: Caption) -> tuple[str, float]:
    """The kind that views of one object show, among all kinds in the same colours.

    Args:
        prior: from :func:`load_classifier`.
        images, cameras: B views, as for :func:`scores`; usually those of :func:`views`.
        caption: what the object should be.

    Returns:
        The name of the kind, and by how much the right caption is better than the best wrong one, in the unit of
        :func:`scores`: positive if it is recognised.
    """
    mean = scores(prior, images, cameras, [one.text for one in alike(caption)]).mean(0)
    right = KIND_NAMES.index(caption.kind)
    wrong = mean.clone()
    wrong[right] = -torch.inf
    return KIND_NAMES[int(mean.argmax())], float(mean[right] - wrong.max())


def _check(images: Tensor, cameras: dict[str, Tensor] | None, captions: Sequence[str]) -> None:
    """Refuse arguments of the wrong shape."""
    if images.ndim != 4 or images.shape[1] != 3 or images.shape[2] != images.shape[3]:
        raise ValueError(f"scores: expected images [B, 3, H, H], got {list(images.shape)}")
    if not captions:
        raise ValueError("scores: expected at least one caption, got none")
    for name, value in (cameras or {}).items():
        if value.shape != images.shape[:1]:
            raise ValueError(f"scores: expected {name} [{len(images)}], as there are images, got {list(value.shape)}")


def _conditions(cameras: dict[str, Tensor] | None, packed: Tensor) -> tuple[Tensor, Tensor]:
    """Camera vectors [B, 8] and ray maps [B, 13, 8, 8]; zeros for unknown cameras."""
    count, side = len(packed), packed.shape[-1]
    if cameras is None:
        return torch.zeros(count, CONDITION_DIM), torch.zeros(count, RAY_CHANNELS, side, side)
    return conditions(cameras, side)


def _errors(prior: Prior, noisy: Tensor, t: int, text: Tensor, vector: Tensor, rays: Tensor, truth: Tensor) -> Tensor:
    """Mean squared errors [K] of the pictures that K texts [K, L, D] predict behind one noisy picture [C, h, w]."""
    count = len(text)

    def repeated(one: Tensor) -> Tensor:
        return one.expand(count, *one.shape)

    x0 = prior.predict(repeated(noisy), torch.full((count,), t), text, repeated(vector), repeated(rays))
    return (x0 - truth).square().mean((1, 2, 3))
