"""What a mesh stands on: whether its underside is flat, how far it deviates from a plane, and the plane itself. +Y up.

V vertices, T triangles.
"""

from dataclasses import dataclass, replace

import numpy as np

from nerf.mesh.mesh import Mesh

_LAYER = 0.01  # of the diagonal: how far above the lowest point a flat base may reach
_ROUND = 0.85  # a round underside has about half as much area in this layer as in one twice as high, a flat one as much
_DOWN = np.cos(np.radians(30.0))  # triangles of a base look further down than this; those of a rounded edge do not
_SMALLEST = 0.005  # of the footprint: a smaller one, as a few stray triangles, is no base
_MOST = 0.95  # of the area of a base, whose heights count: edges are rounded
_TRIES = 5  # rounds in which vertices that would turn a triangle over stay where they were


@dataclass(frozen=True)
class Base:
    """The flat underside of a mesh."""

    faces: np.ndarray  # [T] bool, its triangles
    share: float  # of the area of the footprint, the convex hull of the mesh seen from above
    deviation: float  # height above the lowest point that 95 % of its area stay below, in the unit of the mesh


def find_base(mesh: Mesh) -> Base | None:
    """The flat base of a mesh, such as the underside of a box or the feet of a table; None of a round or pointed underside."""
    normal, top = mesh.face_normals, mesh.corners[..., 1].max(axis=1)
    area = np.where(normal[:, 1] < -_DOWN * np.linalg.norm(normal, axis=1), -0.5 * normal[:, 1], 0.0)
    low, layer = mesh.vertices[mesh.faces.reshape(-1), 1].min(), _LAYER * float(np.linalg.norm(np.ptp(mesh.bounds, axis=0)))
    faces = (top <= low + layer) & (area > 0)
    flat, higher = float(area[faces].sum()), float(area[top <= low + 2 * layer].sum())
    share = flat / max(_footprint(mesh), 1e-300)
    if flat < _ROUND * higher or share < _SMALLEST:
        return None
    order = np.argsort(top[faces])
    within = np.cumsum(area[faces][order]) <= _MOST * flat
    return Base(faces, min(share, 1.0), float(top[faces][order][within].max(initial=low) - low))


def flattened(mesh: Mesh) -> Mesh:
    """The mesh with its flat base in the plane of its lowest point; unchanged if it has none.

    Vertices move down alone, by less than a hundredth of the diagonal. One that would turn a triangle over stays.
    """
    base = find_base(mesh)
    if base is None:
        return mesh
    chosen = np.zeros(len(mesh.vertices), dtype=bool)
    chosen[mesh.faces[base.faces].reshape(-1)] = True
    low, before = mesh.vertices[chosen, 1].min(), mesh.face_normals
    for _ in range(_TRIES):
        vertices = mesh.vertices.copy()
        vertices[chosen, 1] = low
        moved = replace(mesh, vertices=vertices)
        turned = (moved.face_normals * before).sum(axis=1) <= 0
        turned &= (before**2).sum(axis=1) > 0
        if not turned.any():
            return moved
        chosen[mesh.faces[turned].reshape(-1)] = False
    return mesh


def _footprint(mesh: Mesh) -> float:
    """The area of the convex hull of a mesh seen from above; 0 if it has none."""
    from scipy.spatial import ConvexHull, QhullError

    try:
        return float(ConvexHull(mesh.vertices[np.unique(mesh.faces)][:, [0, 2]]).volume)  # of a hull in the plane, its area
    except (QhullError, ValueError):
        return 0.0
