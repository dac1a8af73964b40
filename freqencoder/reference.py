"""The frequency encoding in plain torch: any dtype, any device, differentiable any number of times.

The kernels are tested against it, and it is what backend torch runs. Letters: M points, D dimensions, K octaves.
"""

import torch
from torch import Tensor


def encode(x: Tensor, degree: int, active: int) -> Tensor:
    """``[x, sin(x), cos(x), sin(2 x), cos(2 x), ... cos(2^(K-1) x)]``; twin of :func:`freqencoder.encode`.

    Args:
        x: [M, D], radians.
        degree: K.
        active: octaves that count, low ones first; the others are zero.

    Returns:
        [M, D + 2 * D * K]
    """
    parts = [x]
    for k in range(degree):
        parts += [torch.sin(2**k * x), torch.cos(2**k * x)] if k < active else [torch.zeros_like(x)] * 2
    return torch.cat(parts, dim=1)
