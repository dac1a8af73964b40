"""Fields and cameras known in closed form, for the tests of the renderer. N rays, M points."""

import torch
from torch import Tensor

from nerf.core.structs import FieldOutput, Points, Rays, RenderSettings
from nerf.fields.base import DensityField
from nerf.fields.opacity import density_to_alpha


class Ball(DensityField):
    """A ball of one density; its albedo encodes the position, its normal points outwards. ``queried`` counts points.

    The occupancy grid sees a ball larger by ``margin``: with a hard edge, a random point of a cell that the ball only
    touches rarely lies in the ball.
    """

    def __init__(self, radius: float = 0.5, density: float = 20.0, centre=(0.0, 0.0, 0.0), margin: float = 0.1):
        super().__init__()
        self.radius, self.inside, self.margin, self.bound = radius, density, margin, 1.0
        self.register_buffer("centre", torch.tensor(centre))
        self.queried = 0

    def density(self, positions: Tensor, max_level: float = 1.0) -> Tensor:
        """See :meth:`DensityField.density`."""
        return self._within(positions, self.radius)

    def occupancy(self, positions: Tensor, dt: float, reach: Tensor | float = 0.0) -> Tensor:
        """See :meth:`Field.occupancy`."""
        return density_to_alpha(self._within(positions, self.radius + self.margin), dt)

    def _within(self, positions: Tensor, radius: float) -> Tensor:
        return torch.where((positions - self.centre.to(positions)).norm(dim=-1) < radius, self.inside, 0.0)

    def query(self, points: Points, settings: RenderSettings) -> FieldOutput:
        """See :meth:`Field.query`."""
        at = points.positions
        self.queried += len(at)
        normal = torch.nn.functional.normalize(at - self.centre.to(at), dim=-1) if settings.computes_normals else None
        rgb = torch.ones_like(at) if settings.view_dependent else None
        return FieldOutput(density=self.density(at), albedo=0.5 + 0.4 * at.clamp(-1, 1), normal=normal, rgb=rgb)


def image_rays(height: int, width: int, distance: float = 2.5, fovy: float = 40.0, views: int = 1, device: str = "cpu") -> Rays:
    """Whole images of cameras on +Z that look at the origin, pixel centres at one half."""
    focal = 0.5 * height / torch.tan(torch.deg2rad(torch.tensor(0.5 * fovy)))
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    towards = torch.stack([(x - 0.5 * width) / focal, (0.5 * height - y) / focal, -torch.ones_like(x)], -1)
    directions = torch.nn.functional.normalize(towards.reshape(-1, 3), dim=-1).repeat(views, 1)
    origins = torch.tensor([0.0, 0.0, distance]).expand_as(directions).contiguous()
    index = torch.arange(views).repeat_interleave(height * width)
    return Rays(origins.to(device), directions.to(device), index.to(device), (views, height, width))


def ball_on_rays(rays: Rays, radius: float, density: float) -> tuple[Tensor, Tensor, Tensor]:
    """Distance [N] at which rays enter a ball at the origin (inf for a miss), and its exact opacity and depth [N]."""
    middle = -(rays.origins * rays.directions).sum(-1)
    beside = (rays.origins + middle[:, None] * rays.directions).square().sum(-1)
    half = (radius**2 - beside).clamp(min=0).sqrt()
    enter, thickness = middle - half, 2 * half * density
    opacity = 1 - torch.exp(-thickness)
    depth = enter * opacity + (1 - torch.exp(-thickness) * (1 + thickness)) / density
    return torch.where(half > 0, enter, torch.inf), opacity, depth
