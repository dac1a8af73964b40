"""The survey: which samples of a training part can be seen, found by their alpha alone, without gradients.

Two ways to the same samples: in rounds, whose lengths are read back, for a CPU; and in buffers whose size is decided
before, so that nobody waits for a GPU. N rays, M samples packed end to end, A rays that are still alive.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from nerf.core.structs import Rays, RenderSettings, Samples
from nerf.fields.base import Field
from nerf.render.base import points_at
from nerf.render.occupancy import OccupancyGrid
from raymarching import (
    RayQueue,
    clear_overflow,
    composite_rays,
    composite_rays_train,
    march_rays,
    march_rays_train,
    overflow,
)

# A sample is seen if so much light reaches it and it stops such a share of it; the rest is a thousandth of a pixel.
SEEN_LIGHT, SEEN_ALPHA = 1e-3, 1e-4
# Samples of a ray in the first round; later rounds are longer, as fewer rays go on.
FIRST_ROUND, LONGEST_ROUND = 8, 64
# Buffers have room for this much more than was needed, in whole blocks; a large need is forgotten slowly.
ROOM, BLOCK, FADE = 1.25, 4096, 0.98


@dataclass(frozen=True)
class March:
    """Rays on their way through the occupied cells."""

    rays: Rays  # N
    span: tuple[Tensor, Tensor]  # near and far, [N] each; near may be shifted by a part of a step to perturb the samples
    grid: OccupancyGrid  # which cells to march through
    dt_gamma: float  # growth of the step with the distance
    max_steps: int  # steps across the diagonal of the unit box

    @property
    def scene(self) -> tuple[Tensor, float, int, int]:
        """What the marching kernels want to know of the grid."""
        return self.grid.bitfield, self.grid.bound, self.grid.cascades, self.grid.grid_size

    def at_once(self, capacity: int) -> Samples:
        """All samples of all rays, in a buffer of that size; see :func:`raymarching.march_rays_train`."""
        rays, stepping = (self.rays.origins, self.rays.directions, *self.span), (self.dt_gamma, self.max_steps)
        return Samples(*march_rays_train(*rays, *self.scene, None, *stepping, capacity))


@torch.no_grad()
def survey(
    field: Field, march: March, settings: RenderSettings, limit: int, strict: bool = True
) -> tuple[Samples | None, float]:
    """March the rays in rounds, as far as light reaches, and keep the samples that can be seen.

    Args:
        field: asked for alphas.
        march: N rays and their steps.
        settings: of the part that the rays belong to.
        limit: how many samples may be seen; twice as many may be looked at.
        strict: give up above the limit.

    Returns:
        The samples that can be seen, in ray order, or None where it gave up; and the used share of the limit, above 1
        where it did not suffice.
    """
    rays = march.rays
    queue = RayQueue.start(rays.origins, rays.directions, *march.span, channels=1)
    rounds, alphas, looked, length = [], [], 0, FIRST_ROUND
    while len(queue):
        found = Samples(*march_rays(queue, *march.scene, length, march.dt_gamma, march.max_steps))
        looked += len(found)
        if strict and looked > 2 * limit:
            return None, looked / (2 * limit)
        alpha = field.alpha(points_at(found, rays, settings), found.dt, settings)
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
    keep = torch.nonzero(_visible(alpha, t, first, count))[:, 0]
    ray_index = torch.repeat_interleave(torch.arange(n, device=device), count)[keep]
    t, kept = t[keep], torch.bincount(ray_index, minlength=n)
    positions = rays.origins[ray_index] + t[:, None] * rays.directions[ray_index]
    return Samples(positions, t, dt[keep], ray_index, kept.cumsum(0) - kept, kept)


def _visible(alpha: Tensor, t: Tensor, first: Tensor, count: Tensor) -> Tensor:
    """Which samples [M] can be seen. One that is not a number counts, so that a broken field shows in the loss."""
    weights = composite_rays_train(alpha, alpha[:, None], t, first, count, SEEN_LIGHT)[0]
    return ~(alpha <= SEEN_ALPHA) & ~(weights <= SEEN_LIGHT * alpha)


class Capacity:
    """How large the buffers of a source's next part should be, from what its earlier ones needed.

    Needs are remembered for each ray and each step across the diagonal, as parts differ in both.
    """

    def __init__(self):
        self._need: tuple[float, float] | None = None  # looked at, seen

    @property
    def known(self) -> bool:
        """Whether anything was learned yet."""
        return self._need is not None

    def sizes(self, rays: int, steps: int, limit: float = math.inf) -> tuple[int, int]:
        """Room for samples to be looked at and to be seen, for so many rays and steps; ``limit`` bounds the second."""
        looked, seen = (max(math.ceil(ROOM * need * rays * steps / BLOCK), 1) * BLOCK for need in self._need)
        return min(looked, 2 * limit), min(seen, looked, limit)

    def learn(self, looked: int, seen: int, rays: int, steps: int) -> None:
        """Remember what a part needed."""
        need = looked / (rays * steps), seen / (rays * steps)
        if self._need is not None:
            need = tuple(max(new, FADE * old) for new, old in zip(need, self._need, strict=True))
        self._need = need


@torch.no_grad()
def count_samples(march: March) -> int:
    """How many samples the rays have in occupied cells. Waits for a GPU."""
    device = march.rays.origins.device
    march.at_once(0)
    needed = int(overflow(device)[0])
    clear_overflow(device)
    return needed


@torch.no_grad()
def survey_within(field: Field, march: March, settings: RenderSettings, capacity: tuple[int, int]) -> tuple[Samples, Tensor]:
    """What :func:`survey` finds, in buffers of a given size and without waiting for a GPU.

    Args:
        field, march, settings: as for :func:`survey`; at least one ray.
        capacity: how many samples are looked at, and how many can be kept.

    Returns:
        As many samples as can be kept. Behind those that are seen follow steps of no length that belong to no ray. And
        what was needed, int64 [3]: samples to look at, samples that are seen (among those that were looked at), rays
        that are not finite. Where it is more than the capacity, the last rays lack samples.
    """
    found = march.at_once(capacity[0])
    told = overflow(found.t.device)
    total = found.count.sum()
    alpha = field.alpha(points_at(found, march.rays, settings), found.dt, settings)
    keep = _visible(alpha, found.t, found.first, found.count)
    keep &= torch.arange(len(keep), device=keep.device) < total
    place = keep.cumsum(0)
    need = torch.stack([torch.maximum(told[0], total), place[-1], told[1]])
    clear_overflow(found.t.device)
    fits = keep & (place <= capacity[1])
    slot = torch.where(fits, place - 1, capacity[1])  # the last one is for what is left out

    def packed(values: Tensor) -> Tensor:
        room = values.new_zeros(capacity[1] + 1, *values.shape[1:])
        return room.index_copy_(0, slot, torch.where(fits.view(-1, *[1] * (values.ndim - 1)), values, 0))[:-1]

    kept = torch.zeros_like(found.count).index_add_(0, found.ray_index, fits.long())
    buffers = [packed(x) for x in (found.positions, found.t, found.dt, found.ray_index)]
    return Samples(*buffers, kept.cumsum(0) - kept, kept), need
