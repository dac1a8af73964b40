"""Normal maps: tangent frames of an unwrapped mesh, and the normals of a fine surface in the frames of a coarse one.

Letters: V vertices, T triangles, P texels. The convention is glTF's: red along the tangent (growing u), green along the
bitangent (growing v, upwards in the image), blue along the normal, each from [-1, 1] to [0, 255].
"""

from collections.abc import Callable

import numpy as np

from nerf.mesh.level_set_grid import QUERY_CHUNK
from nerf.mesh.mesh import Mesh, unit
from nerf.mesh.texture import Texels, bake_texels, to_bytes

_NEAREST = 6  # vertices of the fine surface whose normals are blended
_COINCIDENT = 1e-12  # of the bound squared, added to squared distances: a point may coincide with a vertex


def vertex_tangents(mesh: Mesh) -> np.ndarray:
    """Tangents of an unwrapped mesh as in MikkTSpace (Mikkelsen 2008), [V, 4].

    The tangent of a triangle is the direction of growing u, projected into the plane of the vertex normal; a vertex gets
    the mean over its triangles, weighted by their angles. The fourth component is the sign in ``bitangent = sign *
    cross(normal, tangent)``: -1 where the chart is mirrored. MikkTSpace would split a vertex between triangles of different
    sign; our charts have one sign each, and the tangents that are stored are those of the baking.

    Args:
        mesh: with normals and uv; its vertices are split along seams.
    """
    corners, normals, uv = mesh.corners, mesh.require("normals"), mesh.require("uv")[mesh.faces]
    first, second = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    du, dv = uv[:, 1] - uv[:, 0], uv[:, 2] - uv[:, 0]
    area = du[:, 0] * dv[:, 1] - du[:, 1] * dv[:, 0]
    sign = np.where(area < 0, -1.0, 1.0)
    along = sign[:, None] * (dv[:, 1:] * first - du[:, 1:] * second)
    total, turning = np.zeros((len(mesh.vertices), 3)), np.zeros(len(mesh.vertices))
    for k in range(3):
        vertex = mesh.faces[:, k]
        normal = normals[vertex]
        sides = [_projected(corners[:, (k + step) % 3] - corners[:, k], normal) for step in (1, 2)]
        angle = np.arccos(np.clip((sides[0] * sides[1]).sum(axis=1), -1.0, 1.0))
        flat = _projected(along, normal)
        for axis in range(3):
            total[:, axis] += np.bincount(vertex, angle * flat[:, axis], minlength=len(total))
        turning += np.bincount(vertex, angle * sign, minlength=len(total))
    tangent = _projected(total, normals)
    lost = np.linalg.norm(tangent, axis=1) < 0.5
    other = np.eye(3)[np.abs(normals[lost]).argmin(axis=1)]
    tangent[lost] = _projected(other, normals[lost])
    return np.concatenate([tangent, np.where(turning < 0, -1.0, 1.0)[:, None]], axis=1)


def _projected(vector: np.ndarray, normal: np.ndarray) -> np.ndarray:
    """Vectors [n, 3] projected into the plane of unit normals [n, 3] and made unit (0 where nothing is left)."""
    flat = vector - (vector * normal).sum(axis=1, keepdims=True) * normal
    length = np.linalg.norm(flat, axis=1, keepdims=True)
    return np.where(length > 1e-20, flat / np.maximum(length, 1e-20), 0.0)


def frames(mesh: Mesh, texels: Texels) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tangent, bitangent and normal [P, 3] at texels, as in the fragment shader of a glTF viewer.

    Normal and tangent are interpolated and normalised; the tangent is not made orthogonal again.
    """
    tangents = mesh.require("tangents")
    normal = unit(texels.interpolate(mesh, mesh.require("normals")))
    tangent = unit(texels.interpolate(mesh, tangents[:, :3]))
    sign = tangents[mesh.faces[texels.face, 0], 3:]
    return tangent, sign * np.cross(normal, tangent), normal


def nearest_normals(fine: Mesh, bound: float = 1.0) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """A function from points [P, 3] and their rough normals [P, 3] to the unit normals [P, 3] of a fine surface there.

    The normals of the nearest vertices are weighted by the inverse squares of their distances, and by the cosine to the
    rough normal. Those that face away from it belong to the other side of something thin and do not count; where all do,
    the rough normal is returned.

    Args:
        fine: with normals.
        bound: half the edge of the box, scene units.
    """
    from scipy.spatial import cKDTree

    fine_normals, coincident = fine.require("normals"), _COINCIDENT * bound**2
    tree, count = cKDTree(fine.vertices), min(_NEAREST, len(fine.vertices))

    def normals(points: np.ndarray, rough: np.ndarray) -> np.ndarray:
        found = np.empty_like(rough)
        for start in range(0, len(points), QUERY_CHUNK):
            part = slice(start, start + QUERY_CHUNK)
            distance, index = tree.query(points[part], k=count, workers=-1)
            there = fine_normals[index.reshape(-1, count)]
            toward = np.maximum(np.einsum("pkc,pc->pk", there, rough[part]), 0.0)
            weight = toward / (distance.reshape(-1, count) ** 2 + coincident)
            blended = np.einsum("pk,pkc->pc", weight, there)
            found[part] = unit(np.where(weight.sum(axis=1, keepdims=True) > 0, blended, rough[part]))
        return found

    return normals


def bake_normals(
    mesh: Mesh,
    normals: Callable[[np.ndarray, np.ndarray], np.ndarray],
    size: int,
    supersample: int = 1,
) -> np.ndarray:
    """Bake a tangent-space normal map, from which a viewer reconstructs the given normals on the mesh.

    Args:
        mesh: unwrapped, with normals and tangents.
        normals: maps points [P, 3] and the mesh's own normals there [P, 3] to unit normals [P, 3].
        size: S, texels along an edge.
        supersample: n; a texel is the mean of n x n normals.

    Returns:
        uint8 [S, S, 3], row 0 at v = 1.
    """

    def value(texels: Texels) -> np.ndarray:
        tangent, bitangent, normal = frames(mesh, texels)
        wanted = normals(texels.interpolate(mesh, mesh.vertices), normal)
        slant = (tangent * normal).sum(axis=1)
        onto, up = (wanted * tangent).sum(axis=1), (wanted * normal).sum(axis=1)
        z = (up - slant * onto) / np.maximum(1.0 - slant**2, 1e-6)  # wanted = x tangent + y bitangent + z normal
        y = (wanted * bitangent).sum(axis=1) / np.maximum((bitangent**2).sum(axis=1), 1e-6)
        return np.stack([onto - slant * z, y, np.maximum(z, 0.0)], axis=1)

    mean = bake_texels(mesh, value, 3, size, supersample, "baking normals")[0]
    return to_bytes(0.5 + 0.5 * mean / np.maximum(np.linalg.norm(mean, axis=2, keepdims=True), 1e-6))
