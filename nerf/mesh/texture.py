"""Texture baking: the surface point of every texel, its colour, and padding beyond the charts. Vectorised, on the CPU.

Letters: V vertices, T triangles, P covered texels, S texture size, C channels, n samples of a texel along an edge.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nerf.core.errors import ExportError
from nerf.core.progress import track
from nerf.mesh.level_set_grid import QUERY_CHUNK, Values, query_values
from nerf.mesh.mesh import Mesh

Color = Callable[[Tensor], Tensor]

_BAND = 2**21  # samples per band of rows
_RIM = 2.0  # texels beyond a chart that are extrapolated from its triangles; a bilinear lookup reaches one
_BEYOND = 20.0  # barycentric coordinates further out belong to a sliver and cannot be extrapolated


@dataclass(frozen=True)
class Texels:
    """P texels and the triangle of each; texels beyond a chart have weights outside [0, 1]."""

    index: np.ndarray  # [P] int64, row * S + column, row 0 at the top (v = 1)
    face: np.ndarray  # [P] int64
    weights: np.ndarray  # [P, 3] barycentric coordinates, sum 1
    size: int  # S

    def __len__(self) -> int:
        return len(self.index)

    def interpolate(self, mesh: Mesh, values: np.ndarray) -> np.ndarray:
        """Values at vertices [V, C] as values at texels [P, C]."""
        return sum(self.weights[:, k, None] * values[mesh.faces[self.face, k]] for k in range(3))


def rasterize_uv(uv: np.ndarray, faces: np.ndarray, size: int, rows: tuple[int, int] | None = None) -> Texels:
    """The texels whose centre lies in a triangle of the uv map; a triangle without any gets the texel of its centroid.

    Triangles are scan-converted: each row of texel centres gives the span between the two edges that it crosses, so the
    cost is proportional to the covered texels. Where triangles overlap or share an edge, one of them gets the texel.

    Args:
        uv: [V, 2] in [0, 1], origin at the lower left.
        faces: [T, 3].
        size: S, texels along an edge.
        rows: the first row of texels, and the one after the last; None: all.
    """
    top, bottom = rows or (0, size)
    points = _in_texels(uv, faces, size)
    face, row, column = _spans(points, top, bottom, size)
    index, first = np.unique(row * size + column, return_index=True)
    owner = face[first]
    centroid = np.clip(points.mean(axis=1).astype(np.int64), 0, size - 1)
    bare = np.setdiff1d(np.flatnonzero((centroid[:, 1] >= top) & (centroid[:, 1] < bottom)), owner)
    texel = centroid[bare]
    extra, which = np.unique(texel[:, 1] * size + texel[:, 0], return_index=True)
    free = ~np.isin(extra, index, assume_unique=True)
    owner = np.concatenate([owner, bare[which[free]]])
    centre = np.stack([index % size, index // size], axis=1) + 0.5
    centre = np.concatenate([centre, points[bare[which[free]]].mean(axis=1)])
    weights = np.clip(_barycentric(points[owner], centre), 0.0, 1.0)
    weights /= weights.sum(axis=1, keepdims=True)
    return Texels(np.concatenate([index, extra[free]]), owner, weights, size)


def uv_layers(uv: np.ndarray, faces: np.ndarray, size: int) -> np.ndarray:
    """The number of triangles over each texel, int64 [S, S]; more than one is an overlap.

    Args:
        uv: [V, 2] in [0, 1], origin at the lower left.
        faces: [T, 3].
        size: S, texels along an edge.
    """
    # Sample points are off the texel centres, which may lie on the edge of two triangles and would count twice.
    points = _in_texels(uv, faces, size) + [0.0137, 0.0211]
    _, row, column = _spans(points, 0, size, size)
    return np.bincount(row * size + column, minlength=size * size).reshape(size, size)


def _spans(points: np.ndarray, top: int, bottom: int, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Triangle, row and column [P] of every texel centre that lies in a triangle [T, 3, 2], of rows in [top, bottom)."""
    face, row, low, high = _rows(points, top, bottom)
    left = np.clip(np.ceil(low - 0.5), 0, size).astype(np.int64)
    count = np.maximum(np.clip(np.floor(high - 0.5), -1, size - 1).astype(np.int64) - left + 1, 0)
    span = np.repeat(np.arange(len(face)), count)
    column = left[span] + np.arange(len(span)) - np.repeat(np.cumsum(count) - count, count)
    return face[span], row[span], column


def _in_texels(uv: np.ndarray, faces: np.ndarray, size: int) -> np.ndarray:
    """Corners of the triangles [T, 3, 2] in texels: column, and row with 0 at the top."""
    return np.stack([uv[:, 0], 1.0 - uv[:, 1]], axis=1)[faces] * size


