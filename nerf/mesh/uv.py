"""Texture coordinates: unwrapping with xatlas, in blocks. V vertices, T triangles, t of them in a block, n new vertices.

uv has its origin at the lower left.
"""

import io
import subprocess
import sys
from dataclasses import replace

import numpy as np

from nerf.core.errors import ExportError
from nerf.core.progress import task
from nerf.mesh import uv_process
from nerf.mesh.mesh import Mesh

_UNWRAP_BLOCK = 1000  # triangles per call of xatlas' charting
_PADDING, _PADDING_SHARE = 3, 256  # texels between charts: at least so many, and this fraction of the texture
# The size at which a surface of any other is unwrapped: xatlas takes triangles of an area below 1e-7 for none, at (0, 0).
_CHARTED = 300.0
FEWER = "lower --decimate_target"
_ATTEMPTS = 3
_LEAST_SECONDS, _SECONDS = 120.0, 2e-3  # how long xatlas may take, and for each triangle; 30 times what it takes on two cores


def unwrap(mesh: Mesh, texture_size: int, polygon: np.ndarray | None = None, *, fewer: str = FEWER) -> Mesh:
    """Cut the surface into charts and pack them into the unit square (xatlas).

    The time of xatlas grows faster than the number of triangles, so it charts blocks of at most a thousand neighbouring
    triangles, and packs the charts of all blocks at the end: 20,000 triangles take 1.6 s instead of 3.6 s of one core, with
    hardly more charts. Packing for a texture of 4096 takes 3 s more. Charts are a 256th of the texture apart, 3 texels at
    least, so that they stay apart in mipmaps down to half that many texels. It runs in a process of its own, see
    :mod:`nerf.mesh.uv_process`.

    Args:
        mesh: welded, vertices [V, 3] and faces [T, 3].
        texture_size: edge of the texture in texels.
        polygon: [T] ascending numbers; triangles of one number come into one block. By default each is its own.
        fewer: what the user can do about too many triangles, as messages say it.

    Returns:
        The mesh with uv and weld, its vertices repeated along the seams; normals and colours are copied.

    Raises:
        ExportError: the atlas lost triangles or needs several textures, or xatlas failed.
    """
    polygon = np.arange(len(mesh.faces)) if polygon is None else np.unique(polygon, return_inverse=True)[1].reshape(-1)
    middles = mesh.corners.mean(axis=1)
    of_polygon = np.stack([np.bincount(polygon, axis) for axis in middles.T], 1) / np.bincount(polygon)[:, None]
    blocks = _blocks(of_polygon[polygon], np.arange(len(mesh.faces)), polygon)
    with task("unwrapping", 1) as advance:
        found = _charts(mesh, blocks, texture_size, fewer)
        advance(1)
    if found["textures"] != 1:
        raise ExportError(
            f"the charts do not fit into one texture of {texture_size}x{texture_size}, and one is written; raise "
            f"--texture_size or {fewer} (the same command with --test --save_mesh exports again)"
        )
    weld, uv = found["weld"], np.clip(found["uv"], 0.0, 1.0)
    copied = {k: None if (v := getattr(mesh, k)) is None else v[weld] for k in ("normals", "colors")}
    return replace(mesh, vertices=mesh.vertices[weld], faces=found["faces"], uv=uv, weld=weld, **copied)


def _charts(mesh: Mesh, blocks: list[np.ndarray], texture_size: int, fewer: str) -> dict[str, np.ndarray]:
    """What :func:`nerf.mesh.uv_process.charts` returns, with the triangles of the mesh, found by a process of its own.

    xatlas fails about once in a hundred times where other programs use the cores, and succeeds when it is asked again.
    """
    request, extent = io.BytesIO(), float(np.ptp(mesh.vertices, axis=0).max())
    np.savez(
        request,
        vertices=mesh.vertices * (_CHARTED / extent if extent > 0 else 1.0),
        faces=mesh.faces,
        order=np.concatenate(blocks),
        sizes=np.array([len(block) for block in blocks]),
        texture_size=texture_size,
        padding=max(_PADDING, texture_size // _PADDING_SHARE),
    )
    reason = ""
    for _ in range(_ATTEMPTS):
        try:
            found = _answer(request.getvalue(), _LEAST_SECONDS + _SECONDS * len(mesh.faces))
        except ExportError as error:
            reason = str(error)
            continue
        faces, weld = found["faces"], found["weld"]
        known = 0 <= int(faces.min(initial=0)) and int(faces.max(initial=0)) < len(weld)
        if known and np.array_equal(weld[faces], mesh.faces) and np.isfinite(found["uv"]).all():
            return found
        reason = "unwrapping lost triangles or changed their order"
    raise ExportError(f"{reason}; {fewer}")


def _answer(request: bytes, seconds: float) -> dict[str, np.ndarray]:
    """What the process says to a request; it is ended after so many seconds."""
    command = [sys.executable, uv_process.__file__]
    try:
        ended = subprocess.run(command, input=request, capture_output=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        raise ExportError(f"xatlas, which unwraps, did not end within {seconds:.0f} s") from None
    if ended.returncode != 0:
        said = ended.stderr.decode(errors="replace").strip().splitlines() or [f"exit code {ended.returncode}"]
        raise ExportError(f"xatlas, which unwraps, failed: {said[-1]}")
    with np.load(io.BytesIO(ended.stdout), allow_pickle=False) as found:
        return dict(found)


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
