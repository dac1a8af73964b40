"""The colours that a mesh file has, at random points of its surface: texture, vertex colours or the colours of its materials.

P points, V vertices, T triangles, t triangles of one part.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nerf.mesh.gltf import TINT
from nerf.mesh.io import read_parts
from nerf.mesh.mesh import moved

if TYPE_CHECKING:
    from trimesh import Trimesh

_TINY = 4  # pixels along a side of a picture that stands for a colour
_PLAIN = ((255, 255, 255), (102, 102, 102), (100, 100, 100))  # of materials without a colour: glTF, trimesh


def sample_colors(path: Path, count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray] | None:
    """Random points of the surface of a file, evenly over its area, and their colours.

    Args:
        path: of the mesh.
        count: P.
        seed: of the points.

    Returns:
        Points [P, 3] in the space of the file and sRGB colours [P, 3] in [0, 1]; None if the file says no colour anywhere.

    Raises:
        UserError: it cannot be read.
    """
    parts = read_parts(path)
    if not any(_has_color(part) for part, _ in parts):
        return None
    rng = np.random.default_rng(seed)
    corners = [moved(np.asarray(part.vertices), matrix)[np.asarray(part.faces)] for part, matrix in parts]
    areas = [np.linalg.norm(np.cross(c[:, 1] - c[:, 0], c[:, 2] - c[:, 0]), axis=1) for c in corners]
    weight = np.concatenate(areas)
    chosen = np.sort(rng.choice(len(weight), count, p=weight / weight.sum()))
    first = rng.random((count, 2))
    flip = first.sum(axis=1) > 1
    first[flip] = 1 - first[flip]
    bary = np.concatenate([1 - first.sum(axis=1, keepdims=True), first], axis=1)
    ends = np.cumsum([len(one) for one in areas])
    points, colors = [], []
    for (part, _), corner, end in zip(parts, corners, ends, strict=True):
        mine = (chosen < end) & (chosen >= end - len(corner))
        triangle, inside = chosen[mine] - (end - len(corner)), bary[mine]
        points.append((corner[triangle] * inside[:, :, None]).sum(axis=1))
        colors.append(_colors(part, triangle, inside))
    return np.concatenate(points), np.concatenate(colors)


def _material_color(material: Any) -> np.ndarray:
    """The one colour [3] of a material, 0 to 255."""
    color = getattr(material, "baseColorFactor", None)
    color = getattr(material, "diffuse", None) if color is None else color
    return np.array(_PLAIN[0] if color is None else color, dtype=np.float64)[:3]


def _texture(material: Any) -> Any:
    """The picture of a material; None if it has none, or the one plain pixel that trimesh gives uv without a material."""
    picture = getattr(material, "baseColorTexture", None) or getattr(material, "image", None)
    if picture is None:
        return None
    extrema = picture.convert("RGB").getextrema()
    plain = max(picture.size) <= _TINY and all(low == high for low, high in extrema)
    return None if plain and tuple(low for low, _ in extrema) in _PLAIN else picture


def _has_color(part: "Trimesh") -> bool:
    """Whether a part has a colour of its own."""
    visual: Any = part.visual
    if visual.kind in ("vertex", "face") or TINT in part.vertex_attributes:
        return True
    if visual.kind != "texture":
        return False
    plain = tuple(_material_color(visual.material).astype(int).tolist()) in _PLAIN
    return _texture(visual.material) is not None or not plain


def _colors(part: "Trimesh", triangle: np.ndarray, bary: np.ndarray) -> np.ndarray:
    """Colours [P, 3] of a part at points in triangles [P] with barycentric coordinates [P, 3]."""
    visual: Any = part.visual
    corners = np.asarray(part.faces)[triangle]
    if TINT in part.vertex_attributes:
        return _tinted(part, corners, bary)
    if visual.kind == "vertex":
        return (np.asarray(visual.vertex_colors)[corners, :3] / 255.0 * bary[:, :, None]).sum(axis=1)
    if visual.kind == "face":
        return np.asarray(visual.face_colors)[triangle, :3] / 255.0
    if visual.kind != "texture":
        return np.full((len(triangle), 3), 0.5)
    factor, picture = _material_color(visual.material) / 255.0, _texture(visual.material)
    if picture is None or visual.uv is None:
        return np.broadcast_to(factor, (len(triangle), 3)).copy()
    uv = (np.asarray(visual.uv)[corners] * bary[:, :, None]).sum(axis=1)
    if getattr(visual.material, "baseColorFactor", None) is None:
        factor = np.ones(3)  # the Kd beside a map_Kd is ignored by most readers
    return lookup(np.asarray(picture.convert("RGB")) / 255.0, uv) * factor


def _tinted(part: "Trimesh", corners: np.ndarray, bary: np.ndarray) -> np.ndarray:
    """Colours [P, 3] of a part of a glTF: texture times vertex colours times material, in linear light (glTF 2.0, 3.9.2)."""
    visual: Any = part.visual
    linear = (np.asarray(part.vertex_attributes[TINT])[corners] * bary[:, :, None]).sum(axis=1).clip(0.0, 1.0)
    picture = _texture(visual.material) if visual.kind == "texture" else None
    if picture is not None and visual.uv is not None:
        uv = (np.asarray(visual.uv)[corners] * bary[:, :, None]).sum(axis=1)
        linear *= to_linear(lookup(np.asarray(picture.convert("RGB")) / 255.0, uv))
    return to_srgb(linear)


def to_linear(srgb: np.ndarray) -> np.ndarray:
    """Linear light of sRGB values in [0, 1] (IEC 61966-2-1)."""
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


def to_srgb(linear: np.ndarray) -> np.ndarray:
    """sRGB values of linear light in [0, 1]; the inverse of :func:`to_linear`."""
    return np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)


def lookup(texture: np.ndarray, uv: np.ndarray) -> np.ndarray:
    """Bilinear values [P, C] of a repeating texture [H, W, C] with row 0 at v = 1, at uv [P, 2] with the origin lower left."""
    height, width, channels = texture.shape
    index, share = corners_of(uv, height, width)
    texels = texture.reshape(-1, channels)
    found: np.ndarray = sum(texels[index[:, i]] * share[:, i, None] for i in range(4))
    return found


def corners_of(uv: np.ndarray, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """The four texels [P, 4] in [0, H * W) of bilinear lookups at uv [P, 2], and their shares [P, 4]; see :func:`lookup`."""
    x, y = uv[:, 0] * width - 0.5, (1.0 - uv[:, 1]) * height - 0.5
    left, top = np.floor(x).astype(np.int64), np.floor(y).astype(np.int64)
    across, down = x - left, y - top
    index = [row % height * width + column % width for row in (top, top + 1) for column in (left, left + 1)]
    share = [b * a for b in (1 - down, down) for a in (1 - across, across)]
    return np.stack(index, axis=1), np.stack(share, axis=1)
