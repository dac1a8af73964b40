"""Search for the visible samples of a training part, by their opacity alone and without gradients.

Two implementations give the same samples: one in rounds, whose lengths are read back, for the CPU; one in buffers whose
sizes are chosen beforehand, without a host sync, for a GPU. N rays, M samples packed end to end.
"""

import math
from collections import deque
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

# A sample is visible if the transmittance in front of it and its alpha exceed these; the others change a pixel by about a
# thousandth.
EARLY_STOP_EPS, ALPHA_THRESHOLD = 1e-3, 1e-4
# Samples of a ray in the first round, of evaluation too; later rounds are longer, as fewer rays continue.
FIRST_ROUND, LONGEST_ROUND = 8, 64
# Buffers are larger, by this factor and in whole blocks, than the largest need of the last so many parts. A random camera that
# stands nearer, or sees less, needs up to twice the samples of the one before; photographs need ever less as the scene clears.
# Simulated with the needs of 270 guided steps (embedded prior, 32x32) and 400 on photographs (lego), recorded on a CPU: this
# leaves out 0.7 and 0.0 % of the parts, whose UNet pass is then for nothing, with buffers of 1.7 times the need. A need that
# decays by 0.98 a part leaves out 3.3 and 0.0 % with 1.6 and 1.9 times the need, one by 0.995 0.4 and 0.0 % with 1.7 and 4.4.
HEADROOM, BLOCK, REMEMBERED_PARTS = 1.25, 4096, 16


@dataclass(frozen=True)
class March:
    """A march of N rays through the occupied cells."""

    rays: Rays  # N
    span: tuple[Tensor, Tensor]  # near and far, [N] each; near may be shifted by a part of a step to perturb the samples
    grid: OccupancyGrid  # which cells to march through
    dt_gamma: float  # growth of the step with the distance
    max_steps: int  # steps across the diagonal of the unit box

    @property
    def scene(self) -> tuple[Tensor, float, int, int]:
        """Bitfield [C * H^3 / 8], bound, cascades and grid size, as the marching kernels take them."""
        return self.grid.bitfield, self.grid.bound, self.grid.cascades, self.grid.grid_size

    def samples(self, capacity: int) -> Samples:
        """All samples of all rays, in a buffer of that size; see :func:`raymarching.march_rays_train`."""
        rays, stepping = (self.rays.origins, self.rays.directions, *self.span), (self.dt_gamma, self.max_steps)
        return Samples(*march_rays_train(*rays, *self.scene, None, *stepping, capacity))


def _opacity(field: Field, samples: Samples, rays: Rays, settings: RenderSettings) -> Tensor:
    """Opacity [M] of samples from the field's geometry."""
    points = points_at(samples, rays)
    return field.opacity(field.geometry(points, settings), points, samples.dt, settings)


@torch.no_grad()
def find_visible_samples(
    field: Field, march: March, settings: RenderSettings, budget: int, strict: bool = True
) -> tuple[Samples | None, float]:
    """March the rays in rounds until little light is left, and keep the visible samples.

    Args:
        field: its geometry is evaluated.
        march: N rays and their steps.
        settings: of the part.
        budget: most visible samples; twice as many may be marched.
        strict: give up above the budget.

    Returns:
        The M visible samples in ray order, or None where it gave up; and the used share of the budget, above 1 where
        it did not suffice.
    """
    rays = march.rays
    queue = RayQueue.start(rays.origins, rays.directions, *march.span, channels=1)
    rounds: list[Samples] = []
    alphas: list[Tensor] = []
    marched, length = 0, FIRST_ROUND
    while len(queue):
        samples = Samples(*march_rays(queue, *march.scene, length, march.dt_gamma, march.max_steps))
        marched += len(samples)
        if strict and marched > 2 * budget:
            return None, marched / (2 * budget)
        alpha = _opacity(field, samples, rays, settings)
        composite_rays(queue, alpha, alpha[:, None], samples.t, samples.first, samples.count, EARLY_STOP_EPS)
        rounds.append(samples)
        alphas.append(alpha)
        length = min(2 * length, LONGEST_ROUND)
    visible = _visible_of_rounds(rounds, alphas, len(rays), rays)
    used = max(len(visible) / budget, marched / (2 * budget))
    return (None if strict and len(visible) > budget else visible), used


