"""Every operation in plain torch, any floating dtype, any device.

The kernels are tested against these, and they are what backend torch runs.
Letters: N rays, A rays alive, M samples, C channels or cascades, H cells along an axis, K steps of a ray's lattice.
"""

import math

import torch
from torch import Tensor

from raymarching import checks
from raymarching.capacity import fit
from raymarching.ray_queue import RayQueue

NO_LIMIT = 1 << 40  # samples of a ray, more than any has
_DENSE_STEPS = 1 << 21  # steps tested at once; bounds the memory to a few hundred MB
_MORTON_BITS = 10  # of a Morton code for each axis: 30 bits of an int32


def step_sizes(bound: float, max_steps: int, grid_size: int) -> tuple[float, float]:
    """Shortest step, 2 sqrt(3) min(bound, 1) / max_steps, and longest, the largest cell's diagonal; scene units."""
    dt_min = 2 * math.sqrt(3) * min(bound, 1.0) / max_steps
    return dt_min, max(dt_min, 2 * math.sqrt(3) * bound / grid_size)


def near_far_from_aabb(origins: Tensor, directions: Tensor, aabb: Tensor, min_near: float) -> tuple[Tensor, Tensor]:
    """Slab test (Kay and Kajiya 1986); see :func:`raymarching.near_far_from_aabb`."""
    low, high = (aabb[:3] - origins) / directions, (aabb[3:] - origins) / directions
    inside = (origins >= aabb[:3]) & (origins <= aabb[3:])
    enter = torch.where(directions == 0, torch.where(inside, -math.inf, math.inf), torch.minimum(low, high))
    leave = torch.where(directions == 0, torch.where(inside, math.inf, -math.inf), torch.maximum(low, high))
    near, far = enter.amax(-1).clamp(min=min_near), leave.amin(-1)
    hit = near < far
    finite = (origins.isfinite() & directions.isfinite()).all(-1)
    miss = torch.where(finite, math.inf, math.nan).to(near.dtype)
    return torch.where(hit & finite, near, miss), torch.where(hit & finite, far, miss)


def sph_from_ray(origins: Tensor, directions: Tensor, radius: float) -> Tensor:
    """Polar angle and azimuth [N, 2] in [-1, 1] of the far hit with a sphere; see :func:`raymarching.sph_from_ray`."""
    a, b = directions.square().sum(-1), (origins * directions).sum(-1)
    c = origins.square().sum(-1) - radius**2
    x, y, z = (origins + (((b * b - a * c).sqrt() - b) / a)[:, None] * directions).unbind(-1)
    polar = torch.atan2((x * x + z * z).sqrt(), y)
    return torch.stack([2 * polar / math.pi - 1, torch.atan2(z, x) / math.pi], -1)


def morton3D(coords: Tensor) -> Tensor:
    """Interleaved bits of x, y, z (x lowest), int32 [N]; see :func:`raymarching.morton3D`."""
    codes = torch.zeros_like(coords[:, 0])
    for bit in range(_MORTON_BITS):
        for axis in range(3):
            codes |= ((coords[:, axis] >> bit) & 1) << (3 * bit + axis)
    return codes


def morton3D_invert(codes: Tensor) -> Tensor:
    """The coordinates int32 [N, 3] of Morton codes; see :func:`raymarching.morton3D_invert`."""
    coords = torch.zeros(len(codes), 3, dtype=torch.int32, device=codes.device)
    for bit in range(_MORTON_BITS):
        for axis in range(3):
            coords[:, axis] |= ((codes >> (3 * bit + axis)) & 1) << bit
    return coords


def packbits(grid: Tensor, threshold: float) -> Tensor:
    """Bits of ``grid > threshold`` (NaN counts as above), uint8 [grid.numel() / 8]; :func:`raymarching.packbits`."""
    bits = (~(grid.reshape(-1, 8) <= threshold)).to(torch.uint8)
    return (bits << torch.arange(8, dtype=torch.uint8, device=grid.device)).sum(-1, dtype=torch.uint8)


def occupied(positions: Tensor, step: Tensor, bitfield: Tensor, bound: float, cascades: int, grid_size: int) -> Tensor:
    """Whether the cell of each position is set, bool [...].

    The cascade is the finest that covers the position and whose cells are longer than the step there.

    Args:
        positions: [..., 3] inside the box.
        step: [...] step length, scene units.
        bitfield: uint8 [C * H^3 / 8].
    """
    reach = torch.maximum(positions.abs().amax(-1), step * grid_size * 0.5)
    level = torch.zeros_like(reach).long()
    for c in range(cascades - 1):
        level = level + (reach >= 2.0**c)
    half = (2.0**level).to(positions.dtype).clamp(max=bound)[..., None]
    cell = ((positions + half) * (grid_size / (2 * half))).to(torch.int32).clamp(0, grid_size - 1)
    bit = level * grid_size**3 + morton3D(cell.reshape(-1, 3)).reshape(cell.shape[:-1])
    return ((bitfield[bit >> 3] >> (bit & 7).to(torch.uint8)) & 1).bool()


