"""Training side of the folder: intersections, codes, sampling and differentiable compositing, on every rung.

Letters: N rays, M samples, C channels or cascades, H cells along an axis.
"""

import math

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

import extension
from extension import Arguments, on_torch
from raymarching import checks, native, reference
from raymarching.reference import step_sizes

__all__ = ["step_sizes"]  # the other public names are defined below

_overflow: dict[torch.device, Tensor] = {}


@torch.no_grad()
def near_far_from_aabb(origins: Tensor, directions: Tensor, aabb: Tensor, min_near: float = 0.2) -> tuple[Tensor, Tensor]:
    """Where each ray enters and leaves a box.

    Args:
        origins: [N, 3] float32 or float64.
        directions: [N, 3] unit.
        aabb: [6] lowest corner, then highest corner.
        min_near: nothing nearer than this is looked at, scene units.

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
    if on_torch(origins):
        return reference.near_far_from_aabb(origins, directions, aabb, min_near)
    near, far = torch.empty_like(origins[:, 0]), torch.empty_like(origins[:, 0])
    params = extension.fill(
        native.NearFarParams, origins=origins, directions=directions, aabb=aabb, near=near, far=far,
        num_rays=len(origins), min_near=min_near,
    )  # fmt: skip
    native.run("near_far_from_aabb", params, origins)
    return near, far


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
    if on_torch(origins):
        return reference.sph_from_ray(origins, directions, radius)
    coords = torch.empty_like(origins[:, :2])
    params = extension.fill(
        native.SphereParams, origins=origins, directions=directions, coords=coords, num_rays=len(origins), radius=radius
    )
    native.run("sph_from_ray", params, origins)
    return coords


def morton3D(coords: Tensor) -> Tensor:
    """Morton code of each cell: the bits of x, y and z interleaved, x lowest.

    Args:
        coords: [N, 3] int32 in [0, 1024). Checked on the CPU; on CUDA higher bits are ignored.

    Returns:
        [N] int32.

    Reference: :func:`raymarching.reference.morton3D`.
    """
    args = Arguments("morton3D")
    coords = args.integers("coords", coords, torch.int32, "N", 3)
    if coords.device.type == "cpu" and coords.numel():
        low, high = coords.aminmax()
        args.require(bool(low >= 0), f"coords must lie in [0, 1024), got a minimum of {low}")
        args.require(bool(high < 1024), f"coords must lie in [0, 1024), got a maximum of {high}")
    if on_torch(coords):
        return reference.morton3D(coords)
    codes = torch.empty_like(coords[:, 0])
    extension.kernel("raymarching", "morton_encode", coords.device)(coords, codes, len(coords))
    return codes


def morton3D_invert(codes: Tensor) -> Tensor:
    """The cell of each Morton code, the inverse of :func:`morton3D`.

    Args:
        codes: [N] int32, not negative.

    Returns:
        [N, 3] int32.
    """
    codes = Arguments("morton3D_invert").integers("codes", codes, torch.int32, "N")
    if on_torch(codes):
        return reference.morton3D_invert(codes)
    coords = torch.empty(len(codes), 3, dtype=torch.int32, device=codes.device)
    extension.kernel("raymarching", "morton_decode", codes.device)(codes, coords, len(codes))
    return coords


@torch.no_grad()
def packbits(grid: Tensor, threshold: float) -> Tensor:
    """The bitfield of a grid: bit i of byte b says whether cell 8 b + i lies above the threshold.

    A NaN cell counts as above, so that a broken field is looked at and not skipped.

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
    if on_torch(grid):
        return reference.packbits(grid, threshold)
    bitfield = torch.empty(grid.numel() // 8, dtype=torch.uint8, device=grid.device)
    packbits_kernel = extension.kernel("raymarching", "packbits", grid.device)
    packbits_kernel(grid, bitfield, float(threshold), bitfield.numel(), extension.dtype_code(grid))
    return bitfield


def flatten_rays(count: Tensor, num_samples: int) -> Tensor:
    """Which ray each packed sample belongs to.

    Args:
        count: [N] int64, samples on each ray.
        num_samples: M, their sum (passed, so that a GPU need not be asked for it).

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
    """Sample each ray where the bitfield says that something may be.

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
            needed the last rays get fewer, and :func:`overflow` tells. On CUDA this avoids waiting for the GPU.

    Returns:
        positions [M, 3] = origin + t * direction, t [M] middle of the step, dt [M] its length, ray_index [M] int64,
        first [N] int64 and count [N] int64.

    Raises:
        ValueError: also, on the CPU, for rays that are not finite (on CUDA :func:`overflow` counts those).

    Not differentiable. Reference: :func:`raymarching.reference.march_dense`.
    """
    args = Arguments("march_rays_train")
    rays = origins, directions, near, far = checks.rays(args, origins, directions, near, far)
    noise = None if noise is None else args.floats("noise", noise, "N")
    bitfield = checks.grid(args, bitfield, bound, cascades, grid_size)
    checks.steps(args, dt_gamma, max_steps)
    args.require(capacity is None or capacity >= 0, f"capacity must not be negative, got {capacity}")
    if on_torch(origins):
        _refuse_broken(args, rays, noise)
        return _march_reference(rays, bitfield, bound, cascades, grid_size, noise, dt_gamma, max_steps, capacity)
    scene = native.scene(bitfield, bound, cascades, grid_size, dt_gamma, max_steps)
    params = extension.fill(
        native.MarchParams, origins=origins, directions=directions, near=near, far=far, noise=noise,
        num_rays=len(near), limit=native.NO_LIMIT, **scene,
    )  # fmt: skip
    count, runs = native.count_samples(params, len(near), origins)
    if count.device.type == "cpu" and bool((count < 0).any()):
        _refuse_broken(args, rays, noise)
    first, count, size = _fit(count, capacity)
    return (*native.write_samples(params, first, count, runs, size, origins), first, count)


def overflow(device: torch.device | str) -> Tensor:
    """What marches with a ``capacity`` could not do since :func:`clear_overflow`, int64 [2] on ``device``.

    Element 0 is the largest number of samples that was needed where the capacity did not suffice (0: it always did);
    element 1 counts rays that were not finite. Reading it waits for a GPU, so read it a step later.
    """
    device = torch.empty(0, device=device).device
    if device not in _overflow:
        with torch.inference_mode(False):  # it outlives the caller's mode
            _overflow[device] = torch.zeros(2, dtype=torch.int64, device=device)
    return _overflow[device]


def clear_overflow(device: torch.device | str) -> None:
    """Forget what :func:`overflow` tells."""
    overflow(device).zero_()


def _fit(count: Tensor, capacity: int | None) -> tuple[Tensor, Tensor, int]:
    """first [N], count [N] and M for a number of samples per ray, kept within the capacity."""
    if capacity is None:
        count = count.clamp(min=0)
        return count.cumsum(0) - count, count, int(count.sum())
    told = overflow(count.device)
    told[1] += (count < 0).sum()
    count = count.clamp(min=0)
    end = count.cumsum(0)
    total = count.sum()
    told[0] = torch.where(total > capacity, torch.maximum(told[0], total), told[0])
    first = (end - count).clamp(max=capacity)
    return first, end.clamp(max=capacity) - first, capacity


def _march_reference(rays: tuple[Tensor, ...], *arguments: object) -> tuple[Tensor, ...]:
    """march_rays_train on the torch rung: the dense lattice, packed."""
    *scene, capacity = arguments
    origins, directions, *_ = rays
    t, dt, ray_index, count, _, _ = reference.march_dense(*rays, *scene)
    first, count, size = _fit(count, capacity)
    if size > len(t):
        extra = size - len(t)
        t, dt = (torch.cat([x, x.new_zeros(extra)]) for x in (t, dt))
        ray_index = torch.cat([ray_index, ray_index.new_zeros(extra)])
    t, dt, ray_index = t[:size], dt[:size], ray_index[:size]
    positions = origins[ray_index] + t[:, None] * directions[ray_index] if len(origins) else origins.new_zeros(size, 3)
    return torch.where(dt[:, None] > 0, positions, 0.0), t, dt, ray_index, first, count


def _refuse_broken(args: Arguments, rays: tuple[Tensor, ...], noise: Tensor | None) -> None:
    """Raise for the first ray that is not finite; near and far may be infinite, but not NaN."""
    origins, directions, near, far = rays
    fine = (origins.isfinite() & directions.isfinite()).all(-1) & (near > -math.inf) & ~far.isnan()
    fine = fine if noise is None else fine & noise.isfinite()
    if not bool(fine.all()):
        ray = int((~fine).nonzero()[0])
        raise ValueError(
            f"{args.op}: rays must be finite, and ray {ray} has origin {origins[ray].tolist()}, direction "
            f"{directions[ray].tolist()}, near {near[ray].item()}, far {far[ray].item()}"
            + ("" if noise is None else f", noise {noise[ray].item()}")
        )


def composite_rays_train(
    alpha: Tensor, values: Tensor, t: Tensor, first: Tensor, count: Tensor, min_transmittance: float = 1e-4
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Blend the samples of each ray front to back.

    ``weight_i = alpha_i T_i`` with ``T_i = prod_{j<i} (1 - alpha_j)``; ``opacity = sum weight_i``,
    ``depth = sum weight_i t_i``, ``image = sum weight_i values_i`` (premultiplied: add ``(1 - opacity) * background``
    yourself).

    Args:
        alpha: [M] opacity of each sample, in [0, 1], float32 or float64. NaN makes its ray NaN, even behind the stop.
        values: [M, C] what is blended, 1 <= C <= 16: colour, or colour and normal in one pass.
        t: [M] distance along the ray; no gradient flows to it.
        first, count: [N] int64; ray n owns samples [first[n], first[n] + count[n]). Samples that no ray owns get
            weight 0. The ranges must not overlap.
        min_transmittance: a ray stops before the first sample that would get less light than this; 0 never stops.

    Returns:
        weights [M], opacity [N], depth [N], image [N, C].

    Differentiable once, in ``alpha`` and ``values``, from all four outputs. Source: NeRF (Mildenhall et al. 2020),
    eq. 3. Reference: :func:`raymarching.reference.composite_rays_train`.
    """
    args = Arguments("composite_rays_train")
    alpha, values = args.floats("alpha", alpha, "M"), args.floats("values", values, "M", "C")
    t = args.floats("t", t, "M")
    first, count = (args.integers(n, x, torch.int64, "N") for n, x in (("first", first), ("count", count)))
    check_composite(args, values, t, first, count, min_transmittance)
    if on_torch(alpha):
        return reference.composite_rays_train(alpha, values, t, first, count, min_transmittance)
    return _Composite.apply(alpha, values, t, first, count, min_transmittance)


def check_composite(args: Arguments, values: Tensor, t: Tensor, first: Tensor, count: Tensor, min_transmittance: float) -> None:
    """What every compositing requires of its channels, its distances, its ranges and its stop."""
    args.require(1 <= values.shape[1] <= 16, f"values may have 1 to 16 channels, got {values.shape[1]}")
    args.require(not t.requires_grad, "no gradient flows to t; pass t.detach()")
    args.require(0 <= min_transmittance < 1, f"min_transmittance must lie in [0, 1), got {min_transmittance}")
    if first.device.type == "cpu" and len(first):
        inside = first.amin() >= 0 and count.amin() >= 0 and (first + count).amax() <= len(t)
        args.require(bool(inside), f"first and count reach outside the M = {len(t)} samples")


def _maker(alpha: Tensor, count: Tensor):
    """How to make tensors that kernels fill for the samples that rays own: of zeros, unless all are owned."""
    all_owned = alpha.device.type == "cpu" and int(count.sum()) == len(alpha)
    return torch.empty_like if all_owned else torch.zeros_like


class _Composite(torch.autograd.Function):
    """The compositing kernel and its true derivative."""

    @staticmethod
    def forward(ctx, alpha, values, t, first, count, min_transmittance):
        num_rays, channels = len(count), values.shape[1]
        make = _maker(alpha, count)
        weights = make(alpha)
        opacity, depth = alpha.new_empty(2, num_rays)
        image = alpha.new_empty(num_rays, channels)
        params = extension.fill(
            native.CompositeParams, alpha=alpha, values=values, t=t, first=first, count=count, weights=weights,
            opacity=opacity, depth=depth, image=image, num_rays=num_rays, channels=channels,
            min_transmittance=min_transmittance,
        )  # fmt: skip
        native.run("composite_forward", params, alpha)
        ctx.save_for_backward(alpha, values, t, first, count)
        ctx.min_transmittance = min_transmittance
        return weights, opacity, depth, image

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_weights, grad_opacity, grad_depth, grad_image):
        alpha, values, t, first, count = ctx.saved_tensors
        grads = [g.contiguous() for g in (grad_weights, grad_opacity, grad_depth, grad_image)]
        make = _maker(alpha, count)
        grad_alpha, grad_values = make(alpha), make(values)
        params = extension.fill(
            native.CompositeParams, alpha=alpha, values=values, t=t, first=first, count=count, grad_weights=grads[0],
            grad_opacity=grads[1], grad_depth=grads[2], grad_image=grads[3], grad_alpha=grad_alpha,
            grad_values=grad_values, num_rays=len(count), channels=values.shape[1],
            min_transmittance=ctx.min_transmittance,
        )  # fmt: skip
        native.run("composite_backward", params, alpha)
        return grad_alpha, grad_values, None, None, None, None
