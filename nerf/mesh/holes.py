"""Holes of a surface: their boundary loops, and caps for those that the walls of the box cut.

Letters: V vertices, T triangles, n vertices of a polygon. Lengths are scene units.
"""

from collections.abc import Collection
from dataclasses import replace

import numpy as np

from nerf.mesh.mesh import Mesh, half_edges


def boundary_loops(faces: np.ndarray) -> list[np.ndarray]:
    """The boundary loops of a surface: vertex indices [n] of each, in the order in which a cap's triangles run along it.

    Args:
        faces: [T, 3] welded. A vertex that several holes share splits their loops there.
    """
    start, end = half_edges(faces)
    count = int(faces.max(initial=-1)) + 1
    single = ~np.isin(start * count + end, end * count + start)
    following: dict[int, list[int]] = {}
    for a, b in zip(end[single].tolist(), start[single].tolist(), strict=True):
        following.setdefault(a, []).append(b)
    loops = []
    while following:
        path: list[int] = [next(iter(following))]
        place = {path[0]: 0}
        while path[-1] in following:
            choice = following[path[-1]]
            step = choice.pop()
            if not choice:
                del following[path[-1]]
            if step in place:  # a loop is closed; the path before it continues
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
    """Close the holes that the walls of the box [-bound, bound]^3 cut, with triangles between the vertices of their loops.

    The cap of a hole in one wall lies in that wall; a loop inside another one is left open (a cut shell gets a ring). A
    hole over several walls is closed straight across, which cuts off the edge of the box there.

    Args:
        mesh: welded, vertices [V, 3] and faces [T, 3].
        bound: half the edge of the box.
        wall: a loop whose vertices are all within this distance of the walls was cut by them.

    Returns:
        The mesh with its caps, and the number of loops that they closed.
    """
    holes: dict[tuple[str, int], list[np.ndarray]] = {}  # loops that are filled together
    for number, loop in enumerate(boundary_loops(mesh.faces)):
        points = mesh.vertices[loop]
        touches = np.concatenate([points + bound <= wall, bound - points <= wall], axis=1)  # [P, 6] low x y z, high x y z
        if not touches.any(axis=1).all():
            continue  # not cut by the box
        walls = np.flatnonzero(touches.all(axis=0))
        # All loops in one wall are filled together, because one may lie inside another.
        key = ("wall", int(walls[0])) if len(walls) else ("across", number)
        holes.setdefault(key, []).append(loop)
    faces = [mesh.faces]
    taken = _edges_within(mesh.faces, [loop for loops in holes.values() for loop in loops])
    for (kind, number), loops in holes.items():
        if kind == "wall":
            outward = np.zeros(3)
            outward[number % 3] = 1.0 if number >= 3 else -1.0
        else:
            points = mesh.vertices[loops[0]]
            outward = np.cross(points, np.roll(points, -1, axis=0)).sum(axis=0)  # of a loop that is not planar (Newell)
        faces += _fill(mesh.vertices, loops, outward, taken)
    return replace(mesh, faces=np.concatenate(faces)), sum(map(len, holes.values()))


def _edges_within(faces: np.ndarray, loops: list[np.ndarray]) -> set[tuple[int, int]]:
    """The edges (lower index first) of triangles [T, 3] between vertices of the loops: where a cap may have no edge of its own.

    A triangle in the corner of a hole has two of its edges on the boundary, and the third would be used four times.
    """
    if not loops:
        return set()
    start, end = half_edges(faces)
    rim = np.zeros(int(faces.max()) + 1, dtype=bool)
    rim[np.concatenate(loops)] = True
    both = rim[start] & rim[end]
    return set(zip(np.minimum(start, end)[both].tolist(), np.maximum(start, end)[both].tolist(), strict=True))


