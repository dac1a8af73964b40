"""Checks at the door of every public function: shapes, dtypes, devices and indices, each refused with a sentence."""

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.float64)


def floats(op: str, name: str, value: Tensor, letters: str) -> Tensor:
    """Check a float32 or float64 tensor whose last sizes are as ``letters`` say ("B V 4"). Returns it contiguous.

    Raises:
        TypeError, ValueError: no tensor, another dtype, or another shape.
    """
    _tensor(op, name, value)
    if value.dtype not in FLOATS:
        raise TypeError(
            f"{op}: expected {name} in float32 or float64, got {value.dtype}; "
            "positions and colours need that precision, so compute them outside autocast or convert with .float()"
        )
    wanted = letters.split()
    fits = value.ndim == len(wanted)
    for got, want in zip(value.shape, wanted, strict=False):
        fits = fits and (not want.isdigit() or got == int(want))
    if not fits:
        raise ValueError(f"{op}: expected {name} [{', '.join(wanted)}], got {list(value.shape)}")
    return value.contiguous()


def triangles(op: str, name: str, value: Tensor, vertices: int | None = None) -> Tensor:
    """Check vertex indices [T, 3] int32 or int64; on the CPU also that each lies in [0, ``vertices``). Returns int32.

    Raises:
        TypeError, ValueError: no tensor, another dtype or shape, too many triangles, or an index out of range.
    """
    _tensor(op, name, value)
    if value.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"{op}: expected {name} in int32 or int64, got {value.dtype}; convert it with .int()")
    if value.ndim != 2 or value.shape[1] != 3:
        raise ValueError(f"{op}: expected {name} [T, 3], got {list(value.shape)}")
    if len(value) >= 2**31 // 3:
        raise ValueError(f"{op}: expected fewer than 2^31 / 3 triangles, got {len(value)}")
    if value.device.type == "cpu" and value.numel():
        low, high = (int(x) for x in value.aminmax())
        if low < 0 or high >= (2**31 - 1 if vertices is None else vertices):
            known = "" if vertices is None else f" with V = {vertices}"
            raise ValueError(f"{op}: {name} must lie in [0, V){known}, got values from {low} to {high}")
    return value.int().contiguous()


def agree(op: str, first: tuple[str, Tensor], *others: tuple[str, Tensor], dtype: bool = True) -> None:
    """Check that tensors lie on one device and, if ``dtype``, are of one dtype.

    Raises:
        ValueError, TypeError: they do not.
    """
    name, value = first
    for other, compared in others:
        if compared.device != value.device:
            raise ValueError(
                f"{op}: {name} is on {value.device} but {other} is on {compared.device}; "
                "move one of them, we never do it for you"
            )
        if dtype and compared.dtype != value.dtype:
            raise TypeError(f"{op}: {name} is {value.dtype} but {other} is {compared.dtype}; convert one, we never do it")


def same(op: str, name: str, got: tuple[int, ...], wanted: tuple[int, ...], of: str) -> None:
    """Check some sizes of a tensor against those of another.

    Raises:
        ValueError: they differ.
    """
    if tuple(got) != tuple(wanted):
        raise ValueError(f"{op}: {name} has {list(got)} where {of} has {list(wanted)}; they must be of the same call")


def _tensor(op: str, name: str, value: Tensor) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{op}: expected {name} to be a tensor, got {type(value).__name__}")
