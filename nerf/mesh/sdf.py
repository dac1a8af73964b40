"""Mesh files as solids: read, welded, fitted into the box, and their signed distance at any points. Numpy throughout.

Letters: M points, T triangles, C clusters of triangles, P pieces of triangles. Distances are negative inside. The
generalized winding number decides what is inside, so small holes are tolerated.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from nerf.core.errors import UserError
from nerf.core.progress import track
from nerf.mesh.mesh import LARGEST, Mesh, drop_unused, is_watertight, signed_volume, weld
from nerf.mesh.source import read_surface

_CHUNK = 1 << 12  # points per chunk, whose temporaries fit into the cache
_CLUSTER = 0.4  # times sqrt(T) triangles form a cluster, which balances the work on near clusters and on far ones
_FAR = 2.5  # a cluster further than this many of its radii is evaluated as one dipole
_PAIRS = 1 << 11  # pairs of a point and a near cluster per chunk
_CANDIDATES = (6, 24, 96)  # pieces that are tried, until the nearest triangle is proven to be among them
_NEAR = 8.0  # radii of a piece beyond which the first candidates suffice
_PIECES = 50_000  # triangles are cut into at least so many pieces
_PROBES = 20  # points along each side of the grid on which an open mesh is tested for an inside
_SMALLEST = 1e-5  # size as a fraction of the largest coordinate below which the single precision of files has no shape left
_THINNEST = 1e-7  # volume of the thinnest solid, as a fraction of its longest side cubed


def load_mesh(path: str | Path) -> Mesh:
    """Read the triangles of a mesh file, the parts of a scene transformed by their nodes.

    Vertices closer than a millionth of the diagonal are welded (files repeat them along the seams of their textures),
    and triangles that collapse are dropped.

    Returns:
        A welded mesh of vertices [V, 3] and faces [T, 3] only, in the file's own frame.

    Raises:
        UserError: the file does not exist, is of another kind or damaged, or has no triangles, coordinates that are not
            finite, or no size.
    """
    path = Path(path)
    mesh = drop_unused(Mesh(*read_surface(path)))
    if not np.isfinite(mesh.vertices).all():
        count = int((~np.isfinite(mesh.vertices)).any(axis=1).sum())
        raise UserError(
            f"mesh {path} has vertices that are not finite numbers ({count} of {len(mesh.vertices)}); export it again"
        )
    if np.ptp(mesh.bounds, axis=0).max() <= 0:
        raise UserError(f"mesh {path} has no size: all its vertices are at {mesh.vertices[0].tolist()}; export it again")
    farthest, size = float(np.abs(mesh.vertices).max()), float(np.ptp(mesh.bounds, axis=0).max())
    if farthest > LARGEST or size < _SMALLEST * farthest:
        raise UserError(
            f"mesh {path} is {size:.3g} large and reaches {farthest:.3g} from the origin, which single "
            "precision cannot hold; scale it, or move it to the origin"
        )
    mesh = weld(mesh)
    if len(mesh.faces) == 0:
        raise UserError(f"mesh {path} holds no triangle with an area; export it as a surface")
    return mesh


def fit(mesh: Mesh, half_extent: float) -> tuple[Mesh, np.ndarray]:
    """Centre a mesh and scale it so that its longest side spans [-half_extent, half_extent].

    Returns:
        The mesh, and the matrix [4, 4] from the box back to the mesh's own frame.
    """
    low, high = mesh.bounds
    scale = float((high - low).max()) / (2.0 * half_extent)
    back = np.diag([scale, scale, scale, 1.0])
    back[:3, 3] = 0.5 * (low + high)
    return replace(mesh, vertices=(mesh.vertices - back[:3, 3]) / scale), back


def signed_distance(mesh: Mesh, points: np.ndarray) -> np.ndarray:
    """Distance [M] from points [M, 3] to the surface of a mesh, negative inside.

    The distance is exact near the surface. Further than eight radii of a piece (triangles are cut into some 50,000 or
    more) it is the distance to the nearest of the triangles of the six nearest pieces: never too small, and too large by
    less than the radius of a piece. Inside is where the magnitude of the generalized winding number exceeds a half, so
    that the orientation of the triangles does not matter.

    Args:
        mesh: triangles; it may have holes.
        points: [M, 3] in the mesh's frame.

    Raises:
        UserError: the mesh encloses nothing (see :func:`check_solid`).
        ValueError: the points have another shape, or are not finite.
    """
    points = np.ascontiguousarray(points, dtype=np.float64)
    if points.ndim != 2 or points.shape[1] != 3 or not np.isfinite(points).all():
        raise ValueError(
            f"signed_distance: expected finite points [M, 3], got {list(points.shape)}; drop those that are not finite"
        )
    check_solid(mesh)
    inside = np.abs(winding_number(mesh, points)) > 0.5
    distance = unsigned_distance(mesh, points)
    return np.where(inside, -distance, distance)


def check_solid(mesh: Mesh) -> None:
    """Refuse a mesh that has no inside.

    A closed mesh has one if it has a volume. For an open one the winding number is evaluated on a grid over its bounds:
    where it is neither near 0 nor near 1 the inside is undefined, and there must be fewer such points than enclosed ones.

    Raises:
        UserError: the mesh is empty, flat, or open without a clear inside.
    """
    extent = float(np.ptp(mesh.bounds, axis=0).max()) if len(mesh.vertices) else 0.0
    if len(mesh.faces) == 0 or not np.isfinite(mesh.vertices).all() or extent <= 0:
        raise UserError(
            f"the mesh has {len(mesh.faces)} triangles and a size of {extent:.3g}; give one with a surface "
            "and finite coordinates"
        )
    if np.ptp(mesh.vertices, axis=0).min() < _THINNEST * extent:  # said at once, however many triangles it has
        raise UserError("the mesh is flat, so it has no inside; give a solid, or give the sheet a thickness")
    if is_watertight(mesh):
        if abs(signed_volume(mesh)) < _THINNEST * extent**3:
            raise UserError(
                f"the mesh is closed but encloses a volume of only {signed_volume(mesh):.3g}; give a solid, "
                "or give the sheet a thickness"
            )
        return
    pad = 0.02 * extent
    axes = [np.linspace(low - pad, high + pad, _PROBES) for low, high in mesh.bounds.T]
    probes = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    winding = np.abs(winding_number(mesh, probes))
    enclosed, undefined = int((winding > 0.75).sum()), int(((winding > 0.25) & (winding <= 0.75)).sum())
    if enclosed <= undefined:
        raise UserError(
            f"the mesh is open and has no clear inside: of {len(probes)} points in its bounds, {enclosed} have a winding "
            f"number near 1 or beyond and {undefined} one between 0.25 and 0.75; close its holes, orient its triangles "
            "consistently, or give sheets a thickness"
        )


def unsigned_distance(mesh: Mesh, points: np.ndarray) -> np.ndarray:
    """Distance [M] from points [M, 3] to the nearest triangle; for its accuracy see :func:`signed_distance`."""
    return nearest_triangle(mesh, points)[0]


def nearest_triangle(mesh: Mesh, points: np.ndarray, exact_within: float = _NEAR) -> tuple[np.ndarray, np.ndarray]:
    """Distance [M] from points [M, 3] to a mesh, and which triangle [M] is the nearest.

    Triangles are cut into pieces of similar size, whose centroids are in a k-d tree. The distances to the triangles of the
    nearest k are exact; the nearest triangle is among them if the k-th centroid is further away than the sum of the best
    distance and the radius of a piece.

    Args:
        mesh: triangles.
        points: [M, 3] in the mesh's frame.
        exact_within: radii of a piece within which more candidates are tried until the nearest is proven to be among them.
    """
    from scipy.spatial import cKDTree

    triangles = mesh.corners
    pieces = _cut(triangles)
    tree = cKDTree(pieces.centroid)
    best, face = np.full(len(points), np.inf), np.zeros(len(points), dtype=np.int64)
    open_points = np.arange(len(points))
    for count in _CANDIDATES:
        count = min(count, len(pieces.centroid))
        kept = []
        chunks = np.array_split(open_points, max(1, len(open_points) * count // (8 * _CHUNK)))
        for chunk in track(chunks, "measuring distances to the mesh"):
            reach, index = tree.query(points[chunk], k=[*range(1, count + 1)])
            owner = pieces.owner[index]
            distance = _to_triangles(points[chunk][:, None], triangles[owner])
            first = distance.argmin(axis=1)
            rows = np.arange(len(chunk))
            nearer = distance[rows, first] < best[chunk]
            best[chunk[nearer]] = distance[rows, first][nearer]
            face[chunk[nearer]] = owner[rows, first][nearer]
            proven = best[chunk] + pieces.radius <= reach[:, -1]
            kept.append(chunk[~proven & (best[chunk] < exact_within * pieces.radius)])
        open_points = np.concatenate(kept)
        if len(open_points) == 0 or count == len(pieces.centroid):
            break
    return best, face


@dataclass(frozen=True)
class _Pieces:
    """Triangles cut into small similar ones."""

    centroid: np.ndarray  # [P, 3]
    owner: np.ndarray  # [P] the triangle that each belongs to
    radius: float  # largest distance of a point of a piece from its centroid


def _cut(triangles: np.ndarray) -> _Pieces:
    """Cut triangles [T, 3, 3] into n^2 similar ones each, in total about ``_PIECES`` or twice their number."""
    centroid = triangles.mean(axis=1)
    radius = np.linalg.norm(triangles - centroid[:, None], axis=2).max(axis=1)
    target = float(np.sqrt(np.square(radius).sum() / max(_PIECES, 2 * len(triangles))))
    parts = np.maximum(np.ceil(radius / target), 1).astype(np.int64)
    centroids, owners = [], []
    for n in np.unique(parts):
        own = np.nonzero(parts == n)[0]
        i, j = (grid.reshape(-1) for grid in np.meshgrid(np.arange(n), np.arange(n), indexing="ij"))
        up, down = i + j < n, i + j < n - 1  # pieces oriented like their triangle, and those rotated by half a turn
        first = np.concatenate([i[up] + 1 / 3, i[down] + 2 / 3]) / n
        second = np.concatenate([j[up] + 1 / 3, j[down] + 2 / 3]) / n
        weight = np.stack([1.0 - first - second, first, second], axis=1)
        centroids.append(np.einsum("pc,tcd->tpd", weight, triangles[own]).reshape(-1, 3))
        owners.append(np.repeat(own, len(weight)))
    return _Pieces(np.concatenate(centroids), np.concatenate(owners), float((radius / parts).max()))


def _dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Dot products [...] of vectors [..., 3]."""
    return np.einsum("...i,...i->...", a, b)