def _fill(
    vertices: np.ndarray, loops: list[np.ndarray], normal: np.ndarray, taken: Collection[tuple[int, int]]
) -> list[np.ndarray]:
    """Triangles [n, 3] that fill loops in one plane; loops that run clockwise about ``normal`` are holes in others."""
    flat = flattened(vertices, normal)
    area = np.array([_area(flat[loop]) for loop in loops])
    order = np.argsort(area)  # holes first, then outlines from the smallest on
    polygons = {int(k): [loops[k]] for k in order if area[k] >= 0}
    for k in order:
        if area[k] < 0:
            around = [j for j in polygons if _inside(flat[loops[k][0]], flat[loops[j]])]
            polygons.setdefault(around[0] if around else int(k), []).append(loops[k])
    return [ear_clip(flat, _bridged(flat, parts), taken) for parts in polygons.values()]


def flattened(points: np.ndarray, normal: np.ndarray) -> np.ndarray:
    """Points [V, 3] seen against a normal [3] of any length, as [V, 2] of extent 1."""
    normal = normal / max(float(np.abs(normal).max()), 1e-300)
    first = np.cross(normal, np.eye(3)[np.abs(normal).argmin()])
    first /= max(np.linalg.norm(first), 1e-30)
    second = np.cross(normal, first)
    flat: np.ndarray = points @ np.stack([first, second / max(np.linalg.norm(second), 1e-30)], axis=1)
    return flat / max(np.ptp(flat, axis=0).max(), 1e-300)


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
    """One polygon from an outline and its holes: each hole is connected by the shortest bridge, in both directions."""
    outline = loops[0]
    for hole in sorted(loops[1:], key=lambda loop: -flat[loop, 0].max()):
        apart = np.linalg.norm(flat[outline][:, None] - flat[hole][None], axis=-1)
        i, j = np.unravel_index(apart.argmin(), apart.shape)
        ring = np.roll(hole, -j)
        outline = np.concatenate([outline[: i + 1], ring, ring[:1], outline[i:]])
    return outline


def ear_clip(flat: np.ndarray, polygon: np.ndarray, taken: Collection[tuple[int, int]] = ()) -> np.ndarray:
    """Triangulate a polygon by cutting off ears (Meisters, 1975), O(n^2).

    Args:
        flat: [V, 2] positions.
        polygon: [n] indices, counter-clockwise; may touch itself along bridges.
        taken: pairs of indices, the lower first, that no cut may connect.

    Returns:
        [n - 2, 3] triangles of the same orientation. Where no ear is left because the polygon crosses itself, the
        flattest corner is cut, so that the result always closes the loop; of those whose cut is not taken, if there are any.
    """
    ring, triangles = [int(k) for k in polygon], []

    def turn(a, b, c):
        return (b[..., 0] - a[..., 0]) * (c[..., 1] - a[..., 1]) - (b[..., 1] - a[..., 1]) * (c[..., 0] - a[..., 0])

    def free(ring, k):
        cut = ring[k - 1], ring[(k + 1) % len(ring)]
        return (min(cut), max(cut)) not in taken

    at = 0
    while len(ring) > 3:
        points = flat[ring]
        bend = turn(np.roll(points, 1, axis=0), points, np.roll(points, -1, axis=0))
        reflex, count = points[bend <= 0], len(ring)
        for step in range(count):  # starting at the last ear, so that caps do not become fans
            k = (at + step) % count
            a, b, c = points[k - 1], points[k], points[(k + 1) % count]
            if (
                bend[k] > 1e-12
                and not ((turn(a, b, reflex) > 1e-12) & (turn(b, c, reflex) > 1e-12) & (turn(c, a, reflex) > -1e-12)).any()
                and free(ring, k)
            ):
                break
        else:
            k = min(range(count), key=lambda k: (not free(ring, k), abs(bend[k])))
        triangles.append((ring[k - 1], ring[k], ring[(k + 1) % count]))
        del ring[k]
        at = k + 1
    return np.array([*triangles, ring], dtype=np.int64)
