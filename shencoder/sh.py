"""Real spherical harmonics of directions, up to eight bands. Letters: M directions, n bands."""

import ctypes
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from extension import Arguments, Function, implementation, kernel, pointer, register
from shencoder import reference

MAX_DEGREE = 8  # kMaxDegree of src/sh_math.h


class SHEncoder(nn.Module):
    """Directions to the real spherical harmonics of ``degree`` bands. It has no parameters."""

    def __init__(self, input_dim: int = 3, degree: int = 4) -> None:
        """Make an encoder.

        Args:
            input_dim: 3.
            degree: n, 1 to 8; the output has n*n harmonics.

        Raises:
            ValueError: a number is out of range.
        """
        super().__init__()
        if input_dim != 3:
            raise ValueError(f"SHEncoder: directions have 3 dimensions, got input_dim={input_dim}")
        _check_degree("SHEncoder", degree)
        self.input_dim = input_dim
        self.degree = degree
        self.output_dim = degree**2

    def forward(self, directions: Tensor) -> Tensor:
        """Encode unit directions [M, 3] to [M, n*n]; see :func:`encode`."""
        return encode(directions, self.degree)

    def extra_repr(self) -> str:
        """The degree, for printing the module."""
        return f"degree={self.degree}"


def encode(directions: Tensor, degree: int) -> Tensor:
    """Real spherical harmonics, orthonormal on the sphere, with the Condon-Shortley sign.

    Args:
        directions: [M, 3] unit vectors, float32 or float64. Off the sphere the result is the polynomial in x, y, z
            that continues the harmonics with ``x^2 + y^2 + z^2 = 1`` used to write them in powers of z.
        degree: n, 1 to 8.

    Returns:
        [M, n*n], column ``l*l + l + m`` holds Y_l^m with sine for m < 0 and cosine for m > 0.

    Differentiable once, in directions. Reference: :func:`shencoder.reference.encode`.

    Raises:
        ValueError, TypeError: the shape, dtype or degree is not one of those above.
    """
    _check_degree("shencoder.encode", degree)
    directions = Arguments("shencoder.encode").floats("directions", directions, "M", 3)
    values: Tensor = implementation("shencoder.encode", directions)(directions, degree)
    return values


class _Params(ctypes.Structure):
    """ShParams of src/sh_math.h."""

    _fields_ = [
        ("directions", ctypes.c_void_p),
        ("grad_values", ctypes.c_void_p),
        ("values", ctypes.c_void_p),
        ("grad_directions", ctypes.c_void_p),
        ("num_directions", ctypes.c_int64),
        ("degree", ctypes.c_int64),
        ("norm", ctypes.c_double * MAX_DEGREE**2),
    ]


class _Encode(Function):
    """The harmonics and their vector-Jacobian product."""

    @staticmethod
    def forward(ctx: Any, directions: Tensor, degree: int) -> Tensor:
        ctx.save_for_backward(directions)
        ctx.degree = degree
        values = directions.new_empty(len(directions), degree**2)
        _run("sh_encode", directions, degree, values=values)
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_values: Tensor) -> tuple[Tensor, None]:
        (directions,) = ctx.saved_tensors
        grad = torch.empty_like(directions)
        _run("sh_encode_backward", directions, ctx.degree, grad_values=grad_values.contiguous(), grad_directions=grad)
        return grad, None


def _run(name: str, directions: Tensor, degree: int, **tensors: Tensor) -> None:
    """Fill the parameter struct and call the kernel."""
    norms = [reference.norm(band, m) if m <= band else 0.0 for band in range(MAX_DEGREE) for m in range(MAX_DEGREE)]
    params = _Params(
        directions=pointer(directions),
        num_directions=len(directions),
        degree=degree,
        norm=(ctypes.c_double * MAX_DEGREE**2)(*norms),
        **{n: pointer(t) for n, t in tensors.items()},
    )
    kernel("shencoder", name, directions.device)(ctypes.byref(params), directions.dtype.itemsize)


def _check_degree(op: str, degree: int) -> None:
    """Raise unless the kernels have that many bands."""
    if not 1 <= degree <= MAX_DEGREE:
        raise ValueError(f"{op}: degree must lie in [1, {MAX_DEGREE}], got {degree}")


register("shencoder.encode", native=_Encode.apply, torch=reference.encode)
