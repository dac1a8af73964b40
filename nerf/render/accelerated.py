"""The accelerated path: march through occupied cells only, ask the field only where something can be seen.

N rays, M samples packed end to end.
"""

import torch
from torch import Tensor

from nerf.field import Field
from nerf.render.base import STREAM_MARCH, RenderPath, Trace, box, points_at, sample_values
from nerf.render.occupancy import OccupancyGrid
from nerf.render.survey import survey
from nerf.structs import Part, Rays, Samples
from raymarching import (
    RayQueue,
    composite_rays,
    composite_rays_train,
    march_rays,
    near_far_from_aabb,
    step_sizes,
)

# A training part may have so many samples in all, or so many a ray on average if that is more; above, its steps are
# made twice as long until they suffice. Fog is smooth and bears long steps; a surface gets short ones, and needs few.
SAMPLES = {"cpu": (1 << 16, 4), "cuda": (1 << 22, 64)}
SHORTEST_MARCH = 32  # steps across the diagonal, at least
SHORTEN_BELOW = 0.35  # share of the allowed samples below which the next part's steps are half as long
# A ray ends once less light than this is left.
MIN_TRANSMITTANCE = 1e-4
# Samples of a ray in one round of evaluation; more once few rays are left.
ROUND, LONGEST_ROUND = 8, 64


class AcceleratedPath(RenderPath):
    """Occupancy-guided marching (Instant-NGP, app. E).

    Training looks at densities first, without gradients, and goes on with the samples that can be seen.
    Evaluation goes along the rays in rounds, and rays that have met enough leave. Its steps are half as long as those
    of the last training part, so that a preview of fog does not take minutes.

    Args:
        bound, grid_size, density_thresh: see :class:`OccupancyGrid`.
        max_steps: steps across the diagonal of the unit box; the shortest step is 2 sqrt(3) min(bound, 1) / max_steps.
        dt_gamma: growth of the step with the distance; 0 for equal steps.
        min_near: no sample is nearer to the camera than this, scene units.

    Buffers: the grid's, and ``doublings`` []: how often the step of the last training part was doubled.
    """

    def __init__(
        self, bound: float, grid_size: int, density_thresh: float, max_steps: int, dt_gamma: float, min_near: float
    ):
        super().__init__()
        self.grid = OccupancyGrid(bound, grid_size, density_thresh)
        self.max_steps, self.dt_gamma, self.min_near = max_steps, dt_gamma, min_near
        self.register_buffer("doublings", torch.zeros((), dtype=torch.int64))

    def update(self, field: Field, generator: torch.Generator) -> None:
        """Refresh the occupancy grid; see :meth:`OccupancyGrid.update`."""
        self.grid.update(field, generator)

    def trace(self, field: Field, rays: Rays, part: Part) -> Trace:
        """See :meth:`RenderPath.trace`; evaluation is not differentiable."""
        near, far = near_far_from_aabb(rays.origins, rays.directions, box(field.bound, rays.origins), self.min_near)
        if part.training:
            return self._train(field, rays, part, near, far)
        return self._evaluate(field, rays, part, near, far)

    def _scene(self) -> tuple[Tensor, float, int, int]:
        """What the marching kernels want to know of the grid."""
        return self.grid.bitfield, self.grid.bound, self.grid.cascades, self.grid.grid_size

    def _steps(self, doublings: int) -> int:
        """Steps across the diagonal after so many doublings of the step."""
        return max(self.max_steps >> doublings, min(self.max_steps, SHORTEST_MARCH))

    def _train(self, field: Field, rays: Rays, part: Part, near: Tensor, far: Tensor) -> Trace:
        """Samples in the middle of steps that a random part of a step shifts, of those that can be seen."""
        samples = self._surveyed(field, rays, part, near, far)
        output = field.query(points_at(samples, rays, part), part)
        weights, opacity, depth, image = composite_rays_train(
            field.to_alpha(output, samples.dt),
            sample_values(output, rays, part, samples.ray_index),
            samples.t,
            samples.first,
            samples.count,
            MIN_TRANSMITTANCE,
        )
        normal = image[:, 3:6] if output.normal is not None else None
        return Trace(image[:, :3], opacity, depth, normal, samples, weights, output)

    def _surveyed(self, field: Field, rays: Rays, part: Part, near: Tensor, far: Tensor) -> Samples:
        """Survey with the step of the last part, longer if that gives too many samples; remember it for the next.

        The memory is a buffer, so that a resumed run steps as one that was never stopped.
        """
        generator = part.generator(STREAM_MARCH, near.device)
        noise = torch.rand(len(rays), generator=generator, device=near.device, dtype=near.dtype)
        in_all, per_ray = SAMPLES.get(near.device.type, SAMPLES["cpu"])
        limit = max(in_all, per_ray * len(rays))
        doublings, samples = int(self.doublings), None
        while samples is None:
            steps = self._steps(doublings)
            dt = step_sizes(self.grid.bound, steps, self.grid.grid_size)[0]
            # The march samples the middle of each step; the shifted start puts samples at near + (k + noise) dt.
            span = (near + (noise - 0.5) * dt, far)
            strict = steps > SHORTEST_MARCH
            samples, used = survey(field, rays, part, span, self.grid, (self.dt_gamma, steps), limit, strict)
            doublings += samples is None
        self.doublings.fill_(max(doublings - (used < SHORTEN_BELOW), 0))
        return samples

    @torch.no_grad()
    def _evaluate(self, field: Field, rays: Rays, part: Part, near: Tensor, far: Tensor) -> Trace:
        """Rounds of a few samples on every ray that has still something to meet, with half the step of training."""
        channels = 6 if part.computes_normals else 3
        max_steps = self._steps(max(int(self.doublings) - 1, 0))
        queue = RayQueue.start(rays.origins, rays.directions, near, far, channels)
        while len(queue):
            steps = min(ROUND * len(rays) // len(queue), LONGEST_ROUND)
            samples = Samples(*march_rays(queue, *self._scene(), steps, self.dt_gamma, max_steps))
            output = field.query(points_at(samples, rays, part), part)
            alpha = field.to_alpha(output, samples.dt)
            values = sample_values(output, rays, part, samples.ray_index)
            composite_rays(queue, alpha, values, samples.t, samples.first, samples.count, MIN_TRANSMITTANCE)
        normal = queue.image[:, 3:6] if part.computes_normals else None
        return Trace(queue.image[:, :3], queue.opacity, queue.depth, normal)
