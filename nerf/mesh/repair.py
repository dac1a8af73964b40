"""Cleaning that keeps detail: weld by a hair, close what the wall of the box cut open, decimate within a bound.

Letters: V vertices, T triangles, P sampled points. Lengths are scene units. Nothing is remeshed or smoothed.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from nerf.mesh.decimate import unpinch
from nerf.mesh.mesh import Mesh, drop_unused, half_edges, is_watertight, weld

WELD = 1e-6  # vertices nearer to each other than this fraction of the box's edge are one
APART = 1e-5  # of the box's edge: how far sheets that touch at a vertex are moved apart
_WALL = 1e-3  # an opening whose rim is nearer to the walls than this fraction of the bound was cut by them
_EPSILON = 1e-9  # relative: a corner nearer than this to the other triangle's plane touches and does not cross
_CHUNK = 2000  # points searched for at once


@dataclass(frozen=True)
class Cleaning:
    """What cleaning did to a surface."""

    welded: int = 0  # vertices that became another one
    capped: int = 0  # openings at the wall of the box that were closed
    open_rims: tuple[float, ...] = ()  # lengths of the rims of the openings that were left, longest first


def clean_surface(mesh: Mesh, bound: float, wall: float | None = None) -> tuple[Mesh, Cleaning]:
    """Weld a surface, and close it where the box cut it open; nothing else of it changes.

    Args:
        mesh: vertices and faces, counter-clockwise seen from outside.
        bound: half the edge of the box; the weld's tolerance is 1e-6 of the edge.
        wall: openings whose whole rim lies within this distance of the walls are closed; None: a thousandth of bound.

    Returns:
        A mesh without unused vertices, and what was done. Openings elsewhere are left, and told.
    """
    mesh = drop_unused(Mesh(mesh.vertices, mesh.faces))
    if is_watertight(mesh):
        smooth = without_slivers(mesh, bound)
        return smooth, Cleaning(len(mesh.vertices) - len(smooth.vertices))
    welded = weld(mesh, WELD * 2.0 * bound)
    merged = len(mesh.vertices) - len(welded.vertices)
    capped, count = cap_walls(welded, bound, _WALL * bound if wall is None else wall)
    if not is_watertight(capped):
        capped = unpinch(capped)
    rims = [float(_rim(capped.vertices[loop])) for loop in boundary_loops(capped.faces)]
    return capped, Cleaning(merged, count, tuple(sorted(rims, reverse=True)))


def without_slivers(mesh: Mesh, bound: float) -> Mesh:
    """The surface without edges that a file's decimals would close, by the same weld; a closed one stays closed."""
    welded = unpinch(weld(mesh, WELD * 2.0 * bound))
    return mesh if is_watertight(mesh) and not is_watertight(welded) else welded


def separate(mesh: Mesh, distance: float) -> Mesh:
    """Move vertices that share a place into their own solids, so that a reader who welds by place finds no pinch.

    Args:
        mesh: welded, with normals; sheets that touch have vertices of their own there, as after ``unpinch``.
        distance: scene units, by which the first vertex of a place is moved against its normal, the second twice as
            far, and so on; above what the files resolve. Where something is so thin that sheets would cross, nothing moves.
    """
    place = mesh.vertices.astype(np.float32)
    group, count = np.unique(place, axis=0, return_inverse=True, return_counts=True)[1:]
    group = group.reshape(-1)
    shared = np.flatnonzero(count[group] > 1)
    shared = shared[np.argsort(group[shared], kind="stable")]
    first = np.flatnonzero(np.diff(group[shared], prepend=-1))
    rank = np.arange(len(shared)) - np.repeat(first, count[group[shared[first]]])
    shift = np.zeros_like(mesh.vertices)
    shift[shared] = distance * (1 + rank)[:, None] * mesh.normals[shared]
    while shift.any():
        moved = replace(mesh, vertices=mesh.vertices - shift)
        touched = np.flatnonzero(shift.any(axis=1)[mesh.faces].any(axis=1))
        bad = touched[crossing_faces(moved, touched)]
        if len(bad) == 0:
            return moved
        shift[mesh.faces[bad]] = 0.0
    return mesh


def boundary_loops(faces: np.ndarray) -> list[np.ndarray]:
    """The rims of a surface's openings: vertex indices in the order in which a cap's triangles would run along them.

    Args:
        faces: [T, 3] welded. A vertex that several openings share splits their rims there.
    """
    start, end = half_edges(faces)
    count = int(faces.max(initial=-1)) + 1
    single = ~np.isin(start * count + end, end * count + start)
    following: dict[int, list[int]] = {}
    for a, b in zip(end[single].tolist(), start[single].tolist(), strict=True):
        following.setdefault(a, []).append(b)
    loops = []
    while following:
        path, place = [next(iter(following))], {}
        place[path[0]] = 0
        while path[-1] in following:
            choice = following[path[-1]]
            step = choice.pop()
            if not choice:
                del following[path[-1]]
            if step in place:  # a loop is closed; what led to it goes on
                loop = path[place[step] :]
                loops.append(np.array(loop))
                for vertex in loop[1:]:
                    del place[vertex]
                path = path[: place[step] + 1]
            else:
                place[step] = len(path)
                path.append(step)
    return loops


