"""Frequency encoding of positions (Mildenhall et al. 2020, section 5.1), without a native kernel.

Torch's sine and cosine are vectorised already, and they are all the work there is; what autograd wastes is to evaluate
them again in the backward. The derivative of each output is, up to its octave, another output, so the backward here
multiplies saved outputs instead; it is written in torch and is therefore differentiable as often as one likes.

Letters: M points, D dimensions, K octaves.
"""

import math

import torch
from torch import Tensor, nn


class FreqEncoder(nn.Module):
    """Positions to themselves and their sines and cosines at K octaves. It has no parameters."""

    def __init__(self, input_dim: int = 3, degree: int = 12):
        """Make an encoder.

        Args:
            input_dim: D.
            degree: K, octaves.

        Raises:
            ValueError: a number is out of range.
        """
        super().__init__()
        if input_dim < 1 or not 0 <= degree <= 24:
            raise ValueError(f"FreqEncoder: expected input_dim >= 1 and degree in [0, 24], got {input_dim} and {degree}")
        self.input_dim = input_dim
        self.degree = degree
        self.output_dim = input_dim * (1 + 2 * degree)

    def forward(self, x: Tensor, max_level: float = 1.0) -> Tensor:
        """Encode [M, D] to [M, D + 2 * D * K]; see :func:`encode`."""
        if x.ndim != 2 or x.shape[1] != self.input_dim:
            raise ValueError(f"FreqEncoder: expected positions [M, {self.input_dim}], got {list(x.shape)}")
        return encode(x, self.degree, max_level)

    def extra_repr(self) -> str:
        """The sizes, for printing the module."""
        return f"input_dim={self.input_dim}, degree={self.degree}"


def encode(x: Tensor, degree: int, max_level: float = 1.0) -> Tensor:
    """``[x, sin(x), cos(x), sin(2 x), cos(2 x), ... sin(2^(K-1) x), cos(2^(K-1) x)]``.

    Args:
        x: [M, D], radians; any float dtype, any device.
        degree: K.
        max_level: fraction of the octaves that count, low ones first; the others are zero.

    Returns:
        [M, D + 2 * D * K], of the dtype of ``x``.

    Differentiable any number of times. Reference: :func:`freqencoder.reference.encode`.

    Raises:
        ValueError: max_level is not in [0, 1], or ``x`` is not [M, D] of floats.
    """
    if not 0 <= max_level <= 1:
        raise ValueError(f"freqencoder.encode: max_level must be a fraction in [0, 1], got {max_level}")
    if x.ndim != 2 or not x.is_floating_point():
        raise ValueError(f"freqencoder.encode: expected floats [M, D], got {x.dtype} {list(x.shape)}")
    return _Encode.apply(x, degree, math.ceil(max_level * degree - 1e-9))


class _Encode(torch.autograd.Function):
    """The encoding, with a backward that uses its outputs."""

    @staticmethod
    def forward(ctx, x, degree, active):
        count, dims = x.shape
        out = x.new_zeros(count, dims * (1 + 2 * degree)) if active < degree else x.new_empty(count, dims * (1 + 2 * degree))
        out[:, :dims] = x
        waves = out[:, dims : dims * (1 + 2 * active)].view(count, active, 2, dims)
        octaves = _octaves(active, x)
        torch.sin(x[:, None] * octaves, out=waves[:, :, 0])
        torch.cos(x[:, None] * octaves, out=waves[:, :, 1])
        ctx.save_for_backward(out)
        ctx.dims, ctx.active = dims, active
        return out

    @staticmethod
    def backward(ctx, grad):
        (out,) = ctx.saved_tensors
        dims, active = ctx.dims, ctx.active
        waves, grads = (t[:, dims : dims * (1 + 2 * active)].unflatten(1, (active, 2, dims)) for t in (out, grad))
        turned = grads[:, :, 0] * waves[:, :, 1] - grads[:, :, 1] * waves[:, :, 0]
        return grad[:, :dims] + (turned * _octaves(active, out)).sum(dim=1), None, None


def _octaves(count: int, like: Tensor) -> Tensor:
    """[K, 1] the factors 1, 2, 4, ..."""
    return 2.0 ** torch.arange(count, dtype=like.dtype, device=like.device)[:, None]
