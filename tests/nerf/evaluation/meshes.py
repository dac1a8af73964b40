"""Meshes of the embedded prior's true shapes, with a colour at every vertex, and one that is glued to its mirror image."""

import numpy as np
import torch
from skimage.measure import marching_cubes

from guidance.prior.shapes import Shape, albedo, signed_distance
from nerf.run.mesh_evaluation import TexturedMesh

HALF, GRID = 0.66, 72


def mesh_of(shape: Shape, two_fronts: bool = False) -> TexturedMesh:
    """The surface of a shape; with two fronts, what is behind the middle is the mirror image of what is before it."""
    axis = torch.linspace(-HALF, HALF, GRID)
    points = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1)

    def there(points: torch.Tensor) -> torch.Tensor:
        return torch.cat([points[..., :2], points[..., 2:].abs()], -1) if two_fronts else points

    field = signed_distance(shape, there(points)).numpy()
    vertices, faces, _, _ = marching_cubes(field, 0.0, spacing=(2 * HALF / (GRID - 1),) * 3)
    vertices = torch.from_numpy((vertices - HALF).astype(np.float32))
    faces = torch.from_numpy(faces[:, ::-1].astype(np.int64).copy())
    return TexturedMesh(vertices, faces, albedo(shape, there(vertices)), faces, None)
