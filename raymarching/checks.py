"""Checks at the door of every public function: shapes, dtypes and devices, each refused with a sentence."""

import math

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.float64)


class Arguments:
    """The tensor arguments of one call, which must agree in device, floating dtype and the sizes that share a letter.

    Args:
        op: name of the public function, for the messages.
    """

    def __init__(self, op: str) -> None:
        self.op = op
        self.sizes: dict[str, int] = {}
        self.device: torch.device | None = None
        self.dtype: torch.dtype | None = None
        self._first = ""

    def floats(self, name: str, value: Tensor, *shape: int | str) -> Tensor:
        """Check a float32 or float64 tensor; the first one decides the dtype of all. Returns it contiguous."""
        self._tensor(name, value)
        if value.dtype not in FLOATS:
            raise TypeError(
                f"{self.op}: expected {name} in float32 or float64, got {value.dtype}; convert it with .float()"
            )
        if self.dtype is not None and value.dtype != self.dtype:
            raise TypeError(
                f"{self.op}: {self._first} is {self.dtype} but {name} is {value.dtype}; convert one, we never do it"
            )
        self.dtype = value.dtype
        return self._shaped(name, value, shape)

    def integers(self, name: str, value: Tensor, dtype: torch.dtype, *shape: int | str) -> Tensor:
        """Check an integer tensor of exactly ``dtype``. Returns it contiguous."""
        self._tensor(name, value)
        if value.dtype != dtype:
            raise TypeError(f"{self.op}: expected {name} in {dtype}, got {value.dtype}; convert it with .to({dtype})")
        return self._shaped(name, value, shape)

    def require(self, holds: bool, sentence: str) -> None:
        """Refuse the call with a sentence unless ``holds``."""
        if not holds:
            raise ValueError(f"{self.op}: {sentence}")

    def _tensor(self, name: str, value: Tensor) -> None:
        if not isinstance(value, Tensor):
            raise TypeError(f"{self.op}: expected {name} to be a tensor, got {type(value).__name__}")

    def _shaped(self, name: str, value: Tensor, shape: tuple[int | str, ...]) -> Tensor:
        """Compare with the expected shape (letters are bound by the first tensor that has them) and the device."""
        fits = value.ndim == len(shape)
        for got, want in zip(value.shape, shape, strict=False):
            fits = fits and got == (self.sizes.setdefault(want, got) if isinstance(want, str) else want)
        if not fits:
            letters = ", ".join(str(s) for s in shape)
            bound = ", ".join(f"{s} = {self.sizes[s]}" for s in shape if isinstance(s, str) and s in self.sizes)
            known = f" with {bound}" if bound and self._first else ""
            raise ValueError(f"{self.op}: expected {name} [{letters}]{known}, got {list(value.shape)}")
        if self.device is None:
            self.device, self._first = value.device, name
        elif value.device != self.device:
            raise ValueError(
                f"{self.op}: {self._first} is on {self.device} but {name} is on {value.device}; "
                "move one of them, we never do it for you"
            )
        return value.contiguous()


def rays(
    arguments: Arguments, origins: Tensor, directions: Tensor, near: Tensor, far: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Check N rays and the part [near, far] of each that is looked at. Returns the four contiguous."""
    origins = arguments.floats("origins", origins, "N", 3)
    directions = arguments.floats("directions", directions, "N", 3)
    return origins, directions, arguments.floats("near", near, "N"), arguments.floats("far", far, "N")


def grid(arguments: Arguments, bitfield: Tensor, bound: float, cascades: int, grid_size: int) -> Tensor:
    """Check an occupancy bitfield [C * H^3 / 8] against its sizes. Returns it aligned to 8 bytes.

    Raises:
        ValueError, TypeError: H is no power of two from 4 to 1024, the bitfield has another length, the bound is not
            positive, or the cascades do not reach it.
    """
    size_fits = 4 <= grid_size <= 1024 and grid_size & (grid_size - 1) == 0
    arguments.require(size_fits, f"grid_size must be a power of two from 4 to 1024, got {grid_size}")
    arguments.require(math.isfinite(bound) and bound > 0, f"bound must be positive, got {bound}")
    needed = max(1, 1 + math.ceil(math.log2(bound)))
    arguments.require(cascades >= needed, f"bound {bound} needs {needed} cascades, got {cascades}")
    bitfield = arguments.integers("bitfield", bitfield, torch.uint8, cascades * grid_size**3 // 8)
    return bitfield if bitfield.data_ptr() % 8 == 0 else bitfield.clone()


def steps(arguments: Arguments, dt_gamma: float, max_steps: int) -> None:
    """Check the parameters of the stepping: dt_gamma >= 0 and finite, max_steps from 1 to 2^20."""
    arguments.require(0 <= dt_gamma < math.inf, f"dt_gamma must be finite and not negative, got {dt_gamma}")
    arguments.require(1 <= max_steps <= 1 << 20, f"max_steps must lie in [1, 1048576], got {max_steps}")
