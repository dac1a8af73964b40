"""Frequency encoding of positions (Mildenhall et al. 2020, section 5.1), differentiable any number of times.

The derivative of each output is, up to its octave, another output, so the backward needs no sine or cosine: it combines
saved outputs, and derivatives of it are compositions of the same operations.

Letters: M points, D dimensions, K octaves.
"""

import ctypes
import math
from typing import Any

import torch
from torch import Tensor, nn

import extension
from extension import Arguments, Function
from freqencoder import reference

MAX_DEGREE = 24  # 2^23 x has no correct digit left for float32 positions of size 1, so further octaves would be noise
_WHOLE = 1e-9  # a fraction of the octaves meant to be a whole number is not rounded up for less than this


class FreqEncoder(nn.Module):
    """Positions to themselves and their sines and cosines at K octaves. It has no parameters."""

    def __init__(self, input_dim: int = 3, degree: int = 12) -> None:
        """Make an encoder.

        Args:
            input_dim: D.
            degree: K, octaves, 0 to 24.

        Raises:
            ValueError: a number is out of range.
        """
        super().__init__()
        if input_dim < 1 or not 0 <= degree <= MAX_DEGREE:
            raise ValueError(
                f"FreqEncoder: expected input_dim >= 1 and degree in [0, {MAX_DEGREE}], got {input_dim} and {degree}"
            )
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
        x: [M, D], radians, float32 or float64.
        degree: K, 0 to 24.
        max_level: fraction of the octaves that count, low ones first; the others are zero.

    Returns:
        [M, D + 2 * D * K], of the dtype of ``x``; in float32 each sine and cosine is within 4e-8 of the exact one.

    Differentiable any number of times. Reference: :func:`freqencoder.reference.encode`.

    Raises:
        ValueError, TypeError: degree or max_level is out of range, or ``x`` has another shape or dtype.
    """
    args = Arguments("freqencoder.encode")
    args.require(0 <= degree <= MAX_DEGREE, f"degree must lie in [0, {MAX_DEGREE}], got {degree}")
    args.require(0 <= max_level <= 1, f"max_level must be a fraction in [0, 1], got {max_level}")
    x = args.floats("x", x, "M", "D")
    active = math.ceil(max_level * degree - _WHOLE)
    encoded: Tensor = extension.implementation("freqencoder.encode", x)(x, degree, active)
    return encoded


_Params = extension.struct("FreqParams", "x encoded grad_out out grad_x", "num_points dims octaves active")


class _Encode(Function):
    """The encoding; its backward uses its outputs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, degree: int, active: int) -> Tensor:
        out = x.new_empty(len(x), x.shape[1] * (1 + 2 * degree))
        _run("freq_encode", x.shape[1], degree, active, x=x, out=out)
        ctx.save_for_backward(out)
        ctx.dims, ctx.degree, ctx.active = x.shape[1], degree, active
        return out

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor, None, None]:
        (encoded,) = ctx.saved_tensors
        return _EncodeBackward.apply(grad_out, encoded, ctx.dims, ctx.degree, ctx.active), None, None


class _EncodeBackward(Function):
    """Gradient of the positions [M, D]: linear in the outputs' gradient and in the outputs, and differentiable in both."""

    @staticmethod
    def forward(ctx: Any, grad_out: Tensor, encoded: Tensor, dims: int, degree: int, active: int) -> Tensor:
        ctx.save_for_backward(grad_out, encoded)
        ctx.active = active
        grad_x, grad_out = encoded.new_empty(len(encoded), dims), grad_out.contiguous()
        _run("freq_encode_backward", dims, degree, active, encoded=encoded, grad_out=grad_out, grad_x=grad_x)
        return grad_x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        grad_out, encoded = ctx.saved_tensors
        to_grad_out = _turned(encoded, grad, grad, ctx.active)
        to_encoded = _turned(grad_out, torch.zeros_like(grad), -grad, ctx.active)
        return to_grad_out, to_encoded, None, None, None


def _turned(encoded: Tensor, first: Tensor, factor: Tensor, active: int) -> Tensor:
    """Each pair (s, c) of octave k in [M, D + 2 D K] to ``2^k (c, -s) * factor`` [M, D]; ``first`` [M, D] in front."""
    dims = first.shape[1]
    pairs = torch.unflatten(encoded[:, dims : dims * (1 + 2 * active)], 1, (active, 2, dims))
    octaves = 2.0 ** torch.arange(active, dtype=encoded.dtype, device=encoded.device)[:, None, None]
    turned = torch.stack([pairs[:, :, 1], -pairs[:, :, 0]], dim=2) * octaves * factor[:, None, None]
    result = torch.cat([first, turned.flatten(start_dim=1)], dim=1)
    return nn.functional.pad(result, (0, encoded.shape[1] - result.shape[1]))


def _run(name: str, dims: int, degree: int, active: int, **tensors: Tensor) -> None:
    """Fill the parameter struct and call the kernel; all tensors have M rows, one device and one dtype."""
    like = next(iter(tensors.values()))
    params = extension.fill(_Params, num_points=len(like), dims=dims, octaves=degree, active=active, **tensors)
    extension.kernel("freqencoder", name, like.device)(ctypes.byref(params), like.dtype.itemsize)


extension.register("freqencoder.encode", native=_Encode.apply, torch=reference.encode)
