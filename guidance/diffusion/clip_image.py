"""Pictures for an image encoder of CLIP. B pictures."""

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from nerf.core.transfer import upload

MEAN = (0.48145466, 0.4578275, 0.40821073)  # of the pictures that CLIP was trained on
STD = (0.26862954, 0.26130258, 0.27577711)


def preprocess(image: Tensor, size: int, align_corners: bool = False) -> Tensor:
    """Pictures as CLIP's image encoder takes them: bicubic to its size, then normalised. Differentiable.

    Args:
        image: [B, 3, H, W] in [0, 1].
        size: side of the encoder's input.
        align_corners: resize as Zero123 does, where the corner pixels stay where they are and nothing is averaged; otherwise
            pictures that shrink are antialiased, as in CLIP's own preprocessing.

    Returns:
        [B, 3, size, size].
    """
    shrinks = image.shape[-1] > size or image.shape[-2] > size
    pixels = F.interpolate(
        image, (size, size), mode="bicubic", align_corners=align_corners, antialias=shrinks and not align_corners
    )
    if not align_corners:
        pixels = pixels.clamp(0, 1)
    mean, std = _statistics(image.dtype, image.device)
    return (pixels - mean) / std


@cache
@torch.inference_mode(False)  # they outlive the caller's mode
def _statistics(dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """:data:`MEAN` and :data:`STD`, each [3, 1, 1], which every training step needs."""
    return upload([torch.tensor(value, dtype=dtype).reshape(3, 1, 1) for value in (MEAN, STD)], device)


def over(picture: Tensor, grey: float) -> Tensor:
    """A picture [4, H, W] (RGBA in [0, 1], colour not premultiplied) over a grey background, as [1, 3, H, W]."""
    colour, alpha = picture[None, :3], picture[None, 3:]
    return colour * alpha + grey * (1 - alpha)
