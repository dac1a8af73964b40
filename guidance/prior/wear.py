"""Pictures as an unfinished mesh shows them: rounded corners, wavy outlines, parts too thick or too thin, colours that run.

A denoiser that has only met noise takes the dents of a half-made object for the object. One that is shown worn pictures
behind the noise and asked for the clean ones learns to mend them: a restoration network as a prior (Hu et al. 2023, arXiv
2310.01391; an ensemble of degradations: Hu et al. 2024, ShaRP, arXiv 2410.02057). B layers of S x S pixels.
"""

import torch
from torch import Tensor
from torch.nn.functional import grid_sample, interpolate

# At full wear. Lengths in pixels of the layers, of which the prior's pictures have half as many a side.
ROUNDING = 5.0  # standard deviation of the blur that a threshold sharpens again
THICKNESS = 0.3  # how far that threshold moves from a half, in smooth patches and all over
BENDING = 2.5  # standard deviation of the displacements
CAST = 0.18  # standard deviation of a colour's relative change: in brightness, in each channel, and in that by patches
PATCHES = (4, 8, 16)  # a side of the picture; each picture and way of wear has one of these
INTACT = 0.25  # share of pictures that are left alone


def _field(count: int, channels: int, size: int, generator: torch.Generator) -> Tensor:
    """Smooth noise [B, C, S, S], standard deviation about 1: one size of patches for each row."""
    rows = []
    for row in torch.randint(len(PATCHES), (count,), generator=generator).tolist():
        coarse = torch.randn(1, channels, PATCHES[row], PATCHES[row], generator=generator)
        rows.append(interpolate(coarse, size=(size, size), mode="bicubic", align_corners=True))
    return torch.cat(rows)


def _blur(layers: Tensor, width: Tensor) -> Tensor:
    """Layers [B, C, S, S] blurred by a Gaussian of standard deviation ``width`` [B] pixels, of what lies inside."""
    at = torch.arange(layers.shape[-1], dtype=layers.dtype)
    apart = (at[:, None] - at).square()
    weights = torch.exp(-apart / (2 * width.clamp(min=0.1).square()[:, None, None]))
    weights = (weights / weights.sum(-1, keepdim=True))[:, None]
    return weights @ layers @ weights.mT


def _bent(layers: Tensor, by: Tensor) -> Tensor:
    """Layers [B, C, S, S], each pixel taken from ``by`` [B, 2, S, S] pixels beside it (x, then y)."""
    size = layers.shape[-1]
    at = (torch.arange(size, dtype=layers.dtype) + 0.5) / size * 2 - 1
    grid = torch.stack(torch.meshgrid(at, at, indexing="xy"), -1) + by.movedim(1, -1) * (2 / size)
    return grid_sample(layers, grid, padding_mode="border", align_corners=False)


def worn(layers: Tensor, generator: torch.Generator) -> Tensor:
    """Layers as a mesh that is not done yet would show them.

    Args:
        layers: [B, 4, S, S], colour times coverage, then coverage, in [0, 1].
        generator: on the CPU. How much each picture is worn, and in which ways, is random.

    Returns:
        Like the layers; coverage is 0 or 1 where a picture is worn at all.
    """
    count, _, size = layers.shape[:3]
    # Each way of wear has its own strength: an outline may be wavy with sharp corners.
    strength = torch.rand(4, count, 1, 1, 1, generator=generator)
    bent = _bent(layers, BENDING * strength[0] * _field(count, 2, size, generator))
    width = 0.5 + ROUNDING * strength[1].flatten()
    soft = _blur(bent, width)
    ground = 2 * torch.rand(count, 1, 1, 1, generator=generator) - 1
    threshold = 0.5 + THICKNESS / 2 * strength[2] * (ground + _field(count, 1, size, generator).clamp(-1, 1))
    inside = (soft[:, 3:] > threshold).float()
    here, around = (c[:, :3] / c[:, 3:].clamp(min=1e-3) for c in (bent, soft))
    run = torch.rand(count, 1, 1, 1, generator=generator)
    colour = torch.where(bent[:, 3:] > 0.5, here + run * (around - here), around)
    cast = sum(torch.randn(count, channels, 1, 1, generator=generator) for channels in (1, 3))
    cast = cast + _field(count, 3, size, generator)
    colour = (colour * (1 + CAST * strength[3] * cast)).clamp(0, 1)
    done = torch.cat([colour * inside, inside], 1)
    return torch.where(torch.rand(count, 1, 1, 1, generator=generator) < INTACT, layers, done)
