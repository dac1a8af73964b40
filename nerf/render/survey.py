"""The survey: which samples of a training part can be seen, found by their alpha alone, without gradients.

N rays, M samples packed end to end, A rays that are still alive.
"""

import torch
from torch import Tensor

from nerf.field import Field
from nerf.render.base import points_at
from nerf.render.occupancy import OccupancyGrid
from nerf.structs import Part, Rays, Samples
from raymarching import RayQueue, composite_rays, composite_rays_train, march_rays

# A sample is seen if so much light reaches it and it stops such a share of it; the rest is a thousandth of a pixel.
SEEN_LIGHT, SEEN_ALPHA = 1e-3, 1e-4
# Samples of a ray in the first round; later rounds are longer, as fewer rays go on.
FIRST_ROUND, LONGEST_ROUND = 8, 64


@torch.no_grad()
def survey(
    field: Field,
    rays: Rays,
    part: Part,
    span: tuple[Tensor, Tensor],
    grid: OccupancyGrid,
    stepping: tuple[float, int],
    limit: int,
    strict: bool = True,
) -> tuple[Samples | None, float]:
    """March the rays in rounds, as far as light reaches, and keep the samples that can be seen.

    Args:
        field: asked for alphas.
        rays, part: N rays of the part.
        span: near and far, [N] each; near may be shifted by a part of a step to perturb the samples.
        grid: which cells to march through.
        stepping: dt_gamma and max_steps.
        limit: how many samples may be seen; twice as many may be looked at.
        strict: give up above the limit.

    Returns:
        The samples that can be seen, in ray order, or None where it gave up; and the used share of the limit, above 1
        where it did not suffice.
    """
    queue = RayQueue.start(rays.origins, rays.directions, *span, channels=1)
    rounds, alphas, looked, length = [], [], 0, FIRST_ROUND
    while len(queue):
        scene = (grid.bitfield, grid.bound, grid.cascades, grid.grid_size)
        found = Samples(*march_rays(queue, *scene, length, *stepping))
        looked += len(found)
        if strict and looked > 2 * limit:
            return None, looked / (2 * limit)
        alpha = field.alpha(points_at(found, rays, part), found.dt, part)
        composite_rays(queue, alpha, alpha[:, None], found.t, found.first, found.count, SEEN_LIGHT)
        rounds.append(found)
        alphas.append(alpha)
        length = min(2 * length, LONGEST_ROUND)
    seen = _seen(rounds, alphas, len(rays), rays)
    used = max(len(seen) / limit, looked / (2 * limit))
    return (None if strict and len(seen) > limit else seen), used


def _seen(rounds: list[Samples], alphas: list[Tensor], n: int, rays: Rays) -> Samples:
    """The samples of all rounds in ray order, without those that cannot be seen."""
    device, dtype = rays.origins.device, rays.origins.dtype
    per_round = [torch.bincount(r.ray_index, minlength=n) for r in rounds]
    count = torch.stack(per_round).sum(0) if rounds else torch.zeros(n, dtype=torch.int64, device=device)
    first = count.cumsum(0) - count
    packed = torch.zeros(3, sum(len(r) for r in rounds), device=device, dtype=dtype)
    free = first.clone()
    for found, alpha, of_round in zip(rounds, alphas, per_round, strict=True):
        rank = torch.arange(len(found), device=device) - (of_round.cumsum(0) - of_round)[found.ray_index]
        packed[:, free[found.ray_index] + rank] = torch.stack([alpha, found.t, found.dt])
        free += of_round
    alpha, t, dt = packed
    weights = composite_rays_train(alpha, alpha[:, None], t, first, count, SEEN_LIGHT)[0]
    keep = torch.nonzero((alpha > SEEN_ALPHA) & (weights > SEEN_LIGHT * alpha))[:, 0]
    ray_index = torch.repeat_interleave(torch.arange(n, device=device), count)[keep]
    t, kept = t[keep], torch.bincount(ray_index, minlength=n)
    positions = rays.origins[ray_index] + t[:, None] * rays.directions[ray_index]
    return Samples(positions, t, dt[keep], ray_index, kept.cumsum(0) - kept, kept)
