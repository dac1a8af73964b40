"""Voxels of a closed triangle mesh: which centres are inside, and which free ones cameras cannot see.

G voxels along a side, T triangles, C pairs of a triangle and a point of a plane grid.
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from nerf.mesh.mesh import Mesh

CELLS = 64  # voxels along the longest side of a mesh
_MARGIN = 4  # voxels around it
SEALED = 2  # voxels: openings narrower than twice this are closed before one looks inside
# Where cameras look from: level with the object and above it, as those of the training and of a turntable do.
_POLARS = (0.0, 30.0, 50.0, 70.0, 90.0)  # degrees, 0 straight above
_AZIMUTHS = tuple(range(0, 360, 15))  # degrees


def covered(corner: np.ndarray, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All pairs (C of them) of a 2-D triangle and an integer point inside it.

    Args:
        corner: [T, 3, 2].
        low, high: [2] lowest and highest integer point.

    Returns:
        Triangle index [C], integer point [C, 2] and barycentric weights [C, 3].
    """
    first = np.maximum(np.ceil(corner.min(1)), low).astype(np.int64)
    last = np.minimum(np.floor(corner.max(1)), high).astype(np.int64)
    extent = np.maximum(last - first + 1, 0)
    count = extent[:, 0] * extent[:, 1]
    triangle = np.repeat(np.arange(len(corner)), count)
    running = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
    width = extent[triangle, 0]
    point = first[triangle] + np.stack([running % np.maximum(width, 1), running // np.maximum(width, 1)], -1)
    a, b, c = corner[triangle, 0], corner[triangle, 1], corner[triangle, 2]

    def area(p: np.ndarray, q: np.ndarray, r: np.ndarray) -> np.ndarray:
        return (q[:, 0] - p[:, 0]) * (r[:, 1] - p[:, 1]) - (q[:, 1] - p[:, 1]) * (r[:, 0] - p[:, 0])

    total = area(a, b, c)
    parts = np.stack([area(b, c, point), area(c, a, point), area(a, b, point)], -1)
    total = np.where(np.abs(total) < 1e-15, np.nan, total)
    weights = parts / total[:, None]
    with np.errstate(invalid="ignore"):
        inside = (weights >= 0).all(-1)
    return triangle[inside], point[inside], weights[inside]


def voxelize(vertices: np.ndarray, faces: np.ndarray, low: np.ndarray, cell: float, grid: int) -> np.ndarray:
    """Voxel centres inside a mesh, bool [G, G, G] indexed x, y, z; closed cavities are outside.

    Along each axis the signed crossings of a line of voxels are summed: a non-zero winding number is inside. The majority
    of the three axes decides, so that a small hole does not turn a whole line inside out.

    Args:
        vertices: [V, 3].
        faces: [T, 3].
        low: [3] lowest corner of the box of voxels.
        cell: side of a voxel.
        grid: G.
    """
    votes = np.zeros((grid, grid, grid), np.int8)
    scaled = (vertices - low) / cell - 0.5
    # A small offset: a line of voxels must not pass exactly through an edge that two triangles share.
    corners = (scaled + np.array([1.37e-4, 2.11e-4, 2.93e-4]))[faces]
    for axis in range(3):
        flat = [(axis + 1) % 3, (axis + 2) % 3]
        triangle, point, weights = covered(corners[:, :, flat], np.zeros(2), np.full(2, grid - 1))
        depth = (weights * corners[triangle, :, axis]).sum(-1)
        edges = corners[triangle][:, :, flat]
        turn = np.sign(
            (edges[:, 1, 0] - edges[:, 0, 0]) * (edges[:, 2, 1] - edges[:, 0, 1])
            - (edges[:, 1, 1] - edges[:, 0, 1]) * (edges[:, 2, 0] - edges[:, 0, 0])
        )
        crossings = np.zeros((grid, grid, grid + 1))
        start = np.clip(np.ceil(depth).astype(np.int64), 0, grid)
        np.add.at(crossings, (point[:, 0], point[:, 1], start), turn)
        inside = np.abs(np.cumsum(crossings, -1)[..., :grid]) > 0.5
        votes += np.moveaxis(inside, (0, 1, 2), (*flat, axis)).astype(np.int8)
    return votes >= 2


def caves(mesh: Mesh, cells: int = CELLS) -> float:
    """The volume of the hollows of a closed mesh (+Y up) that cameras cannot look into, as a share of the mesh's own volume.

    A point of free space belongs to a cave if no distant camera level with the object or above it sees it: an enclosed pocket,
    a hollow that opens downwards, or one behind openings narrower than about 6 % of the longest side. The space between legs,
    the inside of a mug and the hole of a ring are none.

    Args:
        mesh: vertices [V, 3] and faces [T, 3].
        cells: voxels along its longest side.
    """
    from scipy.ndimage import binary_closing, binary_dilation

    low, high = mesh.bounds
    cell = float((high - low).max()) / cells
    grid = cells + 2 * _MARGIN
    corner = 0.5 * (low + high) - 0.5 * grid * cell
    solid = voxelize(mesh.vertices, mesh.faces, corner, cell, grid)
    ball = ball_of(SEALED)
    sealed = binary_closing(solid, ball)
    seen = np.zeros_like(solid)
    for direction in directions(_POLARS, _AZIMUTHS):
        seen |= seen_from(sealed, direction)
    hidden = ~sealed & ~seen
    hidden |= binary_dilation(hidden, ball) & ~solid & sealed  # the sealed openings belong to the cave behind them
    return float(hidden.sum() / max(int(solid.sum()), 1))


def ball_of(radius: int) -> np.ndarray:
    """The voxels within a radius, bool [2 r + 1, 2 r + 1, 2 r + 1]."""
    axis = np.arange(-radius, radius + 1)
    x, y, z = np.meshgrid(axis, axis, axis, indexing="ij")
    found: np.ndarray = x * x + y * y + z * z <= radius * radius
    return found


def directions(polars: Iterable[float], azimuths: Sequence[float]) -> Iterator[np.ndarray]:
    """Unit vectors [3] towards cameras at all pairs of angles (degrees; polar 0 straight above, azimuth 0 in front)."""
    for polar in np.radians(np.fromiter(polars, float)):
        for azimuth in np.radians(azimuths[:1] if polar == 0 else azimuths):
            yield np.array([np.sin(polar) * np.sin(azimuth), np.cos(polar), np.sin(polar) * np.cos(azimuth)])


def seen_from(solid: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """The free voxels [n, n, n] (each n its own) from which nothing solid lies in a direction [3].

    Layers along its largest component are shifted so that a line of sight stays at one place of all layers.
    """
    axis = int(np.abs(direction).argmax())
    layers = np.moveaxis(solid, axis, 0)
    if direction[axis] > 0:
        layers = layers[::-1]  # the layer nearest to the camera comes first
    count, height, width = layers.shape
    slope = np.delete(direction, axis) / abs(direction[axis])
    shift = np.rint(np.arange(count)[:, None] * slope).astype(np.int64)  # of a line of sight, from layer to layer
    pad = np.abs(shift).max(axis=0)
    blocked = np.zeros((height + 2 * pad[0], width + 2 * pad[1]), dtype=bool)  # lines of sight, by the layers so far
    free = np.empty(layers.shape, dtype=bool)
    for layer, sight, (i, j) in zip(np.ascontiguousarray(layers), free, (pad + shift).tolist(), strict=True):
        window = blocked[i : i + height, j : j + width]
        window |= layer
        np.logical_not(window, out=sight)
    return np.moveaxis(free[::-1] if direction[axis] > 0 else free, 0, axis)
