"""Decimation to a number of triangles, or within a bound on how far the surface moves. V vertices, T triangles, P points."""

from dataclasses import dataclass, replace

import numpy as np

from nerf.core.errors import ExportError
from nerf.mesh.mesh import Mesh, components, drop_unused, half_edges, signed_volume
from nerf.mesh.sdf import unsigned_distance

_TRIES = 7  # decimations, until one is within its bound


def decimate(mesh: Mesh, target: int) -> Mesh:
    """Fewer triangles by quadric edge collapse (Garland and Heckbert, 1997).

    Collapses may pinch a closed surface (four triangles at one edge); ``unpinch`` takes it apart there.

    Args:
        mesh: welded.
        target: about how many triangles to keep; 0 or a number not below T keeps all.

    Returns:
        A welded mesh; a closed one stays closed.

    Raises:
        ExportError: nothing with a volume is left, so the target is too low.
    """
    import fast_simplification

    if target <= 0 or len(mesh.faces) <= target:
        return mesh
    points, faces = fast_simplification.simplify(
        mesh.vertices.astype(np.float32), mesh.faces.astype(np.int32), target_count=target, agg=5
    )[:2]
    smaller = unpinch(Mesh(np.asarray(points, dtype=np.float64), np.asarray(faces, dtype=np.int64)))
    if len(smaller.faces) < 4 or signed_volume(smaller) <= 0:
        raise ExportError(
            f"decimating {len(mesh.faces)} triangles to {target} left nothing with a volume; raise "
            "--decimate_target, or set it to 0 to keep all"
        )
    return smaller


def unpinch(mesh: Mesh) -> Mesh:
    """Take a surface apart where more than two triangles meet at an edge, or two sheets at a vertex.

    Pairs of triangles that lie on each other back to back are dropped. Then the half-edges of each edge are paired off,
    those that have the solid between them with each other, and triangle corners are one vertex only if paired edges join
    them, so each sheet gets a vertex of its own. Two sheets that are joined at both ends of an edge still share it after
    that; one of them is then cut in its middle.

    Args:
        mesh: welded, without uv or per-vertex attributes.

    Returns:
        A welded mesh without unused vertices; closed if no edge of the given mesh was open.
    """
    group, size = np.unique(np.sort(mesh.faces, axis=1), axis=0, return_inverse=True, return_counts=True)[1:]
    faces = mesh.faces[size[group.reshape(-1)] == 1]
    start, end = half_edges(faces)
    count = len(mesh.vertices)
    if not np.array_equal(np.sort(start * count + end), np.sort(end * count + start)):
        return drop_unused(replace(mesh, faces=faces))  # open: some half-edge has no partner
    first, second = half_edges(np.arange(faces.size).reshape(-1, 3))  # the triangle corners that a half-edge joins
    up, down = _paired(mesh.vertices, faces)
    # Partners run against each other: where one starts, the other ends.
    same = np.concatenate([np.stack([first[up], second[down]], axis=1), np.stack([second[up], first[down]], axis=1)])
    vertices, label = components(same, faces.size)
    source = np.empty(vertices, dtype=np.int64)  # the given vertex that each new one stands at
    source[label] = start
    return _cut_shared_edges(Mesh(mesh.vertices[source], label.reshape(-1, 3).astype(np.int64)))


