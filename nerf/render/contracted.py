"""A background that is a scene: a density field in contracted space, marched from where a ray leaves the box outwards.

N rays, K steps of each, M samples packed end to end.
"""

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from nerf.config.groups import FieldConfig
from nerf.core.coverage import Coverage
from nerf.core.streams import Stream
from nerf.core.structs import Points, Rays, RenderSettings, Samples, Trace
from nerf.fields.base import Field
from nerf.fields.contraction import OUTER, contract, disparity_steps, uncontract
from nerf.fields.opacity import density_to_alpha
from nerf.render.background import Background, Behind
from nerf.render.base import points_at, recolored_sum, sample_colours
from nerf.render.occupancy import OccupancyGrid
from nerf.render.visibility import visible_mask
from raymarching import composite_rays_train
from raymarching.reference import occupied

STEPS = 64  # of equal disparity, from the box to FARTHEST
BUDGET, LEAST_STEPS = 1 << 16, 16  # of a training part on a CPU: samples, and steps of a ray
FARTHEST = 1000.0  # times half the side of the box
GRID = 64  # cells of the occupancy grid along a side of the ball of radius 2
OCCUPIED = 0.01  # opacity of a step above which a cell counts as occupied, whatever the mean
SEEN = 1e-3  # a ray that the scene leaves less of needs no background
# The field: what is far fills fewer pixels than what is in the box, so that a smaller table and coarser cells do.
FINEST, LOG2_HASHMAP = 512, 17
BASE = 1.0  # colour, in evaluation, of what shines through the background too


def field_options(config: FieldConfig) -> FieldConfig:
    """The options of the background's hash grid field, from those of the scene in front: smaller, and without a blob."""
    return replace(
        config,
        blob_density=0.0,
        density_bias=config.background_bias,
        finest_resolution=min(config.finest_resolution, FINEST),
        base_resolution=min(config.base_resolution, config.finest_resolution, FINEST),
        log2_hashmap_size=min(config.log2_hashmap_size, LOG2_HASHMAP),
    )


