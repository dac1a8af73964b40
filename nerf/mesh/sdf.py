"""Mesh files as shapes: read, welded, fitted into the box, and their signed distance at any points. Numpy throughout.

Letters: M points, T triangles, C clusters of triangles, P pieces of triangles. Distances are negative inside. What is
inside is told by the generalized winding number, so a small hole does no harm.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from nerf.core.errors import UserError
from nerf.mesh.io import UNREADABLE, joined, read_parts
from nerf.mesh.mesh import Mesh, drop_unused, is_watertight, signed_volume, weld

SUFFIXES = (".obj", ".glb", ".gltf", ".ply")
_CHUNK = 1 << 12  # points whose temporaries fit into the cache
_CLUSTER = 0.4  # of sqrt(T) triangles are seen as one dipole from afar, which balances near work and far
_FAR = 2.5  # a cluster is far beyond this many of its radii
_PAIRS = 1 << 11  # pairs of a point and a near cluster at once
_CANDIDATES = (6, 24, 96)  # how many pieces are tried, until the nearest is proven to be among them
_NEAR = 8.0  # further than this many radii of a piece, the first answer is good enough
_PROBES = 20  # points along each side of the lattice that judges an open mesh
_LARGEST = 1e30  # coordinate whose cube still is a number
_SMALLEST = 1e-5  # size as a share of the largest coordinate: below, single precision, which files are in, has no shape left
_THINNEST = 1e-7  # volume of the thinnest solid, as a share of its longest side cubed


def load_mesh(path: str | Path) -> Mesh:
    """Read the triangles of a mesh file, with all parts of a scene where its transforms put them.

    Vertices closer than a millionth of the diagonal are welded (files repeat them along the seams of their textures),
    and triangles that have no three corners left are dropped.

    Returns:
        A welded mesh of vertices and faces only, in the file's own frame.

    Raises:
        UserError: there is no such file, it is of another kind or damaged, it has no triangles, coordinates that are
            no numbers, or no size.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(
            f"mesh {path}: expected one of {', '.join(SUFFIXES)}, got {path.suffix or 'no suffix'!r}; "
            "convert it, in Blender for instance"
        )
    if not path.is_file():
        raise UserError(f"mesh {path} does not exist; give the path of an OBJ, GLB or PLY")
    try:
        loaded = joined(read_parts(path))
        vertices = np.asarray(loaded.vertices, dtype=np.float64)
        faces = np.asarray(loaded.faces, dtype=np.int64).reshape(-1, 3)
    except (*UNREADABLE, OSError) as error:
        raise UserError(f"mesh {path} cannot be read ({type(error).__name__}: {error}); export it again") from error
    if len(faces) == 0:
        raise UserError(f"mesh {path} holds no triangles, points at most; export it as a surface")
    if faces.min() < 0 or faces.max() >= len(vertices):
        raise UserError(
            f"mesh {path} is damaged: its triangles name vertices up to {faces.max()}, and it has {len(vertices)}; "
            "export it again"
        )
    mesh = drop_unused(Mesh(vertices, faces))
    if not np.isfinite(mesh.vertices).all():
        count = int((~np.isfinite(mesh.vertices)).any(axis=1).sum())
        raise UserError(
            f"mesh {path} has vertices that are not finite numbers ({count} of {len(mesh.vertices)}); export it again"
        )
    if np.ptp(mesh.bounds, axis=0).max() <= 0:
        raise UserError(f"mesh {path} has no size: all its vertices are at {mesh.vertices[0].tolist()}; export it again")
    farthest, size = float(np.abs(mesh.vertices).max()), float(np.ptp(mesh.bounds, axis=0).max())
    if farthest > _LARGEST or size < _SMALLEST * farthest:
        raise UserError(
            f"mesh {path} is {size:.3g} large and reaches {farthest:.3g} from the origin, which single "
            "precision cannot hold; scale it, or move it to the origin"
        )
    mesh = weld(mesh)
    if len(mesh.faces) == 0:
        raise UserError(f"mesh {path} holds no triangle with an area; export it as a surface")
    return mesh


def fit(mesh: Mesh, half_extent: float = 0.8) -> tuple[Mesh, np.ndarray]:
    """Centre a mesh and scale it so that its longest side just fits [-half_extent, half_extent].

    Returns:
        The mesh, and the matrix [4, 4] that leads from the box back to the mesh's own frame.
    """
    low, high = mesh.bounds
    scale = float((high - low).max()) / (2.0 * half_extent)
    back = np.diag([scale, scale, scale, 1.0])
    back[:3, 3] = 0.5 * (low + high)
    return replace(mesh, vertices=(mesh.vertices - back[:3, 3]) / scale), back