def _visible_of_rounds(rounds: list[Samples], alphas: list[Tensor], n: int, rays: Rays) -> Samples:
    """The visible samples of all rounds, in ray order."""
    device, dtype = rays.origins.device, rays.origins.dtype
    per_round = [torch.bincount(r.ray_index, minlength=n) for r in rounds]
    count = torch.stack(per_round).sum(0) if rounds else torch.zeros(n, dtype=torch.int64, device=device)
    first = count.cumsum(0) - count
    packed = torch.zeros(3, sum(len(r) for r in rounds), device=device, dtype=dtype)
    free = first.clone()
    for samples, alpha, of_round in zip(rounds, alphas, per_round, strict=True):
        rank = torch.arange(len(samples), device=device) - (of_round.cumsum(0) - of_round)[samples.ray_index]
        packed[:, free[samples.ray_index] + rank] = torch.stack([alpha, samples.t, samples.dt])
        free += of_round
    alpha, t, dt = packed
    keep = torch.nonzero(visible_mask(alpha, t, first, count))[:, 0]
    ray_index = torch.repeat_interleave(torch.arange(n, device=device), count)[keep]
    t, kept = t[keep], torch.bincount(ray_index, minlength=n)
    positions = rays.origins[ray_index] + t[:, None] * rays.directions[ray_index]
    return Samples(positions, t, dt[keep], ray_index, kept.cumsum(0) - kept, kept)


def visible_mask(alpha: Tensor, t: Tensor, first: Tensor, count: Tensor) -> Tensor:
    """Which samples are visible, bool [M], of N rays. NaN counts as visible, so that a broken field shows in the loss."""
    weights = composite_rays_train(alpha, alpha[:, None], t, first, count, EARLY_STOP_EPS)[0]
    return ~(alpha <= ALPHA_THRESHOLD) & ~(weights <= EARLY_STOP_EPS * alpha)


class BufferSizes:
    """Sizes of the sample buffers of a source's next part, from what its earlier parts needed.

    Needs are remembered per ray and step across the diagonal, as parts differ in both.
    """

    def __init__(self) -> None:
        self._needs: deque[tuple[float, float]] = deque(maxlen=REMEMBERED_PARTS)  # samples marched, samples visible

    @property
    def known(self) -> bool:
        """Whether any need was observed yet."""
        return len(self._needs) > 0

    def capacity(self, rays: int, steps: int, budget: int | None = None) -> tuple[int, int]:
        """Sizes of the buffers for marched and for visible samples.

        Args:
            rays: N of the next part.
            steps: across the diagonal.
            budget: upper limit of the second; twice that limits the first. None: no limit.

        Raises:
            ValueError: nothing was observed yet.
        """
        if not self._needs:
            raise ValueError("BufferSizes.capacity: expected an observed need, got none; call observe first")
        marched, visible = (
            max(math.ceil(HEADROOM * need * rays * steps / BLOCK), 1) * BLOCK
            for need in map(max, zip(*self._needs, strict=True))
        )
        visible = min(visible, marched)
        return (marched, visible) if budget is None else (min(marched, 2 * budget), min(visible, budget))

    def observe(self, marched: int, visible: int, rays: int, steps: int) -> None:
        """Remember how many samples a part with so many rays and steps needed."""
        self._needs.append((marched / (rays * steps), visible / (rays * steps)))


@torch.no_grad()
def count_samples(march: March) -> int:
    """Number of samples in occupied cells. Waits for a GPU."""
    device = march.rays.origins.device
    march.samples(0)
    needed = int(overflow(device)[0])
    clear_overflow(device)
    return needed


@torch.no_grad()
def find_visible_samples_buffered(
    field: Field, march: March, settings: RenderSettings, capacity: tuple[int, int]
) -> tuple[Samples, Tensor]:
    """The samples of :func:`find_visible_samples`, in buffers of a given size and without waiting for a GPU.

    Args:
        field, march, settings: as for :func:`find_visible_samples`; at least one ray.
        capacity: most samples that are marched, and size M of the buffers for the visible ones.

    Returns:
        Samples in buffers of size M. Behind the visible ones follow samples of zero length that belong to no ray.
        And what was needed, int64 [3]: samples marched, samples visible (among those marched), rays that are not
        finite. Where a need exceeds its capacity, the last rays lack samples.
    """
    samples = march.samples(capacity[0])
    overflowed = overflow(samples.t.device)
    total = samples.count.sum()
    alpha = _opacity(field, samples, march.rays, settings)
    keep = visible_mask(alpha, samples.t, samples.first, samples.count)
    keep &= torch.arange(len(keep), device=keep.device) < total
    place = keep.cumsum(0)
    need = torch.stack([torch.maximum(overflowed[0], total), place[-1], overflowed[1]])
    clear_overflow(samples.t.device)
    fits = keep & (place <= capacity[1])
    slot = torch.where(fits, place - 1, capacity[1])  # the last slot collects what is not kept

    def packed(values: Tensor) -> Tensor:
        buffer = values.new_zeros(capacity[1] + 1, *values.shape[1:])
        return buffer.index_copy_(0, slot, torch.where(fits.view(-1, *[1] * (values.ndim - 1)), values, 0))[:-1]

    kept = torch.zeros_like(samples.count).index_add_(0, samples.ray_index, fits.long())
    visible = Samples(
        positions=packed(samples.positions),
        t=packed(samples.t),
        dt=packed(samples.dt),
        ray_index=packed(samples.ray_index),
        first=kept.cumsum(0) - kept,
        count=kept,
    )
    return visible, need
