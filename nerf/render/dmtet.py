"""The mesh path: a surface cut out of tetrahedra, rasterised, and coloured by the field where it is seen.

Deep marching tetrahedra (Shen et al. 2021): a signed distance and an offset at every point of a tetrahedral grid are the
parameters, marching tetrahedra make triangles of them, and the field is asked for the colour at the one point that each
pixel sees. V vertices, T triangles, B views, N = B * H * W rays, M of them covered.

A view moves only the points under its own outline, and distillation moves each in a direction of its own. Coarser lattices
are therefore added to the distance: one step of theirs moves a whole patch of the surface along, and what neighbouring
pixels disagree about averages out before it is roughness. The remedy is that of Nicolet, Jacobson and Jakob, "Large Steps
in Inverse Rendering of Geometry" (2021, sec. 3.2): precondition the step with a smooth one; ours does it by parameters.
"""

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from nerf.core.cameras import clip_space
from nerf.core.errors import DivergenceError
from nerf.core.structs import FieldOutput, Rays, RenderSettings, SurfaceState
from nerf.fields.base import Field
from nerf.mesh.level_set_grid import QUERY_CHUNK
from nerf.mesh.tetrahedra import Surface, TetGrid, close_at_walls, marching_tetrahedra, sum_coarse_sdf, tet_grid
from nerf.render.base import RenderPath, Trace, points_on, sample_colours
from rasterizer import antialias, interpolate, rasterize

# Distances start within so many cells. One that only its own gradient moves must be ready to change its sign when the
# surface comes near; under coarser lattices, which move near and far points alike, far ones must know that they are far.
OWN_REACH, SHARED_REACH = 1.0, 8.0
COARSEST = 2  # cubes along a side that a coarser lattice has at least
# How far a point may leave its place along each axis, as a share of the shortest edge. A tetrahedron of the lattice is
# sqrt(2/3) of that edge high, so two points that move sqrt(3) times this each can never turn one inside out; those at the
# walls, where tetrahedra are lower, stay where they are.
OFFSET_LIMIT = 0.235
# Distance from which a closed wall keeps the surface, in cells.
WALL_MARGIN = 0.01
START_RADIUS = 0.5  # of the starting ball, as a share of half the box
VANISHED = (
    "the surface of the mesh stage vanished: no cell has a corner inside and one outside; go on from the last checkpoint "
    "with smaller --lr_distance and --lr_lattices, or start from another shape with --init_with"
)


