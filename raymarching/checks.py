"""Argument checks that several operations share: rays, the occupancy bitfield, the stepping, compositing.

Letters: N rays, M samples, C channels or cascades, H cells along an axis.
"""

import math

import torch
from torch import Tensor

from extension import Arguments

MIN_TRANSMITTANCE = 1e-4  # default early stop: what lies behind adds less than a 40th of an 8-bit step to a colour
MAX_CHANNELS = 16  # kMaxChannels of src/composite_math.h: a ray's sums stay in registers
MIN_GRID, MAX_GRID = 4, 1024  # one 64-bit word is 4^3 cells; a Morton code has 10 bits an axis
MAX_STEPS = 1 << 20  # steps across the box; float32 distances still tell neighbouring steps apart


def rays(
    arguments: Arguments, origins: Tensor, directions: Tensor, near: Tensor, far: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Check rays: origins [N, 3], directions [N, 3], near [N], far [N]. Returns the four contiguous."""
    origins = arguments.floats("origins", origins, "N", 3)
    directions = arguments.floats("directions", directions, "N", 3)
    return origins, directions, arguments.floats("near", near, "N"), arguments.floats("far", far, "N")


def finite_rays(op: str, origins: Tensor, directions: Tensor, near: Tensor, far: Tensor, noise: Tensor | None = None) -> None:
    """Raise for the first of N rays that is not finite; near and far may be infinite, but not NaN. Reads the tensors.

    Raises:
        ValueError: with the values of that ray.
    """
    finite = (origins.isfinite() & directions.isfinite()).all(-1) & (near > -math.inf) & ~far.isnan()
    finite = finite if noise is None else finite & noise.isfinite()
    if not bool(finite.all()):
        ray = int((~finite).nonzero()[0])
        raise ValueError(
            f"{op}: rays must be finite, and ray {ray} has origin {origins[ray].tolist()}, direction "
            f"{directions[ray].tolist()}, near {near[ray].item()}, far {far[ray].item()}"
            + ("" if noise is None else f", noise {noise[ray].item()}")
        )


def grid(arguments: Arguments, bitfield: Tensor, bound: float, cascades: int, grid_size: int) -> Tensor:
    """Check an occupancy bitfield [C * H^3 / 8] against its sizes. Returns it aligned to 8 bytes.

    Raises:
        ValueError, TypeError: H is not a power of two from 4 to 1024, the bitfield has another length, the bound is not
            positive, or the cascades do not cover it.
    """
    size_fits = MIN_GRID <= grid_size <= MAX_GRID and grid_size & (grid_size - 1) == 0
    arguments.require(size_fits, f"grid_size must be a power of two from {MIN_GRID} to {MAX_GRID}, got {grid_size}")
    arguments.require(math.isfinite(bound) and bound > 0, f"bound must be positive, got {bound}")
    needed = max(1, 1 + math.ceil(math.log2(bound)))
    arguments.require(cascades >= needed, f"bound {bound} needs {needed} cascades, got {cascades}")
    bitfield = arguments.integers("bitfield", bitfield, torch.uint8, cascades * grid_size**3 // 8)
    return bitfield if bitfield.data_ptr() % 8 == 0 else bitfield.clone()


def steps(arguments: Arguments, dt_gamma: float, max_steps: int) -> None:
    """Check the parameters of the stepping: dt_gamma >= 0 and finite, max_steps from 1 to 2^20."""
    arguments.require(0 <= dt_gamma < math.inf, f"dt_gamma must be finite and not negative, got {dt_gamma}")
    arguments.require(1 <= max_steps <= MAX_STEPS, f"max_steps must lie in [1, {MAX_STEPS}], got {max_steps}")


def compositing(
    arguments: Arguments, values: Tensor, t: Tensor, first: Tensor, count: Tensor, min_transmittance: float
) -> None:
    """Check what all compositing requires of values [M, C], t [M], the ranges first and count [N], and the early stop."""
    channels = values.shape[1]
    arguments.require(1 <= channels <= MAX_CHANNELS, f"values may have 1 to {MAX_CHANNELS} channels, got {channels}")
    arguments.require(not t.requires_grad, "t is not differentiable; pass t.detach()")
    arguments.require(0 <= min_transmittance < 1, f"min_transmittance must lie in [0, 1), got {min_transmittance}")
    if first.device.type == "cpu" and len(first):
        inside = first.amin() >= 0 and count.amin() >= 0 and (first + count).amax() <= len(t)
        arguments.require(bool(inside), f"first and count reach outside the M = {len(t)} samples")
