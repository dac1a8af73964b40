"""Tetrahedral grids, and marching tetrahedra: the geometry of the mesh stage.

Letters: V vertices, K tetrahedra and E edges of the grid; Vs vertices and T triangles of the surface. Distances are
negative inside. The grid is body-centred cubic (BCC): corners and centres of n^3 cubes of side h, and four congruent
tetrahedra around every face that two cubes share, each of the two neighbouring centres and the two ends of an edge of the
face. All their dihedral angles are 60 or 90 degrees (Sommerville, 1923), so the grid is nearly isotropic.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import combinations
from math import sqrt

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from nerf.core.errors import UserError
from nerf.core.transfer import counts, indices_of, upload

TET_EDGES = tuple(combinations(range(4), 2))  # the two corners of each of a tetrahedron's six edges
_CUBE = np.array([(i, j, k) for i in (0, 1) for j in (0, 1) for k in (0, 1)])  # corner 4i + 2j + k of a cube
_RING = ((0, 0), (1, 0), (1, 1), (0, 1))  # corners of a face, counter-clockwise around its axis
_MAX_RESOLUTION = 512  # 201 million tetrahedra, whose 1.2 billion edge indices still fit an int32


@dataclass(frozen=True, eq=False)
class TetGrid:
    """Tetrahedra that fill the box [-1, 1]^3; each of their faces is shared by two of them or lies on a wall."""

    vertices: Tensor  # [V, 3] float32 in [-1, 1]^3
    tets: Tensor  # [K, 4] int32, positively oriented: det(v1 - v0, v2 - v0, v3 - v0) > 0
    edges: Tensor  # [E, 2] int32, lower index first, each edge once
    tet_edges: Tensor  # [K, 6] int32, the edges of each tetrahedron in the order of TET_EDGES
    boundary: Tensor  # [V] bool, vertices on a wall of the box
    spacing: float  # length of the shortest edge
    cubes: int  # n, cubes along a side: the vertices are their (n + 1)^3 corners, then their n^3 centres, last axis fastest

    def to(self, device: torch.device | str) -> "TetGrid":
        """The same grid on another device."""
        names = ("vertices", "tets", "edges", "tet_edges", "boundary")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})

    @property
    def nbytes(self) -> int:
        """Size of the tensors in bytes."""
        tensors = (self.vertices, self.tets, self.edges, self.tet_edges, self.boundary)
        return sum(t.numel() * t.element_size() for t in tensors)


@dataclass(frozen=True, eq=False)
class Surface:
    """A triangle mesh extracted from a tetrahedral grid; closed if the boundary of the grid is outside."""

    vertices: Tensor  # [Vs, 3], differentiable in positions and distances
    faces: Tensor  # [T, 3] int64, counter-clockwise seen from outside
    edges: Tensor  # [Vs, 2] int64, the grid edge on which each vertex lies: all edges that change sign


def tet_grid(resolution: int) -> TetGrid:
    """The body-centred cubic grid with ``resolution`` layers along a side: n = resolution / 2 cubes.

    It has (n + 1)^3 + n^3 vertices and 12 n^3 tetrahedra, all of volume h^3 / 12 with h = 2 / n. At the walls, where a
    cube has no neighbour, the pyramid between its centre and its face is split in two, so the box is filled exactly;
    these tetrahedra have dihedral angles from 45 to 120 degrees. Memory: 20 MiB at resolution 64, 155 MiB at 128,
    eight times that at 256. The last two grids are cached, so their tensors must not be written to.

    Args:
        resolution: even, at least 2.

    Raises:
        UserError: the resolution is odd or out of range.
    """
    if (
        isinstance(resolution, bool)
        or not isinstance(resolution, int)
        or not 2 <= resolution <= _MAX_RESOLUTION
        or resolution % 2
    ):
        raise UserError(
            f"tet_grid: expected an even resolution from 2 to {_MAX_RESOLUTION}, got {resolution}; give 64, 96 or 128"
        )
    return _build(resolution // 2)


@lru_cache(maxsize=2)
def _build(n: int) -> TetGrid:
    """The grid of n^3 cubes."""
    index = _BccIndex(n)
    h = 2.0 / n
    corners = _box_points((n + 1,) * 3) * h - 1.0
    centres = (_box_points((n,) * 3) + 0.5) * h - 1.0
    boundary = np.zeros(len(corners) + len(centres), dtype=bool)
    boundary[: len(corners)] = (np.abs(corners) > 1.0 - 0.25 * h).any(axis=1)
    blocks = [block for axis in range(3) for block in (index.between(axis), *index.walls(axis))]
    tets, tet_edges = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
    return TetGrid(
        torch.from_numpy(np.concatenate([corners, centres]).astype(np.float32)),
        torch.from_numpy(tets),
        torch.from_numpy(index.edges()),
        torch.from_numpy(tet_edges),
        torch.from_numpy(boundary),
        spacing=0.5 * sqrt(3.0) * h,
        cubes=n,
    )


class _BccIndex:
    """Indices of the vertices and edges of a BCC grid of n^3 cubes in closed form, without sorting or searching.

    Edges are numbered in four blocks: the cubes' edges (axis by axis), from each centre to the eight corners of its cube,
    from centre to centre (axis by axis), and the diagonals on the walls (axis by axis, low wall first).
    """

    def __init__(self, n: int):
        self.n = n
        self.corners = (n + 1) ** 3
        self.side = np.where(np.eye(3, dtype=bool), n, n + 1)  # extent of the cubes' edges along each axis
        self.inner = np.where(np.eye(3, dtype=bool), n - 1, n)  # extent of the pairs of centres along each axis
        sizes = [*self.side.prod(axis=1), 8 * n**3, *self.inner.prod(axis=1), *[n * n] * 6]
        self.start = np.concatenate([[0], np.cumsum(sizes)])

    def corner(self, at: np.ndarray) -> np.ndarray:
        """Vertex indices [...] of corners at integer coordinates [..., 3]."""
        return np.ravel_multi_index(tuple(np.moveaxis(at, -1, 0)), (self.n + 1,) * 3).astype(np.int32)

    def centre(self, at: np.ndarray) -> np.ndarray:
        """Vertex indices [...] of the centres of cubes [..., 3]."""
        return (self.corners + self.cube(at)).astype(np.int32)

    def cube(self, at: np.ndarray) -> np.ndarray:
        """Indices [...] of cubes [..., 3]."""
        return np.ravel_multi_index(tuple(np.moveaxis(at, -1, 0)), (self.n,) * 3)

    def edges(self) -> np.ndarray:
        """The ends of all edges, [E, 2] int32, lower index first."""
        n, step = self.n, np.eye(3, dtype=np.int64)
        cubes = _box_points((n,) * 3)
        along = [
            np.stack([self.corner(low), self.corner(low + step[axis])], axis=1)
            for axis in range(3)
            for low in [_box_points(self.side[axis])]
        ]
        spokes = np.stack([self.corner(cubes[:, None] + _CUBE), np.repeat(self.centre(cubes)[:, None], 8, axis=1)], -1)
        across = [
            np.stack([self.centre(low), self.centre(low + step[axis])], axis=1)
            for axis in range(3)
            for low in [_box_points(self.inner[axis])]
        ]
        walls = [
            self.corner(low[:, None] + side * step[axis] + _ring(axis)[[0, 2]])
            for axis in range(3)
            for side in (0, 1)
            for low in [self._wall_cubes(axis, side)]
        ]
        return np.concatenate([*along, spokes.reshape(-1, 2), *across, *walls])

    def between(self, axis: int) -> tuple[np.ndarray, np.ndarray]:
        """The four tetrahedra around every face normal to ``axis`` that two cubes share, [K, 4], and their edges [K, 6]."""
        low = _box_points(self.inner[axis])[:, None]
        step, ring = np.eye(3, dtype=np.int64)[axis], _ring(axis)
        first, second = ring, np.roll(ring, -1, axis=0)
        a, b = np.broadcast_arrays(self.centre(low), self.centre(low + step))
        tets = np.stack(
            [*np.broadcast_arrays(a, b, self.corner(low + step + first), self.corner(low + step + second))], axis=-1
        )
        middle = self.start[4 + axis] + np.arange(low.shape[0])[:, None]
        edges = np.stack(
            np.broadcast_arrays(
                middle,
                self._spoke(low, step + first),
                self._spoke(low, step + second),
                self._spoke(low + step, first),
                self._spoke(low + step, second),
                self._along(low + step + first, low + step + second),
            ),
            axis=-1,
        )
        return tets.reshape(-1, 4), edges.reshape(-1, 6).astype(np.int32)

    def walls(self, axis: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """The two tetrahedra between each outermost centre and the wall normal to ``axis``, and their edges, of both walls."""
        blocks = []
        for side in (0, 1):
            low = self._wall_cubes(axis, side)[:, None]
            ring = _ring(axis) + side * np.eye(3, dtype=np.int64)[axis]
            centre = self.centre(low[:, 0])
            diagonal = self.start[7 + 2 * axis + side] + np.arange(low.shape[0])
            for turn in ((0, 1, 2), (2, 3, 0)):
                p, q, r = ring[list(turn if side else turn[::-1])]
                tets = np.stack([centre, *(self.corner(low[:, 0] + corner) for corner in (p, q, r))], axis=-1)
                spokes = [self._spoke(low[:, 0], corner) for corner in (p, q, r)]
                pq, qr = self._along(low[:, 0] + p, low[:, 0] + q), self._along(low[:, 0] + q, low[:, 0] + r)
                blocks.append((tets, np.stack([*spokes, pq, diagonal, qr], axis=-1).astype(np.int32)))
        return blocks

    def _wall_cubes(self, axis: int, side: int) -> np.ndarray:
        """The cubes at one wall, [n^2, 3]."""
        extent = np.full(3, self.n)
        extent[axis] = 1
        return _box_points(extent) + side * (self.n - 1) * np.eye(3, dtype=np.int64)[axis]

    def _spoke(self, cube: np.ndarray, corner: np.ndarray) -> np.ndarray:
        """Indices [...] of the edges from the centres of cubes [..., 3] to one of their corners (offsets 0 or 1)."""
        return self.start[3] + 8 * self.cube(cube) + corner @ np.array([4, 2, 1])

    def _along(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Indices [...] of the cubes' edges between two neighbouring corners [..., 3]."""
        first, second = np.broadcast_arrays(first, second)
        low, axis = np.minimum(first, second), np.abs(second - first).argmax(axis=-1)
        extent = self.side[axis]
        place = (low[..., 0] * extent[..., 1] + low[..., 1]) * extent[..., 2] + low[..., 2]
        return self.start[axis] + place