def cap_walls(mesh: Mesh, bound: float, wall: float) -> tuple[Mesh, int]:
    """Close the openings that the walls of the box [-bound, bound]^3 cut, with triangles between the rim's vertices.

    The cap of an opening in one wall lies in the wall, holes in it left out (a cut shell gets a ring). An opening over
    several walls is closed straight across, so the box's edge is cut off there.

    Returns:
        The mesh with its caps, and how many openings they closed.
    """
    openings: dict[tuple[str, int], list[np.ndarray]] = {}  # rims that are filled together
    for number, rim in enumerate(boundary_loops(mesh.faces)):
        points = mesh.vertices[rim]
        touches = np.concatenate([points + bound <= wall, bound - points <= wall], axis=1)  # [P, 6] low x y z, high x y z
        if not touches.any(axis=1).all():
            continue  # a hole of the surface itself
        walls = np.flatnonzero(touches.all(axis=0))
        # All rims in one wall go together, because one may be the hole in another.
        key = ("wall", int(walls[0])) if len(walls) else ("across", number)
        openings.setdefault(key, []).append(rim)
    faces = [mesh.faces]
    for (kind, number), rims in openings.items():
        if kind == "wall":
            outward = np.zeros(3)
            outward[number % 3] = 1.0 if number >= 3 else -1.0
        else:
            points = mesh.vertices[rims[0]]
            outward = np.cross(points, np.roll(points, -1, axis=0)).sum(axis=0)  # of a rim that is not flat (Newell)
        faces += _fill(mesh.vertices, rims, outward)
    return replace(mesh, faces=np.concatenate(faces)), sum(map(len, openings.values()))


def _fill(vertices: np.ndarray, loops: list[np.ndarray], normal: np.ndarray) -> list[np.ndarray]:
    """Triangles [n, 3] that fill loops of one plane, those that run clockwise about ``normal`` being holes in others."""
    first = np.cross(normal, np.eye(3)[np.abs(normal).argmin()])
    frame = np.stack([first, np.cross(normal, first)], axis=1) / max(np.linalg.norm(first), 1e-30)
    flat = vertices @ frame
    flat /= max(np.ptp(flat, axis=0).max(), 1e-30)
    area = np.array([_area(flat[loop]) for loop in loops])
    order = np.argsort(area)  # holes first, then outlines from the smallest on
    polygons = {int(k): [loops[k]] for k in order if area[k] >= 0}
    for k in order:
        if area[k] < 0:
            around = [j for j in polygons if _inside(flat[loops[k][0]], flat[loops[j]])]
            polygons.setdefault(around[0] if around else int(k), []).append(loops[k])
    return [ear_clip(flat, _bridged(flat, parts)) for parts in polygons.values()]


def _rim(points: np.ndarray) -> float:
    """Length of a closed polygon [n, 3]."""
    return np.linalg.norm(points - np.roll(points, -1, axis=0), axis=1).sum()


def _area(points: np.ndarray) -> float:
    """Signed area of a polygon [n, 2], positive counter-clockwise."""
    following = np.roll(points, -1, axis=0)
    return 0.5 * float((points[:, 0] * following[:, 1] - points[:, 1] * following[:, 0]).sum())


def _inside(point: np.ndarray, polygon: np.ndarray) -> bool:
    """Whether a point [2] lies in a polygon [n, 2], by the parity of crossings."""
    a, b = polygon, np.roll(polygon, -1, axis=0)
    spans = (a[:, 1] > point[1]) != (b[:, 1] > point[1])
    rise = np.where(spans, b[:, 1] - a[:, 1], 1.0)
    return bool((spans & (point[0] < a[:, 0] + (point[1] - a[:, 1]) / rise * (b[:, 0] - a[:, 0]))).sum() % 2)


def _bridged(flat: np.ndarray, loops: list[np.ndarray]) -> np.ndarray:
    """One polygon from an outline and its holes: each hole is joined by the shortest bridge, walked there and back."""
    outline = loops[0]
    for hole in sorted(loops[1:], key=lambda loop: -flat[loop, 0].max()):
        apart = np.linalg.norm(flat[outline][:, None] - flat[hole][None], axis=-1)
        i, j = np.unravel_index(apart.argmin(), apart.shape)
        ring = np.roll(hole, -j)
        outline = np.concatenate([outline[: i + 1], ring, ring[:1], outline[i:]])
    return outline


