"""Checks at the door that several functions of the folder share: rays, the occupancy bitfield, the stepping."""

import math

import torch
from torch import Tensor

from extension import Arguments


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