def _paired(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The half-edges of a closed surface, each beside its partner, sorted by their edges; numbers as in ``half_edges``.

    The first [E] run up, from the vertex of lower number to the other, the second [E] down. An edge where several sheets
    meet stands in several rows.
    """
    start, end = half_edges(faces)
    edge = np.minimum(start, end) * len(vertices) + np.maximum(start, end)
    up, down = np.flatnonzero(start < end), np.flatnonzero(start > end)
    up, down = up[np.argsort(edge[up], kind="stable")], down[np.argsort(edge[down], kind="stable")]
    # A closed surface has as many of the one as of the other at every edge, so rows are of one edge already.
    row = np.flatnonzero(np.diff(edge[up], prepend=-1))
    count = np.diff(row, append=len(up))
    several = count > 1
    for begin, stop in zip(row[several], (row + count)[several], strict=True):
        up[begin:stop], down[begin:stop] = _partners(vertices, faces, up[begin:stop], down[begin:stop])
    return up, down


def _partners(vertices: np.ndarray, faces: np.ndarray, up: np.ndarray, down: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Reorder the half-edges [n] and [n] of one edge so that each row has solid between its two triangles.

    Bodies that touch along an edge then come apart and do not pass through each other. The triangles are visited round
    the edge, counter-clockwise seen from where ``up`` leads. There the normal of an ``up`` triangle points ahead, so the
    solid lies before it and ends; at a ``down`` triangle it begins. Beginnings and ends match like brackets.
    """
    low, high = vertices[faces.reshape(-1)[[up[0], down[0]]]]
    axis, halves = high - low, np.concatenate([up, down])
    apex = vertices[faces[halves // 3, (halves + 2) % 3]] - low
    zero = apex[0] - (apex[0] @ axis) / max(axis @ axis, 1e-300) * axis  # square to the axis: angles count from here
    angle = np.arctan2(apex @ np.cross(axis, zero), (apex @ zero) * np.linalg.norm(axis))
    ends, begun, pairs, done = set(up.tolist()), [], [], set()
    for half in 2 * halves[np.argsort(angle, kind="stable")].tolist():  # twice round: solid may lie across angle zero
        if half in done or (half in ends and not begun):
            continue
        done.add(half)
        if half in ends:
            pairs.append((half, begun.pop()))
        else:
            begun.append(half)
    up, down = np.array(pairs).T
    return up, down


def _cut_shared_edges(mesh: Mesh) -> Mesh:
    """Where several pairs of half-edges have the same two ends, give all but one pair a vertex in its middle."""
    vertices, faces = list(mesh.vertices), mesh.faces.copy()
    while True:
        start, end = half_edges(faces)
        up, down = _paired(np.asarray(vertices), faces)
        again = np.flatnonzero((np.diff(start[up]) == 0) & (np.diff(end[up]) == 0)) + 1  # rows of the edge before them
        if len(again) == 0:
            return Mesh(np.asarray(vertices), faces)
        cut, added = set(), []
        for pair in zip(up[again], down[again], strict=True):
            if cut & {half // 3 for half in pair}:
                continue  # its half-edges have moved: one cut a triangle and round
            cut |= {half // 3 for half in pair}
            middle = len(vertices)
            vertices.append(0.5 * (vertices[start[pair[0]]] + vertices[end[pair[0]]]))
            for half in pair:  # a triangle a b c, cut between a and b, becomes a m c and m b c
                a, b, c = np.roll(faces[half // 3], -(half % 3))
                faces[half // 3] = a, middle, c
                added.append((middle, b, c))
        faces = np.concatenate([faces, np.array(added, dtype=np.int64)])


@dataclass(frozen=True)
class Decimation:
    """How far a decimated surface is from what it was."""

    target: int  # triangles that were asked for in the end
    farthest: float  # sampled Hausdorff distance, both ways
    mean: float  # mean distance, the larger of both ways
    tries: int  # decimations until the bound was kept


def decimate_within(mesh: Mesh, target: int, max_error: float = 0.0, seed: int = 0) -> tuple[Mesh, Decimation]:
    """Decimate to ``target`` triangles, or to as many more as it takes to stay within ``max_error`` of the surface.

    Args:
        mesh: welded.
        target: about how many triangles to keep; 0 or a number not below T keeps all.
        max_error: scene units, on the sampled Hausdorff distance both ways; 0: measured, but not bounded.
        seed: of the samples.

    Returns:
        The mesh, and its distance from the given one. The target is found by bisection of its logarithm; if nothing is
        within the bound, the mesh itself is returned.

    Raises:
        ExportError: nothing with a volume is left of an unbounded decimation.
        ValueError: max_error is negative.
    """
    if not max_error >= 0:
        raise ValueError(f"decimate_within: expected max_error >= 0 scene units (0: no bound), got {max_error}")
    count = len(mesh.faces)
    if target <= 0 or count <= target:
        return mesh, Decimation(count, 0.0, 0.0, 0)

    def attempt(triangles: int) -> tuple[Mesh, Decimation]:
        try:
            small = decimate(mesh, triangles)
        except ExportError:
            if max_error == 0:
                raise
            return mesh, Decimation(triangles, np.inf, np.inf, 1)
        return small, Decimation(triangles, *surface_distance(mesh, small, seed=seed), 1)

    found = attempt(target)
    if max_error == 0 or found[1].farthest <= max_error:
        return found
    low, high, best, tries = target, count, (mesh, Decimation(count, 0.0, 0.0, 1)), 1
    while tries < _TRIES and high > 1.05 * low:
        middle = int(np.sqrt(low * high))
        found, tries = attempt(middle), tries + 1
        if found[1].farthest <= max_error:
            high, best = middle, found
        else:
            low = middle
    return best[0], replace(best[1], tries=tries)


def surface_distance(a: Mesh, b: Mesh, samples: int = 3_000, seed: int = 0) -> tuple[float, float]:
    """The distance of two surfaces, measured both ways at ``samples`` points and vertices: the farthest, and the mean.

    No point's distance is understated (see :func:`nerf.mesh.sdf.unsigned_distance`), but the farthest point may be
    none of those that were tried.
    """
    rng = np.random.default_rng(seed)
    ways = []
    for one, other in ((a, b), (b, a)):
        some = one.vertices[rng.permutation(len(one.vertices))[:samples]]
        ways.append(unsigned_distance(other, np.concatenate([_scatter(one, samples, rng), some])))
    return float(max(way.max() for way in ways)), float(max(way.mean() for way in ways))


def _scatter(mesh: Mesh, count: int, rng: np.random.Generator) -> np.ndarray:
    """Points [count, 3] spread evenly over a surface."""
    area = np.linalg.norm(mesh.face_normals, axis=1)
    face = rng.choice(len(area), size=count, p=area / area.sum())
    u, v = rng.random((2, count, 1))
    root = np.sqrt(u)
    picked = mesh.corners[face]
    return (1 - root) * picked[:, 0] + root * (1 - v) * picked[:, 1] + root * v * picked[:, 2]