def lattice(
    near: Tensor, noise: Tensor | None, index: Tensor, dt_gamma: float, dt_min: float, dt_max: float
) -> tuple[Tensor, Tensor]:
    """Middle and length of the steps ``index`` [K] of each ray's lattice, both [N, K].

    Uniform in stepping space (Mueller et al. 2022, appendix E.1): steps of dt_min up to dt_min / dt_gamma, then
    exponential growth, then steps of dt_max from dt_max / dt_gamma.
    """
    shift = (torch.zeros_like(near) if noise is None else noise - 0.5)[:, None]
    k = index.to(near.dtype)[None]
    if dt_gamma == 0:
        t = near[:, None] + shift * dt_min + (k + 0.5) * dt_min
        return t, torch.full_like(t, dt_min)
    grow, cap, log_growth = dt_min / dt_gamma, dt_max / dt_gamma, math.log1p(dt_gamma)
    s_cap = math.log(cap / grow) / log_growth
    at = near[:, None]
    s = torch.where(at < cap, (at / grow).clamp(min=1).log() / log_growth, s_cap + (at - cap) / dt_max)
    s = torch.where(at < grow, (at - grow) / dt_min, s) + shift

    def distance(s: Tensor) -> Tensor:
        curved = torch.where(s < s_cap, grow * (s.clamp(0, s_cap) * log_growth).exp(), cap + (s - s_cap) * dt_max)
        return torch.where(s < 0, grow + s * dt_min, curved)

    begin, end = distance(s + k), distance(s + k + 1)
    return 0.5 * (begin + end), end - begin


def box_interval(origins: Tensor, directions: Tensor, near: Tensor, far: Tensor, bound: float) -> tuple[Tensor, Tensor]:
    """The part of [near, far] that lies inside the box [-bound, bound]^3, as begin [N] and end [N]."""
    corner = torch.full((3,), float(bound), dtype=near.dtype, device=near.device)
    enter, leave = near_far_from_aabb(origins, directions, torch.cat([-corner, corner]), -math.inf)
    return torch.maximum(near, enter), torch.minimum(far, torch.where(enter < leave, leave, -math.inf))


