"""Measures a written mesh against a known solid: voxels, silhouettes, colours, and the direction of its front.

G voxels along a side of the box [-HALF, HALF]^3, V vertices, T triangles, K views of S x S pixels. World: +Y up, front +Z.
All in numpy; the known solids are those of ``guidance.prior.shapes``.
"""

from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch

from guidance.prior.camera import look_at
from guidance.prior.captions import Caption
from guidance.prior.render import views_of
from guidance.prior.shapes import EMPTY, Shape, family, occupancy
from nerf.evaluation.janus import SAME_SIDES, front_likeness
from nerf.mesh import io as mesh_io
from nerf.mesh import voxels
from nerf.mesh.mesh import Mesh, merged, vertex_normals

HALF = 0.7  # half the side of the measured box, scene units
GRID = 64  # voxels along a side


@dataclass(frozen=True)
class ColoredMesh:
    """A mesh whose colour is a texture or given per vertex."""

    vertices: np.ndarray  # [V, 3]
    faces: np.ndarray  # [T, 3]
    uv: np.ndarray | None = None  # [V, 2]
    texture: np.ndarray | None = None  # [H, W, 3] in [0, 1]
    color: np.ndarray | None = None  # [V, 3] in [0, 1]


@dataclass(frozen=True)
class Buffers:
    """What K cameras see of an object, pixel by pixel; normals are in the axes of the camera (x right, y up, z towards it)."""

    color: np.ndarray  # [K, S, S, 3] unlit, white where there is nothing
    mask: np.ndarray  # [K, S, S] bool
    normal: np.ndarray  # [K, S, S, 3] unit, zero where there is nothing


def read_mesh(path: Path) -> ColoredMesh:
    """Read a GLB or OBJ with a texture, vertex colours, or neither (then its colour is 0.5)."""
    mesh = mesh_io.read_mesh(path)
    if mesh.texture is not None:
        return ColoredMesh(mesh.vertices, mesh.faces, mesh.uv, mesh.texture / 255.0)
    color = np.full((len(mesh.vertices), 3), 0.5) if mesh.colors is None else mesh.colors / 255.0
    return ColoredMesh(mesh.vertices, mesh.faces, color=color)


def voxelize(mesh: ColoredMesh, grid: int = GRID) -> np.ndarray:
    """Voxel centres inside the mesh, closed cavities filled, bool [G, G, G]; see :func:`nerf.mesh.voxels.voxelize`."""
    from scipy.ndimage import binary_fill_holes

    return binary_fill_holes(voxels.voxelize(mesh.vertices, mesh.faces, np.full(3, -HALF), 2 * HALF / grid, grid))


def true_voxels(shape: Shape, grid: int = GRID) -> np.ndarray:
    """Voxel centres inside a captioned shape, closed cavities filled, bool [G, G, G]."""
    from scipy.ndimage import binary_fill_holes

    return binary_fill_holes(occupancy(shape, voxel_centres(grid)).numpy())


def voxel_centres(grid: int = GRID) -> torch.Tensor:
    """Voxel centres [G, G, G, 3]."""
    axis = ((torch.arange(grid) + 0.5) / grid * 2 - 1) * HALF
    return torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1)


