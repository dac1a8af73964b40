"""A mesh of another program as its file holds it, to be painted and given back unchanged.

Nothing is welded, scaled or reordered. V vertices, T triangles, U uv, K normals.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nerf.config.limits import MESH_SUFFIXES
from nerf.core.errors import UserError
from nerf.core.files import read_bytes, reading
from nerf.mesh.gltf import MAX_FILE
from nerf.mesh.io import read_parts, triangles
from nerf.mesh.mesh import LARGEST, moved, moved_normals
from nerf.mesh.obj import WAY_OUT, read_obj

_NONE = np.zeros((0, 3), dtype=np.int64)


@dataclass(frozen=True)
class SourceMesh:
    """The numbers of a mesh file. Arrays without rows stand for what the file does not have."""

    vertices: np.ndarray  # [V, 3] float64; those of a glTF in the space of its node
    faces: np.ndarray  # [T, 3] int64
    polygon: np.ndarray  # [T] int64, ascending: triangles of one number are one polygon of the file
    place: np.ndarray  # [T, 3] int64, which corner of its polygon each corner is
    uv: np.ndarray  # [U, 2] float64, origin at the lower left; [0, 2]: not every corner has one
    uv_faces: np.ndarray  # [T, 3] int64, uv of each corner; [0, 3] without uv
    normals: np.ndarray  # [K, 3] float64; [0, 3]: not every corner has one
    normal_faces: np.ndarray  # [T, 3] int64; [0, 3] without normals
    node: np.ndarray  # [4, 4] float64, from the vertices to the space of the file
    digest: np.ndarray  # [32] uint8, SHA-256 of the file

    @property
    def placed(self) -> np.ndarray:
        """The vertices [V, 3] in the space of the file; the very numbers where the node does not move them."""
        if np.array_equal(self.node, np.eye(4)):
            return self.vertices
        return moved(self.vertices, self.node)


def digest_of_file(path: Path) -> np.ndarray:
    """SHA-256 of a file, uint8 [32].

    Raises:
        UserError: it cannot be read.
    """
    digest = hashlib.sha256(read_bytes(path, "give a file that can be read", MAX_FILE, what=f"mesh {path}")).digest()
    return np.frombuffer(digest, dtype=np.uint8).copy()


def read_source(path: Path) -> SourceMesh:
    """Read a mesh file without changing a number of it.

    The parts of a scene are one mesh. Where they all have the same node, its matrix is kept beside the vertices; else the
    matrices are applied. Polygons of a PLY become triangles.

    Raises:
        UserError: it cannot be read, has no triangles with an area, or numbers that are not finite.
    """
    _check_suffix(path)
    with reading(f"mesh {path}", WAY_OUT):
        source = _from_obj(path) if path.suffix.lower() == ".obj" else _from_parts(path)
        _check(source, path)
    return source


def read_surface(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Vertices [V, 3] and triangles [T, 3] of a mesh file in its own space, as they are.

    Raises:
        UserError: it is no mesh file, cannot be read, or has no triangles.
    """
    _check_suffix(path)
    if not path.is_file():
        raise UserError(f"mesh {path} does not exist; give the path of an OBJ, GLB or PLY")
    with reading(f"mesh {path}", WAY_OUT):
        if path.suffix.lower() == ".obj":
            found = read_obj(path)  # which triangulates concave polygons
            vertices, faces = found.vertices, found.corners[:, :, 0]
        else:
            vertices, faces = triangles(read_parts(path))
    _check_triangles(vertices, faces, path)
    return vertices, faces


def _check_suffix(path: Path) -> None:
    """Refuse a file that is no mesh by its name."""
    if path.suffix.lower() not in MESH_SUFFIXES:
        raise UserError(
            f"mesh {path}: expected one of {', '.join(MESH_SUFFIXES)}, got {path.suffix or 'no suffix'!r}; "
            "convert it, in Blender for instance"
        )


