"""An independent renderer of mesh files: trimesh reads them and casts rays, without code of the project.

B views of H x W pixels. Ray casting is Embree's through embreex, or trimesh's own (slow) through rtree; one of them
must be installed. Tests hold the export to ``SAME_SILHOUETTE`` and ``SAME_COLOR``.
"""

import importlib.util
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import trimesh

from nerf.core.structs import Views

SAME_SILHOUETTE = 0.98  # least IoU of two silhouettes of one object
SAME_COLOR = 0.03  # largest mean colour error where both are


@dataclass(frozen=True)
class Picture:
    """What the mesh looks like; outside the mask colour is the background and the rest 0."""

    color: np.ndarray  # [B, H, W, 3] in [0, 1]
    mask: np.ndarray  # [B, H, W] bool
    depth: np.ndarray  # [B, H, W] distance along the unit ray
    normal: np.ndarray  # [B, H, W, 3] unit, from the file's vertex normals


def can_cast_rays() -> bool:
    """Whether one of the two packages that trimesh casts rays with is installed."""
    return any(importlib.util.find_spec(name) is not None for name in ("embreex", "rtree"))


def camera_rays(views: Views) -> tuple[np.ndarray, np.ndarray]:
    """Origins and unit directions [B * H * W, 3] of all pixels, from the pose and intrinsics alone.

    Raises:
        ValueError: the views have lens distortion.
    """
    if views.distortion is not None:
        raise ValueError("camera_rays: these views have lens distortion, which this renderer does not know")
    numbers = (views.pose, views.fx, views.fy, views.cx, views.cy)
    pose, fx, fy, cx, cy = (np.asarray(value, dtype=np.float64) for value in numbers)
    row, column = np.meshgrid(np.arange(views.height) + 0.5, np.arange(views.width) + 0.5, indexing="ij")
    right = (column[None] - cx[:, None, None]) / fx[:, None, None]
    up = (cy[:, None, None] - row[None]) / fy[:, None, None]
    local = np.stack([right, up, -np.ones_like(right)], axis=-1)
    local /= np.linalg.norm(local, axis=-1, keepdims=True)
    world = np.einsum("bij,bhwj->bhwi", pose[:, :3, :3], local)
    return np.broadcast_to(pose[:, None, None, :3, 3], world.shape).reshape(-1, 3), world.reshape(-1, 3)


def load_single(path: Path) -> trimesh.Trimesh:
    """The one mesh of a file as trimesh understands it, node transforms applied."""
    loaded = trimesh.load(path, process=False)
    if not isinstance(loaded, trimesh.Scene):
        return loaded
    (node,) = loaded.graph.nodes_geometry
    matrix, name = loaded.graph[node]
    mesh = loaded.geometry[name]
    return mesh if np.allclose(matrix, np.eye(4)) else mesh.apply_transform(matrix)


def bilinear(image: np.ndarray, uv: np.ndarray) -> np.ndarray:
    """Texture [S, S, 3] at uv [N, 2] (origin lower left), texel centres at one half, edges clamped: [N, 3] floats."""
    height, width = image.shape[:2]
    x = np.clip(uv[:, 0] * width - 0.5, 0, width - 1)
    y = np.clip((1.0 - uv[:, 1]) * height - 0.5, 0, height - 1)
    left, top = np.minimum(x.astype(int), width - 2), np.minimum(y.astype(int), height - 2)
    a, b = (x - left)[:, None], (y - top)[:, None]
    image = image.astype(np.float64)
    return (image[top, left] * (1 - a) + image[top, left + 1] * a) * (1 - b) + (
        image[top + 1, left] * (1 - a) + image[top + 1, left + 1] * a
    ) * b


def render_mesh(mesh: trimesh.Trimesh, views: Views, background: float = 1.0) -> Picture:
    """Cast a ray through every pixel centre and look up the texture (or vertex colours, or grey) where it hits."""
    normals = np.asarray(mesh.vertex_normals)  # before anything else, or trimesh forgets those of the file
    origins, directions = camera_rays(views)
    face, ray, where = mesh.ray.intersects_id(origins, directions, multiple_hits=False, return_locations=True)
    weights = trimesh.triangles.points_to_barycentric(mesh.triangles[face], where)
    corner = np.asarray(mesh.faces)[face]

    def blend(values: np.ndarray) -> np.ndarray:
        return np.einsum("nk,nkc->nc", weights, np.asarray(values, dtype=np.float64)[corner])

    material = getattr(mesh.visual, "material", None)
    image = getattr(material, "baseColorTexture", None) or getattr(material, "image", None)
    if image is not None and getattr(mesh.visual, "uv", None) is not None:
        seen = bilinear(np.asarray(image.convert("RGB")), blend(mesh.visual.uv)) / 255.0
    elif mesh.visual.kind == "vertex":
        seen = blend(np.asarray(mesh.visual.vertex_colors)[:, :3]) / 255.0
    else:
        seen = np.full((len(face), 3), 0.5)
    shape = (len(views), views.height, views.width)
    color, mask = np.full((len(origins), 3), float(background)), np.zeros(len(origins), dtype=bool)
    depth, normal = np.zeros(len(origins)), np.zeros((len(origins), 3))
    smooth = blend(normals)
    color[ray], mask[ray] = seen, True
    depth[ray] = np.linalg.norm(where - origins[ray], axis=1)
    normal[ray] = smooth / np.maximum(np.linalg.norm(smooth, axis=1, keepdims=True), 1e-12)
    return Picture(color.reshape(*shape, 3), mask.reshape(shape), depth.reshape(shape), normal.reshape(*shape, 3))


def render_glb(path: str | Path, views: Views, background: float = 1.0) -> Picture:
    """Read a GLB (or OBJ, PLY) with trimesh and render it from the views."""
    return render_mesh(load_single(Path(path)), views, background)


def silhouette_iou(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two masks of one shape; 1 if both are empty."""
    union = np.logical_or(a, b).sum()
    return 1.0 if union == 0 else float(np.logical_and(a, b).sum() / union)


def color_error(a: np.ndarray, b: np.ndarray, mask: np.ndarray) -> float:
    """Mean absolute difference of two pictures [..., 3] where the mask [...] is set."""
    return float(np.abs(a - b)[mask].mean())


def agreement(color: np.ndarray, mask: np.ndarray, picture: Picture) -> list[tuple[float, float]]:
    """How well our own render of B views, colour [B, H, W, 3] and mask [B, H, W], agrees with a file's picture.

    Returns:
        Silhouette IoU and mean colour error of every view.
    """
    return [
        (silhouette_iou(mask[b], picture.mask[b]), color_error(color[b], picture.color[b], mask[b] & picture.mask[b]))
        for b in range(len(mask))
    ]