def signed_distance(mesh: Mesh, points: np.ndarray) -> np.ndarray:
    """Distance [M] from points [M, 3] to the surface of a mesh, negative inside.

    The distance is exact near the surface. Further than eight radii of a piece (triangles are cut into some 50,000 or
    more) it is the distance to one of the six likeliest triangles: never too small, and too large by less than the
    radius of a piece. Inside is where the generalized winding number is beyond a half, whichever way the triangles are
    turned, so that a mesh that is inside out is no different.

    Args:
        mesh: triangles; it may have holes.
        points: [M, 3] in the mesh's frame.

    Raises:
        UserError: the mesh encloses nothing (see :func:`check_solid`).
        ValueError: points of another shape.
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

    A closed mesh has one if it has a volume. An open one is asked for its winding number on a lattice over its bounds:
    where that is neither near 0 nor near 1 nobody can say what is inside, and most of what it encloses must not be so.

    Raises:
        UserError: with what was found and what to do.
    """
    extent = float(np.ptp(mesh.bounds, axis=0).max()) if len(mesh.vertices) else 0.0
    if len(mesh.faces) == 0 or not np.isfinite(mesh.vertices).all() or extent <= 0:
        raise UserError(
            f"the mesh has {len(mesh.faces)} triangles and a size of {extent:.3g}; give one with a surface "
            "and finite coordinates"
        )
    if is_watertight(mesh):
        if abs(signed_volume(mesh)) < _THINNEST * extent**3:
            raise UserError(
                f"the mesh is closed but encloses a volume of {signed_volume(mesh):.3g} only; give a solid, "
                "or give the sheet a thickness"
            )
        return
    pad = 0.02 * extent
    axes = [np.linspace(low - pad, high + pad, _PROBES) for low, high in mesh.bounds.T]
    probes = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    winding = np.abs(winding_number(mesh, probes))
    enclosed, doubtful = int((winding > 0.75).sum()), int(((winding > 0.25) & (winding <= 0.75)).sum())
    if enclosed <= doubtful:
        raise UserError(
            f"the mesh is open and has no clear inside: of {len(probes)} points in its bounds, {enclosed} have a winding "
            f"number near 1 or beyond and {doubtful} one between 0.25 and 0.75; close its holes, turn its triangles "
            "one way, or give sheets a thickness"
        )


def unsigned_distance(mesh: Mesh, points: np.ndarray) -> np.ndarray:
    """Distance [M] from points [M, 3] to the nearest triangle; for its exactness see :func:`signed_distance`.

    Triangles are cut into pieces of one size, whose centroids lie in a k-d tree. The nearest k are tried exactly; the
    nearest triangle is among them if the k-th centroid is further away than the best distance and a radius together.
    """
    from scipy.spatial import cKDTree

    triangles = mesh.corners
    pieces = _cut(triangles)
    tree = cKDTree(pieces.centroid)
    best = np.full(len(points), np.inf)
    open_points = np.arange(len(points))
    for count in _CANDIDATES:
        count = min(count, len(pieces.centroid))
        kept = []
        for chunk in np.array_split(open_points, max(1, len(open_points) * count // (8 * _CHUNK))):
            reach, index = tree.query(points[chunk], k=[*range(1, count + 1)])
            owner = pieces.owner[index]
            distance = _to_triangles(points[chunk][:, None], triangles[owner]).min(axis=1)
            best[chunk] = np.minimum(best[chunk], distance)
            proven = best[chunk] + pieces.radius <= reach[:, -1]
            kept.append(chunk[~proven & (best[chunk] < _NEAR * pieces.radius)])
        open_points = np.concatenate(kept)
        if len(open_points) == 0 or count == len(pieces.centroid):
            break
    return best


@dataclass(frozen=True)
class _Pieces:
    """Triangles cut into small similar ones."""

    centroid: np.ndarray  # [P, 3]
    owner: np.ndarray  # [P] the triangle each belongs to
    radius: float  # no point of a piece is further from its centroid


def _cut(triangles: np.ndarray, least: int = 50_000) -> _Pieces:
    """Cut triangles [T, 3, 3] into n^2 similar ones each, about 50,000 or twice as many as there were."""
    centroid = triangles.mean(axis=1)
    radius = np.linalg.norm(triangles - centroid[:, None], axis=2).max(axis=1)
    target = float(np.sqrt(np.square(radius).sum() / max(least, 2 * len(triangles))))
    parts = np.maximum(np.ceil(radius / target), 1).astype(np.int64)
    centroids, owners = [], []
    for n in np.unique(parts):
        own = np.nonzero(parts == n)[0]
        i, j = (grid.reshape(-1) for grid in np.meshgrid(np.arange(n), np.arange(n), indexing="ij"))
        up, down = i + j < n, i + j < n - 1  # pieces that lie like their triangle, and those turned round
        first = np.concatenate([i[up] + 1 / 3, i[down] + 2 / 3]) / n
        second = np.concatenate([j[up] + 1 / 3, j[down] + 2 / 3]) / n
        weight = np.stack([1.0 - first - second, first, second], axis=1)
        centroids.append(np.einsum("pc,tcd->tpd", weight, triangles[own]).reshape(-1, 3))
        owners.append(np.repeat(own, len(weight)))
    return _Pieces(np.concatenate(centroids), np.concatenate(owners), float((radius / parts).max()))


def _dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.einsum("...i,...i->...", a, b)


def _to_triangles(points: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    """Exact distances [...] from points [..., 3] to triangles [..., 3, 3].

    It is the distance to the plane where the point projects into the triangle, and to the nearest of its sides
    otherwise. A triangle without area is its sides.
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

    The solid angles of the triangles, summed and divided by 4 pi: 1 inside a closed mesh, 0 outside, and something
    between near holes. A cluster of triangles further away than 2.5 of its radii counts as one dipole (Barill et al.
    2018, eq. 4), which errs by about a hundredth in all; nearer ones are exact.
    """
    clusters = _clusters(mesh.corners)
    result = np.empty(len(points))
    for start in range(0, len(points), _CHUNK):
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

    triangles: np.ndarray  # [C, n, 3, 3], filled up with triangles without area
    centre: np.ndarray  # [C, 3] weighted by area
    area: np.ndarray  # [C, 3] sum of the area vectors
    radius: np.ndarray  # [C] no corner is further from the centre


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
