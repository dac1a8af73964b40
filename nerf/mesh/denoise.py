"""Removes the noise of a surface while its edges stay: filtered normals first, then vertices that agree with them.

T triangles, V vertices, P pairs of neighbouring triangles. Lengths are scene units.
"""

import numpy as np

from nerf.mesh.intersections import crossing_faces
from nerf.mesh.mesh import Mesh, half_edges, unit

# Length of the difference of two guiding unit normals by which their weight falls to exp(-1/2): 14 degrees. The noise of a
# distilled surface has been averaged by then; a roof and a wall differ by several times as much.
_ALIKE = 0.25
_MOST_ROUNDS = 150  # of the normals, for triangles that are tiny beside the length
_SOLVER_ROUNDS, _SOLVER_ERROR = 300, 1e-3
_HALVINGS = 12  # of a vertex's way where triangles cross


def denoise(mesh: Mesh, length: float) -> Mesh:
    """The mesh without bumps that are narrower than about a length; edges between faces that differ more stay.

    Guided bilateral filtering of the normals (Zheng et al. 2011, "Bilateral normal filtering for mesh denoising", eq. 3;
    Zhang et al. 2015, "Guided mesh normal filtering", eq. 1, with averaged normals as guidance). Then the vertices for which
    the edges of each triangle are perpendicular to its new normal, in the least squares (Sun et al. 2007, "Fast and effective
    feature-preserving mesh denoising", eq. 6), held where they were at wavelengths beyond the length.

    Args:
        mesh: a welded surface; vertices on open edges stay where they are. Attributes other than its triangles are dropped.
        length: over which normals are averaged where they are alike; 0: the mesh as it is.
    """
    if length <= 0 or len(mesh.faces) == 0:
        return mesh
    area = np.linalg.norm(mesh.face_normals, axis=1)
    edge = float(np.linalg.norm(mesh.corners[:, 0] - mesh.corners[:, 1], axis=1).mean())
    if edge <= 0 or area.mean() <= 0:
        return mesh
    first, second, fixed = _pairs(mesh)
    rounds = min(int(np.ceil((length / edge) ** 2)), _MOST_ROUNDS)
    normals = _filtered(unit(mesh.face_normals), area, first, second, rounds)
    return _untangled(mesh, _fitted(mesh, normals, area, fixed, edge / length))


def _untangled(mesh: Mesh, moved: np.ndarray) -> Mesh:
    """The mesh with its vertices moved [V, 3], but less far where triangles would come to cross others."""
    faces, share = mesh.faces, np.ones(len(moved))
    crossed = crossing_faces(mesh, np.arange(len(faces)))
    looked_at = np.flatnonzero(~crossed)
    for _ in range(_HALVINGS):
        result = Mesh(mesh.vertices + share[:, None] * (moved - mesh.vertices), faces)
        bad = looked_at[crossing_faces(result, looked_at)]
        if len(bad) == 0:
            break
        near = np.zeros(len(moved), dtype=bool)
        near[faces[bad]] = True
        near[faces[near[faces].any(axis=1)]] = True  # and the triangles around, so that no step stands out
        share[near] *= 0.5
        looked_at = np.flatnonzero(near[faces].any(axis=1) & ~crossed)
    return result


def _filtered(normals: np.ndarray, area: np.ndarray, first: np.ndarray, second: np.ndarray, rounds: int) -> np.ndarray:
    """Unit normals [T, 3], averaged again and again with those of their neighbours [P] that are alike, by area [T]."""
    from scipy.sparse import csr_matrix

    count, all_alike = len(normals), np.ones(len(first))
    rows = np.concatenate([first, second, np.arange(count)])
    columns = np.concatenate([second, first, np.arange(count)])
    order = np.argsort(rows, kind="stable")
    begin = np.searchsorted(rows[order], np.arange(count + 1))
    columns = columns[order]

    def averaged(alike: np.ndarray) -> np.ndarray:
        weight = np.concatenate([alike * area[second], alike * area[first], area])[order]
        return unit(csr_matrix((weight, columns, begin), shape=(count, count)) @ normals)

    for _ in range(rounds):
        guide = averaged(all_alike)
        apart = guide[first] - guide[second]
        normals = averaged(np.exp(np.einsum("pk,pk->p", apart, apart) * (-0.5 / _ALIKE**2)))
    return normals


def _fitted(mesh: Mesh, normals: np.ndarray, area: np.ndarray, fixed: np.ndarray, hold: float) -> np.ndarray:
    """Vertices [V, 3] whose triangles, of area [T], face along normals [T, 3].

    The minimum of ``sum_t A_t sum_ij (n_t . (x_i - x_j))^2 + hold^2 sum_i A_i |x_i - x'_i|^2`` over the edges ij of each
    triangle t, where x' are the vertices of the mesh, of which the ``fixed`` ones stay, and A_i the areas around the vertices,
    scaled so that their mean is that of the triangles.
    """
    from scipy.sparse import csr_matrix, hstack
    from scipy.sparse.linalg import LinearOperator, cg

    start, end = half_edges(mesh.faces)
    count, rows = len(mesh.vertices), np.arange(len(start))
    both, ends = np.concatenate([rows, rows]), np.concatenate([start, end])
    scaled = np.repeat(normals * np.sqrt(area)[:, None], 3, axis=0).T  # [3, 3 T]
    along = hstack([csr_matrix((np.concatenate([n, -n]), (both, ends)), shape=(len(rows), count)) for n in scaled]).tocsr()
    around = np.bincount(mesh.faces.reshape(-1), np.repeat(area, 3), count)
    held = np.tile(hold**2 * area.mean() * np.maximum(around / around.mean(), 1e-6), 3)
    free = np.ones(count)
    free[fixed] = 0.0
    free = np.tile(free, 3)
    diagonal = free * np.asarray(along.multiply(along).sum(axis=0)).reshape(-1) + held

    def applied(step: np.ndarray) -> np.ndarray:
        return free * (along.T @ (along @ (free * step))) + held * step

    shape = (3 * count, 3 * count)
    step, _ = cg(
        LinearOperator(shape, matvec=applied),
        -free * (along.T @ (along @ mesh.vertices.T.reshape(-1))),
        rtol=_SOLVER_ERROR,
        maxiter=_SOLVER_ROUNDS,
        M=LinearOperator(shape, matvec=lambda step: step / diagonal),
    )
    return mesh.vertices + step.reshape(3, count).T


def _pairs(mesh: Mesh) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Both triangles [P] of every edge that two share, and the vertices of the edges that one has alone."""
    start, end = half_edges(mesh.faces)
    key = np.minimum(start, end) * len(mesh.vertices) + np.maximum(start, end)
    order = np.argsort(key, kind="stable")
    _, begin, shared = np.unique(key[order], return_index=True, return_counts=True)
    first, second = order[begin[shared == 2]], order[begin[shared == 2] + 1]
    alone = order[begin[shared == 1]]
    return first // 3, second // 3, np.unique(np.concatenate([start[alone], end[alone]]))