def _rows(points: np.ndarray, first: int, end: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Rows in [first, end) that triangles [T, 3, 2] cross: triangle, row, lowest and highest x on it, [n] each."""
    top = np.clip(np.ceil(points[..., 1].min(axis=1) - 0.5), first, end).astype(np.int64)
    bottom = np.clip(np.floor(points[..., 1].max(axis=1) - 0.5), first - 1, end - 1).astype(np.int64)
    count = np.maximum(bottom - top + 1, 0)
    face = np.repeat(np.arange(len(points)), count)
    row = top[face] + np.arange(len(face)) - np.repeat(np.cumsum(count) - count, count)
    y = row + 0.5
    low, high = np.full(len(face), np.inf), np.full(len(face), -np.inf)
    for k in range(3):
        a, b = points[face, k], points[face, (k + 1) % 3]
        rise = b[:, 1] - a[:, 1]
        crosses = (np.minimum(a[:, 1], b[:, 1]) <= y) & (y <= np.maximum(a[:, 1], b[:, 1])) & (rise != 0)
        x = a[:, 0] + (y - a[:, 1]) / np.where(crosses, rise, 1.0) * (b[:, 0] - a[:, 0])
        low, high = np.where(crosses, np.minimum(low, x), low), np.where(crosses, np.maximum(high, x), high)
    some = low <= high
    return face[some], row[some], low[some], high[some]


def _barycentric(triangle: np.ndarray, point: np.ndarray) -> np.ndarray:
    """Barycentric coordinates [P, 3] of points [P, 2] in triangles [P, 3, 2]; a triangle without area gives thirds."""
    a, b, c = triangle[:, 0], triangle[:, 1], triangle[:, 2]

    def cross(u, v):
        return u[:, 0] * v[:, 1] - u[:, 1] * v[:, 0]

    area = cross(b - a, c - a)
    flat = np.abs(area) < 1e-12
    safe = np.where(flat, 1.0, area)
    second, third = cross(point - a, c - a) / safe, cross(b - a, point - a) / safe
    return np.where(flat[:, None], 1.0 / 3.0, np.stack([1.0 - second - third, second, third], axis=1))


def pad_texture(texture: np.ndarray, covered: np.ndarray) -> np.ndarray:
    """Fill every texel that is not covered with the value of the nearest one that is, so that no filter shows a seam.

    Args:
        texture: [S, S, C].
        covered: [S, S] bool; True somewhere.

    Returns:
        [S, S, C].
    """
    from scipy.ndimage import distance_transform_edt

    row, column = distance_transform_edt(~covered, return_distances=False, return_indices=True)
    return texture[row, column]


def light_depth(
    density: Values,
    points: np.ndarray,
    normals: np.ndarray,
    spacing: float,
    samples: int = 8,
    device: torch.device | str = "cpu",
) -> np.ndarray:
    """The mean depth below the surface from which light reaches an observer who looks along the normal, [V] scene units.

    What is seen of a density field is emitted a little below its level set. This is the mean depth of emission and
    absorption (Max 1995, eq. 3) along the inward normal, down to samples / 2 spacings: sum_i w_i t_i / sum_i w_i.
    It is 0 where there is no density.

    Args:
        density: maps positions [M, 3] to extinctions [M] per scene unit.
        points: [V, 3] on the surface.
        normals: [V, 3] unit, outward.
        spacing: of the grid that the surface was extracted from; samples are half of it apart.
        samples: per point.
        device: of the field.
    """
    step = 0.5 * spacing
    depth = (np.arange(samples) + 0.5) * step
    below = points[:, None] - depth[:, None] * normals[:, None]
    positions = torch.from_numpy(below.reshape(-1, 3).astype(np.float32))
    optical = query_values(density, positions, device).numpy().reshape(-1, samples).astype(np.float64).clip(min=0) * step
    before = np.cumsum(optical, axis=1) - optical
    weight = np.exp(-before) * -np.expm1(-optical)
    return (weight * depth).sum(axis=1) / (weight.sum(axis=1) + 1e-6)


def query_color(albedo: Color, points: np.ndarray, device: torch.device | str = "cpu", chunk: int = QUERY_CHUNK) -> np.ndarray:
    """Evaluate a field's colours at points [P, 3], a chunk at a time: float32 [P, 3] in [0, 1].

    Raises:
        ExportError: a colour is NaN.
        ValueError: the field returns another shape.
    """
    color = np.empty((len(points), 3), dtype=np.float32)
    for start in track(range(0, len(points), chunk), "evaluating colours"):
        part = torch.from_numpy(points[start : start + chunk].astype(np.float32))
        with torch.no_grad():
            seen = albedo(part.to(device)).float().cpu()
        if seen.shape != part.shape:
            raise ValueError(f"query_color: expected albedo {list(part.shape)}, got {list(seen.shape)}")
        if not bool(torch.isfinite(seen).all()):
            raise ExportError(
                "the albedo is NaN at the surface; training has diverged: resume an earlier checkpoint with a lower --lr"
            )
        color[start : start + chunk] = seen.clamp(0, 1).numpy()
    return color


def bake_texels(
    mesh: Mesh,
    value: Callable[[Texels], np.ndarray],
    channels: int,
    size: int,
    supersample: int = 1,
    doing: str = "baking a texture",
) -> tuple[np.ndarray, float]:
    """Fill a texture: covered texels with the mean of their samples, their rim by extrapolation, the rest by padding.

    A texel just beyond a chart's boundary gets the value at the point where the plane of the nearest triangle continues,
    rather than a copy of its neighbour, so that bilinear lookups on both sides of a seam agree. All texels further out
    repeat the nearest one with a value, so that mipmaps have no texel without one.

    Args:
        mesh: unwrapped.
        value: maps texels to values [P, C]; called with two million texels at most.
        channels: C.
        size: S, texels along an edge. Working memory is about 45 S^2 bytes, 0.75 GB at 4096, and 400 MB for the samples.
        supersample: n; a texel that is covered entirely is the mean of n x n samples.
        doing: name of the task that shows the progress.

    Returns:
        float32 [S, S, C] with row 0 at v = 1, and the fraction of texels that triangles cover.
    """
    n, width, uv = supersample, size * supersample, mesh.require("uv")
    total = np.zeros((size * size, channels), dtype=np.float32)
    owner, partly = np.full(size * size, -1, dtype=np.int32), np.zeros(size * size, dtype=bool)
    step = max(1, _BAND // (width * n))  # rows of texels
    for top in track(range(0, size, step), doing):
        end = min(size, top + step)
        texels = rasterize_uv(uv, mesh.faces, width, (top * n, end * n))
        if len(texels):
            place = (texels.index // width // n - top) * size + texels.index % width // n
            seen, count = value(texels), np.bincount(place, minlength=(end - top) * size)
            band = slice(top * size, end * size)
            owner[band][place] = texels.face
            partly[band] = (count > 0) & (count < n * n)
            for channel in range(channels):
                mean = np.bincount(place, seen[:, channel], len(count)) / np.maximum(count, 1)
                total[band, channel] = mean
    covered = owner >= 0
    if not covered.any():
        return total.reshape(size, size, channels), 0.0
    return _extrapolated(mesh, value, total, owner, partly, size), float(covered.mean())


def _extrapolated(
    mesh: Mesh, value: Callable[[Texels], np.ndarray], total: np.ndarray, owner: np.ndarray, partly: np.ndarray, size: int
) -> np.ndarray:
    """Bake the texels of the rim from the triangle of the nearest covered texel, and pad the rest: [S, S, C].

    Texels that are covered in part belong to the rim too: the mean over their covered side is not the value at their centre.
    """
    from scipy.ndimage import distance_transform_edt

    away, (row, column) = distance_transform_edt((owner < 0).reshape(size, size), return_indices=True)
    rim = np.flatnonzero(((away > 0) & (away <= _RIM)).reshape(-1) | partly)
    face = owner[row.reshape(-1)[rim] * size + column.reshape(-1)[rim]].astype(np.int64)
    del away, row, column
    for start in range(0, len(rim), _BAND):
        part = slice(start, start + _BAND)
        centre = np.stack([rim[part] % size, rim[part] // size], axis=1) + 0.5
        weights = _barycentric(_in_texels(mesh.require("uv"), mesh.faces[face[part]], size), centre)
        usable = np.abs(weights).max(axis=1) < _BEYOND
        texels = Texels(rim[part][usable], face[part][usable], weights[usable], size)
        total[texels.index] = value(texels)
        owner[texels.index] = texels.face
    shape = (size, size)
    return pad_texture(total.reshape(*shape, -1), (owner >= 0).reshape(shape))


def bake(
    mesh: Mesh,
    color: Callable[[np.ndarray], np.ndarray],
    size: int,
    inset: np.ndarray | None = None,
    supersample: int = 1,
    over: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray] | None = None,
) -> tuple[np.ndarray, float]:
    """Bake the colours of a surface.

    Args:
        mesh: unwrapped, with normals.
        color: maps points [P, 3] to colours [P, 3] in [0, 1].
        size: S, texels along an edge.
        inset: [V] depth below the surface, against the normal, at which the colour is evaluated.
        supersample: n; a texel is the mean of n x n colours.
        over: maps points of the surface [P, 3], their normals [P, 3] and these colours [P, 3] to those that are baked.

    Returns:
        The texture, uint8 sRGB [S, S, 3] with row 0 at v = 1, and the fraction of it that triangles cover.
    """
    where = mesh.vertices if inset is None else mesh.vertices - inset[:, None] * mesh.require("normals")

    def seen(texels: Texels) -> np.ndarray:
        colors = color(texels.interpolate(mesh, where))
        if over is None:
            return colors
        return over(texels.interpolate(mesh, mesh.vertices), texels.interpolate(mesh, mesh.require("normals")), colors)

    texture, coverage = bake_texels(mesh, seen, 3, size, supersample, "baking colours")
    return to_bytes(texture), coverage


def to_bytes(values: np.ndarray) -> np.ndarray:
    """Values [...] in [0, 1] as uint8 [...], rounded."""
    return np.round(np.clip(values, 0.0, 1.0) * 255.0).astype(np.uint8)
