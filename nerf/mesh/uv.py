"""Texture coordinates: unwrapping with xatlas, in blocks. V vertices, T triangles, t of them in a block, n new vertices.

uv has its origin at the lower left.
"""

from dataclasses import replace

import numpy as np

from nerf.core.errors import ExportError
from nerf.core.progress import track
from nerf.mesh.mesh import Mesh

_UNWRAP_BLOCK = 1000  # triangles per call of xatlas' charting
_PADDING, _PADDING_SHARE = 3, 256  # texels between charts: at least so many, and this fraction of the texture
_CHARTED = 1000.0  # extent at which a surface is charted: xatlas gives triangles smaller than 1e-7 the place (0, 0)
_EXTENT = (0.05, 1e3)  # scene units: a surface of another size is unwrapped at size 1, as xatlas takes tiny triangles for none
FEWER = "lower --decimate_target"
_MAX_COST = 1.0  # half of xatlas' default: compact charts, whose boundary does not come near itself


def unwrap(mesh: Mesh, texture_size: int, polygon: np.ndarray | None = None, *, fewer: str = FEWER) -> Mesh:
    """Cut the surface into charts and pack them into the unit square (xatlas).

    The time of xatlas grows faster than the number of triangles, so it charts blocks of at most a thousand neighbouring
    triangles, and packs the charts of all blocks at the end: 20,000 triangles take 1.6 s instead of 3.6 s of one core, with
    hardly more charts, and progress can be reported. Packing for a texture of 4096 takes 3 s more. Charts are a 256th of
    the texture apart, 3 texels at least, so that they stay apart in mipmaps down to half that many texels.

    Args:
        mesh: welded, vertices [V, 3] and faces [T, 3].
        texture_size: edge of the texture in texels.
        polygon: [T] ascending numbers; triangles of one number come into one block. By default each is its own.
        fewer: what the user can do about too many triangles, as messages say it.

    Returns:
        The mesh with uv and weld, its vertices repeated along the seams; normals and colours are copied.

    Raises:
        ExportError: the atlas lost triangles or needs several textures.
    """
    import xatlas

    extent = float(np.ptp(mesh.vertices, axis=0).max())
    if extent > 0 and not _EXTENT[0] <= extent <= _EXTENT[1]:
        flat = unwrap(replace(mesh, vertices=mesh.vertices / extent), texture_size, polygon, fewer=fewer)
        return replace(flat, vertices=mesh.vertices[flat.require("weld")])
    polygon = np.arange(len(mesh.faces)) if polygon is None else np.unique(polygon, return_inverse=True)[1].reshape(-1)
    middles = mesh.corners.mean(axis=1)
    of_polygon = np.stack([np.bincount(polygon, axis) for axis in middles.T], 1) / np.bincount(polygon)[:, None]
    blocks = _blocks(of_polygon[polygon], np.arange(len(mesh.faces)), polygon)
    atlas = xatlas.Atlas()
    vertices_of: list[np.ndarray] = []
    for block in track(blocks, "unwrapping"):
        source, local, uv = _chart(mesh, block, fewer)
        vertices_of.append(source)
        atlas.add_uv_mesh(uv, local)
    pack = xatlas.PackOptions()
    pack.padding = max(_PADDING, texture_size // _PADDING_SHARE)
    pack.resolution = texture_size
    atlas.generate(xatlas.ChartOptions(), pack)
    if atlas.atlas_count != 1:
        raise ExportError(
            f"the charts do not fit into one texture of {texture_size}x{texture_size}, and one is written; raise "
            f"--texture_size or {fewer} (the same command with --test --save_mesh exports again)"
        )
    faces, count = np.empty_like(mesh.faces), 0
    welds, uvs = [], []
    for k, block in enumerate(blocks):
        source, local, coordinates = atlas[k]
        if local.shape == (len(block), 3):
            faces[block] = local.astype(np.int64) + count
        welds.append(vertices_of[k][source])
        uvs.append(coordinates.astype(np.float64))
        count += len(source)
    weld, uv = np.concatenate(welds), np.clip(np.concatenate(uvs), 0.0, 1.0)
    if int(faces.max(initial=0)) >= count or not np.array_equal(weld[faces], mesh.faces):
        raise ExportError(f"unwrapping lost triangles or changed their order; {fewer}")
    copied = {k: None if (v := getattr(mesh, k)) is None else v[weld] for k in ("normals", "colors")}
    return replace(mesh, vertices=mesh.vertices[weld], faces=faces, uv=uv, weld=weld, **copied)


def _chart(mesh: Mesh, block: np.ndarray, fewer: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Charts of a block [t] of triangles: the source of each new vertex [n], triangles [t, 3], and uv [n, 2] in scene units."""
    import xatlas

    used, local = np.unique(mesh.faces[block], return_inverse=True)
    atlas, pack = xatlas.Atlas(), xatlas.PackOptions()
    enlarged = mesh.vertices[used] * (_CHARTED / max(float(np.ptp(mesh.vertices, axis=0).max()), 1e-30))
    atlas.add_mesh(enlarged.astype(np.float32), local.reshape(-1, 3).astype(np.uint32))
    pack.padding = 2  # charts of a block must not touch, or they would count as one
    options = xatlas.ChartOptions()
    options.max_cost = _MAX_COST
    atlas.generate(options, pack)
    source, local, uv = atlas[0]
    if local.shape != (len(block), 3):
        raise ExportError(f"unwrapping turned {len(block)} triangles into {len(local)}; {fewer}")
    source, uv = used[source], np.pad(uv.astype(np.float64), ((0, 0), (0, 1)))
    areas = [
        np.linalg.norm(np.cross(c[:, 1] - c[:, 0], c[:, 2] - c[:, 0]), axis=1).sum()
        for c in (mesh.vertices[source][local], uv[local])
    ]
    scale = np.sqrt(areas[0] / areas[1]) if min(areas) > 0 else 1.0
    return source, local, np.ascontiguousarray(uv[:, :2] * scale, dtype=np.float32)


def _blocks(centre: np.ndarray, index: np.ndarray, polygon: np.ndarray) -> list[np.ndarray]:
    """Halve a set of triangles (indices [t], centres [T, 3]) along its longest axis until no part exceeds a block.

    Triangles of one polygon [T] have one centre, and follow one another; they stay together.
    """
    if len(index) <= _UNWRAP_BLOCK:
        return [index]
    some = centre[index]
    order = np.argsort(some[:, np.ptp(some, axis=0).argmax()], kind="stable")
    number = polygon[index[order]]
    cuts = np.flatnonzero(np.diff(number)) + 1  # between two polygons
    if len(cuts) == 0:
        return [index]
    half = cuts[np.abs(cuts - len(order) // 2).argmin()]
    return _blocks(centre, index[order[:half]], polygon) + _blocks(centre, index[order[half:]], polygon)
