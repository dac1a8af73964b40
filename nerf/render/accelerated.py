"""The accelerated path: march through occupied cells only, ask the field only where something can be seen.

N rays, M samples packed end to end.
"""

import logging
from dataclasses import dataclass

import torch
from torch import Tensor

from nerf.core.streams import Stream
from nerf.core.structs import FieldOutput, Rays, RenderSettings, Samples
from nerf.fields.base import Field
from nerf.render.base import RenderPath, Trace, box, points_at, sample_values
from nerf.render.occupancy import OccupancyGrid
from nerf.render.visibility import Capacity, March, count_samples, survey, survey_within
from raymarching import (
    RayQueue,
    composite_rays,
    composite_rays_train,
    march_rays,
    near_far_from_aabb,
    step_sizes,
)

log = logging.getLogger("somnia.render")

# A training part may have so many samples in all, or so many a ray on average if that is more; above, its steps are
# made twice as long until they suffice. Fog is smooth and bears long steps; a surface gets short ones, and needs few.
SAMPLES = {"cpu": (1 << 16, 4), "cuda": (1 << 22, 64)}
SHORTEST_MARCH = 32  # steps across the diagonal, at least
SHORTEN_BELOW = 0.35  # share of the allowed samples below which the next part's steps are half as long
# A ray ends once less light than this is left.
MIN_TRANSMITTANCE = 1e-4
# Samples of a ray in one round of evaluation; more once few rays are left.
ROUND, LONGEST_ROUND = 8, 64


@dataclass(frozen=True)
class Pending:
    """What a part needed, on its way from the GPU: int64 [3] as ``survey_within`` tells it, once ``event`` has passed."""

    need: Tensor
    event: torch.cuda.Event | None
    source: str
    rays: int
    steps: int
    limit: float
    capacity: tuple[int, int]


