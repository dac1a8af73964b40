"""Self-intersections: triangles of a surface that cross each other. T triangles, n chosen ones or pairs, P points."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from nerf.mesh.mesh import Mesh

if TYPE_CHECKING:
    from scipy.spatial import cKDTree

_TOUCHING = 1e-9  # relative: a corner nearer than this to the other triangle's plane only touches it
_PAIRS = 1 << 20  # pairs of a point and a near triangle that are held at once
_BUDGET = 1 << 24  # pairs that random tests may take; long thin triangles, as of a disc cut into a fan, are all near each other


def crossing_faces(mesh: Mesh, chosen: np.ndarray) -> np.ndarray:
    """Which of the chosen triangles cross a triangle that they share no vertex with.

    Two triangles cross where an edge of one passes through the interior of the other (Moeller 1997, by signed volumes).
    Triangles that only touch, and those that overlap in one plane, do not count.

    Args:
        mesh: faces [T, 3]; two triangles share a vertex if they share its index.
        chosen: int64 [n], indices of triangles.

    Returns:
        bool [n].
    """
    corners = mesh.corners
    centre, radius = _balls(corners[chosen])
    low, high = corners.min(axis=1), corners.max(axis=1)
    crosses = np.zeros(len(chosen), dtype=bool)
    for which, other in _triangles_near(mesh, centre, radius):
        own = chosen[which]
        apart = (low[own] > high[other]).any(axis=1) | (high[own] < low[other]).any(axis=1)
        which, own, other = which[~apart], own[~apart], other[~apart]
        shared = (mesh.faces[own][:, :, None] == mesh.faces[other][:, None]).any(axis=(1, 2))
        which, a, b = which[~shared], corners[own[~shared]], corners[other[~shared]]
        crosses[which[_pierces(a, b) | _pierces(b, a)]] = True
    return crosses


def self_crossings(mesh: Mesh, samples: int = 5_000, seed: int = 0) -> tuple[int, int]:
    """The number of random triangles that cross another one (see :func:`crossing_faces`), and of those that were tested.

    Fewer than ``samples`` are tested where so many triangles are near each other that it would take minutes.
    """
    chosen = np.random.default_rng(seed).permutation(len(mesh.faces))[:samples]
    if len(chosen) == 0:
        return 0, 0
    near = sum(count for _, _, _, count in _searches(mesh, *_balls(mesh.corners[chosen])))
    chosen = chosen[: max(1, int(np.searchsorted(np.cumsum(near), _BUDGET, side="right")))]
    return int(crossing_faces(mesh, chosen).sum()), len(chosen)


def pierced(mesh: Mesh, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Whether the segments from ``start`` [P, 3] to ``end`` [P, 3] pass through a triangle of a surface, bool [P]."""
    found = np.zeros(len(start), dtype=bool)
    corners, segments = mesh.corners, np.stack([start, end, end], axis=1)
    for which, face in _triangles_near(mesh, 0.5 * (start + end), 0.5 * np.linalg.norm(end - start, axis=1)):
        found[which[_pierces(segments[which], corners[face])]] = True
    return found


def _balls(corners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Centres [n, 3] and radii [n] of balls that hold triangles [n, 3, 3]."""
    centre = corners.mean(axis=1)
    return centre, np.linalg.norm(corners - centre[:, None], axis=2).max(axis=1, initial=0.0)


def _searches(
    mesh: Mesh, points: np.ndarray, radius: np.ndarray
) -> Iterator[tuple[np.ndarray, "cKDTree", np.ndarray, np.ndarray]]:
    """Searches for the triangles within ``radius`` [P] of points [P, 3]: triangles, their tree, radii [P] and counts [P].

    Triangles are searched in groups of similar size, because the search radius grows with the largest of a group.
    """
    from scipy.spatial import cKDTree

    centre, own = _balls(mesh.corners)
    size = np.floor(np.log2(np.maximum(own, np.finfo(np.float64).tiny))).astype(np.int64)
    for group in np.unique(size):
        members = np.flatnonzero(size == group)
        tree, reach = cKDTree(centre[members]), radius + own[members].max()
        yield members, tree, reach, tree.query_ball_point(points, reach, return_length=True)


def _triangles_near(mesh: Mesh, points: np.ndarray, radius: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs (point [n], face [n]) that hold every triangle within ``radius`` [P] of points [P, 3], and some further away."""
    for members, tree, reach, count in _searches(mesh, points, radius):
        portion = np.cumsum(count) // _PAIRS
        for part in np.split(np.arange(len(points)), np.flatnonzero(np.diff(portion)) + 1):
            found = tree.query_ball_point(points[part], reach[part])
            face = members[np.concatenate([np.asarray(some, dtype=np.int64) for some in found])]
            yield np.repeat(part, count[part]), face


def _pierces(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Whether an edge of triangles a [n, 3, 3] passes through the interior of triangles b [n, 3, 3], bool [n]."""
    first, second = b[:, 1] - b[:, 0], b[:, 2] - b[:, 0]
    normal = np.cross(first, second)
    height = np.einsum("nkc,nc->nk", a - b[:, :1], normal)
    reach = _TOUCHING * np.linalg.norm(normal, axis=1) * np.abs(a - b[:, :1]).max(axis=(1, 2), initial=0.0)
    found = np.zeros(len(a), dtype=bool)
    for k in range(3):
        p, q = a[:, k], a[:, (k + 1) % 3]
        hp, hq = height[:, k], height[:, (k + 1) % 3]
        through = (np.minimum(hp, hq) < -reach) & (np.maximum(hp, hq) > reach)
        t = hp / np.where(through, hp - hq, 1.0)
        at = p + t[:, None] * (q - p)
        sides = [(np.cross(b[:, (j + 1) % 3] - b[:, j], at - b[:, j]) * normal).sum(axis=1) for j in range(3)]
        inside = np.min(sides, axis=0) > _TOUCHING * (normal**2).sum(axis=1)
        found |= through & inside
    return found
