"""Training images with the defects of an unfinished mesh: rounded corners, wavy outlines, wrong thickness, colour bleeding.

A denoiser trained on noise alone takes the defects of a half-trained object for the object itself. One that is trained to
recover the clean image from noise on top of a degraded one removes them: a restoration network as a prior (Hu et al. 2023,
arXiv 2310.01391; with an ensemble of degradations: Hu et al. 2024, ShaRP, arXiv 2410.02057). B images of S x S pixels.
"""

import torch
from torch import Tensor
from torch.nn.functional import grid_sample, interpolate

# At full strength. Lengths in pixels of the layers, of which the prior's images have half as many per side.
BLUR = 5.0  # standard deviation of the blur that a threshold sharpens again, which rounds corners
THICKNESS = 0.3  # offset of that threshold from 0.5: one part constant over the image, one smoothly varying
WARP = 2.5  # standard deviation of the displacements
CAST = 0.18  # standard deviation of the relative colour change: in brightness, per channel, and per channel and place
CELLS = (4, 8, 16)  # resolution of the smooth noise; drawn for each image and degradation
CLEAN_FRACTION = 0.25  # of the images is left clean


def _smooth_noise(count: int, channels: int, size: int, generator: torch.Generator) -> Tensor:
    """Noise [B, C, S, S] of standard deviation about 1, interpolated from a random one of the :data:`CELLS` resolutions."""
    rows = []
    for row in torch.randint(len(CELLS), (count,), generator=generator).tolist():
        coarse = torch.randn(1, channels, CELLS[row], CELLS[row], generator=generator)
        rows.append(interpolate(coarse, size=(size, size), mode="bicubic", align_corners=True))
    return torch.cat(rows)


def _blurred(layers: Tensor, width: Tensor) -> Tensor:
    """Layers [B, C, S, S] blurred by a Gaussian of standard deviation ``width`` [B] pixels, renormalised at the borders."""
    at = torch.arange(layers.shape[-1], dtype=layers.dtype)
    squared = (at[:, None] - at).square()
    weights = torch.exp(-squared / (2 * width.clamp(min=0.1).square()[:, None, None]))
    weights = (weights / weights.sum(-1, keepdim=True))[:, None]
    return weights @ layers @ weights.mT


def _warped(layers: Tensor, offset: Tensor) -> Tensor:
    """Layers [B, C, S, S] resampled at each pixel plus ``offset`` [B, 2, S, S] pixels (x, then y)."""
    size = layers.shape[-1]
    at = (torch.arange(size, dtype=layers.dtype) + 0.5) / size * 2 - 1
    grid = torch.stack(torch.meshgrid(at, at, indexing="xy"), -1) + offset.movedim(1, -1) * (2 / size)
    return grid_sample(layers, grid, padding_mode="border", align_corners=False)


def degrade(layers: Tensor, generator: torch.Generator) -> Tensor:
    """Degrade layers at random.

    Args:
        layers: [B, 4, S, S], colour times coverage, then coverage, in [0, 1].
        generator: on the CPU; draws the strength of each degradation for each image.

    Returns:
        Like the layers; coverage is 0 or 1 in a degraded image.
    """
    count, _, size = layers.shape[:3]
    # Each degradation has its own strength: an outline may be wavy with sharp corners.
    strength = torch.rand(4, count, 1, 1, 1, generator=generator)
    warped = _warped(layers, WARP * strength[0] * _smooth_noise(count, 2, size, generator))
    width = 0.5 + BLUR * strength[1].flatten()
    soft = _blurred(warped, width)
    constant = 2 * torch.rand(count, 1, 1, 1, generator=generator) - 1
    threshold = 0.5 + THICKNESS / 2 * strength[2] * (constant + _smooth_noise(count, 1, size, generator).clamp(-1, 1))
    inside = (soft[:, 3:] > threshold).float()
    sharp, bled = (c[:, :3] / c[:, 3:].clamp(min=1e-3) for c in (warped, soft))
    bleeding = torch.rand(count, 1, 1, 1, generator=generator)
    colour = torch.where(warped[:, 3:] > 0.5, sharp + bleeding * (bled - sharp), bled)
    cast = torch.randn(count, 1, 1, 1, generator=generator)
    cast = cast + torch.randn(count, 3, 1, 1, generator=generator)
    cast = cast + _smooth_noise(count, 3, size, generator)
    colour = (colour * (1 + CAST * strength[3] * cast)).clamp(0, 1)
    degraded = torch.cat([colour * inside, inside], 1)
    return torch.where(torch.rand(count, 1, 1, 1, generator=generator) < CLEAN_FRACTION, layers, degraded)
