"""From rendered images to the space of a denoiser and back: a VAE's latents, or the pixels themselves. B images."""

import math
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from guidance.diffusion import Network
from guidance.folders import RESTORE
from nerf.core.errors import UserError
from nerf.core.transfer import upload

LARGEST_GRID = 1024  # side of latents; those of pictures of 8192 pixels


def resized(image: Tensor, height: int, width: int) -> Tensor:
    """``image`` [B, C, H, W] as [B, C, height, width]: bilinear, antialiased when it shrinks. Differentiable."""
    if image.shape[-2:] == (height, width):
        return image
    shrinks = image.shape[-2] > height or image.shape[-1] > width
    return F.interpolate(image, (height, width), mode="bilinear", align_corners=False, antialias=shrinks)


class Codec(Protocol):
    """What a distiller asks of an image encoding.

    Attributes:
        size: side of the images in pixels, after resizing.
        shape: (C, h, w) of one encoded image.
        channels: accepted image space -> number of channels.
    """

    size: int
    shape: tuple[int, int, int]
    channels: dict[str, int]

    def encode(self, image: Tensor, space: str, generator: torch.Generator) -> Tensor:
        """Encode images.

        Args:
            image: [B, channels[space], H, W] in [0, 1], any size.
            space: one of ``channels``.
            generator: on the CPU, for encoders that sample.

        Returns:
            [B, C, h, w] float32. Differentiable in the image.
        """

    def decode(self, encoded: Tensor) -> Tensor:
        """Decode [B, C, h, w] to RGB images [B, 3, size, size] float32 in [0, 1], without gradient."""


class LatentCodec:
    """Images as scaled latents [B, 4, h, w] of a VAE.

    Args:
        vae: an ``AutoencoderKL``.
        grid: h = w, side of the latents.

    Raises:
        UserError: a number in the configs of the weights that cannot be.
    """

    levels = "block_out_channels"  # in the config of the VAE: one number for each level, of which the next is half as large

    def __init__(self, vae: Network, grid: int):
        scale = vae.config.scaling_factor
        if not isinstance(grid, int) or isinstance(grid, bool) or not 1 <= grid <= LARGEST_GRID:
            raise UserError(f"weights: latents of {grid} pixels a side cannot be (sample_size of the UNet); {RESTORE}")
        if not isinstance(scale, int | float) or isinstance(scale, bool) or not 0 < scale < math.inf:
            raise UserError(f"weights: a scaling_factor of {scale!r:.40} of the VAE cannot be; {RESTORE}")
        self.vae, self.grid = vae, grid
        self.size = grid * 2 ** (len(vae.config[self.levels]) - 1)
        self.shape = (vae.config.latent_channels, grid, grid)
        self.channels = {"rgb": 3, "latent": vae.config.latent_channels}

    def encode(self, image: Tensor, space: str, generator: torch.Generator) -> Tensor:
        """A sample of the posterior, see :meth:`Codec.encode`; an image of space "latent" is used as a latent as it is."""
        if space == "latent":
            return 2 * resized(image, self.grid, self.grid).float() - 1
        pixels = 2 * resized(image, self.size, self.size) - 1
        latent: Tensor = self._latent(pixels.to(self.vae.dtype), generator) * self.vae.config.scaling_factor
        return latent

    def _latent(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        """Latents [B, 4, h, w] float32, not scaled, of pixels [B, 3, H, W] in [-1, 1]."""
        posterior = self.vae.encode(pixels).latent_dist
        (noise,) = upload([torch.randn(posterior.mean.shape, generator=generator)], posterior.mean.device)
        latent: Tensor = posterior.mean.float() + posterior.std.float() * noise
        return latent

    @torch.no_grad()
    def decode(self, encoded: Tensor) -> Tensor:
        """See :meth:`Codec.decode`."""
        pixels: Tensor = self.vae.decode((encoded / self.vae.config.scaling_factor).to(self.vae.dtype)).sample
        return (pixels.float() / 2 + 0.5).clamp(0, 1)


class TinyCodec(LatentCodec):
    """Images as latents of a distilled VAE (TAESD, TAESDXL: ``AutoencoderTiny``), which is deterministic; nothing is drawn."""

    levels = "encoder_block_out_channels"

    def _latent(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        latent: Tensor = self.vae.encode(pixels).latents.float()
        return latent


class PixelCodec:
    """Images as packed pixels [B, 3 n^2, size / n, size / n] in [-1, 1].

    Args:
        size: side of the images in pixels.
        unshuffle: n, side of the patches that become channels.
    """

    def __init__(self, size: int, unshuffle: int):
        self.size, self.unshuffle, self.grid = size, unshuffle, size // unshuffle
        self.shape = (3 * unshuffle**2, self.grid, self.grid)
        self.channels = {"rgb": 3}

    def encode(self, image: Tensor, space: str, generator: torch.Generator) -> Tensor:
        """Packed pixels, see :meth:`Codec.encode`; the generator is not used."""
        return F.pixel_unshuffle(2 * resized(image.float(), self.size, self.size) - 1, self.unshuffle)

    @torch.no_grad()
    def decode(self, encoded: Tensor) -> Tensor:
        """See :meth:`Codec.decode`."""
        return (F.pixel_shuffle(encoded.float(), self.unshuffle) / 2 + 0.5).clamp(0, 1)
