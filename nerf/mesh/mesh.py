"""Triangle meshes: the record, and its topology and geometry. Pure functions on arrays.

Letters: V vertices, T triangles. Triangles are counter-clockwise seen from outside, so their normals point outwards and
the signed volume is positive. uv has its origin at the lower left of the texture, as in OBJ.
"""

from dataclasses import dataclass, replace

import numpy as np

from nerf.core.errors import ExportError

LARGEST = 1e30  # coordinate of a file whose cube is still finite
_WELD = 1e-6  # vertices closer than this fraction of the diagonal are one
# Fraction of the largest part's volume below which a part counts as a floater, noise of the field rather than part of the
# object. A part of a hundredth of the volume is about a fifth as large in each direction.
MIN_PART = 0.01


@dataclass(frozen=True)
class Mesh:
    """A triangle mesh; the optional attributes are added step by step.

    A vertex may occur several times with different uv; ``weld`` is then the vertex of the closed surface that each belongs to.
    """

    vertices: np.ndarray  # [V, 3] float64, scene units
    faces: np.ndarray  # [T, 3] int64
    normals: np.ndarray | None = None  # [V, 3] unit, outward
    uv: np.ndarray | None = None  # [V, 2] in [0, 1], origin at the lower left
    weld: np.ndarray | None = None  # [V] int64, index of the welded vertex; None: vertices are welded
    tangents: np.ndarray | None = None  # [V, 4] unit, along growing u; the last is the sign of the bitangent
    texture: np.ndarray | None = None  # [H, W, 3] uint8 sRGB, row 0 at v = 1
    normal_texture: np.ndarray | None = None  # [H, W, 3] uint8, tangent space as in glTF, row 0 at v = 1
    colors: np.ndarray | None = None  # [V, 3] uint8 sRGB

    def require(self, name: str) -> np.ndarray:
        """An optional attribute that a step needs, such as ``normals`` [V, 3].

        Raises:
            ValueError: the mesh does not have it.
        """
        value = getattr(self, name)
        if value is None:
            raise ValueError(f"mesh: expected one with {name}, got one of {len(self.faces)} triangles without; add them first")
        return value

    @property
    def corners(self) -> np.ndarray:
        """The corners of every triangle, [T, 3, 3]."""
        return self.vertices[self.faces]

    @property
    def face_normals(self) -> np.ndarray:
        """The outward normal of every triangle, twice as long as its area, [T, 3]."""
        a, b, c = np.moveaxis(self.corners, 1, 0)
        return np.cross(b - a, c - a)

    @property
    def welded_faces(self) -> np.ndarray:
        """The triangles [T, 3] as indices of welded vertices."""
        return self.faces if self.weld is None else self.weld[self.faces]

    @property
    def bounds(self) -> np.ndarray:
        """Lowest and highest corner, [2, 3]."""
        return np.stack([self.vertices.min(axis=0), self.vertices.max(axis=0)])


def unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors [n, 3] of length 1; those without a length stay 0."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-300)


