"""Ray intersections, Morton codes, sampling and differentiable compositing: the operations of training.

Letters: N rays, M samples, C channels or cascades, H cells along an axis.
"""

import math

import torch
from torch import Tensor

from extension import Arguments, implementation, register
from raymarching import checks, native, reference


@torch.no_grad()
def near_far_from_aabb(origins: Tensor, directions: Tensor, aabb: Tensor, min_near: float = 0.2) -> tuple[Tensor, Tensor]:
    """Where each ray enters and leaves a box.

    Args:
        origins: [N, 3] float32 or float64.
        directions: [N, 3] unit.
        aabb: [6] lowest corner, then highest corner.
        min_near: samples begin no nearer than this, scene units.

    Returns:
        near [N] >= min_near and far [N] > near, distances along the ray; both infinity where the ray misses the box
        (or leaves it before min_near), both NaN where the ray is not finite.

    Not differentiable. Source: slab test (Kay and Kajiya 1986).
    Reference: :func:`raymarching.reference.near_far_from_aabb`.
    """
    args = Arguments("near_far_from_aabb")
    origins = args.floats("origins", origins, "N", 3)
    directions = args.floats("directions", directions, "N", 3)
    aabb = args.floats("aabb", aabb, 6)
    args.require(math.isfinite(min_near), f"min_near must be finite, got {min_near}")
    run = implementation("raymarching.near_far_from_aabb", origins)
    interval: tuple[Tensor, Tensor] = run(origins, directions, aabb, min_near)
    return interval


@torch.no_grad()
def sph_from_ray(origins: Tensor, directions: Tensor, radius: float) -> Tensor:
    """Where each ray leaves a sphere about the origin, as angles.

    Args:
        origins: [N, 3] inside the sphere, float32 or float64.
        directions: [N, 3] unit.
        radius: of the sphere, scene units.

    Returns:
        [N, 2] in [-1, 1]: polar angle from +Y (-1 above, 1 below), azimuth atan2(z, x) / pi; NaN where the ray misses.

    Not differentiable. Reference: :func:`raymarching.reference.sph_from_ray`.
    """
    args = Arguments("sph_from_ray")
    origins = args.floats("origins", origins, "N", 3)
    directions = args.floats("directions", directions, "N", 3)
    args.require(0 < radius < math.inf, f"radius must be positive, got {radius}")
    angles: Tensor = implementation("raymarching.sph_from_ray", origins)(origins, directions, radius)
    return angles


def morton3D(coords: Tensor) -> Tensor:
    """Morton code of each cell: the bits of x, y and z interleaved, x lowest.

    Args:
        coords: [N, 3] int32 in [0, 1024). Checked on the CPU; elsewhere higher bits are ignored.

    Returns:
        [N] int32.

    Reference: :func:`raymarching.reference.morton3D`.
    """
    args = Arguments("morton3D")
    coords = args.integers("coords", coords, torch.int32, "N", 3)
    if coords.device.type == "cpu" and coords.numel():
        low, high = coords.aminmax()
        args.require(bool(low >= 0), f"coords must lie in [0, {checks.MAX_GRID}), got a minimum of {low}")
        args.require(bool(high < checks.MAX_GRID), f"coords must lie in [0, {checks.MAX_GRID}), got a maximum of {high}")
    codes: Tensor = implementation("raymarching.morton3D", coords)(coords)
    return codes


def morton3D_invert(codes: Tensor) -> Tensor:
    """The cell of each Morton code, the inverse of :func:`morton3D`.

    Args:
        codes: [N] int32, not negative.

    Returns:
        [N, 3] int32.

    Reference: :func:`raymarching.reference.morton3D_invert`.
    """
    codes = Arguments("morton3D_invert").integers("codes", codes, torch.int32, "N")
    coords: Tensor = implementation("raymarching.morton3D_invert", codes)(codes)
    return coords


@torch.no_grad()
def packbits(grid: Tensor, threshold: float) -> Tensor:
    """The bitfield of a grid: bit i of byte b says whether cell 8 b + i lies above the threshold.

    A NaN cell counts as occupied, so that a field with NaN shows instead of being skipped.

    Args:
        grid: [C, H^3] float32 or float64, cells in Morton order; H^3 divisible by 8.
        threshold: in the unit of the grid.

    Returns:
        uint8 [C * H^3 / 8].

    Reference: :func:`raymarching.reference.packbits`.
    """
    args = Arguments("packbits")
    grid = args.floats("grid", grid, "C", "H^3")
    args.require(grid.shape[1] % 8 == 0, f"grid needs a multiple of 8 cells in a cascade, got {grid.shape[1]}")
    bitfield: Tensor = implementation("raymarching.packbits", grid)(grid, float(threshold))
    return bitfield


def flatten_rays(count: Tensor, num_samples: int) -> Tensor:
    """Which ray each packed sample belongs to.

    Args:
        count: [N] int64, samples on each ray.
        num_samples: M, their sum (an argument, so that the GPU is not waited for).

    Returns:
        [M] int64, ascending.
    """
    args = Arguments("flatten_rays")
    count = args.integers("count", count, torch.int64, "N")
    if count.device.type == "cpu":
        args.require(int(count.sum()) == num_samples, f"count sums to {int(count.sum())}, not to M = {num_samples}")
    rays = torch.arange(len(count), device=count.device)
    return torch.repeat_interleave(rays, count, output_size=num_samples)