def _box_points(extent: Sequence[int] | np.ndarray) -> np.ndarray:
    """All integer coordinates below an extent [3] along each axis, last axis fastest, [N, 3]."""
    return np.stack(np.meshgrid(*map(np.arange, extent), indexing="ij"), axis=-1).reshape(-1, 3)


def _ring(axis: int) -> np.ndarray:
    """Offsets of a face's four corners from the low corner of its cube, counter-clockwise around +axis, [4, 3]."""
    ring = np.zeros((4, 3), dtype=np.int64)
    ring[:, [(axis + 1) % 3, (axis + 2) % 3]] = _RING
    return ring


def _make_table() -> np.ndarray:
    """Local edges of the triangles in each of the 16 cases, [16, 2, 3]; -1 where there is none.

    Corner c is inside if bit c of the case is set. A single corner gives a triangle across its three edges, two pairs of
    corners a quadrilateral, which is split; both are oriented so that the normal points away from the corners inside.
    """
    corners = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], dtype=np.float64)
    number = {pair: i for i, pair in enumerate(TET_EDGES)}
    middle = np.array([corners[list(pair)].mean(axis=0) for pair in TET_EDGES])
    table = np.full((16, 2, 3), -1, dtype=np.int64)
    for case in range(1, 15):
        inside = [c for c in range(4) if case >> c & 1]
        outside = [c for c in range(4) if not case >> c & 1]
        if len(inside) == 2:
            (a, b), (c, d) = inside, outside
            loop = [(a, c), (a, d), (b, d), (b, c)]
        else:
            loop = [(a, c) for a in inside for c in outside]
        ring = [number[min(pair), max(pair)] for pair in loop]
        p, q, r = middle[ring[:3]]
        outward = corners[outside].mean(axis=0) - corners[inside].mean(axis=0)
        if np.cross(q - p, r - p) @ outward < 0:
            ring.reverse()
        table[case, 0] = ring[:3]
        if len(ring) == 4:
            table[case, 1] = ring[2], ring[3], ring[0]
    return table


