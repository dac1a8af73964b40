"""Every operation of the folder in plain torch, any floating dtype, any device: the truth in tests, and the torch rung.

Letters as in the package: N rays, M samples, C channels or cascades, H cells along an axis, K steps of a ray's lattice.
"""

import math

import torch
from torch import Tensor

_DENSE_STEPS = 1 << 21  # steps of the dense lattice that are looked at at once; bounds the memory to a few hundred MB


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
    for bit in range(10):
        for axis in range(3):
            codes |= ((coords[:, axis] >> bit) & 1) << (3 * bit + axis)
    return codes


def morton3D_invert(codes: Tensor) -> Tensor:
    """The coordinates int32 [N, 3] of Morton codes; see :func:`raymarching.morton3D_invert`."""
    coords = torch.zeros(len(codes), 3, dtype=torch.int32, device=codes.device)
    for bit in range(10):
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
    level = sum((reach >= 2.0**c).long() for c in range(cascades - 1)) if cascades > 1 else torch.zeros_like(reach).long()
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
    limit: int = 1 << 40,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Look at every step of every ray's lattice and keep the occupied ones.

    Args: as for :func:`raymarching.march_rays_train`; ``cursor`` [N] is the step to begin at, ``limit`` the most
        samples of a ray.

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
    for rows in torch.arange(len(near), device=near.device).split(max(1, _DENSE_STEPS // len(index))):
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
    """Differentiable as often as torch is; see :func:`raymarching.composite_rays_train`."""
    light = alpha.new_ones(len(count))
    return blend(alpha, values, t, first, count, min_transmittance, light)[:4]


def blend(
    alpha: Tensor, values: Tensor, t: Tensor, first: Tensor, count: Tensor, min_transmittance: float, light: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Blend rays, padded to [N, K], that begin with ``light`` [N] left.

    Returns:
        weights [M], opacity [N], depth [N], image [N, C], and the light [N] that is left behind the samples.
    """
    k = torch.arange(int(count.max()) if len(count) else 0, device=alpha.device)
    real = k < count[:, None]
    index = (first[:, None] + k)[real]  # of the samples that rays own, in the order of the rays
    padded = torch.zeros(real.shape, dtype=alpha.dtype, device=alpha.device).masked_scatter(real, alpha[index])
    before = torch.cat([light[:, None], light[:, None] * (1 - padded).cumprod(-1)[:, :-1]], -1)[:, : len(k)]
    in_sight = ~(before < min_transmittance)
    hidden = torch.where(padded.isnan(), padded, 0.0)  # a broken sample shows even behind the stop
    weight = torch.where(in_sight, padded * before, hidden)[real]
    left = light * torch.where(in_sight | padded.isnan(), 1 - padded, 1.0).prod(-1)
    looked_at = (in_sight[real] | weight.isnan())[:, None]
    what = torch.cat([torch.ones_like(t)[:, None], t[:, None], values], -1)[index]
    gathered = alpha.new_zeros(len(count), what.shape[1])
    ray = torch.repeat_interleave(torch.arange(len(count), device=alpha.device), count)
    gathered = gathered.index_add(0, ray, weight[:, None] * torch.where(looked_at, what, 0.0))
    weights = torch.zeros_like(alpha).index_put((index,), weight)
    return weights, gathered[:, 0], gathered[:, 1], gathered[:, 2:], left