def _check_triangles(vertices: np.ndarray, faces: np.ndarray, path: Path) -> None:
    """Refuse a file without triangles [T, 3], or whose triangles refer to vertices [V, 3] that it does not have."""
    if len(faces) == 0:
        raise UserError(f"mesh {path} holds no triangles; export it as a surface")
    if faces.min() < 0 or faces.max() >= len(vertices):
        raise UserError(
            f"mesh {path} is damaged: its triangles refer to vertices up to {faces.max()}, and it has {len(vertices)}; "
            f"{WAY_OUT}"
        )


def _from_obj(path: Path) -> SourceMesh:
    """The content of an OBJ, which keeps uv and normals apart from positions."""
    found = read_obj(path)
    chosen = []
    for column, values in ((1, found.uv), (2, found.normals)):
        index = found.corners[:, :, column]
        whole = len(index) > 0 and bool((index >= 0).all())
        chosen += [values, index] if whole else [values[:0], _NONE]
    uv, uv_faces, normals, normal_faces = chosen
    faces = found.corners[:, :, 0]
    return SourceMesh(
        found.vertices, faces, found.polygon, found.place, uv, uv_faces, normals, normal_faces, np.eye(4), digest_of_file(path)
    )


def _from_parts(path: Path) -> SourceMesh:
    """The content of another format, whose vertices carry their uv and normals."""
    parts = read_parts(path)
    node = np.eye(4)
    if parts and all(np.array_equal(matrix, parts[0][1]) for _, matrix in parts):
        node = np.asarray(parts[0][1], dtype=np.float64)
        parts = [(part, np.eye(4)) for part, _ in parts]
    vertices, faces = triangles(parts)
    uv = [getattr(part.visual, "uv", None) for part, _ in parts]
    whole = bool(uv) and all(
        one is not None and len(one) == len(part.vertices) for one, (part, _) in zip(uv, parts, strict=True)
    )
    normals = [_own_normals(part, matrix) for part, matrix in parts]
    smooth = bool(normals) and all(one is not None for one in normals)
    return SourceMesh(
        vertices,
        faces,
        np.arange(len(faces)),
        np.tile(np.arange(3), (len(faces), 1)),
        np.concatenate([np.asarray(one, dtype=np.float64) for one in uv]) if whole else np.zeros((0, 2)),
        faces if whole else _NONE,
        np.concatenate([one for one in normals if one is not None]) if smooth else np.zeros((0, 3)),
        faces if smooth else _NONE,
        node,
        digest_of_file(path),
    )


def _own_normals(part, matrix: np.ndarray) -> np.ndarray | None:
    """The normals [V, 3] that the file has of a part, in the space of its matrix; None if it has none."""
    if "vertex_normals" not in part._cache:  # trimesh computes those that a file lacks, and keeps those that it has
        return None
    turned = np.asarray(part.vertex_normals, dtype=np.float64)
    return turned if np.array_equal(matrix, np.eye(4)) else moved_normals(turned, matrix)


def _check(source: SourceMesh, path: Path) -> None:
    """Refuse a mesh that cannot be painted."""
    _check_triangles(source.vertices, source.faces, path)
    for name, values in (("vertices", source.vertices), ("uv", source.uv), ("normals", source.normals)):
        bad = int((~np.isfinite(values)).any(axis=1).sum())
        if bad:
            raise UserError(f"mesh {path} has {name} that are not finite numbers ({bad} of {len(values)}); {WAY_OUT}")
    placed = source.placed
    if np.abs(placed).max() > LARGEST:
        raise UserError(
            f"mesh {path} reaches {np.abs(placed).max():.3g} from the origin, which single precision cannot hold; scale it"
        )
    used = placed[source.faces.reshape(-1)]
    size = float(np.ptp(used, axis=0).max())
    if size <= 0:
        raise UserError(f"mesh {path} has no size: all its triangles are at {used[0].tolist()}; {WAY_OUT}")
    a, b, c = np.moveaxis((placed / size)[source.faces], 1, 0)
    if not (np.linalg.norm(np.cross(b - a, c - a), axis=1) > 0).any():
        raise UserError(f"mesh {path} holds no triangle with an area; export it as a surface")