def _to_triangles(points: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    """Exact distances [...] from points [..., 3] to triangles [..., 3, 3].

    The distance to the plane if the point projects into the triangle, to the nearest side otherwise. A triangle without
    area consists of its sides.
    """
    corner, side = triangles, np.roll(triangles, -1, axis=-2) - triangles
    away = points[..., None, :] - corner
    length = np.maximum(_dot(side, side), np.finfo(np.float64).tiny)
    along = np.clip(_dot(away, side) / length, 0.0, 1.0)
    offset = away - along[..., None] * side
    squared = _dot(offset, offset).min(axis=-1)
    normal = np.cross(side[..., 0, :], side[..., 1, :])
    doubled = _dot(normal, normal)
    over = (_dot(np.cross(side, away), normal[..., None, :]) >= 0).all(axis=-1) & (doubled > 0)
    height = np.square(_dot(away[..., 0, :], normal)) / np.where(doubled > 0, doubled, 1.0)
    return np.sqrt(np.where(over, np.minimum(height, squared), squared))


def winding_number(mesh: Mesh, points: np.ndarray) -> np.ndarray:
    """Generalized winding number [M] of a triangle mesh at points [M, 3] (Jacobson et al. 2013, eq. 5).

    The sum of the solid angles of the triangles over 4 pi: 1 inside a closed mesh, 0 outside, and in between near holes. A
    cluster of triangles further away than 2.5 of its radii is evaluated as one dipole (Barill et al. 2018, eq. 4), with
    an error of about a hundredth in total; nearer ones are exact.
    """
    clusters = _clusters(mesh.corners)
    result = np.empty(len(points))
    for start in track(range(0, len(points), _CHUNK), "telling inside from outside"):
        chunk = points[start : start + _CHUNK]
        away = np.square(chunk).sum(axis=1)[:, None] - 2.0 * chunk @ clusters.centre.T
        away += np.square(clusters.centre).sum(axis=1)
        near = away < np.square(_FAR * clusters.radius)
        away[near] = 1.0
        flux = _dot(clusters.centre, clusters.area) - chunk @ clusters.area.T
        flux[near] = 0.0
        result[start : start + _CHUNK] = (flux / (away * np.sqrt(away))).sum(axis=1)
        point, cluster = np.nonzero(near)
        for first in range(0, len(point), _PAIRS):
            which, whom = point[first : first + _PAIRS], cluster[first : first + _PAIRS]
            angle = _solid_angles(clusters.triangles[whom] - chunk[which][:, None, None]).sum(axis=1)
            result[start : start + _CHUNK] += np.bincount(which, angle, minlength=len(chunk))
    return result / (4.0 * np.pi)


@dataclass(frozen=True)
class _Clusters:
    """Triangles in groups of neighbours."""

    triangles: np.ndarray  # [C, n, 3, 3], padded with triangles without area
    centre: np.ndarray  # [C, 3] weighted by area
    area: np.ndarray  # [C, 3] sum of the area vectors
    radius: np.ndarray  # [C] largest distance of a corner from the centre


def _clusters(triangles: np.ndarray) -> _Clusters:
    """Halve triangles [T, 3, 3] along the longest side of their bounds until each group is small."""
    depth = max(0, int(np.ceil(np.log2(np.sqrt(len(triangles)) / _CLUSTER))))
    groups = 1 << depth
    missing = -len(triangles) % groups
    points = np.repeat(triangles[:1, :1], 3, axis=1)
    triangles = np.concatenate([triangles, np.repeat(points, missing, axis=0)])
    order = np.arange(len(triangles))[None]
    middle = triangles.mean(axis=1)
    for _ in range(depth):
        at = middle[order]
        axis = np.ptp(at, axis=1).argmax(axis=1)
        rank = np.take_along_axis(at, axis[:, None, None], axis=2)[..., 0].argsort(axis=1, kind="stable")
        order = np.take_along_axis(order, rank, axis=1)
        half = order.shape[1] // 2
        order = np.stack([order[:, :half], order[:, half:]], axis=1).reshape(-1, half)
    grouped = triangles[order]
    vector = 0.5 * np.cross(grouped[:, :, 1] - grouped[:, :, 0], grouped[:, :, 2] - grouped[:, :, 0])
    weight = np.linalg.norm(vector, axis=2) + 1e-300
    centre = (weight[..., None] * middle[order]).sum(axis=1) / weight.sum(axis=1)[:, None]
    radius = np.linalg.norm(grouped - centre[:, None, None], axis=3).max(axis=(1, 2))
    return _Clusters(grouped, centre, vector.sum(axis=1), radius)


def _solid_angles(corners: np.ndarray) -> np.ndarray:
    """Signed solid angles [...] of triangles [..., 3, 3] seen from the origin (Van Oosterom and Strackee, 1983)."""
    a, b, c = np.moveaxis(corners, -2, 0)
    la, lb, lc = (np.sqrt(_dot(v, v)) for v in (a, b, c))
    below = la * lb * lc + _dot(a, b) * lc + _dot(b, c) * la + _dot(c, a) * lb
    return 2.0 * np.arctan2(_dot(a, np.cross(b, c)), below)