def iou(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two bool arrays; 0 if both are empty."""
    union = np.logical_or(a, b).sum()
    return float(np.logical_and(a, b).sum() / union) if union else 0.0


def nearest_member(voxels: np.ndarray, members: list[Shape], truths: list[np.ndarray]) -> tuple[float, Shape]:
    """The member of a family with the highest IoU, and that IoU."""
    scores = [iou(voxels, truth) for truth in truths]
    best = int(np.argmax(scores))
    return scores[best], members[best]


def family_voxels(caption: Caption, count: int = 64, seed: int = 7) -> tuple[list[Shape], list[np.ndarray]]:
    """Members of a family and their voxels."""
    members = family(caption, count, seed)
    return members, [true_voxels(member) for member in members]


def best_ball(truths: list[np.ndarray]) -> float:
    """Highest IoU of any single ball with any member: the score of a shapeless blob.

    Centres are on a coarse grid around each member's centroid; every radius is tried (by sorting the distances).
    """
    grid = truths[0].shape[0]
    points = voxel_centres(grid).reshape(-1, 3).numpy()
    best = 0.0
    for truth in truths:
        flat = truth.reshape(-1)
        solid = points[flat]
        step = 0.06 * (solid.max(0) - solid.min(0))
        for offset in np.ndindex(3, 5, 3):
            centre = solid.mean(0) + (np.array(offset) - np.array([1, 2, 1])) * step
            order = np.argsort(((points - centre) ** 2).sum(-1), kind="stable")
            shared = np.cumsum(flat[order])
            union = flat.sum() + np.arange(1, len(order) + 1) - shared
            best = max(best, float((shared / union).max()))
    return best


def project(vertices: np.ndarray, pose: np.ndarray, fovy: float, size: int) -> np.ndarray:
    """Pixel x, pixel y (centres at integers) and depth along the view axis of vertices, [V, 3]."""
    local = (vertices - pose[:, 3]) @ pose[:, :3]
    depth = -local[:, 2]
    focal = size / 2 / np.tan(np.radians(fovy) / 2)
    return np.stack([size / 2 - 0.5 + focal * local[:, 0] / depth, size / 2 - 0.5 - focal * local[:, 1] / depth, depth], -1)


def rasterize(mesh: ColoredMesh, normals: np.ndarray, pose: np.ndarray, fovy: float, size: int) -> Buffers:
    """One view of a mesh whose vertices have these normals [V, 3]; each array without its K.

    Barycentric weights are those on the screen: accurate for the small triangles and long focal lengths used here.
    """
    screen = project(mesh.vertices, pose, fovy, size)
    corners = screen[mesh.faces]
    triangle, point, weights = voxels.covered(corners[:, :, :2], np.zeros(2), np.full(2, size - 1))
    depth = (weights * corners[triangle, :, 2]).sum(-1)
    order = np.lexsort((depth, point[:, 1] * size + point[:, 0]))
    triangle, point, weights = triangle[order], point[order], weights[order]
    _, nearest = np.unique(point[:, 1] * size + point[:, 0], return_index=True)
    triangle, point, weights = triangle[nearest], point[nearest], weights[nearest]
    picture, mask, normal = np.ones((size, size, 3)), np.zeros((size, size), bool), np.zeros((size, size, 3))
    mask[point[:, 1], point[:, 0]] = True
    picture[point[:, 1], point[:, 0]] = _color(mesh, triangle, weights)
    local = (normals[mesh.faces[triangle]] * weights[..., None]).sum(1) @ pose[:, :3]
    normal[point[:, 1], point[:, 0]] = local / np.maximum(np.linalg.norm(local, axis=-1, keepdims=True), 1e-9)
    return Buffers(picture, mask, normal)


def _color(mesh: ColoredMesh, triangle: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Colours [C, 3] at barycentric weights [C, 3] of triangles [C]."""
    corners = mesh.faces[triangle]
    if mesh.texture is None:
        return (mesh.color[corners] * weights[..., None]).sum(1)
    uv = (mesh.uv[corners] * weights[..., None]).sum(1)
    height, width = mesh.texture.shape[:2]
    column = np.clip((uv[:, 0] * width).astype(np.int64), 0, width - 1)
    row = np.clip(((1 - uv[:, 1]) * height).astype(np.int64), 0, height - 1)
    return mesh.texture[row, column]


def view_angles(count: int = 8, polar: float = 70.0) -> dict[str, torch.Tensor]:
    """Cameras around the object, the first in front: ``polar``, ``azimuth``, ``radius``, ``fovy``, each [K]."""
    azimuth = torch.arange(count) * 360.0 / count
    return {
        "polar": torch.full((count,), polar),
        "azimuth": azimuth,
        "radius": torch.full((count,), 3.2),
        "fovy": torch.full((count,), 24.0),
    }


def mesh_buffers(mesh: ColoredMesh, cameras: dict[str, torch.Tensor], size: int = 64) -> Buffers:
    """What K cameras see of a mesh, with smooth normals."""
    poses = look_at(cameras["polar"], cameras["azimuth"], cameras["radius"]).double().numpy()
    unique, index = merged(mesh.vertices)
    normals = vertex_normals(Mesh(unique, index[mesh.faces]))[index]
    views = [rasterize(mesh, normals, pose, float(fovy), size) for pose, fovy in zip(poses, cameras["fovy"], strict=True)]
    return Buffers(*(np.stack([getattr(view, field.name) for view in views]) for field in fields(Buffers)))


def mesh_views(mesh: ColoredMesh, cameras: dict[str, torch.Tensor], size: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """Unlit images [K, S, S, 3] and masks [K, S, S] of a mesh."""
    seen = mesh_buffers(mesh, cameras, size)
    return seen.color, seen.mask


def true_buffers(shape: Shape, cameras: dict[str, torch.Tensor], size: int = 64) -> Buffers:
    """What K cameras see of a captioned shape."""
    material, normal, _ = views_of(shape, cameras, size, supersample=1)
    palette = shape.palette.clone()
    palette[EMPTY] = 1.0
    return Buffers(palette[material.long()].double().numpy(), (material != EMPTY).numpy(), normal.double().numpy())


def true_views(shape: Shape, cameras: dict[str, torch.Tensor], size: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """Unlit images [K, S, S, 3] and masks [K, S, S] of a captioned shape."""
    seen = true_buffers(shape, cameras, size)
    return seen.color, seen.mask


def facing(seen: np.ndarray, truth: np.ndarray) -> tuple[float, bool | None]:
    """Whether each view shows the correct side; detects the Janus problem (a front on every side).

    Args:
        seen, truth: [K, S, S, 3] images of the result and of the true shape by the same K cameras on a circle.

    Returns:
        The fraction of views that resemble the corresponding true view, or a neighbour of it, as much as any other (within
        5 %: a house looks the same from the left and from the right), and whether front and back each resemble themselves
        more than the other (None if the true front and back look the same).
    """
    count = len(truth)
    error = np.abs(seen[:, None] - truth[None]).mean((2, 3, 4))
    here = np.arange(count)
    near = np.minimum(error[here, here], np.minimum(error[here, here - 1], error[here, (here + 1) % count]))
    fraction = float((near <= 1.05 * error.min(1) + 1e-6).mean())
    back = count // 2
    if np.abs(truth[0] - truth[back]).mean() < SAME_SIDES:
        return fraction, None
    right = error[0, 0] < error[0, back] and error[back, back] < error[back, 0]
    return fraction, bool(right)


def measure(mesh: ColoredMesh, caption: Caption, members: int = 64, views: int = 8) -> dict[str, object]:
    """All measures of one mesh: IoU with the nearest family member, silhouette IoU, albedo error, facing.

    Returns:
        ``iou``, ``silhouette`` (mean over views), ``albedo`` (mean absolute error where both are visible), ``facing``
        (fraction of views), ``front_back`` (bool or None), ``janus`` (:func:`nerf.evaluation.janus.front_likeness`) and
        ``proportions`` of the nearest member.
    """
    shapes, truths = family_voxels(caption, members)
    score, shape = nearest_member(voxelize(mesh), shapes, truths)
    cameras = view_angles(views)
    seen, mask = mesh_views(mesh, cameras)
    truth, true_mask = true_views(shape, cameras)
    both = mask & true_mask
    fraction, right = facing(seen, truth)
    return {
        "iou": score,
        "silhouette": float(np.mean([iou(a, b) for a, b in zip(mask, true_mask, strict=True)])),
        "albedo": float(np.abs(seen - truth)[both].mean()) if both.any() else 1.0,
        "facing": fraction,
        "front_back": right,
        "janus": front_likeness(seen, truth),
        "proportions": {name: round(value, 4) for name, value in shape.proportions.items()},
    }
