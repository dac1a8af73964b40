"""The implementations by kernels, native or Taichi's: parameter structs as the headers in src/ define them, and one
function per operation.

The march has two passes: one counts the samples of each ray, the other writes them.
Letters: N rays, A rays alive, M samples, C channels or cascades, H cells along an axis.
"""

import ctypes
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

import extension
from extension import Function, Kernels
from raymarching import checks
from raymarching.capacity import fit
from raymarching.ray_queue import RayQueue
from raymarching.reference import NO_LIMIT, step_sizes

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

_RUNS = 8  # kRuns of march_math.h
_FAR = 1 << 20  # blocks; beyond every grid, the start of a minimum and, negated, of a maximum


def run(kernels: Kernels, name: str, kind: type[ctypes.Structure], like: Tensor, **values: object) -> None:
    """Run a kernel that takes a parameter struct, on the device and in the dtype of ``like``."""
    kernels.run(name, like, kind, extension.dtype_code(like), **values)


def coarse_bits(kernels: Kernels, bitfield: Tensor, cascades: int, grid_size: int) -> tuple[Tensor, Tensor]:
    """What lets a march skip empty space, from the bitfield [C * H^3 / 8].

    Returns:
        The coarse bitfield, one bit for each 4^3 cells of the fine one, int64 [C * max(1, H^3 / 4096)]; and the extent
        of the occupied cells of each cascade, int32 [C, 6] (lowest, then highest x, y, z, in units of 4 cells).
    """
    words = cascades * max(1, grid_size**3 // 4096)
    blocks = torch.empty(words, dtype=torch.int64, device=bitfield.device)
    extent = torch.full((cascades, 6), _FAR, dtype=torch.int32, device=bitfield.device)
    extent[:, 3:] = -_FAR
    sizes = {"num_rays": words, "cascades": cascades, "grid_size": grid_size}
    kernels.run("march_coarsen", bitfield, MarchParams, 0, cells=bitfield, blocks=blocks, extent=extent, **sizes)
    return blocks, extent


def scene(
    kernels: Kernels, bitfield: Tensor, bound: float, cascades: int, grid_size: int, dt_gamma: float, max_steps: int
) -> dict[str, Any]:
    """The fields of MarchParams that rays share."""
    blocks, extent = coarse_bits(kernels, bitfield, cascades, grid_size)
    dt_min, dt_max = step_sizes(bound, max_steps, grid_size)
    grid: dict[str, Any] = {"cells": bitfield, "blocks": blocks, "extent": extent, "cascades": cascades, "grid_size": grid_size}
    return grid | {"bound": bound, "dt_gamma": dt_gamma, "dt_min": dt_min, "dt_max": dt_max}


def count_samples(kernels: Kernels, like: Tensor, march: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """First pass of the march: samples of each ray int64 [N], -1 where it is not finite, and its first runs."""
    num_rays = march["num_rays"]
    count = torch.empty(num_rays, dtype=torch.int64, device=like.device)
    runs = torch.empty(num_rays, _RUNS, 2, dtype=torch.int32, device=like.device)
    run(kernels, "march_count", MarchParams, like, count=count, runs=runs, **march)
    return count, runs


def write_samples(
    kernels: Kernels, like: Tensor, march: dict[str, Any], first: Tensor, count: Tensor, runs: Tensor, size: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Second pass of the march: positions [M, 3], t [M], dt [M], ray_index [M] with M = ``size``.

    Where ``count`` does not fill the buffers, the rest is 0: a step of no length at the origin of ray 0.
    """
    make = torch.empty if like.device.type == "cpu" and size == int(count.sum()) else torch.zeros
    positions = make(size, 3, dtype=like.dtype, device=like.device)
    t, dt = make(2, size, dtype=like.dtype, device=like.device)
    ray_index = make(size, dtype=torch.int64, device=like.device)
    written = {"positions": positions, "t": t, "dt": dt, "ray_index": ray_index}
    run(kernels, "march_write", MarchParams, like, first=first, count=count, runs=runs, **written, **march)
    return positions, t, dt, ray_index


def march_rays_train(
    origins: Tensor, directions: Tensor, near: Tensor, far: Tensor, bitfield: Tensor, bound: float, cascades: int,
    grid_size: int, noise: Tensor | None, dt_gamma: float, max_steps: int, capacity: int | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """positions [M, 3], t [M], dt [M], ray_index [M], first [N], count [N]; see :func:`raymarching.march_rays_train`."""
    kernels = extension.kernels("raymarching", origins.device)
    march: dict[str, Any] = {
        "origins": origins,
        "directions": directions,
        "near": near,
        "far": far,
        "noise": noise,
        "num_rays": len(near),
    }
    march |= {"limit": NO_LIMIT} | scene(kernels, bitfield, bound, cascades, grid_size, dt_gamma, max_steps)
    count, runs = count_samples(kernels, origins, march)
    if count.device.type == "cpu" and bool((count < 0).any()):
        checks.finite_rays("march_rays_train", origins, directions, near, far, noise)
    first, count, size = fit(count, capacity)
    return (*write_samples(kernels, origins, march, first, count, runs, size), first, count)


def march_rays(
    queue: RayQueue, bitfield: Tensor, bound: float, cascades: int, grid_size: int, num_steps: int, dt_gamma: float,
    max_steps: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """positions [M, 3], t [M], dt [M], ray_index [M], first [A], count [A]; see :func:`raymarching.march_rays`."""
    kernels = extension.kernels("raymarching", queue.origins.device)
    march: dict[str, Any] = {"origins": queue.origins, "directions": queue.directions, "near": queue.near, "far": queue.far}
    march |= {"alive": queue.alive, "cursor": queue.cursor, "num_rays": len(queue), "limit": num_steps}
    march |= scene(kernels, bitfield, bound, cascades, grid_size, dt_gamma, max_steps)
    count, runs = count_samples(kernels, queue.origins, march)
    first = count.cumsum(0) - count
    return (*write_samples(kernels, queue.origins, march, first, count, runs, int(count.sum())), first, count)


# ---- Rays and the bitfield ----


def near_far_from_aabb(origins: Tensor, directions: Tensor, aabb: Tensor, min_near: float) -> tuple[Tensor, Tensor]:
    """near [N] and far [N]; see :func:`raymarching.near_far_from_aabb`."""
    near, far = torch.empty_like(origins[:, 0]), torch.empty_like(origins[:, 0])
    run(
        extension.kernels("raymarching", origins.device), "near_far_from_aabb", NearFarParams, origins, origins=origins,
        directions=directions, aabb=aabb, near=near, far=far, num_rays=len(origins), min_near=min_near,
    )  # fmt: skip
    return near, far


def sph_from_ray(origins: Tensor, directions: Tensor, radius: float) -> Tensor:
    """Angles [N, 2]; see :func:`raymarching.sph_from_ray`."""
    coords = torch.empty_like(origins[:, :2])
    run(
        extension.kernels("raymarching", origins.device), "sph_from_ray", SphereParams, origins, origins=origins,
        directions=directions, coords=coords, num_rays=len(origins), radius=radius,
    )  # fmt: skip
    return coords


def morton3D(coords: Tensor) -> Tensor:
    """Codes int32 [N] of cells [N, 3]; see :func:`raymarching.morton3D`."""
    codes = torch.empty_like(coords[:, 0])
    kernels = extension.kernels("raymarching", coords.device)
    kernels.run("morton_encode", coords, coords=coords, codes=codes, count=len(coords))
    return codes


def morton3D_invert(codes: Tensor) -> Tensor:
    """Cells int32 [N, 3] of codes [N]; see :func:`raymarching.morton3D_invert`."""
    coords = torch.empty(len(codes), 3, dtype=torch.int32, device=codes.device)
    kernels = extension.kernels("raymarching", codes.device)
    kernels.run("morton_decode", codes, codes=codes, coords=coords, count=len(codes))
    return coords


def packbits(grid: Tensor, threshold: float) -> Tensor:
    """Bitfield uint8 [C * H^3 / 8] of a grid [C, H^3]; see :func:`raymarching.packbits`."""
    bitfield = torch.empty(grid.numel() // 8, dtype=torch.uint8, device=grid.device)
    kernels, code = extension.kernels("raymarching", grid.device), extension.dtype_code(grid)
    kernels.run("packbits", grid, None, code, grid=grid, bitfield=bitfield, threshold=threshold, bytes=bitfield.numel())
    return bitfield


# ---- Compositing ----


def composite_rays(
    queue: RayQueue, alpha: Tensor, values: Tensor, t: Tensor, first: Tensor, count: Tensor, min_transmittance: float
) -> None:
    """Add samples [M] to the queue's sums; see :func:`raymarching.composite_rays`."""
    run(
        extension.kernels("raymarching", alpha.device), "composite_accumulate", CompositeParams, alpha, alpha=alpha,
        values=values, t=t, first=first, count=count, opacity=queue.opacity, depth=queue.depth, image=queue.image,
        alive=queue.alive, transmittance=queue.transmittance, num_rays=len(queue), channels=values.shape[1],
        min_transmittance=min_transmittance,
    )  # fmt: skip


def _allocator(alpha: Tensor, count: Tensor) -> Callable[[Tensor], Tensor]:
    """Makes tensors that kernels fill for the samples that rays own: of zeros, unless all samples are owned."""
    all_owned = alpha.device.type == "cpu" and int(count.sum()) == len(alpha)
    return torch.empty_like if all_owned else torch.zeros_like


class _Composite(Function):
    """The compositing kernel and its derivative; see :func:`raymarching.composite_rays_train`."""

    @staticmethod
    def forward(
        ctx: Any, alpha: Tensor, values: Tensor, t: Tensor, first: Tensor, count: Tensor, min_transmittance: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        num_rays, channels = len(count), values.shape[1]
        weights = _allocator(alpha, count)(alpha)
        opacity, depth = alpha.new_empty(2, num_rays)
        image = alpha.new_empty(num_rays, channels)
        ctx.kernels = extension.kernels("raymarching", alpha.device)
        run(
            ctx.kernels, "composite_forward", CompositeParams, alpha, alpha=alpha, values=values, t=t, first=first,
            count=count, weights=weights, opacity=opacity, depth=depth, image=image, num_rays=num_rays,
            channels=channels, min_transmittance=min_transmittance,
        )  # fmt: skip
        ctx.save_for_backward(alpha, values, t, first, count)
        ctx.min_transmittance = min_transmittance
        return weights, opacity, depth, image

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_weights: Tensor, grad_opacity: Tensor, grad_depth: Tensor, grad_image: Tensor
    ) -> tuple[Tensor, Tensor, None, None, None, None]:
        alpha, values, t, first, count = ctx.saved_tensors
        grads = [g.contiguous() for g in (grad_weights, grad_opacity, grad_depth, grad_image)]
        make = _allocator(alpha, count)
        grad_alpha, grad_values = make(alpha), make(values)
        run(
            ctx.kernels, "composite_backward", CompositeParams, alpha, alpha=alpha, values=values, t=t, first=first,
            count=count, grad_weights=grads[0], grad_opacity=grads[1], grad_depth=grads[2], grad_image=grads[3],
            grad_alpha=grad_alpha, grad_values=grad_values, num_rays=len(count), channels=values.shape[1],
            min_transmittance=ctx.min_transmittance,
        )  # fmt: skip
        return grad_alpha, grad_values, None, None, None, None


composite_rays_train = _Composite.apply