class DMTetPath(RenderPath):
    """Triangles that learn.

    Args:
        bound: half the edge of the box that the field lives in, scene units.
        resolution: layers of the tetrahedral grid along a side, see :func:`nerf.mesh.tetrahedra.tet_grid`.
        min_near: nothing nearer to the camera than this is seen, scene units.
        rates: learning rates of ``distance``, ``offset`` and ``lattices``, whatever the field's is.
        locked: the shape does not learn; only the colours do.
        lattices: how many coarser lattices help to move the surface; the first has half the grid's cubes along a side,
            each other one half of the one before.

    Parameters: ``distance`` [V] in grid cells, negative inside, to which ``lattices`` (each [m, m, m] in grid cells, the
    coarsest first) are added, and ``offset`` [V, 3] before a tanh. Buffers: ``centre`` [3] and ``extent`` [3] (half the
    sides), the box of scene units that the grid fills.
    """

    whole_images = True

    def __init__(
        self,
        bound: float,
        resolution: int,
        min_near: float,
        rates: dict[str, float],
        locked: bool = False,
        lattices: int = 0,
    ):
        super().__init__()
        self.bound, self.min_near, self.rates = bound, min_near, rates
        self._grid = tet_grid(resolution)
        self.register_buffer("centre", torch.zeros(3))
        self.register_buffer("extent", torch.full((3,), float(bound)))
        radius = self.points().norm(dim=-1)
        ball = (radius - START_RADIUS * bound) / (self.grid.spacing * bound)
        reach = SHARED_REACH if lattices else OWN_REACH
        self.distance = nn.Parameter(ball.clamp(-reach, reach), requires_grad=not locked)
        self.offset = nn.Parameter(torch.zeros(len(ball), 3), requires_grad=not locked)
        sides = [max(self.grid.cubes >> k, COARSEST) + 1 for k in range(lattices, 0, -1)]
        self.lattices = nn.ParameterList(nn.Parameter(torch.zeros(n, n, n), requires_grad=not locked) for n in sides)

    @property
    def grid(self) -> TetGrid:
        """The tetrahedra, on the device of the parameters."""
        if self._grid.vertices.device != self.extent.device:
            self._grid = self._grid.to(self.extent.device)
        return self._grid

    def points(self) -> Tensor:
        """The grid's points [V, 3] at rest, scene units."""
        return self.grid.vertices * self.extent + self.centre

    @torch.no_grad()
    def start(self, centre: Tensor, extent: Tensor) -> Tensor:
        """Let the grid fill the box ``centre`` +- ``extent`` (both [3]) without offsets; returns its points [V, 3]."""
        self.centre.copy_(centre)
        self.extent.copy_(extent)
        self.offset.zero_()
        return self.points()

    @torch.no_grad()
    def set_distance(self, distance: Tensor) -> None:
        """Begin from a signed distance [V] in scene units (or anything with its zero and sign), negative inside."""
        cell = self.grid.spacing * float(self.extent.mean())
        self.distance.copy_((distance / cell).clamp(-OWN_REACH, OWN_REACH))
        for lattice in self.lattices:
            lattice.zero_()
        if len(self.lattices) > 0:
            self._measure_far(cell)

    def _measure_far(self, cell: float) -> None:
        """Give the points that are not next to the surface their distance from it, in cells of that size."""
        from scipy.spatial import cKDTree

        surface = self.surface()
        if len(surface.faces) == 0:
            return
        far = torch.ones_like(self.distance, dtype=torch.bool)
        far[surface.edges.reshape(-1)] = False
        tree = cKDTree(surface.vertices.cpu().numpy())
        away, _ = tree.query(self.points()[far].cpu().numpy(), distance_upper_bound=SHARED_REACH * cell)
        cells = torch.from_numpy(away).to(self.distance) / cell  # infinite beyond the bound
        side = torch.where(self.distance[far] < 0, -1.0, 1.0)
        self.distance[far] = side * cells.clamp(OWN_REACH, SHARED_REACH)

    def positions(self) -> Tensor:
        """The grid's points [V, 3] where their offsets have moved them; no tetrahedron is ever inside out."""
        reach = OFFSET_LIMIT * self.grid.spacing * self.extent
        free = ~self.grid.boundary[:, None]
        return self.points() + free * reach * torch.tanh(self.offset)

    def surface(self) -> Surface:
        """The triangles as they are now: closed, counter-clockwise from outside, differentiable in every parameter."""
        return self._cut()[0]

    def _cut(self) -> tuple[Surface, Tensor]:
        """The surface, and the distances [V] that it was cut from."""
        moved = self.distance + sum_coarse_sdf(self.lattices, self.grid) if len(self.lattices) > 0 else self.distance
        distance = close_at_walls(moved, self.grid, WALL_MARGIN)
        return marching_tetrahedra(self.positions(), distance, self.grid), distance

    def param_groups(self) -> list[dict]:
        """The parameters with rates of their own; none of them if the shape is locked."""
        named = {"distance": [self.distance], "offset": [self.offset], "lattices": list(self.lattices)}
        learning = {name: [p for p in found if p.requires_grad] for name, found in named.items()}
        return [{"params": found, "lr": self.rates[name], "name": name} for name, found in learning.items() if found]

    def trace(self, field: Field, rays: Rays, settings: RenderSettings) -> Trace:
        """Rasterise whole images; see :meth:`RenderPath.trace`. Opacity is antialiased coverage, depth that of the surface.

        Raises:
            ValueError: the rays are not whole images of known cameras.
            DivergenceError: in training, there is no surface left.
        """
        if rays.views is None or rays.shape is None:
            raise ValueError("DMTetPath: expected Rays of whole images with their views; make them with cameras.view_rays")
        with torch.autocast(rays.origins.device.type, enabled=False):
            surface, distance = self._cut()
            if settings.training and len(surface.faces) == 0:
                raise DivergenceError(VANISHED)
            trace = self._rasterised(surface, field, rays, settings)
        if not settings.training:
            return trace
        return replace(trace, surface=SurfaceState(surface.vertices, surface.faces, distance, surface.edges))

    def _rasterised(self, surface: Surface, field: Field, rays: Rays, settings: RenderSettings) -> Trace:
        b, h, w = rays.shape
        clip = clip_space(rays.views, surface.vertices, self.min_near, self.bound)
        raster = rasterize(clip, surface.faces, h, w)
        seen = (raster.triangle >= 0).reshape(-1).nonzero()[:, 0]
        attributes = torch.cat([surface.vertices, vertex_normals(surface)], dim=-1)[None]
        at = interpolate(attributes, raster, surface.faces).reshape(-1, 6)[seen]
        points, normal = at[:, :3], functional.normalize(at[:, 3:], dim=-1)
        colour = sample_colours(_ask(field, points, normal, rays, seen, settings), rays, settings, seen)
        depth = (points - rays.origins[seen]).norm(dim=-1, keepdim=True)
        values = torch.cat([colour, torch.ones_like(depth), depth, normal], dim=-1)
        flat = values.new_zeros(len(rays), 8).index_copy(0, seen, values)
        smooth = antialias(flat.reshape(b, h, w, 8), raster, clip, surface.faces).reshape(-1, 8)
        shown = smooth[:, 5:] if settings.computes_normals else None
        return Trace(smooth[:, :3], smooth[:, 3].clamp(0.0, 1.0), smooth[:, 4], shown)


def _ask(field: Field, points: Tensor, normal: Tensor, rays: Rays, seen: Tensor, settings: RenderSettings) -> FieldOutput:
    """What the field says of the seen points [M, 3], with the surface's own normals [M, 3] in it."""
    plain = replace(settings, shading="albedo", need_normals=False)
    size = max(len(points), 1) if settings.training else QUERY_CHUNK
    pieces = []
    for place, ray in zip(points.split(size), seen.split(size), strict=True):
        pieces.append(field.query(points_on(place, ray, rays, settings), plain))
    rgb = torch.cat([p.rgb for p in pieces]) if settings.view_dependent else None
    return FieldOutput(torch.cat([p.density for p in pieces]), torch.cat([p.albedo for p in pieces]), normal, rgb)


def vertex_normals(surface: Surface) -> Tensor:
    """Normals [V, 3] of the vertices, the sum of the normals of their triangles weighted by area; not of unit length."""
    corners = surface.vertices[surface.faces]
    normal = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    total = torch.zeros_like(surface.vertices)
    for corner in range(3):
        total = total.index_add(0, surface.faces[:, corner], normal)
    return total
