"""Textures: which texel sees which point of the surface, its colour, and no seams. All triangles at once, on the CPU.

Letters: V vertices, T triangles, P covered texels, S texture size, C channels, n samples of a texel along an edge.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nerf.core.errors import ExportError
from nerf.mesh.density_grid import Density, query_density
from nerf.mesh.mesh import Mesh

Color = Callable[[Tensor], Tensor]
Progress = Callable[[int, int], None]  # how much is done, of how much

_BAND = 2**21  # samples that are worked on at once
_RIM = 2.0  # texels beyond a chart that are baked from its triangles, drawn on; a bilinear lookup reaches one
_BEYOND = 20.0  # barycentric coordinates further out are a sliver's, and mean nothing


@dataclass(frozen=True)
class Texels:
    """P texels that a triangle covers, each once; beyond a chart, with weights outside [0, 1]."""

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
    """Find the texels whose centre lies in a triangle's uv; a triangle without one gets the texel of its centroid.

    Each triangle is cut into rows of texel centres, each row into the span between its two crossed edges, so the work
    is the number of covered texels and not of bounding boxes. Where triangles overlap or share an edge, one wins.

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
    """How many triangles lie over each texel, int64 [S, S]; more than one is an overlap.

    Points a little off the texel centres are counted, in an odd direction: a centre may lie on the edge of two triangles.
    """
    points = _in_texels(uv, faces, size) + [0.0137, 0.0211]
    _, row, column = _spans(points, 0, size, size)
    return np.bincount(row * size + column, minlength=size * size).reshape(size, size)


