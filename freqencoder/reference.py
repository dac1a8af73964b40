"""The frequency encoding as one reads it, for the tests. Letters: M points, D dimensions, K octaves."""

import torch
from torch import Tensor


def encode(x: Tensor, degree: int, active: int) -> Tensor:
    """``[x, sin(x), cos(x), sin(2 x), cos(2 x), ... cos(2^(K-1) x)]``; twin of :func:`freqencoder.encode`.

    Args:
        x: [M, D]
        degree: K.
        active: octaves from this one on are zero.

    Returns:
        [M, D + 2 * D * K]
    """
    parts = [x]
    for k in range(degree):
        parts += [torch.sin(2**k * x), torch.cos(2**k * x)] if k < active else [torch.zeros_like(x)] * 2
    return torch.cat(parts, dim=1)
