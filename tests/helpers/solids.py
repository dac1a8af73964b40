"""Coloured solids in closed form: signed distances, densities of 10 exactly at the surface, and their ray cast."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nerf.core.cameras import view_rays
from nerf.core.structs import Views

SURFACE = 10.0  # the density at signed distance 0


def ball(points: Tensor, centre=(0.0, 0.0, 0.0), radius=0.5) -> Tensor:
    """Signed distance [M] to a ball, negative inside."""
    return (points - torch.tensor(centre)).norm(dim=-1) - radius


def box(points: Tensor, centre=(0.0, 0.0, 0.0), half=(0.5, 0.5, 0.5)) -> Tensor:
    """Signed distance [M] to a box."""
    q = (points - torch.tensor(centre)).abs() - torch.tensor(half)
    return q.clamp(min=0).norm(dim=-1) + q.max(dim=-1).values.clamp(max=0)


def torus(points: Tensor, major=0.5, minor=0.2) -> Tensor:
    """Signed distance [M] to a torus round the y axis."""
    ring = points[:, [0, 2]].norm(dim=-1) - major
    return torch.stack([ring, points[:, 1]], dim=-1).norm(dim=-1) - minor


@dataclass(frozen=True)
class Solid:
    """A solid and its paint."""

    distance: Callable[[Tensor], Tensor]  # [M, 3] -> [M]
    albedo: Callable[[Tensor], Tensor]  # [M, 3] -> [M, 3]
    steepness: float = 60.0  # how fast the density grows inwards
    densest: float = 300.0

    def density(self, points: Tensor) -> Tensor:
        """Density [M]: 10 at the surface, growing by a factor e each 1 / steepness inwards, up to ``densest``."""
        return SURFACE * torch.exp((-self.steepness * self.distance(points)).clamp(max=math.log(self.densest / SURFACE)))


_BODY = ((0.0, -0.05, 0.0), (0.42, 0.5, 0.25))
_LETTER = (
    ((-0.2, 0.0, 0.27), (0.06, 0.36, 0.06)),
    ((0.02, 0.3, 0.27), (0.2, 0.06, 0.06)),
    ((-0.02, 0.02, 0.27), (0.16, 0.06, 0.06)),
)
_KNOB = ((0.5, 0.25, 0.0), 0.16)  # on +X, above the middle


def lettered() -> Solid:
    """A blue block with a raised red F on its front (+Z), a green knob on its +X side and a yellow roof."""

    def parts(points: Tensor) -> Tensor:
        letter = torch.stack([box(points, *stroke) for stroke in _LETTER]).min(0).values
        return torch.stack([box(points, *_BODY), letter, ball(points, *_KNOB)])

    def albedo(points: Tensor) -> Tensor:
        paint = torch.tensor([[0.1, 0.2, 0.8], [0.9, 0.1, 0.1], [0.1, 0.7, 0.2]])
        nearest = parts(points).argmin(0)
        roof = (nearest == 0) & (points[:, 1] > 0.38)
        return torch.where(roof[:, None], torch.tensor([0.9, 0.8, 0.1]), paint[nearest])

    return Solid(lambda points: parts(points).min(0).values, albedo, steepness=300.0)


def spindly() -> Solid:
    """A table of thin parts: a chequered top on four thin legs of four colours, and a thin ring that stands on it."""
    spots = [(x, z) for x in (-0.4, 0.4) for z in (-0.3, 0.3)]

    def parts(points: Tensor) -> Tensor:
        legs = [box(points, (x, -0.25, z), (0.028, 0.27, 0.028)) for x, z in spots]
        ring = torus(torch.stack([points[:, 0], points[:, 2], points[:, 1] - 0.3], dim=-1), 0.25, 0.03)
        return torch.stack([box(points, (0.0, 0.03, 0.0), (0.5, 0.03, 0.4)), ring, *legs])

    def albedo(points: Tensor) -> Tensor:
        legs = [[0.9, 0.1, 0.1], [0.1, 0.7, 0.2], [0.1, 0.2, 0.8], [0.6, 0.1, 0.7]]
        paint = torch.tensor([[0.0, 0.0, 0.0], [0.9, 0.6, 0.1], *legs])
        square = (torch.floor(points[:, 0] / 0.13) + torch.floor(points[:, 2] / 0.13)) % 2
        chequers = torch.where(square[:, None] > 0, torch.tensor([0.95, 0.95, 0.9]), torch.tensor([0.15, 0.1, 0.1]))
        nearest = parts(points).argmin(0)
        return torch.where((nearest == 0)[:, None], chequers, paint[nearest])

    return Solid(lambda points: parts(points).min(0).values, albedo, steepness=3000.0, densest=5000.0)


def ray_cast(solid: Solid, views: Views, steps: int = 96) -> tuple[np.ndarray, np.ndarray]:
    """Sphere tracing from the cameras of the program: colour on white [B, H, W, 3] and mask [B, H, W]."""
    rays = view_rays(views)
    t = torch.zeros(len(rays))
    for _ in range(steps):
        t = t + solid.distance(rays.origins + t[:, None] * rays.directions).clamp(min=-0.05)
    hit = solid.distance(rays.origins + t[:, None] * rays.directions).abs() < 1e-3
    points = rays.origins + torch.where(hit, t, torch.zeros_like(t))[:, None] * rays.directions
    color = torch.where(hit[:, None], solid.albedo(points), torch.ones(3))
    return color.reshape(*rays.shape, 3).numpy(), hit.reshape(rays.shape).numpy()
