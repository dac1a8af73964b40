"""Decimation to a number of triangles, or within a bound on how far the surface moves. V vertices, T triangles, P points."""

from dataclasses import dataclass, replace

import numpy as np

from nerf.core.errors import ExportError
from nerf.mesh.manifold import unpinch
from nerf.mesh.mesh import Mesh, scatter, signed_volume
from nerf.mesh.sdf import unsigned_distance

_TRIES = 7  # decimations at most, until one keeps its bound
_CLOSE_ENOUGH = 1.05  # ratio of the targets at which the bisection stops
_SAMPLES = 3_000  # points, and as many vertices, at which the distance of two surfaces is measured


def decimate(mesh: Mesh, target: int) -> Mesh:
    """Fewer triangles by quadric edge collapse (Garland and Heckbert, 1997).

    Collapses may pinch a closed surface (four triangles at one edge); ``unpinch`` separates the sheets there.

    Args:
        mesh: welded, vertices [V, 3] and faces [T, 3].
        target: approximate number of triangles to keep; 0 or a number not below T keeps all.

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


@dataclass(frozen=True)
class Decimation:
    """How far decimation moved a surface."""

    target: int  # number of triangles that the last decimation aimed at
    farthest: float  # sampled Hausdorff distance, scene units
    mean: float  # mean distance, the larger of both directions
    tries: int  # number of decimations


def decimate_within(mesh: Mesh, target: int, max_error: float = 0.0, seed: int = 0) -> tuple[Mesh, Decimation]:
    """Decimate to ``target`` triangles, or to as many more as keep the surface within ``max_error``.

    Args:
        mesh: welded, vertices [V, 3] and faces [T, 3].
        target: approximate number of triangles to keep; 0 or a number not below T keeps all.
        max_error: bound on the sampled Hausdorff distance, scene units; 0: measured, but not bounded.
        seed: of the samples.

    Returns:
        The mesh, and its distance from the given one. The target is found by bisection of its logarithm; if no decimation
        keeps the bound, the mesh itself is returned.

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
    while tries < _TRIES and high > _CLOSE_ENOUGH * low:
        middle = int(np.sqrt(low * high))
        found, tries = attempt(middle), tries + 1
        if found[1].farthest <= max_error:
            high, best = middle, found
        else:
            low = middle
    return best[0], replace(best[1], tries=tries)


def surface_distance(a: Mesh, b: Mesh, samples: int = _SAMPLES, seed: int = 0) -> tuple[float, float]:
    """The Hausdorff and the mean distance of two surfaces, in both directions, at ``samples`` points and vertices of each.

    No point's distance is understated (see :func:`nerf.mesh.sdf.unsigned_distance`), but the farthest point of a surface
    may not be among the samples.
    """
    rng = np.random.default_rng(seed)
    ways = []
    for one, other in ((a, b), (b, a)):
        some = one.vertices[rng.permutation(len(one.vertices))[:samples]]
        ways.append(unsigned_distance(other, np.concatenate([scatter(one, samples, rng)[0], some])))
    return float(max(way.max() for way in ways)), float(max(way.mean() for way in ways))
