"""The accelerated path: march through occupied cells only, evaluate the field only where a sample is visible.

N rays, M samples packed end to end.
"""

import logging
import math
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor

import extension
from nerf.core.coverage import Coverage
from nerf.core.streams import Stream
from nerf.core.structs import Rays, RenderSettings, Samples, Trace
from nerf.core.transfer import Download
from nerf.fields.base import Field
from nerf.render.base import RaySums, RenderPath, near_far, points_at, points_on, sample_values, split_values
from nerf.render.occupancy import OccupancyGrid
from nerf.render.visibility import (
    FIRST_ROUND,
    LONGEST_ROUND,
    BufferSizes,
    March,
    count_samples,
    find_visible_samples,
    find_visible_samples_buffered,
)
from raymarching import (
    RayQueue,
    composite_rays,
    composite_rays_train,
    march_rays,
    step_sizes,
)

log = logging.getLogger("somnia.render")

# Most visible samples of a training part: a total, or so many a ray on average if that is more. Above, its steps are made
# twice as long until the samples suffice. A haze is smooth and tolerates long steps; a surface has few visible samples.
SAMPLE_BUDGET = {"cpu": (1 << 16, 4), "cuda": (1 << 22, 64)}
MIN_MARCH_STEPS = 32  # steps across the diagonal, at least, however often the step is doubled
SHORTEN_BELOW = 0.35  # share of the sample budget below which the next part's steps are half as long
# Independent rays whose samples would exceed the budget may be fewer rather than marched with longer steps: their samples are
# meant to be this share of the budget. Early on noisy gradients cost more than long steps do, so that all rays are kept; at the
# end a part has at least this share of the rays it asks for. 0.25 all through: lego 24.5 dB after 200 steps, and 26.0 dB with
# all rays and longer steps; fox at half size after 300 steps 25.2 dB (SSIM .761) and 25.1 dB (.748).
RAY_TARGET, LEAST_RAY_SHARE, RAY_GROWTH = 0.8, 0.4, 0.1
SHORTEN_RAYS = 2.4  # steps are halved where so many times the least share of the rays would fit; above 2, so that it settles
# A ray ends once less than this is left of its transmittance.
MIN_TRANSMITTANCE = 1e-4


@dataclass(frozen=True)
class Pending:
    """What a part needed, on its way from the GPU to the host."""

    need: Download  # [3] int64, see :func:`find_visible_samples_buffered`
    source: str  # of the part's rays
    least: float | None  # share of the rays that the next part has at least, see :func:`least_rays`
    rays: int  # N
    steps: int  # across the diagonal
    budget: float  # visible samples allowed
    capacity: tuple[int, int]  # sizes of its buffers: samples marched, samples visible


