"""Real spherical harmonics of directions, up to eight bands. Letters: M directions, n bands."""

import ctypes

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from extension import kernel, on_torch
from shencoder import reference

MAX_DEGREE = 8


class SHEncoder(nn.Module):
    """Directions to the real spherical harmonics of ``degree`` bands. It has no parameters."""

    def __init__(self, input_dim: int = 3, degree: int = 4):
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
        ValueError, TypeError: shape, dtype or degree do not fit.
    """
    _check_degree("shencoder.encode", degree)
    if directions.ndim != 2 or directions.shape[1] != 3:
        raise ValueError(f"shencoder.encode: expected directions [M, 3], got {list(directions.shape)}")
    if directions.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"shencoder.encode: directions must be float32 or float64, got {directions.dtype}")
    if on_torch(directions):
        return reference.encode(directions, degree)
    return _Encode.apply(directions.contiguous(), degree)


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


class _Encode(torch.autograd.Function):
    """The harmonics and their vector-Jacobian product."""

    @staticmethod
    def forward(ctx, directions, degree):
        ctx.save_for_backward(directions)
        ctx.degree = degree
        values = directions.new_empty(len(directions), degree**2)
        _run("sh_encode", directions, degree, values=values)
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_values):
        (directions,) = ctx.saved_tensors
        grad = torch.empty_like(directions)
        _run("sh_encode_backward", directions, ctx.degree, grad_values=grad_values.contiguous(), grad_directions=grad)
        return grad, None


def _run(name: str, directions: Tensor, degree: int, **tensors: Tensor) -> None:
    """Fill in the record and call the kernel."""
    norms = [reference.norm(band, m) if m <= band else 0.0 for band in range(MAX_DEGREE) for m in range(MAX_DEGREE)]
    params = _Params(
        directions=ctypes.c_void_p(directions.data_ptr()),
        num_directions=len(directions),
        degree=degree,
        norm=(ctypes.c_double * MAX_DEGREE**2)(*norms),
        **{n: ctypes.c_void_p(t.data_ptr()) for n, t in tensors.items()},
    )
    kernel("shencoder", name, directions.device)(ctypes.byref(params), directions.dtype.itemsize)


def _check_degree(op: str, degree: int) -> None:
    """Refuse a number of bands that the kernels do not have."""
    if not 1 <= degree <= MAX_DEGREE:
        raise ValueError(f"{op}: degree must lie in [1, {MAX_DEGREE}], got {degree}")
