"""Coloured solids in closed form: signed distances, densities with the same surface, their ray cast; and simple meshes."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nerf.config.groups import SURFACE_DENSITY
from nerf.core.cameras import view_rays
from nerf.core.structs import LevelSet, Views
from nerf.mesh.isosurface import extract_surface
from nerf.mesh.mesh import Mesh, drop_unused

BOX_CORNERS = np.array([[x, y, z] for x in (0.0, 1.0) for y in (0.0, 1.0) for z in (0.0, 1.0)])
_QUADS = [[0, 1, 3, 2], [4, 6, 7, 5], [0, 4, 5, 1], [2, 3, 7, 6], [0, 2, 6, 4], [1, 5, 7, 3]]
BOX_FACES = np.array([triangle for a, b, c, d in _QUADS for triangle in ([a, b, c], [a, c, d])])  # outwards


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
    """A solid and its colour."""

    distance: Callable[[Tensor], Tensor]  # [M, 3] -> [M]
    albedo: Callable[[Tensor], Tensor] | None = None  # [M, 3] -> [M, 3]
    steepness: float = 60.0  # how fast the density grows inwards
    densest: float = 300.0

    def density(self, points: Tensor) -> Tensor:
        """Density [M]: 10 at the surface, growing by a factor e each 1 / steepness inwards, up to ``densest``."""
        highest = math.log(self.densest / SURFACE_DENSITY)
        return SURFACE_DENSITY * torch.exp((-self.steepness * self.distance(points)).clamp(max=highest))

    def as_density(self) -> LevelSet:
        """The surface as a level of the density."""
        return LevelSet(self.density, SURFACE_DENSITY)

    def as_distance(self) -> LevelSet:
        """The surface as the zero of the signed distance."""
        return LevelSet(self.distance, 0.0, inside="below", logarithmic=False)


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


def surface(distance: Callable[[Tensor], Tensor], resolution: int = 32, bound: float = 1.0) -> Mesh:
    """Marching cubes of the density of the solid with a signed distance."""
    return extract_surface(Solid(distance).as_density(), bound, resolution)[0]


def noise(cells: int, strength: float, seed: int = 0) -> LevelSet:
    """A random density over [-1, 1]^3, trilinear in the logarithm between ``cells`` points along an edge."""
    values = torch.randn((1, 1, cells, cells, cells), generator=torch.Generator().manual_seed(seed))

    def density(points: Tensor) -> Tensor:
        where = points[None, None, None].flip(-1)
        return 10 * torch.exp(strength * torch.nn.functional.grid_sample(values, where, align_corners=True)[0, 0, 0, 0])

    return LevelSet(density, SURFACE_DENSITY)


def tetrahedron(at=(0.0, 0.0, 0.0), size=1.0) -> Mesh:
    """A tetrahedron with outward faces and volume size^3 / 6."""
    corners = np.array([[0.0, 0.0, 0.0], [1, 0, 0], [0, 1, 0], [0, 0, 1]]) * size + np.array(at)
    return Mesh(corners, np.array([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]]))


def box_mesh(size=(1.0, 2.0, 3.0), at=(0.0, 0.0, 0.0)) -> Mesh:
    """A box of twelve triangles with outward faces; ``at`` is its lowest corner."""
    return Mesh(BOX_CORNERS * size + at, BOX_FACES)


def joined(*parts: Mesh) -> Mesh:
    """Several meshes as one, their vertices kept apart."""
    offsets = np.cumsum([0] + [len(part.vertices) for part in parts])
    faces = np.concatenate([part.faces + offset for part, offset in zip(parts, offsets, strict=False)])
    return Mesh(np.concatenate([part.vertices for part in parts]), faces)


def without_walls(mesh: Mesh, bound: float = 1.0) -> Mesh:
    """A surface that the box cut, without the triangles that lie in its walls."""
    flat = (np.abs(mesh.corners) >= bound * (1 - 1e-9)).all(axis=1).any(axis=1)
    return drop_unused(Mesh(mesh.vertices, mesh.faces[~flat]))


def soup(mesh: Mesh, spread: float = 0.0) -> Mesh:
    """The mesh with corners of its own for every triangle, each moved by up to ``spread``."""
    corners = mesh.corners.reshape(-1, 3)
    moved = corners + np.random.default_rng(0).uniform(-spread, spread, corners.shape)
    return Mesh(moved, np.arange(len(corners)).reshape(-1, 3))