class ContractedBackground(Background):
    """A field of the contracted space outside the box, for any field inside it.

    Its density is the extinction per unit of disparity (the s of :func:`disparity_steps`), so that a field that begins with a
    small density everywhere is transparent, however far space reaches, and that a step has the same part in it anywhere.

    Rays start where they leave the box, and have ``STEPS`` steps of equal disparity. Steps in empty cells are left out, and so
    are rays that the scene in the box stops. What shines through the background as well is a random colour per ray in
    training, which only an opaque background reproduces.

    Args:
        field: of the box [-1, 1]^3, which holds the ball of radius 2 at half its size.
        bound: half the side of the box that the scene in front fills, scene units: the unit of the contraction.
        rate: its learning rate, as a multiple of that of the scene in front.

    Buffers: those of its occupancy grid, in the box of the field.
    """

    def __init__(self, field: Field, bound: float, rate: float = 1.0):
        super().__init__()
        self.field, self.bound, self.rate = field, float(bound), rate
        self.grid = OccupancyGrid(1.0, GRID, -STEPS * math.log1p(-OCCUPIED), 1.0 / STEPS)
        self.cull(None)

    # ---- rendering ------------------------------------------------------------------------------------------------

    def render(self, rays: Rays, near: Tensor, settings: RenderSettings) -> Tensor:
        """Colour [N, 3]; see :meth:`Background.render`."""
        return self.behind(rays, near, settings, torch.zeros_like(near)).color

    def behind(self, rays: Rays, near: Tensor, settings: RenderSettings, front: Tensor) -> Behind:
        """Colour [N, 3], opacity [N] and depth [N]; see :meth:`Background.behind`. Differentiable in the field's parameters."""
        plain = replace(settings, shading="albedo", need_normals=False)
        samples, density = self._samples(rays, near, plain, front)
        if settings.training:
            samples = _kept(
                samples, visible_mask(density_to_alpha(density, samples.dt), samples.t, samples.first, samples.count), rays
            )
        index = samples.ray_index
        output = self.field.query(self._points(samples, rays), plain)
        weights, opacity, depth, image = composite_rays_train(
            density_to_alpha(output.require("density"), samples.dt),
            sample_colours(output, rays, plain, index),
            samples.t,
            samples.first,
            samples.count,
        )
        color = image + (1.0 - opacity)[:, None] * self._base(rays, settings)
        trace = Trace(samples=samples, weights=weights, field=output) if settings.training else None
        return Behind(color=color, opacity=opacity, depth=depth, trace=trace)

    def _points(self, samples: Samples, rays: Rays) -> Points:
        """M samples as points of the field."""
        points = points_at(samples, rays)
        return replace(points, positions=self._inside(points.positions))

    def recolored(self, rays: Rays, trace: Trace | None, settings: RenderSettings) -> Tensor:
        """See :meth:`Background.recolored`."""
        assert trace is not None, "it is a scene"
        plain = replace(settings, shading="albedo", need_normals=False)
        return recolored_sum(self.field, trace, self._points(trace.samples, rays), rays, plain, self._base(rays, settings))

    def _base(self, rays: Rays, settings: RenderSettings) -> Tensor:
        """What shines through, [N, 3]."""
        if not settings.training:
            return torch.full_like(rays.directions, BASE)
        generator = settings.random.generator(Stream.CONTRACTED_BASE, rays.directions.device)
        return torch.rand(len(rays), 3, generator=generator, device=rays.directions.device, dtype=rays.directions.dtype)

    @torch.no_grad()
    def _samples(self, rays: Rays, near: Tensor, settings: RenderSettings, front: Tensor) -> tuple[Samples, Tensor]:
        """The steps in occupied cells, on rays that the scene in the box leaves something of, and the density there [M].

        On a GPU all steps of all rays are kept, so that nothing waits for their number; those that are left out have no
        length there.
        """
        n, device = len(rays), near.device
        last = FARTHEST / (1.0 + FARTHEST)
        steps = self._steps(settings, front)
        edges = torch.linspace(0.0, last, steps + 1, device=device, dtype=near.dtype).expand(n, -1)
        if settings.training:
            generator = settings.random.generator(Stream.CONTRACTED_SAMPLES, device)
            shift = torch.rand(n, 1, generator=generator, device=device, dtype=near.dtype) - 0.5
            edges = torch.cat([edges[:, :1], edges[:, 1:-1] + shift * (last / steps), edges[:, -1:]], dim=-1)
        t = disparity_steps(near, self.bound, 0.5 * (edges[:, 1:] + edges[:, :-1]))
        dt = edges.diff(dim=-1)  # of disparity, see the class
        positions = rays.origins[:, None] + t[..., None] * rays.directions[:, None]
        inside = self._inside(positions)
        keep = occupied(inside, torch.zeros_like(t), self.grid.bitfield, 1.0, 1, GRID) & (front < 1.0 - SEEN)[:, None]
        if device.type == "cpu":
            ray_index, step = torch.nonzero(keep, as_tuple=True)
            count = keep.sum(-1)
        else:
            dt = torch.where(keep, dt, 0.0)
            ray_index = torch.arange(n, device=device).repeat_interleave(steps)
            step = torch.arange(steps, device=device).repeat(n)
            count = torch.full((n,), steps, device=device)
        place = (ray_index, step)
        samples = Samples(positions[place], t[place], dt[place], ray_index, count.cumsum(0) - count, count)
        geometry = self.field.geometry(Points(inside[place]), settings)
        return samples, geometry.require("density")

    def _steps(self, settings: RenderSettings, front: Tensor) -> int:
        """Steps of each ray: fewer in training on a CPU while many rays reach it, through a haze then."""
        if not settings.training or front.device.type != "cpu":
            return STEPS
        return min(max(BUDGET // max(int((front < 1.0 - SEEN).sum()), 1), LEAST_STEPS), STEPS)

    def _inside(self, positions: Tensor) -> Tensor:
        """Positions [..., 3] of the scene in the field's box [-1, 1]^3."""
        return contract(positions / self.bound) / OUTER

    # ---- what is known about the empty parts ----------------------------------------------------------------------

    def update(self, generator: torch.Generator) -> None:
        """Refresh the occupancy grid; see :meth:`OccupancyGrid.update`."""
        self.grid.update(_Local(self.field), generator)  # type: ignore[arg-type]

    def cull(self, coverage: Coverage | None) -> None:
        """Exclude what no step lies in, the unit ball and what is beyond all of space, and what the photographs do not see."""
        self.grid.cull(_Outside(self.bound, coverage))  # type: ignore[arg-type]

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        """Optimiser groups of the field, named after the background, at its own rate; see :meth:`Field.param_groups`."""
        return [group | {"name": f"background {group['name']}"} for group in self.field.param_groups(self.rate * lr)]


def _kept(samples: Samples, keep: Tensor, rays: Rays) -> Samples:
    """The samples to keep [M], bool. On a GPU the others stay, without a length."""
    if samples.t.device.type != "cpu":
        return replace(samples, dt=torch.where(keep, samples.dt, 0.0))
    chosen = torch.nonzero(keep)[:, 0]
    index = samples.ray_index[chosen]
    count = torch.bincount(index, minlength=len(rays))
    return Samples(samples.positions[chosen], samples.t[chosen], samples.dt[chosen], index, count.cumsum(0) - count, count)


class _Local:
    """The field as the occupancy grid asks it: the opacity of a step."""

    occupancy_decay = Field.occupancy_decay

    def __init__(self, field: Field):
        self.field = field

    def occupancy(self, positions: Tensor, dt: float, reach: Tensor | float = 0.0) -> Tensor:
        """Opacity [M] of steps of length ``dt`` in disparity at positions [M, 3] of the field's box."""
        output = self.field.geometry(Points(positions), RenderSettings(training=False))
        return density_to_alpha(output.require("density"), dt)


class _Outside:
    """Which cells of the contracted space are of no use."""

    def __init__(self, bound: float, coverage: Coverage | None):
        self.bound, self.coverage = bound, coverage

    def empty(self, positions: Tensor, reach: Tensor) -> Tensor:
        """[K] bool for balls of radius ``reach`` [K] around positions [K, 3] of the field's box; see :meth:`Coverage.empty`."""
        norm, radius = OUTER * positions.norm(dim=-1), OUTER * reach
        useless = (norm + radius <= 1.0) | (norm - radius >= OUTER)
        if self.coverage is None:
            return useless
        inner = (norm + radius).clamp(max=OUTER - 1.0 / FARTHEST)
        place = self.bound * uncontract(OUTER * positions * (inner / norm.clamp(min=1e-6)).clamp(max=1.0)[:, None])
        size = self.bound * radius / (OUTER - inner).clamp(max=1.0).square()  # how much longer a cell is at its outer end
        return useless | self.coverage.empty(place, size)
