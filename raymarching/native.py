"""The C side of the kernels: parameter structs as the headers in src/ define them, and the two-pass march."""

import ctypes

import torch
from torch import Tensor

import extension
from raymarching.reference import step_sizes

MarchParams = extension.struct(
    "MarchParams",
    "origins directions near far noise alive cursor cells blocks extent first count runs positions t dt ray_index",
    "num_rays cascades grid_size limit",
    "bound dt_gamma dt_min dt_max",
)
CompositeParams = extension.struct(
    "CompositeParams",
    "alpha values t first count weights opacity depth image alive transmittance "
    "grad_weights grad_opacity grad_depth grad_image grad_alpha grad_values",
    "num_rays channels",
    "min_transmittance",
)
NearFarParams = extension.struct("NearFarParams", "origins directions aabb near far", "num_rays", "min_near")
SphereParams = extension.struct("SphereParams", "origins directions coords", "num_rays", "radius")

NO_LIMIT = 1 << 40
_RUNS = 8  # kRuns of march_math.h


def run(name: str, params: ctypes.Structure, like: Tensor) -> None:
    """Run a kernel that takes a parameter struct, on the device and in the dtype of ``like``."""
    extension.kernel("raymarching", name, like.device)(ctypes.byref(params), extension.dtype_code(like))


def coarse_bits(bitfield: Tensor, cascades: int, grid_size: int) -> tuple[Tensor, Tensor]:
    """What lets a march skip empty space, from the bitfield.

    Returns:
        The coarse bitfield, one bit for each 4^3 cells of the fine one, int64 [C * max(1, H^3 / 4096)]; and the extent
        of what is occupied in each cascade, int32 [C, 6] (lowest, then highest x, y, z, in units of 4 cells).
    """
    words = cascades * max(1, grid_size**3 // 4096)
    blocks = torch.empty(words, dtype=torch.int64, device=bitfield.device)
    extent = torch.full((cascades, 6), 1 << 20, dtype=torch.int32, device=bitfield.device)  # of nothing
    extent[:, 3:] = -(1 << 20)
    params = extension.fill(
        MarchParams,
        cells=bitfield,
        blocks=blocks,
        extent=extent,
        num_rays=words,
        cascades=cascades,
        grid_size=grid_size,
    )
    extension.kernel("raymarching", "march_coarsen", bitfield.device)(ctypes.byref(params), 0)
    return blocks, extent


def scene(
    bitfield: Tensor, bound: float, cascades: int, grid_size: int, dt_gamma: float, max_steps: int
) -> dict[str, Tensor | int | float]:
    """The fields of MarchParams that rays share. Keep it as long as the parameters: it owns the tensors."""
    blocks, extent = coarse_bits(bitfield, cascades, grid_size)
    dt_min, dt_max = step_sizes(bound, max_steps, grid_size)
    grid = {"cells": bitfield, "blocks": blocks, "extent": extent, "cascades": cascades, "grid_size": grid_size}
    return grid | {"bound": bound, "dt_gamma": dt_gamma, "dt_min": dt_min, "dt_max": dt_max}


def count_samples(params: ctypes.Structure, num_rays: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """First pass of the march: how many samples each ray has, int64 [A]; -1 for a ray that is not finite.

    Also returns the runs of samples that the second pass needs, int32 [A, 8, 2].
    """
    count = torch.empty(num_rays, dtype=torch.int64, device=like.device)
    runs = torch.empty(num_rays, _RUNS, 2, dtype=torch.int32, device=like.device)
    params.count, params.runs = extension.pointer(count), extension.pointer(runs)
    run("march_count", params, like)
    return count, runs


def write_samples(
    params: ctypes.Structure, first: Tensor, count: Tensor, runs: Tensor, size: int, like: Tensor
) -> tuple[Tensor, ...]:
    """Second pass of the march: positions [M, 3], t [M], dt [M], ray_index [M] with M = ``size``.

    Where ``count`` does not fill the buffers, the rest is 0: a step of no length at the origin of ray 0.
    """
    make = torch.empty if like.device.type == "cpu" and size == int(count.sum()) else torch.zeros
    positions = make(size, 3, dtype=like.dtype, device=like.device)
    t, dt = make(2, size, dtype=like.dtype, device=like.device)
    ray_index = make(size, dtype=torch.int64, device=like.device)
    names = "first count runs positions t dt ray_index".split()
    for name, tensor in zip(names, (first, count, runs, positions, t, dt, ray_index), strict=True):
        setattr(params, name, extension.pointer(tensor))
    run("march_write", params, like)
    return positions, t, dt, ray_index