class AcceleratedPath(RenderPath):
    """Occupancy-guided marching (Instant-NGP, app. E).

    Training first evaluates the geometry alone, without gradients, and continues with the samples that are visible.
    Evaluation advances all rays in rounds and drops those that are finished. Its steps are half as long as those of the
    last training part, so that a preview of a hazy scene stays fast.

    On a GPU nothing waits for the number of samples: they are written to buffers sized by what earlier parts needed, and
    what this part needs is read back when the next one begins. If the buffers were too small, the part has no gradients
    (``RaySums.fits`` is False), a line is logged, and the next buffers are larger.

    Args:
        bound, grid_size, density_thresh: see :class:`OccupancyGrid`.
        max_steps: steps across the diagonal of the unit box; the shortest step is 2 sqrt(3) min(bound, 1) / max_steps.
        dt_gamma: growth of the step with the distance; 0 for equal steps.
        min_near: smallest distance of a sample from the camera, scene units.
        buffered: whether training uses such buffers; None: on a GPU only.
        backend: of the operations on rays; None: that of everything else.

    Buffers: the grid's, and ``log2_step_scale`` []: the steps of the next training part are 2^log2_step_scale times the
    shortest ones; and ``ray_share`` [] float64: of the random rays that a part asks for, how many the next one gets.
    """

    samples_per_ray = FIRST_ROUND
    log2_step_scale: Tensor
    ray_share: Tensor

    def __init__(
        self,
        bound: float,
        grid_size: int,
        density_thresh: float,
        max_steps: int,
        dt_gamma: float,
        min_near: float,
        buffered: bool | None = None,
        backend: str | None = None,
    ):
        super().__init__()
        self.grid = OccupancyGrid(bound, grid_size, density_thresh, step_sizes(bound, max_steps, grid_size)[0])
        self.max_steps, self.dt_gamma, self.min_near = max_steps, dt_gamma, min_near
        self.buffered, self.backend = buffered, backend
        self.register_buffer("log2_step_scale", torch.zeros((), dtype=torch.int64))
        self.register_buffer("ray_share", torch.ones((), dtype=torch.float64))
        self._host_step_scale: int | None = 0  # the buffer's value on the host; None: it has to be read
        self._host_least_scale: int | None = None  # of :meth:`_least_scale` on a GPU, between two updates
        self._host_ray_share: float | None = 1.0  # likewise
        self.register_load_state_dict_post_hook(_forget_host_state)
        self._sizes: dict[str, BufferSizes] = {}  # by source
        self._pending: list[Pending] = []

    def update(self, field: Field, generator: torch.Generator) -> None:
        """Refresh the occupancy grid; see :meth:`OccupancyGrid.update`."""
        with self._rays_backend():
            self.grid.update(field, generator)
        self._host_least_scale = None

    def render(self, field: Field, rays: Rays, settings: RenderSettings) -> RaySums:
        """Composite N rays; see :meth:`RenderPath.render`. Evaluation is not differentiable."""
        with self._rays_backend():
            near, far = near_far(rays, field.bound, settings, self.min_near)
            if settings.training:
                return self._train(field, rays, settings, near, far)
            return self._evaluate(field, rays, settings, near, far)

    def _rays_backend(self) -> AbstractContextManager[None]:
        """The block in which the operations on rays run on :attr:`backend`."""
        return extension.scope(self.backend, "raymarching")

    def cull(self, coverage: Coverage) -> None:
        """See :meth:`RenderPath.cull` and :meth:`OccupancyGrid.cull`."""
        self.grid.cull(coverage)

    def affordable_rays(self, num_rays: int) -> int:
        """See :meth:`RenderPath.affordable_rays`: fewer rays while their samples would not fit the budget."""
        return max(1, round(self._read_ray_share() * num_rays))

    def surface_extent(self, bound: float, density: float) -> float:
        """See :meth:`RenderPath.surface_extent`; the box of an object of unit size is left whole."""
        return bound if bound <= 1.0 else self.grid.extent(density)

    def _steps(self, log2_scale: int) -> int:
        """Steps across the diagonal when the step is 2^log2_scale times the shortest one."""
        return max(self.max_steps >> log2_scale, min(self.max_steps, MIN_MARCH_STEPS))

    def _least_scale(self, field: Field) -> int:
        """How often the shortest step may be doubled without exceeding what the field needs; a GPU is asked once an update."""
        if self._host_least_scale is None or self.grid.alpha.device.type == "cpu":
            longest = field.longest_step()
            self._host_least_scale = 0 if longest is None else max(math.floor(math.log2(longest / self.grid.dt)), 0)
        return self._host_least_scale

    def _train(self, field: Field, rays: Rays, settings: RenderSettings, near: Tensor, far: Tensor) -> RaySums:
        """Composite the visible samples, which lie in the middle of steps shifted by a random part of a step."""
        buffered = near.device.type == "cuda" if self.buffered is None else self.buffered
        if buffered and len(rays):
            samples, fits = self._visible_samples_buffered(field, rays, settings, near, far)
        else:
            samples, fits = self._visible_samples(field, rays, settings, near, far), None
        points = points_at(samples, rays)
        output = field.query(points, settings)
        weights, opacity, depth, image = composite_rays_train(
            field.opacity(output, points, samples.dt, settings),
            sample_values(output, rays, settings, samples.ray_index),
            samples.t,
            samples.first,
            samples.count,
            MIN_TRANSMITTANCE,
        )
        color, normal, extras = split_values(image, output)
        trace = Trace(samples=samples, weights=weights, field=output)
        return RaySums(color=color, opacity=opacity, depth=depth, normal=normal, extras=extras, trace=trace, fits=fits)

    def _visible_samples(self, field: Field, rays: Rays, settings: RenderSettings, near: Tensor, far: Tensor) -> Samples:
        """Search with the step of the last part, or longer steps if there are too many samples; the scale is remembered.

        It is kept in a buffer, so that a resumed run takes the same steps as an uninterrupted one.
        """
        budget = _sample_budget(rays)
        log2_scale = max(int(self.log2_step_scale), self._least_scale(field))
        while True:
            march = self._march(rays, settings, near, far, log2_scale)
            strict = march.max_steps > MIN_MARCH_STEPS
            samples, used = find_visible_samples(field, march, settings, budget, strict)
            if samples is not None:
                break
            log2_scale += 1
        self._set_state(*adapted(log2_scale, self._read_ray_share(), used, least_rays(rays, settings)))
        return samples

    def _march(self, rays: Rays, settings: RenderSettings, near: Tensor, far: Tensor, log2_scale: int) -> March:
        """The march of a training part: steps 2^log2_scale times the shortest, shifted by a random part of a step."""
        steps = self._steps(log2_scale)
        generator = settings.random.generator(Stream.MARCH_OFFSET, near.device)
        noise = torch.rand(len(near), generator=generator, device=near.device, dtype=near.dtype)
        dt = step_sizes(self.grid.bound, steps, self.grid.grid_size)[0]
        # The march samples the middle of each step; the shifted start puts samples at near + (k + noise) dt.
        return March(rays, (near + (noise - 0.5) * dt, far), self.grid, self.dt_gamma, steps)

    def _visible_samples_buffered(
        self, field: Field, rays: Rays, settings: RenderSettings, near: Tensor, far: Tensor
    ) -> tuple[Samples, Tensor]:
        """As many visible samples as the buffers hold, and whether that is all of them, bool [] on the device.

        The samples of the first part of a source are counted beforehand, with a host sync.
        """
        self._read_pending()
        sizes = self._sizes.setdefault(settings.source, BufferSizes())
        budget = _sample_budget(rays)
        while True:
            scale = max(self._read_step_scale(), self._least_scale(field))
            march = self._march(rays, settings, near, far, scale)
            steps = march.max_steps
            if sizes.known:
                break
            needed = count_samples(march)
            if needed > 2 * budget and steps > MIN_MARCH_STEPS:
                self._set_state(scale + 1, self._read_ray_share())
            else:
                sizes.observe(needed, needed, len(rays), steps)
        capacity = sizes.capacity(len(rays), steps, budget if steps > MIN_MARCH_STEPS else None)
        samples, need = find_visible_samples_buffered(field, march, settings, capacity)
        self._pending.append(
            Pending(Download(need), settings.source, least_rays(rays, settings), len(rays), steps, budget, capacity)
        )
        return samples, (need[0] <= capacity[0]) & (need[1] <= capacity[1])

    def _read_step_scale(self) -> int:
        """``log2_step_scale``, read from the device once after a checkpoint is loaded."""
        if self._host_step_scale is None:
            self._host_step_scale = int(self.log2_step_scale)
        return self._host_step_scale

    def _read_ray_share(self) -> float:
        """``ray_share``, read from the device once after a checkpoint is loaded."""
        if self._host_ray_share is None:
            self._host_ray_share = float(self.ray_share)
        return self._host_ray_share

    def _set_state(self, log2_scale: int, share: float) -> None:
        """Remember steps and share of the rays for the next part, on the host and in the buffers."""
        self._host_step_scale, self._host_ray_share = log2_scale, share
        self.log2_step_scale.fill_(log2_scale)
        self.ray_share.fill_(share)

    def _read_pending(self) -> None:
        """Read what the last parts needed; adapt buffers and steps, and log parts that did not fit.

        Raises:
            ValueError: rays were not finite.
        """
        pending, self._pending = self._pending, []
        for part in pending:
            marched, visible, broken = part.need.result().tolist()
            if broken:
                raise ValueError(f"render: {broken} of {part.rays} rays of the last part ({part.source}) were not finite")
            fits = marched <= part.capacity[0] and visible <= part.capacity[1]
            visible = int(visible * max(marched / part.capacity[0], 1.0))  # those that were not marched may be visible too
            if not fits:
                log.info(
                    "sample buffers of source %s were too small: %d samples marched and %d visible, sizes %d and %d; "
                    "the part was left out of training, the next one gets larger buffers or longer steps",
                    part.source,
                    marched,
                    visible,
                    *part.capacity,
                )
            self._sizes[part.source].observe(marched, visible, part.rays, part.steps)
            used = max(visible / part.budget, marched / (2 * part.budget))
            log2_scale, share = self._read_step_scale(), self._read_ray_share()
            lengthen = used > 1 and part.steps > MIN_MARCH_STEPS and (part.least is None or share <= part.least)
            self._set_state(*((log2_scale + 1, share) if lengthen else adapted(log2_scale, share, used, part.least)))

    @torch.no_grad()
    def _evaluate(self, field: Field, rays: Rays, settings: RenderSettings, near: Tensor, far: Tensor) -> RaySums:
        """Rounds of a few samples on every ray that is not finished, with half the step of training."""
        # A query of no points says which channels the field will output, even if no ray meets an occupied cell.
        no_ray = torch.zeros(0, dtype=torch.int64, device=near.device)
        layout = field.query(points_on(rays.origins[no_ray], no_ray, rays), settings)
        channels = sample_values(layout, rays, settings, no_ray).shape[1]
        max_steps = self._steps(max(int(self.log2_step_scale) - 1, self._least_scale(field)))
        march = March(rays, (near, far), self.grid, self.dt_gamma, max_steps)
        queue = RayQueue.start(rays.origins, rays.directions, near, far, channels)
        while len(queue):
            steps = min(FIRST_ROUND * len(rays) // len(queue), LONGEST_ROUND)  # more once few rays are left
            samples = Samples(*march_rays(queue, *march.scene, steps, self.dt_gamma, max_steps))
            alpha, values = _evaluated(field, samples, rays, settings, channels)
            composite_rays(queue, alpha, values, samples.t, samples.first, samples.count, MIN_TRANSMITTANCE)
        color, normal, extras = split_values(queue.image, layout)
        return RaySums(color=color, opacity=queue.opacity, depth=queue.depth, normal=normal, extras=extras)


def _evaluated(field: Field, samples: Samples, rays: Rays, settings: RenderSettings, channels: int) -> tuple[Tensor, Tensor]:
    """Opacity [M] and values [M, C] of samples; both zero where the field knows beforehand that there is nothing."""
    seen = field.may_be_seen(samples, settings)
    if seen is None:
        points = points_at(samples, rays)
        output = field.query(points, settings)
        values = sample_values(output, rays, settings, samples.ray_index)
        return field.opacity(output, points, samples.dt, settings), values
    chosen = seen.nonzero()[:, 0]
    ray_index = samples.ray_index[chosen]
    points = points_on(samples.positions[chosen], ray_index, rays)
    output = field.query(points, settings)
    alpha = field.opacity(output, points, samples.dt[chosen], settings)
    values = sample_values(output, rays, settings, ray_index)
    everywhere = alpha.new_zeros(len(samples)).index_copy(0, chosen, alpha)
    return everywhere, values.new_zeros(len(samples), channels).index_copy(0, chosen, values)


def least_rays(rays: Rays, settings: RenderSettings) -> float | None:
    """The least share of the rays of the next training part; None for whole images and patches, whose rays are all needed."""
    return None if rays.shape is not None else 1.0 - (1.0 - LEAST_RAY_SHARE) * settings.fraction


def adapted(log2_scale: int, share: float, used: float, least: float | None) -> tuple[int, float]:
    """Steps and share of the rays of the next training part, from what the last one used.

    Args:
        log2_scale: of the last part's steps.
        share: of the rays that the last part had of those it asked for.
        used: share of the sample budget that it used.
        least: share of the rays that the next part has at least; None: their number cannot change.

    Returns:
        Steps half as long where enough rays still fit the budget then; and the share of the rays, which falls at once and
        grows slowly, as a part above the budget is the costlier mistake.
    """
    if least is None:
        return max(log2_scale - (used < SHORTEN_BELOW), 0), share
    wanted = share * RAY_TARGET / max(used, 1e-6)
    if log2_scale > 0 and wanted > SHORTEN_RAYS * least:
        log2_scale, wanted = log2_scale - 1, 0.5 * wanted
    wanted = min(max(wanted, least), 1.0)
    return log2_scale, wanted if wanted < share else share + RAY_GROWTH * (wanted - share)


def _sample_budget(rays: Rays) -> int:
    """Most visible samples of a training part with these rays."""
    total, per_ray = SAMPLE_BUDGET.get(rays.origins.device.type, SAMPLE_BUDGET["cpu"])
    return max(total, per_ray * len(rays))


def _forget_host_state(path: AcceleratedPath, _keys: object) -> None:
    """After a checkpoint was loaded: what the host remembers belongs to another run."""
    path._host_step_scale, path._host_ray_share, path._host_least_scale = None, None, None
    path._pending.clear()