def half_edges(faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Start and end vertices [3 T] of the half-edges of triangles [T, 3]; 3 t + k leads from corner k of t to the next."""
    return faces.reshape(-1), np.roll(faces, -1, axis=1).reshape(-1)


def components(pairs: np.ndarray, count: int) -> tuple[int, np.ndarray]:
    """Connected components of a graph of ``count`` nodes with edges [n, 2]: their number, and each node's label [count]."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    graph = coo_matrix((np.ones(len(pairs), dtype=np.int8), pairs.T), shape=(count, count))
    return connected_components(graph, directed=False)


def signed_volume(mesh: Mesh) -> float:
    """Volume enclosed by a closed mesh; negative if it is inside out (divergence theorem)."""
    return float(_pyramids(mesh).sum())


def _pyramids(mesh: Mesh) -> np.ndarray:
    """Signed volumes [T] of the tetrahedra between the triangles and the centre of the mesh's bounds."""
    a, b, c = np.moveaxis(mesh.corners - mesh.bounds.mean(axis=0), 1, 0)
    return (np.cross(a, b) * c).sum(axis=1) / 6.0


def is_watertight(mesh: Mesh) -> bool:
    """Whether every half-edge of the welded surface has exactly one opposite: closed, and consistently oriented."""
    faces = mesh.welded_faces
    if len(faces) == 0:
        return False
    count = int(faces.max()) + 1
    start, end = half_edges(faces)
    forward, backward = np.sort(start * count + end), np.sort(end * count + start)
    return bool((forward[1:] != forward[:-1]).all() and (forward == backward).all())


def drop_unused(mesh: Mesh) -> Mesh:
    """The mesh without vertices that no triangle uses; for meshes that are not unwrapped yet."""
    used, faces = np.unique(mesh.faces, return_inverse=True)
    picked = {k: None if (v := getattr(mesh, k)) is None else v[used] for k in ("normals", "colors")}
    return replace(mesh, vertices=mesh.vertices[used], faces=faces.reshape(-1, 3), **picked)


def weld(mesh: Mesh, tolerance: float | None = None) -> Mesh:
    """Join vertices that are closer than a tolerance, and drop the triangles that collapse.

    Args:
        mesh: vertices [V, 3] and faces [T, 3]; other attributes are dropped.
        tolerance: scene units; default a millionth of the diagonal.
    """
    from scipy.spatial import cKDTree

    if tolerance is None:
        tolerance = _WELD * float(np.linalg.norm(np.ptp(mesh.bounds, axis=0)))
    unique, index = merged(mesh.vertices)
    count, label = components(cKDTree(unique).query_pairs(tolerance, output_type="ndarray"), len(unique))
    representative = np.empty(count, dtype=np.int64)
    representative[label[::-1]] = np.arange(len(unique))[::-1]
    faces = label[index[mesh.faces]].astype(np.int64)
    whole = (faces != np.roll(faces, 1, axis=1)).all(axis=1)
    return drop_unused(Mesh(unique[representative], faces[whole]))


def largest_parts(mesh: Mesh, min_part: float = MIN_PART) -> tuple[Mesh, int]:
    """Keep the connected components whose volume is at least ``min_part`` of the largest one's; the rest are floaters.

    Cavities (components of negative volume) cannot be seen, so they are dropped too, and the object is solid.

    Args:
        mesh: welded, vertices [V, 3] and faces [T, 3].
        min_part: fraction of the largest volume; 0 keeps everything that is not a cavity.

    Returns:
        The mesh, and the number of components that were dropped.

    Raises:
        ExportError: no component has a positive volume: the mesh is inside out or flat.
    """
    label = components(mesh.faces[:, [0, 1, 1, 2]].reshape(-1, 2), len(mesh.vertices))[1][mesh.faces[:, 0]]
    volume = np.bincount(label, weights=_pyramids(mesh))
    present = np.bincount(label) > 0
    if volume.max(initial=0.0) <= 0:
        raise ExportError(
            f"the mesh is inside out or flat: the volume of its largest part is "
            f"{volume.max(initial=0.0):.3g}; its triangles must be counter-clockwise seen from outside"
        )
    keep = present & (volume > 0) & (volume >= min_part * volume.max())
    return drop_unused(replace(mesh, faces=mesh.faces[keep[label]])), int(present.sum() - keep.sum())


def vertex_normals(mesh: Mesh) -> np.ndarray:
    """Smooth unit normals [V, 3] of a welded mesh: face normals weighted by area and by the angle at the vertex.

    With the angle (Thuermer and Wuethrich, 1998) a normal does not depend on how a flat region is triangulated; the area
    reduces the weight of the slivers of marching cubes, whose own normals are noise: the worst vertex of a ball is off by
    3 degrees instead of 29. A vertex whose triangles all have no area gets +Y.
    """
    corners, face_normal = mesh.corners, mesh.face_normals
    total = np.zeros_like(mesh.vertices)
    for k in range(3):
        to_next = corners[:, (k + 1) % 3] - corners[:, k]
        to_last = corners[:, (k + 2) % 3] - corners[:, k]
        angle = np.arctan2(np.linalg.norm(np.cross(to_next, to_last), axis=1), (to_next * to_last).sum(axis=1))
        for axis in range(3):
            total[:, axis] += np.bincount(mesh.faces[:, k], angle * face_normal[:, axis], minlength=len(total))
    length = np.linalg.norm(total, axis=1, keepdims=True)
    up = np.array([0.0, 1.0, 0.0])
    return np.where(length > 1e-30, total / np.maximum(length, 1e-30), up)


def merged(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The different ones among points [V, 3], and which of these each is, [V]: files repeat vertices along seams of the uv."""
    unique, index = np.unique(points, axis=0, return_inverse=True)
    return unique, index.reshape(-1)


def moved(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Points [V, 3] where an affine matrix [4, 4], column vectors, puts them."""
    there: np.ndarray = points @ matrix[:3, :3].T + matrix[:3, 3]
    return there


def moved_normals(normals: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Unit normals [K, 3] of a surface that an affine matrix [4, 4] moves; it may scale, mirror and shear."""
    turned = normals @ np.linalg.pinv(matrix[:3, :3])
    return turned / np.maximum(np.linalg.norm(turned, axis=1, keepdims=True), 1e-30)


def transformed(mesh: Mesh, matrix: np.ndarray) -> Mesh:
    """The mesh moved by a similarity (rotation, one scale, translation).

    Args:
        mesh: vertices [V, 3] and any attributes; normals and tangents are rotated with it.
        matrix: [4, 4], column vectors; det > 0, so nothing is mirrored.

    Raises:
        ValueError: the matrix mirrors or shears.
    """
    matrix = np.asarray(matrix, dtype=np.float64)
    linear = matrix[:3, :3]
    determinant = float(np.linalg.det(linear))
    scale = np.cbrt(abs(determinant))
    if determinant <= 0 or not np.allclose(linear @ linear.T, scale**2 * np.eye(3), atol=1e-4 * scale**2):
        raise ValueError(
            f"transformed: expected a rotation, a positive scale and an offset, got a 3x3 part of "
            f"determinant {determinant:.4g}: {linear.round(4).tolist()}"
        )
    turn = linear / scale
    normals = None if mesh.normals is None else mesh.normals @ turn.T
    tangents = mesh.tangents
    if tangents is not None:
        tangents = np.concatenate([tangents[:, :3] @ turn.T, tangents[:, 3:]], axis=1)
    return replace(mesh, vertices=moved(mesh.vertices, matrix), normals=normals, tangents=tangents)


def scatter(mesh: Mesh, count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Random points [count, 3], uniform over the area of a surface, and the triangle [count] that each lies in."""
    area = np.linalg.norm(mesh.face_normals, axis=1)
    face = rng.choice(len(area), size=count, p=area / area.sum())
    u, v = rng.random((2, count, 1))
    root = np.sqrt(u)
    picked = mesh.corners[face]
    return (1 - root) * picked[:, 0] + root * (1 - v) * picked[:, 1] + root * v * picked[:, 2], face