class AcceleratedPath(RenderPath):
    """Occupancy-guided marching (Instant-NGP, app. E).

    Training looks at densities first, without gradients, and goes on with the samples that can be seen.
    Evaluation goes along the rays in rounds, and rays that have met enough leave. Its steps are half as long as those
    of the last training part, so that a preview of fog does not take minutes.

    On a GPU nobody waits for the number of samples: they are written to buffers whose size follows what earlier parts
    needed, and what this one needs is read back when the next one begins. A part that does not fit is told, teaches the
    field nothing (its gradients are zero), and the next buffers are larger.

    Args:
        bound, grid_size, density_thresh: see :class:`OccupancyGrid`.
        max_steps: steps across the diagonal of the unit box; the shortest step is 2 sqrt(3) min(bound, 1) / max_steps.
        dt_gamma: growth of the step with the distance; 0 for equal steps.
        min_near: no sample is nearer to the camera than this, scene units.
        buffered: whether training works in such buffers; None: on a GPU.

    Buffers: the grid's, and ``doublings`` []: how often the step of the last training part was doubled.
    """

    def __init__(
        self,
        bound: float,
        grid_size: int,
        density_thresh: float,
        max_steps: int,
        dt_gamma: float,
        min_near: float,
        buffered: bool | None = None,
    ):
        super().__init__()
        self.grid = OccupancyGrid(bound, grid_size, density_thresh)
        self.max_steps, self.dt_gamma, self.min_near = max_steps, dt_gamma, min_near
        self.buffered = buffered
        self.register_buffer("doublings", torch.zeros((), dtype=torch.int64))
        self._known_doublings: int | None = None  # the same on the host; None: it has to be read
        self.register_load_state_dict_post_hook(_forget_doublings)
        self._capacities: dict[str, Capacity] = {}  # by source
        self._pending: list[Pending] = []

    def update(self, field: Field, generator: torch.Generator) -> None:
        """Refresh the occupancy grid; see :meth:`OccupancyGrid.update`."""
        self.grid.update(field, generator)

    def trace(self, field: Field, rays: Rays, settings: RenderSettings) -> Trace:
        """See :meth:`RenderPath.trace`; evaluation is not differentiable."""
        near, far = near_far_from_aabb(rays.origins, rays.directions, box(field.bound, rays.origins), self.min_near)
        if settings.training:
            return self._train(field, rays, settings, near, far)
        return self._evaluate(field, rays, settings, near, far)

    def _steps(self, doublings: int) -> int:
        """Steps across the diagonal after so many doublings of the step."""
        return max(self.max_steps >> doublings, min(self.max_steps, SHORTEST_MARCH))

    def _train(self, field: Field, rays: Rays, settings: RenderSettings, near: Tensor, far: Tensor) -> Trace:
        """Samples in the middle of steps that a random part of a step shifts, of those that can be seen."""
        buffered = near.device.type == "cuda" if self.buffered is None else self.buffered
        if buffered and len(rays):
            samples, fits = self._surveyed_in_buffers(field, rays, settings, near, far)
            output = field.query(points_at(samples, rays, settings), settings)
            _teach_only_if(fits, output)
        else:
            samples = self._surveyed(field, rays, settings, near, far)
            output = field.query(points_at(samples, rays, settings), settings)
        weights, opacity, depth, image = composite_rays_train(
            field.to_alpha(output, samples.dt),
            sample_values(output, rays, settings, samples.ray_index),
            samples.t,
            samples.first,
            samples.count,
            MIN_TRANSMITTANCE,
        )
        normal = image[:, 3:6] if output.normal is not None else None
        return Trace(image[:, :3], opacity, depth, normal, samples, weights, output)

    def _surveyed(self, field: Field, rays: Rays, settings: RenderSettings, near: Tensor, far: Tensor) -> Samples:
        """Survey with the step of the last part, longer if that gives too many samples; remember it for the next.

        The memory is a buffer, so that a resumed run steps as one that was never stopped.
        """
        limit = _limit(rays)
        doublings, samples = int(self.doublings), None
        while samples is None:
            march = self._march(rays, settings, near, far, doublings)
            samples, used = survey(field, march, settings, limit, strict=march.max_steps > SHORTEST_MARCH)
            doublings += samples is None
        self.doublings.fill_(max(doublings - (used < SHORTEN_BELOW), 0))
        return samples

    def _march(self, rays: Rays, settings: RenderSettings, near: Tensor, far: Tensor, doublings: int) -> March:
        """The march of a training part with steps that are so often doubled, shifted by a random part of a step."""
        steps = self._steps(doublings)
        generator = settings.random.generator(Stream.MARCH_OFFSET, near.device)
        noise = torch.rand(len(near), generator=generator, device=near.device, dtype=near.dtype)
        dt = step_sizes(self.grid.bound, steps, self.grid.grid_size)[0]
        # The march samples the middle of each step; the shifted start puts samples at near + (k + noise) dt.
        return March(rays, (near + (noise - 0.5) * dt, far), self.grid, self.dt_gamma, steps)

    def _surveyed_in_buffers(
        self, field: Field, rays: Rays, settings: RenderSettings, near: Tensor, far: Tensor
    ) -> tuple[Samples, Tensor]:
        """As many samples as the buffers hold, and whether all that can be seen are among them, bool [] on the device.

        The first part of a source is counted before, and that is waited for.
        """
        if self._known_doublings is None:
            self._known_doublings = int(self.doublings)
        self._learn()
        capacity = self._capacities.setdefault(settings.source, Capacity())
        limit = _limit(rays)
        while True:
            march = self._march(rays, settings, near, far, self._known_doublings)
            steps = march.max_steps
            if capacity.known:
                break
            needed = count_samples(march)
            if needed > 2 * limit and steps > SHORTEST_MARCH:
                self._set_doublings(self._known_doublings + 1)
            else:
                capacity.learn(needed, needed, len(rays), steps)
        bounds = (limit,) if steps > SHORTEST_MARCH else ()
        sizes = capacity.sizes(len(rays), steps, *bounds)
        samples, need = survey_within(field, march, settings, sizes)
        self._send(need, settings.source, len(rays), steps, limit, sizes)
        return samples, (need[0] <= sizes[0]) & (need[1] <= sizes[1])

    def _set_doublings(self, doublings: int) -> None:
        self._known_doublings = doublings
        self.doublings.fill_(doublings)

    def _send(self, need: Tensor, *about) -> None:
        """Start to read back what a part needs."""
        if need.device.type != "cuda":
            self._pending.append(Pending(need, None, *about))
            return
        event = torch.cuda.Event()
        host = torch.empty(need.shape, dtype=need.dtype, pin_memory=True)
        host.copy_(need, non_blocking=True)
        event.record(torch.cuda.current_stream(need.device))  # its own, which need not be the current device's
        self._pending.append(Pending(host, event, *about))

    def _learn(self) -> None:
        """Read what the last parts needed, and act on it: other buffers, longer or shorter steps, a word to the user.

        Raises:
            ValueError: rays were not finite.
        """
        pending, self._pending = self._pending, []
        for told in pending:
            if told.event is not None:
                told.event.synchronize()
            looked, seen, broken = told.need.tolist()
            if broken:
                raise ValueError(f"render: {broken} of {told.rays} rays of the last part ({told.source}) were not finite")
            fits = looked <= told.capacity[0] and seen <= told.capacity[1]
            seen = int(seen * max(looked / told.capacity[0], 1.0))  # what was not looked at may be seen too
            if not fits:
                log.info(
                    "a part of %s needed room for %d samples, %d of them seen, and had %d and %d; it was left out of "
                    "training; the next gets more room or longer steps",
                    told.source,
                    looked,
                    seen,
                    *told.capacity,
                )
            self._capacities[told.source].learn(looked, seen, told.rays, told.steps)
            used = max(seen / told.limit, looked / (2 * told.limit))
            if used > 1 and told.steps > SHORTEST_MARCH:
                self._set_doublings(self._known_doublings + 1)
            elif used < SHORTEN_BELOW:
                self._set_doublings(max(self._known_doublings - 1, 0))

    @torch.no_grad()
    def _evaluate(self, field: Field, rays: Rays, settings: RenderSettings, near: Tensor, far: Tensor) -> Trace:
        """Rounds of a few samples on every ray that has still something to meet, with half the step of training."""
        channels = 6 if settings.computes_normals else 3
        max_steps = self._steps(max(int(self.doublings) - 1, 0))
        march = March(rays, (near, far), self.grid, self.dt_gamma, max_steps)
        queue = RayQueue.start(rays.origins, rays.directions, near, far, channels)
        while len(queue):
            steps = min(ROUND * len(rays) // len(queue), LONGEST_ROUND)
            samples = Samples(*march_rays(queue, *march.scene, steps, self.dt_gamma, max_steps))
            output = field.query(points_at(samples, rays, settings), settings)
            alpha = field.to_alpha(output, samples.dt)
            values = sample_values(output, rays, settings, samples.ray_index)
            composite_rays(queue, alpha, values, samples.t, samples.first, samples.count, MIN_TRANSMITTANCE)
        normal = queue.image[:, 3:6] if settings.computes_normals else None
        return Trace(queue.image[:, :3], queue.opacity, queue.depth, normal)


def _limit(rays: Rays) -> int:
    """How many samples a training part with these rays may have."""
    in_all, per_ray = SAMPLES.get(rays.origins.device.type, SAMPLES["cpu"])
    return max(in_all, per_ray * len(rays))


def _teach_only_if(fits: Tensor, output: FieldOutput) -> None:
    """Let gradients through the field's answer only if ``fits`` (bool [], on its device), which nobody waits for."""
    for value in (output.density, output.albedo, output.normal, output.rgb):
        if value is not None and value.requires_grad:
            value.register_hook(lambda grad: torch.where(fits, grad, torch.zeros_like(grad)))


def _forget_doublings(path: AcceleratedPath, _keys) -> None:
    """After a checkpoint was loaded: what the host knows is of another run."""
    path._known_doublings = None
    path._pending.clear()
