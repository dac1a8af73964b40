"""Real spherical harmonics in plain torch, by the recurrences of src/sh_math.h; any dtype, any device, any derivative.

The kernels are tested against it, and it is what backend torch runs. Letters: M directions, n bands.
"""

import math

import torch
from torch import Tensor


def norm(degree: int, order: int) -> float:
    """Factor that makes a harmonic's square integrate to one over the sphere, for ``order >= 0``."""
    ratio = math.factorial(degree - order) / math.factorial(degree + order)
    return math.sqrt((2 * degree + 1) / (4 * math.pi) * ratio * (2 if order else 1))


def encode(directions: Tensor, degree: int) -> Tensor:
    """All harmonics of the bands below ``degree``; twin of :func:`shencoder.encode`.

    Args:
        directions: [M, 3] unit vectors.
        degree: n.

    Returns:
        [M, n*n], column ``l*l + l + m`` holds Y_l^m.
    """
    x, y, z = directions.unbind(dim=1)
    values = [x] * degree**2  # each is replaced below
    power = (torch.ones_like(x), torch.zeros_like(x))  # (x + i y)^m
    diagonal = 1.0
    for m in range(degree):
        before, q = torch.zeros_like(z), torch.full_like(z, diagonal)
        for band in range(m, degree):
            scaled = norm(band, m) * q
            values[band * band + band + m] = scaled * power[0]
            if m:
                values[band * band + band - m] = scaled * power[1]
            before, q = q, ((2 * band + 1) * z * q - (band + m) * before) / (band + 1 - m)
        diagonal *= -(2 * m + 1)
        power = (x * power[0] - y * power[1], x * power[1] + y * power[0])
    return torch.stack(values, dim=1)