def march_dense(
    origins: Tensor,
    directions: Tensor,
    near: Tensor,
    far: Tensor,
    bitfield: Tensor,
    bound: float,
    cascades: int,
    grid_size: int,
    noise: Tensor | None,
    dt_gamma: float,
    max_steps: int,
    cursor: Tensor | None = None,
    limit: int = NO_LIMIT,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Test every step of every ray's lattice and keep the occupied ones.

    Args: as for :func:`raymarching.march_rays_train`; ``cursor`` [N] is the step to begin at, ``limit`` the largest
        number of samples of a ray.

    Returns:
        t [M], dt [M], ray_index [M], count [N], and step [M], the lattice index of each sample; ended [N], whether a
        ray has fewer samples than the limit.
    """
    sizes = step_sizes(bound, max_steps, grid_size)
    begin, end = box_interval(origins, directions, near, far, bound)
    hit = begin < end
    near = torch.where(hit, near, 0.0)
    index = _lattice_index(near[hit], end[hit], dt_gamma, sizes)
    parts = []
    all_rays, at_once = torch.arange(len(near), device=near.device), max(1, _DENSE_STEPS // len(index))
    for start in range(0, max(1, len(near)), at_once):
        rows = all_rays[start : start + at_once]
        t, dt = lattice(near[rows], None if noise is None else noise[rows], index, dt_gamma, *sizes)
        keep = hit[rows, None] & (t >= begin[rows, None]) & (t < end[rows, None])
        if cursor is not None:
            keep &= index >= cursor[rows, None]
        positions = torch.where(keep[..., None], origins[rows, None] + t[..., None] * directions[rows, None], 0.0)
        keep &= occupied(positions, (t * dt_gamma).clamp(*sizes), bitfield, bound, cascades, grid_size)
        rank = keep.cumsum(-1)
        row, step = (keep & (rank <= limit)).nonzero(as_tuple=True)
        count = rank[:, -1].clamp(max=limit)
        parts.append((t[row, step], dt[row, step], rows[row], count, step, count < limit))
    t, dt, ray_index, count, step, ended = (torch.cat(part) for part in zip(*parts, strict=True))
    return t, dt, ray_index, count, step, ended


def march_rays_train(
    origins: Tensor, directions: Tensor, near: Tensor, far: Tensor, bitfield: Tensor, bound: float, cascades: int,
    grid_size: int, noise: Tensor | None, dt_gamma: float, max_steps: int, capacity: int | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """positions [M, 3], t [M], dt [M], ray_index [M], first [N], count [N]; twin of :func:`raymarching.march_rays_train`."""
    checks.finite_rays("march_rays_train", origins, directions, near, far, noise)
    t, dt, ray_index, count, _, _ = march_dense(
        origins, directions, near, far, bitfield, bound, cascades, grid_size, noise, dt_gamma, max_steps
    )
    first, count, size = fit(count, capacity)
    if size > len(t):
        padding = size - len(t)
        t, dt = (torch.cat([x, x.new_zeros(padding)]) for x in (t, dt))
        ray_index = torch.cat([ray_index, ray_index.new_zeros(padding)])
    t, dt, ray_index = t[:size], dt[:size], ray_index[:size]
    positions = origins[ray_index] + t[:, None] * directions[ray_index] if len(origins) else origins.new_zeros(size, 3)
    return torch.where(dt[:, None] > 0, positions, 0.0), t, dt, ray_index, first, count


def march_rays(
    queue: RayQueue, bitfield: Tensor, bound: float, cascades: int, grid_size: int, num_steps: int, dt_gamma: float,
    max_steps: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """positions [M, 3], t [M], dt [M], ray_index [M], first [A], count [A]; twin of :func:`raymarching.march_rays`."""
    alive = queue.alive
    origins, directions, near, far = (x[alive] for x in (queue.origins, queue.directions, queue.near, queue.far))
    t, dt, local, count, step, ended = march_dense(
        origins, directions, near, far, bitfield, bound, cascades, grid_size, None, dt_gamma, max_steps,
        queue.cursor[alive], num_steps,
    )  # fmt: skip
    first = count.cumsum(0) - count
    last = torch.where(count > 0, first + count - 1, 0)
    after = step[last] + 1 if len(step) else torch.zeros_like(count)
    queue.cursor[alive] = torch.where(ended, -1, after)
    ray_index = alive[local]
    positions = queue.origins[ray_index] + t[:, None] * queue.directions[ray_index]
    return positions, t, dt, ray_index, first, count


def _lattice_index(near: Tensor, end: Tensor, dt_gamma: float, sizes: tuple[float, float]) -> Tensor:
    """Indices [K] of enough steps for every ray to reach its end."""
    if len(near) == 0:
        return torch.zeros(1, dtype=torch.int64, device=near.device)
    index = torch.arange(math.ceil((end - near).amax().item() / sizes[0]) + 2, device=near.device)
    if dt_gamma > 0:  # longer steps than dt_min, most of all far away: the nearest ray needs the most
        t, _ = lattice(near.amin()[None], None, index, dt_gamma, *sizes)
        index = index[: int((t[0] < end.amax() + 2 * sizes[1]).sum()) + 2]
    return index


def composite_rays_train(
    alpha: Tensor, values: Tensor, t: Tensor, first: Tensor, count: Tensor, min_transmittance: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """weights [M], opacity [N], depth [N], image [N, C]; differentiable any number of times.

    Twin of :func:`raymarching.composite_rays_train`.
    """
    transmittance = alpha.new_ones(len(count))
    return composite(alpha, values, t, first, count, min_transmittance, transmittance)[:4]


def composite_rays(
    queue: RayQueue, alpha: Tensor, values: Tensor, t: Tensor, first: Tensor, count: Tensor, min_transmittance: float
) -> None:
    """Add samples [M] to the queue's sums; twin of :func:`raymarching.composite_rays`."""
    alive = queue.alive
    transmittance = queue.transmittance[alive]
    sums = composite(alpha, values, t, first, count, min_transmittance, transmittance)
    queue.opacity[alive] += sums[1]
    queue.depth[alive] += sums[2]
    queue.image[alive] += sums[3]
    queue.transmittance[alive] = sums[4]


def composite(
    alpha: Tensor, values: Tensor, t: Tensor, first: Tensor, count: Tensor, min_transmittance: float, transmittance: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Composite rays, padded to [N, K], whose transmittance before the first sample is ``transmittance`` [N].

    Returns:
        weights [M], opacity [N], depth [N], image [N, C], and the transmittance [N] behind the last sample.
    """
    k = torch.arange(int(count.max()) if len(count) else 0, device=alpha.device)
    valid = k < count[:, None]
    index = (first[:, None] + k)[valid]  # of the samples that rays own, in the order of the rays
    padded = torch.zeros(valid.shape, dtype=alpha.dtype, device=alpha.device).masked_scatter(valid, alpha[index])
    start = transmittance[:, None]
    before = torch.cat([start, start * (1 - padded).cumprod(-1)[:, :-1]], -1)[:, : len(k)]
    visible = ~(before < min_transmittance)
    hidden = torch.where(padded.isnan(), padded, 0.0)  # NaN shows even behind the early stop
    weight = torch.where(visible, padded * before, hidden)[valid]
    left = transmittance * torch.where(visible | padded.isnan(), 1 - padded, 1.0).prod(-1)
    used = (visible[valid] | weight.isnan())[:, None]
    what = torch.cat([torch.ones_like(t)[:, None], t[:, None], values], -1)[index]
    sums = alpha.new_zeros(len(count), what.shape[1])
    ray = torch.repeat_interleave(torch.arange(len(count), device=alpha.device), count)
    sums = sums.index_add(0, ray, weight[:, None] * torch.where(used, what, 0.0))
    weights = torch.zeros_like(alpha).index_put((index,), weight)
    return weights, sums[:, 0], sums[:, 1], sums[:, 2:], left
