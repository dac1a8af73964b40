"""The accelerated path: march through occupied cells only, ask the field only where something can be seen.

N rays, M samples packed end to end.
"""

import torch
from torch import Tensor

from nerf.field import Field
from nerf.render.base import STREAM_MARCH, RenderPath, Trace, box, points_at, sample_values
from nerf.render.occupancy import OccupancyGrid
from nerf.structs import Part, Rays, Samples
from raymarching import (
    RayQueue,
    composite_rays,
    composite_rays_train,
    march_rays,
    march_rays_train,
    near_far_from_aabb,
)

# A training sample is asked for colour and gradients if so much light reaches it and it stops such a share of it.
# What is left out changes a pixel by about a thousandth.
SEEN_LIGHT, SEEN_ALPHA = 1e-3, 1e-4
# A ray ends once less light than this is left.
MIN_TRANSMITTANCE = 1e-4
# Samples of a ray in one round of evaluation; more once few rays are left.
ROUND, LONGEST_ROUND = 8, 64


class AcceleratedPath(RenderPath):
    """Occupancy-guided marching (Instant-NGP, app. E).

    Training looks at the densities of all samples first, without gradients, and goes on with those that can be seen.
    Evaluation goes along the rays in rounds, and rays that have met enough leave.

    Args:
        bound, grid_size, density_thresh: see :class:`OccupancyGrid`.
        max_steps: steps across the diagonal of the unit box; the shortest step is 2 sqrt(3) min(bound, 1) / max_steps.
        dt_gamma: growth of the step with the distance; 0 for equal steps.
        min_near: no sample is nearer to the camera than this, scene units.
    """

    def __init__(
        self, bound: float, grid_size: int, density_thresh: float, max_steps: int, dt_gamma: float, min_near: float
    ):
        super().__init__()
        self.grid = OccupancyGrid(bound, grid_size, density_thresh)
        self.max_steps, self.dt_gamma, self.min_near = max_steps, dt_gamma, min_near

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

    def _train(self, field: Field, rays: Rays, part: Part, near: Tensor, far: Tensor) -> Trace:
        """All samples in the middle of steps through the occupied cells, shifted by a random part of a step."""
        generator = part.generator(STREAM_MARCH, near.device)
        noise = torch.rand(len(rays), generator=generator, device=near.device, dtype=near.dtype)
        stepping = (noise, self.dt_gamma, self.max_steps)
        marched = Samples(*march_rays_train(rays.origins, rays.directions, near, far, *self._scene(), *stepping))
        samples = self._visible(field, marched, rays, part)
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

    @torch.no_grad()
    def _visible(self, field: Field, samples: Samples, rays: Rays, part: Part) -> Samples:
        """The samples that light reaches and that stop some of it, by a first look at their alpha alone."""
        alpha = field.alpha(points_at(samples, rays, part), samples.dt, part)
        weights = composite_rays_train(
            alpha, alpha[:, None], samples.t, samples.first, samples.count, MIN_TRANSMITTANCE
        )[0]
        keep = torch.nonzero((alpha > SEEN_ALPHA) & (weights > SEEN_LIGHT * alpha))[:, 0]
        ray_index = samples.ray_index[keep]
        count = torch.bincount(ray_index, minlength=len(rays))
        first = count.cumsum(0) - count
        return Samples(samples.positions[keep], samples.t[keep], samples.dt[keep], ray_index, first, count)

    @torch.no_grad()
    def _evaluate(self, field: Field, rays: Rays, part: Part, near: Tensor, far: Tensor) -> Trace:
        """Rounds of a few samples on every ray that has still something to meet."""
        channels = 6 if part.computes_normals else 3
        queue = RayQueue.start(rays.origins, rays.directions, near, far, channels)
        while len(queue):
            steps = min(ROUND * len(rays) // len(queue), LONGEST_ROUND)
            samples = Samples(*march_rays(queue, *self._scene(), steps, self.dt_gamma, self.max_steps))
            output = field.query(points_at(samples, rays, part), part)
            alpha = field.to_alpha(output, samples.dt)
            values = sample_values(output, rays, part, samples.ray_index)
            composite_rays(queue, alpha, values, samples.t, samples.first, samples.count, MIN_TRANSMITTANCE)
        normal = queue.image[:, 3:6] if part.computes_normals else None
        return Trace(queue.image[:, :3], queue.opacity, queue.depth, normal)
