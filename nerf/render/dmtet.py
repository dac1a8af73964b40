"""The mesh path: marching tetrahedra, rasterisation, and colours of the field at the visible points.

Deep marching tetrahedra (Shen et al. 2021): the parameters are a signed distance and an offset at every point of a
tetrahedral grid, marching tetrahedra turn them into triangles, and the field gives the colour at the one point that each
pixel shows. V grid points or vertices, T triangles, B views, N = B * H * W rays, M of them covered.

The gradient of one view reaches only grid points near its silhouette, and the gradients of score distillation are noisy.
Coarse SDF grids are therefore added to the distance: one step of theirs moves a whole patch of the surface, and the noise
of neighbouring pixels averages out before it becomes roughness. This is the idea of Nicolet, Jacobson and Jakob, "Large
Steps in Inverse Rendering of Geometry" (2021, sec. 3.2), a smoothing preconditioner, here by parametrisation.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from nerf.core.errors import DivergenceError
from nerf.core.structs import Rays, RenderSettings, SurfaceState
from nerf.fields.base import Field
from nerf.mesh.tetrahedra import Surface, TetGrid, close_at_walls, marching_tetrahedra, sum_coarse_sdf, tet_grid
from nerf.render.base import RaySums
from nerf.render.triangles import TrianglePath, Triangles, check_whole_images

# Initial distances are clamped to so many cells. Without coarse grids each changes only by its own gradient, and must be
# able to change sign when the surface comes near. Coarse grids shift near and far points alike, so far ones keep more of
# their distance.
FINE_CLAMP, COARSE_CLAMP = 1.0, 8.0
MIN_COARSE_CUBES = 2  # cubes along a side of a coarse grid, at least
# Largest offset of a grid point along each axis, as a share of the shortest edge. A tetrahedron of the grid is sqrt(2/3) of
# that edge high, so two points that move sqrt(3) times this towards each other cannot invert it; points on the walls, where
# tetrahedra are lower, have no offset.
OFFSET_LIMIT = 0.235
# Distance at the walls of the grid, in cells, so that the surface is closed inside them.
WALL_MARGIN = 0.01
START_RADIUS = 0.5  # of the initial ball, as a share of the bound
VANISHED = (
    "the surface of the mesh stage vanished: no cell has a corner inside and one outside; go on from the last checkpoint "
    "with smaller --lr_distance and --lr_coarse_sdf, or start from another shape with --init_with"
)


class DMTetPath(TrianglePath):
    """A learned triangle mesh, rasterised.

    Args:
        bound: half the edge of the box that the field lives in, scene units.
        resolution: layers of the tetrahedral grid along a side, see :func:`nerf.mesh.tetrahedra.tet_grid`.
        min_near: near plane of the cameras, scene units.
        rates: learning rates of ``distance``, ``offset`` and ``coarse_sdf``, independent of the field's.
        locked: the shape is not trained; only the colours are.
        coarse_grids: number of coarse SDF grids; the finest has half the grid's cubes along a side, each other one half
            of the next finer.

    Parameters: ``distance`` [V] in grid cells, negative inside; ``coarse_sdf``, each [m, m, m] in grid cells, coarsest
    first, interpolated and added to it; and ``offset`` [V, 3] before a tanh. Buffers: ``centre`` [3] and ``extent`` [3]
    (half the sides), the box that the grid fills, scene units.
    """

    centre: Tensor
    extent: Tensor

    def __init__(
        self,
        bound: float,
        resolution: int,
        min_near: float,
        rates: dict[str, float],
        locked: bool = False,
        coarse_grids: int = 0,
    ):
        super().__init__(bound, min_near)
        self.rates = rates
        self._grid = tet_grid(resolution)
        self.register_buffer("centre", torch.zeros(3))
        self.register_buffer("extent", torch.full((3,), float(bound)))
        radius = self.points().norm(dim=-1)
        ball = (radius - START_RADIUS * bound) / (self.grid.spacing * bound)
        limit = COARSE_CLAMP if coarse_grids else FINE_CLAMP
        self.distance = nn.Parameter(ball.clamp(-limit, limit), requires_grad=not locked)
        self.offset = nn.Parameter(torch.zeros(len(ball), 3), requires_grad=not locked)
        sides = [max(self.grid.cubes >> k, MIN_COARSE_CUBES) + 1 for k in range(coarse_grids, 0, -1)]
        self.coarse_sdf = nn.ParameterList(nn.Parameter(torch.zeros(n, n, n), requires_grad=not locked) for n in sides)

    @property
    def grid(self) -> TetGrid:
        """The tetrahedra, on the device of the parameters."""
        if self._grid.vertices.device != self.extent.device:
            self._grid = self._grid.to(self.extent.device)
        return self._grid

    def points(self) -> Tensor:
        """The grid's points [V, 3] without offsets, scene units."""
        return self.grid.vertices * self.extent + self.centre

    @torch.no_grad()
    def start(self, centre: Tensor, extent: Tensor) -> Tensor:
        """Place the grid in the box ``centre`` +- ``extent`` (both [3]), without offsets; returns its points [V, 3]."""
        self.centre.copy_(centre)
        self.extent.copy_(extent)
        self.offset.zero_()
        return self.points()

    @torch.no_grad()
    def set_distance(self, distance: Tensor) -> None:
        """Initialise from a signed distance [V] in scene units, negative inside; only zero, sign and slope there count."""
        cell = self.grid.spacing * float(self.extent.mean())
        self.distance.copy_((distance / cell).clamp(-FINE_CLAMP, FINE_CLAMP))
        for grid in self.coarse_sdf:
            grid.zero_()
        if len(self.coarse_sdf) > 0:
            self._measure_far(cell)

    def _measure_far(self, cell: float) -> None:
        """Set points that are not next to the surface to their distance from it, in cells of size ``cell``."""
        from scipy.spatial import cKDTree  # type: ignore[import-untyped]

        surface = self.surface()
        if len(surface.faces) == 0:
            return
        far = torch.ones_like(self.distance, dtype=torch.bool)
        far[surface.edges.reshape(-1)] = False
        tree = cKDTree(surface.vertices.cpu().numpy())
        away, _ = tree.query(self.points()[far].cpu().numpy(), distance_upper_bound=COARSE_CLAMP * cell)
        cells = torch.from_numpy(away).to(self.distance) / cell  # infinite beyond the bound
        side = torch.where(self.distance[far] < 0, -1.0, 1.0)
        self.distance[far] = side * cells.clamp(FINE_CLAMP, COARSE_CLAMP)

    def positions(self) -> Tensor:
        """The grid's points [V, 3] with their offsets, which never invert a tetrahedron. Differentiable in the offsets."""
        limit = OFFSET_LIMIT * self.grid.spacing * self.extent
        free = ~self.grid.boundary[:, None]
        return self.points() + free * limit * torch.tanh(self.offset)

    def surface(self) -> Surface:
        """The current triangles: closed, counter-clockwise from outside, differentiable in every parameter."""
        return self._cut()[0]

    def _cut(self) -> tuple[Surface, Tensor]:
        """The surface, and the distances [V] that it is the zero level of."""
        total: Tensor = self.distance
        if len(self.coarse_sdf) > 0:
            total = total + sum_coarse_sdf(list(self.coarse_sdf), self.grid)
        distance = close_at_walls(total, self.grid, WALL_MARGIN)
        return marching_tetrahedra(self.positions(), distance, self.grid), distance

    def param_groups(self) -> list[dict[str, Any]]:
        """Optimiser groups with the learning rates of ``rates``; none if the shape is locked."""
        named = {"distance": [self.distance], "offset": [self.offset], "coarse_sdf": list(self.coarse_sdf)}
        trained = {name: [p for p in params if p.requires_grad] for name, params in named.items()}
        return [{"params": params, "lr": self.rates[name], "name": name} for name, params in trained.items() if params]

    def render(self, field: Field, rays: Rays, settings: RenderSettings) -> RaySums:
        """Rasterise whole images, N = B * H * W; see :meth:`RenderPath.render`.

        Opacity is antialiased coverage, depth that of the surface.

        Raises:
            ValueError: the rays are not whole images of known cameras.
            DivergenceError: in training, there is no surface left.
        """
        check_whole_images(rays, "DMTetPath")
        with torch.autocast(rays.origins.device.type, enabled=False):
            surface, distance = self._cut()
            if settings.training and len(surface.faces) == 0:
                raise DivergenceError(VANISHED)
            shape = Triangles(surface.vertices, surface.faces, vertex_normals(surface), surface.faces)
            sums = self._rasterised(shape, field, rays, settings)
        if not settings.training:
            return sums
        return replace(sums, surface=SurfaceState(surface.vertices, surface.faces, distance, surface.edges))


def vertex_normals(surface: Surface) -> Tensor:
    """Area-weighted sum [V, 3] of the normals of the triangles at each vertex; not of unit length. Differentiable."""
    corners = surface.vertices[surface.faces]
    normal = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    total = torch.zeros_like(surface.vertices)
    for corner in range(3):
        total = total.index_add(0, surface.faces[:, corner], normal)
    return total