@torch.no_grad()
def march_rays_train(
    origins: Tensor, directions: Tensor, near: Tensor, far: Tensor, bitfield: Tensor, bound: float, cascades: int,
    grid_size: int, noise: Tensor | None = None, dt_gamma: float = 0.0, max_steps: int = 1024,
    capacity: int | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Sample each ray in the occupied cells of the bitfield.

    Each ray has a lattice of steps from ``near`` on that does not depend on the scene: ``dt = clamp(t * dt_gamma,
    dt_min, dt_max)`` with ``dt_min, dt_max = step_sizes(bound, max_steps, grid_size)``. A step whose middle lies
    between near and far, in the box and in an occupied cell is a sample. The cascade is the finest that covers the
    point and whose cells are longer than the step. Samples come in the order of the rays, with the same bits for any
    number of threads.

    Args:
        origins, directions: [N, 3] float32 or float64; directions unit.
        near, far: [N] distances; infinity means that the ray has no samples.
        bitfield: uint8 [C * H^3 / 8] from :func:`packbits`.
        bound: half the side of the box [-bound, bound]^3, scene units.
        cascades: C >= 1 + ceil(log2(bound)).
        grid_size: H, a power of two from 4 to 1024.
        noise: [N] in [0, 1): sample k lies at ``near + (k + noise) dt``; None means 0.5.
        dt_gamma: growth of the step with distance; 0 for equal steps.
        max_steps: steps of length dt_min along the diagonal of the box of bound min(bound, 1).
        capacity: M is this instead of the number of samples. The rest is zeros, which belong to no ray. Where more are
            needed the last rays get fewer, and :func:`overflow` has the number. On CUDA this avoids waiting for the GPU.

    Returns:
        positions [M, 3] = origin + t * direction, t [M] middle of the step, dt [M] its length, ray_index [M] int64,
        first [N] int64 and count [N] int64.

    Raises:
        ValueError: also, on the CPU, for rays that are not finite (on CUDA :func:`overflow` counts those).

    Not differentiable. Reference: :func:`raymarching.reference.march_rays_train`.
    """
    args = Arguments("march_rays_train")
    origins, directions, near, far = checks.rays(args, origins, directions, near, far)
    noise = None if noise is None else args.floats("noise", noise, "N")
    bitfield = checks.grid(args, bitfield, bound, cascades, grid_size)
    checks.steps(args, dt_gamma, max_steps)
    args.require(capacity is None or capacity >= 0, f"capacity must not be negative, got {capacity}")
    run = implementation("raymarching.march_rays_train", origins)
    samples: tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor] = run(
        origins, directions, near, far, bitfield, bound, cascades, grid_size, noise, dt_gamma, max_steps, capacity
    )
    return samples


def composite_rays_train(
    alpha: Tensor,
    values: Tensor,
    t: Tensor,
    first: Tensor,
    count: Tensor,
    min_transmittance: float = checks.MIN_TRANSMITTANCE,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Composite the samples of each ray front to back.

    ``weight_i = alpha_i T_i`` with ``T_i = prod_{j<i} (1 - alpha_j)``; ``opacity = sum weight_i``,
    ``depth = sum weight_i t_i``, ``image = sum weight_i values_i`` (premultiplied: add ``(1 - opacity) * background``
    yourself).

    Args:
        alpha: [M] opacity of each sample, in [0, 1], float32 or float64. NaN makes its ray NaN, even behind the early stop.
        values: [M, C] what is composited, 1 <= C <= 16: colour, or colour and normal in one pass.
        t: [M] distance along the ray; not differentiable.
        first, count: [N] int64; ray n owns samples [first[n], first[n] + count[n]). Samples that no ray owns get
            weight 0. The ranges must not overlap.
        min_transmittance: early stop: samples at which the transmittance is below this get weight 0; 0 never stops.

    Returns:
        weights [M], opacity [N], depth [N], image [N, C].

    Differentiable once, in ``alpha`` and ``values``, from all four outputs. Source: NeRF (Mildenhall et al. 2020),
    eq. 3. Reference: :func:`raymarching.reference.composite_rays_train`.
    """
    args = Arguments("composite_rays_train")
    alpha, values = args.floats("alpha", alpha, "M"), args.floats("values", values, "M", "C")
    t = args.floats("t", t, "M")
    first, count = (args.integers(n, x, torch.int64, "N") for n, x in (("first", first), ("count", count)))
    checks.compositing(args, values, t, first, count, min_transmittance)
    run = implementation("raymarching.composite_rays_train", alpha)
    outputs: tuple[Tensor, Tensor, Tensor, Tensor] = run(alpha, values, t, first, count, min_transmittance)
    return outputs


register("raymarching.near_far_from_aabb", kernels=native.near_far_from_aabb, torch=reference.near_far_from_aabb)
register("raymarching.sph_from_ray", kernels=native.sph_from_ray, torch=reference.sph_from_ray)
register("raymarching.morton3D", kernels=native.morton3D, torch=reference.morton3D)
register("raymarching.morton3D_invert", kernels=native.morton3D_invert, torch=reference.morton3D_invert)
register("raymarching.packbits", kernels=native.packbits, torch=reference.packbits)
register("raymarching.march_rays_train", kernels=native.march_rays_train, torch=reference.march_rays_train)
register("raymarching.composite_rays_train", kernels=native.composite_rays_train, torch=reference.composite_rays_train)