def _spans(points: np.ndarray, top: int, bottom: int, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Triangle, row and column of every texel centre in [top, bottom) rows that lies in a triangle [T, 3, 2]."""
    face, row, low, high = _rows(points, top, bottom)
    left = np.clip(np.ceil(low - 0.5), 0, size).astype(np.int64)
    count = np.maximum(np.clip(np.floor(high - 0.5), -1, size - 1).astype(np.int64) - left + 1, 0)
    span = np.repeat(np.arange(len(face)), count)
    column = left[span] + np.arange(len(span)) - np.repeat(np.cumsum(count) - count, count)
    return face[span], row[span], column


def _in_texels(uv: np.ndarray, faces: np.ndarray, size: int) -> np.ndarray:
    """Corners of triangles [T, 3, 2] as column and row of the texture, row 0 at the top."""
    return np.stack([uv[:, 0], 1.0 - uv[:, 1]], axis=1)[faces] * size


def _rows(points: np.ndarray, first: int, end: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Rows in [first, end) that triangles [T, 3, 2] cross: triangle, row, and the lowest and highest x on it."""
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
    """Give every texel [S, S, 3] without a colour that of the nearest one with a colour, so that no filter sees a seam.

    Args:
        texture: [S, S, 3].
        covered: [S, S] bool; True somewhere.
    """
    from scipy.ndimage import distance_transform_edt

    row, column = distance_transform_edt(~covered, return_distances=False, return_indices=True)
    return texture[row, column]


def light_depth(
    density: Density,
    points: np.ndarray,
    normals: np.ndarray,
    spacing: float,
    samples: int = 8,
    device: torch.device | str = "cpu",
) -> np.ndarray:
    """How deep below the surface the light comes from that somebody sees who looks straight at it, [V] scene units.

    A density field has no colour at its surface but a little below it. This is the mean depth of emission and
    absorption (Max 1995, eq. 3) along the inward normal, down to samples / 2 spacings: sum_i w_i t_i / sum_i w_i.
    Where nothing is met it is 0.

    Args:
        density: maps [M, 3] to [M].
        points: [V, 3] on the surface.
        normals: [V, 3] unit, outward.
        spacing: that of the lattice the surface came from; samples are half of it apart.
        samples: samples a point.
        device: where the field lives.
    """
    step = 0.5 * spacing
    depth = (np.arange(samples) + 0.5) * step
    below = points[:, None] - depth[:, None] * normals[:, None]
    asked = torch.from_numpy(below.reshape(-1, 3).astype(np.float32))
    optical = query_density(density, asked, device).numpy().reshape(-1, samples).astype(np.float64).clip(min=0) * step
    before = np.cumsum(optical, axis=1) - optical
    weight = np.exp(-before) * -np.expm1(-optical)
    return (weight * depth).sum(axis=1) / (weight.sum(axis=1) + 1e-6)


def query_color(albedo: Color, points: np.ndarray, device: torch.device | str = "cpu", chunk: int = 2**18) -> np.ndarray:
    """Ask a field for the colours of points [P, 3], a chunk at a time: [P, 3] in [0, 1].

    Raises:
        ExportError: a colour is NaN.
        ValueError: the field answers with another shape.
    """
    color = np.empty((len(points), 3), dtype=np.float32)
    for start in range(0, len(points), chunk):
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
    progress: Progress | None = None,
) -> tuple[np.ndarray, float]:
    """Fill a texture: covered texels with the mean of their samples, the rim by drawing charts on, the rest padded.

    A texel just beyond a chart's border gets the value where the chart's plane would be there, and not a copy of its
    neighbour, so that a bilinear lookup at the border sees the same from both of its sides. Everything further out
    repeats the nearest of these, so that no mipmap sees a texel without a value.

    Args:
        mesh: unwrapped.
        value: maps texels to values [P, C]; it is asked about two million at most at once.
        channels: C.
        size: S, texels along an edge. Working memory is about 45 S^2 bytes, 0.75 GB at 4096, and 400 MB for the samples.
        supersample: n; a texel that is covered all over is the mean of n x n samples.
        progress: told after every band of rows.

    Returns:
        float32 [S, S, C] with row 0 at v = 1, and the fraction of texels that triangles cover.
    """
    n, width = supersample, size * supersample
    total = np.zeros((size * size, channels), dtype=np.float32)
    owner, partly = np.full(size * size, -1, dtype=np.int32), np.zeros(size * size, dtype=bool)
    step = max(1, _BAND // (width * n))  # rows of texels
    for top in range(0, size, step):
        end = min(size, top + step)
        texels = rasterize_uv(mesh.uv, mesh.faces, width, (top * n, end * n))
        if len(texels):
            place = (texels.index // width // n - top) * size + texels.index % width // n
            seen, count = value(texels), np.bincount(place, minlength=(end - top) * size)
            band = slice(top * size, end * size)
            owner[band][place] = texels.face
            partly[band] = (count > 0) & (count < n * n)
            for channel in range(channels):
                mean = np.bincount(place, seen[:, channel], len(count)) / np.maximum(count, 1)
                total[band, channel] = mean
        if progress is not None:
            progress(end, size)
    covered = owner >= 0
    if not covered.any():
        return total.reshape(size, size, channels), 0.0
    return _draw_on(mesh, value, total, owner, partly, size), float(covered.mean())


def _draw_on(
    mesh: Mesh, value: Callable[[Texels], np.ndarray], total: np.ndarray, owner: np.ndarray, partly: np.ndarray, size: int
) -> np.ndarray:
    """Bake the texels of the rim from the triangle that owns the nearest covered one, and pad the rest [S, S, C].

    Those that are covered in part are of the rim too: the mean of their covered side is not the colour of their middle.
    """
    from scipy.ndimage import distance_transform_edt

    away, (row, column) = distance_transform_edt((owner < 0).reshape(size, size), return_indices=True)
    rim = np.flatnonzero(((away > 0) & (away <= _RIM)).reshape(-1) | partly)
    face = owner[row.reshape(-1)[rim] * size + column.reshape(-1)[rim]].astype(np.int64)
    del away, row, column
    for start in range(0, len(rim), _BAND):
        part = slice(start, start + _BAND)
        centre = np.stack([rim[part] % size, rim[part] // size], axis=1) + 0.5
        weights = _barycentric(_in_texels(mesh.uv, mesh.faces[face[part]], size), centre)
        sound = np.abs(weights).max(axis=1) < _BEYOND
        texels = Texels(rim[part][sound], face[part][sound], weights[sound], size)
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
    progress: Progress | None = None,
) -> tuple[np.ndarray, float]:
    """Bake the colours of a surface.

    Args:
        mesh: unwrapped, with normals.
        color: maps points [P, 3] to colours [P, 3] in [0, 1].
        size: S, texels along an edge.
        inset: [V] how far below the surface to ask for the colour, against the normal.
        supersample: n; a texel is the mean of n x n colours.
        progress: told how many rows are done, of how many.

    Returns:
        The texture, uint8 sRGB [S, S, 3] with row 0 at v = 1, and the fraction of it that triangles cover.
    """
    where = mesh.vertices if inset is None else mesh.vertices - inset[:, None] * mesh.normals
    texture, coverage = bake_texels(mesh, lambda texels: color(texels.interpolate(mesh, where)), 3, size, supersample, progress)
    return to_bytes(texture), coverage


def to_bytes(values: np.ndarray) -> np.ndarray:
    """Values in [0, 1] as uint8, rounded."""
    return np.round(np.clip(values, 0.0, 1.0) * 255.0).astype(np.uint8)
