"""Where the mesh lies in its file: the transform of a data set that was normalised on loading, undone in part or entirely.

Three frames: the box that is trained in (+Y up, front +Z), the file, and the source, the data's own world.
"""

import json
from pathlib import Path

import msgspec
import numpy as np

from nerf.core.errors import UserError
from nerf.core.files import read_json, write_atomically
from nerf.mesh.mesh import moved

FILE = "transform.json"  # beside a mesh
WAY_OUT = "export the mesh again"


def check_transform(matrix) -> np.ndarray:
    """A transform from the box to the source as float64 [4, 4].

    Raises:
        ValueError: another shape, values that are not finite, or a mirroring.
    """
    matrix = np.asarray(matrix, dtype=np.float64)
    if matrix.shape != (4, 4) or not np.isfinite(matrix).all():
        raise ValueError(f"export: expected transform as a finite [4, 4], got {list(matrix.shape)}")
    determinant = np.linalg.det(matrix[:3, :3])
    if determinant <= 0:
        raise ValueError(
            f"export: the transform mirrors or flattens (determinant {determinant:.4g}), and a mesh "
            "is never mirrored; its 3x3 part must be a rotation times a positive scale"
        )
    return matrix


def placement(transform: np.ndarray | None, export_frame: str) -> np.ndarray:
    """The matrix [4, 4] from the box to the file.

    Args:
        transform: [4, 4] from the box to the source, None if they are the same.
        export_frame: "source" applies the transform, "object" its scale and offset only, in the axes of the box.
    """
    if transform is None:
        return np.eye(4)
    if export_frame == "source":
        return transform
    scale = np.cbrt(np.linalg.det(transform[:3, :3]))
    rotation = transform[:3, :3] / scale
    matrix = np.eye(4)
    matrix[:3, :3] *= scale
    matrix[:3, 3] = rotation.T @ transform[:3, 3]
    return matrix


def on_ground(placing: np.ndarray, vertices: np.ndarray) -> np.ndarray:
    """The matrix [4, 4] from the box to the file, moved so that the lowest of vertices [V, 3] of the box is at y = 0 there."""
    grounded = placing.copy()
    grounded[1, 3] -= moved(vertices, placing)[:, 1].min()
    return grounded


def write_transform(folder: Path, transform: np.ndarray | None, placing: np.ndarray, export_frame: str) -> Path:
    """Write ``transform.json``: the matrices [4, 4] (rows, column vectors) between box, file and source.

    Without a ``transform`` the box is the source.
    """
    transform = np.eye(4) if transform is None else transform
    content = {
        "export_frame": export_frame,
        "convention": "p_to = matrix @ (x, y, z, 1); box: trained in, +Y up, front +Z; file: mesh.obj and mesh.glb; "
        "source: the data's own world",
        "box_to_file": placing.tolist(),
        "box_to_source": transform.tolist(),
        "file_to_source": (transform @ np.linalg.inv(placing)).tolist(),
    }
    text = json.dumps(content, indent=1)
    return write_atomically(folder / FILE, lambda path: path.write_text(text, encoding="utf-8"))


class _Written(msgspec.Struct):
    """What is read of ``transform.json``."""

    box_to_file: list[list[float]]


def read_placing(folder: Path) -> np.ndarray:
    """The matrix [4, 4] from the box to the files of a folder, as :func:`write_transform` wrote it; else the identity.

    Raises:
        UserError: ``transform.json`` is damaged.
    """
    path = folder / FILE
    if not path.is_file():
        return np.eye(4)
    written: _Written = read_json(path, WAY_OUT, _Written)
    try:
        return check_transform(written.box_to_file)
    except ValueError:
        raise UserError(f"{path}: expected box_to_file as the 4x4 matrix of a mesh that is not mirrored; {WAY_OUT}") from None
