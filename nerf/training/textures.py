"""Random pictures behind rendered views: noise, checkerboards and random Fourier textures. B views.

A fixed background can become part of the object where a model judges whole pictures; behind it, Dream Fields (Jain et al. 2022,
arXiv 2112.01455, sec. 3.3) puts these three in turn, blurred at random.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

CELLS = (2, 16)  # squares of a checkerboard along a side
LARGEST_BLUR = 0.08  # standard deviation of the blur, as a share of the height


def random_textures(views: int, height: int, width: int, generator: torch.Generator) -> Tensor:
    """Colours behind every ray of B whole views: [B H W, 3] in [0, 1], one texture of its own for each view.

    Args:
        views: B.
        height: H, pixels.
        width: W, pixels.
        generator: on the CPU.
    """
    kinds = torch.randint(len(TEXTURES), (views,), generator=generator).tolist()
    pictures = [_blurred(TEXTURES[kind](height, width, generator), generator) for kind in kinds]
    return torch.stack(pictures).reshape(-1, 3)


def noise(height: int, width: int, generator: torch.Generator) -> Tensor:
    """Normal noise around a random grey: [H, W, 3] in [0, 1]."""
    grey = torch.rand((), generator=generator)
    return (grey + 0.2 * torch.randn(height, width, 3, generator=generator)).clamp(0, 1)


def checkerboard(height: int, width: int, generator: torch.Generator) -> Tensor:
    """A checkerboard of two random colours: [H, W, 3] in [0, 1]."""
    cells = int(torch.randint(CELLS[0], CELLS[1] + 1, (), generator=generator))
    side = max(height // cells, 1)
    odd = (torch.arange(height)[:, None] // side + torch.arange(width) // side) % 2
    return torch.rand(2, 3, generator=generator)[odd]


def fourier(height: int, width: int, generator: torch.Generator) -> Tensor:
    """Random waves whose amplitude falls with the frequency, the whole range of each channel used: [H, W, 3] in [0, 1]."""
    shape = (3, height, width // 2 + 1)
    spectrum = torch.complex(torch.randn(shape, generator=generator), torch.randn(shape, generator=generator))
    frequency = (torch.fft.fftfreq(height)[:, None] ** 2 + torch.fft.rfftfreq(width) ** 2).sqrt()
    decay = 1.0 + torch.rand((), generator=generator)
    waves = torch.fft.irfft2(spectrum / frequency.clamp(min=1.0 / max(height, width)) ** decay, s=(height, width))
    low, high = waves.amin((1, 2), keepdim=True), waves.amax((1, 2), keepdim=True)
    return ((waves - low) / (high - low).clamp(min=1e-6)).movedim(0, -1)


TEXTURES = (noise, checkerboard, fourier)


def _blurred(picture: Tensor, generator: torch.Generator) -> Tensor:
    """A picture [H, W, 3] under a Gaussian blur of random width, edges repeated."""
    sigma = LARGEST_BLUR * picture.shape[0] * float(torch.rand((), generator=generator))
    radius = min(int(3 * sigma), min(picture.shape[:2]) - 1)
    if radius < 1:
        return picture
    place = torch.arange(-radius, radius + 1.0)
    kernel = torch.exp(-0.5 * (place / sigma) ** 2)
    kernel = (kernel / kernel.sum()).expand(3, 1, 1, -1)
    image = F.pad(picture.movedim(-1, 0)[None], (radius,) * 4, mode="replicate")
    return F.conv2d(F.conv2d(image, kernel, groups=3), kernel.mT, groups=3)[0].movedim(0, -1).clamp(0, 1)