def ear_clip(flat: np.ndarray, polygon: np.ndarray) -> np.ndarray:
    """Triangulate a polygon by cutting off ears (Meisters, 1975), O(n^2).

    Args:
        flat: [V, 2] positions.
        polygon: [n] indices, counter-clockwise; may touch itself along bridges.

    Returns:
        [n - 2, 3] triangles of the same orientation. Where no ear is left because the polygon crosses itself, the
        flattest corner is cut, so that the result always closes the rim.
    """
    ring, triangles = [int(k) for k in polygon], []

    def turn(a, b, c):
        return (b[..., 0] - a[..., 0]) * (c[..., 1] - a[..., 1]) - (b[..., 1] - a[..., 1]) * (c[..., 0] - a[..., 0])

    at = 0
    while len(ring) > 3:
        points = flat[ring]
        bend = turn(np.roll(points, 1, axis=0), points, np.roll(points, -1, axis=0))
        reflex, count = points[bend <= 0], len(ring)
        for step in range(count):  # from where the last ear was, so that caps do not become fans
            k = (at + step) % count
            a, b, c = points[k - 1], points[k], points[(k + 1) % count]
            if (
                bend[k] > 1e-12
                and not ((turn(a, b, reflex) > 1e-12) & (turn(b, c, reflex) > 1e-12) & (turn(c, a, reflex) > -1e-12)).any()
            ):
                break
        else:
            k = int(np.abs(bend).argmin())
        triangles.append((ring[k - 1], ring[k], ring[(k + 1) % count]))
        del ring[k]
        at = k + 1
    return np.array([*triangles, ring], dtype=np.int64)


def triangles_near(mesh: Mesh, points: np.ndarray, radius: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """All triangles that may come within ``radius`` [P] of points [P, 3], and some that do not: (point [n], face [n]).

    Triangles are searched in groups of about one size, points in groups of a few thousand; ``radius`` is read anew for
    each of them, so whoever uses the pairs may lower it in place meanwhile.
    """
    from scipy.spatial import cKDTree

    centre = mesh.corners.mean(axis=1)
    own = np.linalg.norm(mesh.corners - centre[:, None], axis=2).max(axis=1)
    size = np.floor(np.log2(np.maximum(own, 1e-12))).astype(np.int64)
    for group in np.unique(size):
        members = np.flatnonzero(size == group)
        tree, reach = cKDTree(centre[members]), own[members].max()
        for start in range(0, len(points), _CHUNK):
            part = slice(start, start + _CHUNK)
            found = tree.query_ball_point(points[part], radius[part] + reach)
            count = np.array([len(some) for some in found])
            face = members[np.concatenate([np.asarray(some, dtype=np.int64) for some in found])]
            yield np.repeat(np.arange(len(count)), count) + start, face


def crossing_faces(mesh: Mesh, chosen: np.ndarray) -> np.ndarray:
    """Which of the chosen triangles [n] cross a triangle that they share no vertex with, bool [n].

    Two triangles cross where an edge of one passes through the inside of the other (Moeller 1997, by signed volumes).
    Triangles that only touch, and those that lie on each other in one plane, do not count.
    """
    corners = mesh.corners
    centre = corners[chosen].mean(axis=1)
    radius = np.linalg.norm(corners[chosen] - centre[:, None], axis=2).max(axis=1, initial=0.0)
    low, high = corners.min(axis=1), corners.max(axis=1)
    crosses = np.zeros(len(chosen), dtype=bool)
    for which, other in triangles_near(mesh, centre, radius):
        own = chosen[which]
        apart = (low[own] > high[other]).any(axis=1) | (high[own] < low[other]).any(axis=1)
        which, own, other = which[~apart], own[~apart], other[~apart]
        shared = (mesh.faces[own][:, :, None] == mesh.faces[other][:, None]).any(axis=(1, 2))
        which, a, b = which[~shared], corners[own[~shared]], corners[other[~shared]]
        crosses[which[_pierces(a, b) | _pierces(b, a)]] = True
    return crosses


def _pierces(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Whether an edge of triangles a [n, 3, 3] passes through the inside of triangles b [n, 3, 3]."""
    first, second = b[:, 1] - b[:, 0], b[:, 2] - b[:, 0]
    normal = np.cross(first, second)
    height = np.einsum("nkc,nc->nk", a - b[:, :1], normal)
    reach = _EPSILON * np.linalg.norm(normal, axis=1) * np.abs(a - b[:, :1]).max(axis=(1, 2), initial=0.0)
    found = np.zeros(len(a), dtype=bool)
    for k in range(3):
        p, q = a[:, k], a[:, (k + 1) % 3]
        hp, hq = height[:, k], height[:, (k + 1) % 3]
        through = (np.minimum(hp, hq) < -reach) & (np.maximum(hp, hq) > reach)
        t = hp / np.where(through, hp - hq, 1.0)
        at = p + t[:, None] * (q - p)
        sides = [(np.cross(b[:, (j + 1) % 3] - b[:, j], at - b[:, j]) * normal).sum(axis=1) for j in range(3)]
        inside = np.min(sides, axis=0) > _EPSILON * (normal**2).sum(axis=1)
        found |= through & inside
    return found
