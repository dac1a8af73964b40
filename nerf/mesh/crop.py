"""Cutting a surface to a box that is given in the coordinates of the exported file. M points."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from nerf.core.errors import UserError
from nerf.core.structs import LevelSet
from nerf.mesh.mesh import Mesh
from nerf.mesh.placement import check_transform, placement

_EDGE = 1e-9  # of the box, within which a triangle that ends in its wall is not cut


class CropBox:
    """A box in the coordinates of the exported file.

    Args:
        corners: x0 y0 z0 x1 y1 z1, low and high.
        placing: [4, 4] from the scene to the file, a rotation with a scale and an offset.
    """

    def __init__(self, corners: Sequence[float], placing: np.ndarray):
        low, high = np.array(corners[:3], dtype=np.float64), np.array(corners[3:], dtype=np.float64)
        scale = np.cbrt(np.linalg.det(placing[:3, :3]))
        self.rotation = placing[:3, :3] / scale
        self.offset = placing[:3, 3] / scale
        self.middle, self.half = (low + high) / 2 / scale, (high - low) / 2 / scale  # scene units, in the axes of the file

    def distance(self, points: Tensor) -> Tensor:
        """The signed distance [M] of scene points [M, 3] to the box, negative inside; exact inside and beside its walls."""
        rotation, offset, half = (
            torch.from_numpy(part).to(points) for part in (self.rotation, self.offset - self.middle, self.half)
        )
        beyond = (points @ rotation.T + offset).abs() - half
        return beyond.amax(-1).clamp(max=0) + beyond.clamp(min=0).norm(dim=-1)

    def level_set(self, level_set: LevelSet) -> LevelSet:
        """A level set that is empty outside the box; its surface is closed there."""

        def density(points: Tensor) -> Tensor:
            value = level_set.value(points)
            return torch.where(self.distance(points).to(value.device) <= 0, value, 0.0)

        def signed(points: Tensor) -> Tensor:
            value, beyond = level_set.value(points), self.distance(points)
            level = level_set.level or 0.0
            return torch.maximum(value, level + beyond) if level_set.inside == "below" else torch.minimum(value, level - beyond)

        return replace(level_set, value=density if level_set.logarithmic else signed)

    def mesh(self, mesh: Mesh) -> Mesh:
        """The triangles of a mesh inside the box, those across its walls cut there; open at the walls."""
        from trimesh.intersections import slice_faces_plane

        vertices, faces = mesh.vertices @ self.rotation.T + self.offset, mesh.faces
        for axis in range(3):
            for side in (-1.0, 1.0):
                if len(faces):
                    normal, origin = np.zeros(3), self.middle.copy()
                    normal[axis] = -side
                    origin[axis] += side * self.half[axis] * (1 + _EDGE)
                    vertices, faces = slice_faces_plane(vertices, faces, normal, origin)[:2]
        return Mesh((vertices - self.offset) @ self.rotation, np.asarray(faces, dtype=np.int64).reshape(-1, 3))


def crop_box(corners: Sequence[float], transform: np.ndarray | None, export_frame: str) -> CropBox:
    """The box of ``--mesh_crop``.

    Args:
        corners: x0 y0 z0 x1 y1 z1 in the coordinates of the exported file.
        transform: [4, 4] from the scene to the source, None if they are the same.
        export_frame: "object" or "source", see :func:`nerf.mesh.placement.placement`.
    """
    return CropBox(corners, placement(None if transform is None else check_transform(transform), export_frame))


def check_crop(corners: Sequence[float], transform: np.ndarray | None, export_frame: str, bound: float) -> None:
    """Refuse a crop box that has nothing in common with the scene's box [-bound, bound]^3, before a run begins.

    Raises:
        UserError: they do not meet; the message has the scene's box in the coordinates of the file.
    """
    placing = placement(None if transform is None else check_transform(transform), export_frame)
    signs = np.stack(np.meshgrid(*[(-bound, bound)] * 3, indexing="ij"), -1).reshape(-1, 3)
    scene = signs @ placing[:3, :3].T + placing[:3, 3]
    low, high = scene.min(axis=0), scene.max(axis=0)
    if (np.array(corners[3:]) <= low).any() or (np.array(corners[:3]) >= high).any():
        given, there = (" ".join(f"{value:.4g}" for value in box) for box in (corners, (*low, *high)))
        raise UserError(
            f"--mesh_crop {given} has nothing in common with the scene's box, {there} in the coordinates of the exported file; "
            "give a box inside it"
        )