@lru_cache(maxsize=4)
def _table(device: torch.device) -> Tensor:
    """The table of cases [16, 2, 3] on a device."""
    return upload([torch.from_numpy(_make_table())], device)[0]


def marching_tetrahedra(positions: Tensor, sdf: Tensor, grid: TetGrid) -> Surface:
    """The surface where a signed distance that is linear in each tetrahedron is zero.

    Marching tetrahedra (Doi and Koide, 1991) with the crossing of DMTet (Shen et al. 2021, eq. 1): on an edge whose ends
    a and b differ in sign, ``(p_a s_b - p_b s_a) / (s_b - s_a)``. A distance of exactly zero is outside, so the sign change
    of every edge is well defined and the surface is closed for any values (triangles may then have no area).

    Args:
        positions: [V, 3] of the grid's vertices, displaced or not; no tetrahedron should be inverted.
        sdf: [V] signed distance at them, negative inside.
        grid: on the same device.

    Returns:
        The surface: closed if the grid's boundary vertices are outside (:func:`close_at_walls` ensures it), with 0
        vertices and 0 faces if no edge changes sign. Vertices are in the order of the grid's edges.

    Differentiable once in ``positions`` and ``sdf``; the topology is not. A GPU is waited for once, for the three sizes.

    Raises:
        ValueError: a shape or a device does not match the grid's.
    """
    _check(positions, sdf, grid)
    inside = sdf.detach() < 0
    corner = torch.index_select(inside.view(torch.uint8), 0, grid.tets.reshape(-1)).view(torch.int32)
    is_mixed = (corner != 0) & (corner != 0x01010101)
    num_mixed, num_triangles, num_vertices = _sizes(inside, corner, is_mixed, grid)
    mixed = indices_of(is_mixed, num_mixed)
    code = torch.index_select(corner, 0, mixed)
    # The four corners are the four bytes of an int32: gather the lowest bit of each.
    case = (code & 1 | code >> 7 & 2 | code >> 14 & 4 | code >> 21 & 8).long()
    local = _table(sdf.device)[case].reshape(-1, 3)
    triangle = indices_of(local[:, 0] >= 0, num_triangles)
    owner, local = mixed[triangle // 2], local[triangle]
    crossed = torch.gather(torch.index_select(grid.tet_edges, 0, owner), 1, local)
    used = torch.zeros(len(grid.edges), dtype=torch.bool, device=sdf.device)
    used[crossed.reshape(-1).long()] = True
    edge = indices_of(used, num_vertices)
    number = torch.empty(len(grid.edges), dtype=torch.int64, device=sdf.device)
    number[edge] = torch.arange(len(edge), device=sdf.device)
    faces = torch.index_select(number, 0, crossed.reshape(-1)).reshape(-1, 3)
    ends = torch.index_select(grid.edges, 0, edge).long()
    return Surface(_crossing(positions, sdf, ends), faces, ends)


def _sizes(inside: Tensor, corner: Tensor, is_mixed: Tensor, grid: TetGrid) -> list[int | None]:
    """How many tetrahedra the surface crosses, its triangles and its vertices; None on a CPU, which finds them on the way.

    Args:
        inside: [V] bool.
        corner: [K] int32, whose four bytes say which corners are inside.
        is_mixed: [K] bool, tetrahedra with corners on both sides.
        grid: the tetrahedra.
    """
    if inside.device.type == "cpu":
        return [None, None, None]
    number_inside = (corner * 0x01010101) >> 24  # the sum of the four bytes, at most 4
    ends = torch.index_select(inside, 0, grid.edges.reshape(-1)).reshape(-1, 2)
    return counts(is_mixed, is_mixed.sum() + (number_inside == 2).sum(), ends[:, 0] != ends[:, 1])


def _crossing(positions: Tensor, sdf: Tensor, ends: Tensor) -> Tensor:
    """The points [Vs, 3] at which the distance is zero on edges [Vs, 2] whose ends differ in sign."""
    p = torch.index_select(positions, 0, ends.reshape(-1)).reshape(-1, 2, 3)
    s = torch.index_select(sdf, 0, ends.reshape(-1)).reshape(-1, 2)
    return (p[:, 0] * s[:, 1:] - p[:, 1] * s[:, :1]) / (s[:, 1:] - s[:, :1])


def close_at_walls(sdf: Tensor, grid: TetGrid, margin: float) -> Tensor:
    """The distance [V], raised to at least ``margin`` on the walls of the box, so that its surface is always closed.

    Args:
        sdf: [V] negative inside.
        grid: its grid.
        margin: > 0, in the unit of ``sdf``; an object that the box cuts ends about this far inside the wall.

    Differentiable; values that are raised get no gradient.
    """
    return torch.where(grid.boundary, sdf.clamp(min=margin), sdf)


def sum_coarse_sdf(coarse: Sequence[Tensor], grid: TetGrid) -> Tensor:
    """The sum [V], at the vertices of a tetrahedral grid, of distances on coarser regular grids of points over the same box.

    Args:
        coarse: [m, m, m] indexed x, y, z, at least two points along a side, the coarsest first; trilinear in between.
        grid: on the same device.

    Differentiable in the coarse distances. Each grid is resampled to the size of the next, so the cost is that of the
    finest. If the number of cells does not double from one to the next the sum is only approximately trilinear; linear
    values are always exact.
    """
    total = coarse[0][None, None]
    for distances in coarse[1:]:
        total = _resized(total, len(distances)) + distances
    corners = _resized(total, grid.cubes + 1)
    centres = functional.avg_pool3d(corners, 2, stride=1)
    return torch.cat([corners.reshape(-1), centres.reshape(-1)])


def _resized(values: Tensor, side: int) -> Tensor:
    """Values [1, 1, m, m, m] resampled to ``side`` points along a side."""
    return functional.interpolate(values, size=(side,) * 3, mode="trilinear", align_corners=True)


def _check(positions: Tensor, sdf: Tensor, grid: TetGrid) -> None:
    """Refuse tensors that do not match the grid."""
    count = len(grid.vertices)
    if positions.shape != (count, 3) or sdf.shape != (count,):
        raise ValueError(
            f"marching_tetrahedra: expected positions [{count}, 3] and sdf [{count}] for this grid, got "
            f"{list(positions.shape)} and {list(sdf.shape)}"
        )
    if not positions.device == sdf.device == grid.tets.device:
        raise ValueError(
            f"marching_tetrahedra: expected one device, got positions on {positions.device}, sdf on "
            f"{sdf.device} and the grid on {grid.tets.device}; move the grid with grid.to(device)"
        )
