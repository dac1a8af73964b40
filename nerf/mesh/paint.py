"""Paints a mesh file: a texture for triangles that stay as they are, to the bit.

The uv of the file are used where every point of the surface has texels of its own in them; else the triangles are unwrapped
anew, and only uv change. V vertices, T triangles, U uv, K normals, n vertices of a GLB, which has one uv and normal for each.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from nerf.core.errors import ExportError
from nerf.core.files import replace_folder
from nerf.core.memory import explained
from nerf.mesh.decimate import Decimation
from nerf.mesh.export import FILES, ExportJob, ExportReport, Progress, checked
from nerf.mesh.export_options import ExportOptions
from nerf.mesh.io import check_texture, read_mesh, text_rows, write_glb, write_look, write_obj_rows, write_ply, write_stl
from nerf.mesh.mesh import Mesh, is_watertight, merged, moved, moved_normals, signed_volume, vertex_normals
from nerf.mesh.placement import placement, write_transform
from nerf.mesh.repair import Cleaning
from nerf.mesh.soundness import soundness
from nerf.mesh.source import SourceMesh, read_source
from nerf.mesh.texture import Color, bake, to_bytes, uv_layers
from nerf.mesh.uv import unwrap

_OVERLAP = 0.01  # of the covered texels: more under two triangles or more need another layout
_BARE = 0.01  # of the surface: more without an area in the texture needs another layout
_BORDER = 1e-6  # of the texture: a triangle that extends less beyond its border does not enter the other side
_NO_AREA = 1e-12  # twice the area in the texture below which a triangle has none
_UV_LOSS = 1e-6  # of the texture: more by the rounding of the GLB is too much; a texel of 4096 is 250 times that
_LAYOUT_SIZE = 1024  # texels along an edge at which overlaps are counted
_FEWER = "give a mesh of fewer triangles"
_FAR = 100.0  # sizes from the origin: further out, float32 loses more than a hundred thousandth of the size


@dataclass(frozen=True)
class UvLayout:
    """Where the triangles lie in the texture, which repeats beyond the unit square."""

    uv: np.ndarray  # [U, 2] origin at the lower left, as written
    faces: np.ndarray  # [T, 3] int64, uv of each corner

    def in_single_precision(self) -> np.ndarray:
        """The uv [U, 2] as a GLB has them: moved by whole textures, which changes nothing, where float32 needs that."""
        if _loss(self.uv) <= _UV_LOSS:
            return self.uv
        used = self.uv[self.faces.reshape(-1)]
        moved: np.ndarray = self.uv - np.floor(0.5 * (used.min(axis=0) + used.max(axis=0)))
        return moved

    def copies(self) -> tuple[np.ndarray, np.ndarray]:
        """The triangles brought into the unit square, one across its border once for each side that it enters again.

        Returns:
            The triangle [P] of each copy, and the uv of its corners [P, 3, 2].
        """
        corners = self.uv[self.faces]
        low = np.floor(corners.min(axis=1) + _BORDER)
        high = np.maximum(np.ceil(corners.max(axis=1) - _BORDER) - 1, low)
        found = []
        for step in ([0, 0], [1, 0], [0, 1], [1, 1]):
            tile = low + step
            inside = np.flatnonzero((tile <= high).all(axis=1))
            found.append((inside, corners[inside] - tile[inside, None]))
        return np.concatenate([one for one, _ in found]), np.concatenate([uv for _, uv in found])


def uv_layout(source: SourceMesh, placed: np.ndarray) -> tuple[UvLayout | None, str]:
    """The layout of the file, or why it cannot hold a texture of its own for every point of the surface.

    Args:
        source: the mesh.
        placed: [V, 3] its vertices where areas are measured.

    Returns:
        The layout and "", or None and the reason.
    """
    if len(source.uv_faces) == 0:
        return None, "it has no uv, or not for all of its triangles"
    layout = UvLayout(source.uv, source.uv_faces)
    corners = layout.uv[layout.faces]
    large = int((np.ptp(corners, axis=1) > 1.0).any(axis=1).sum())
    if large:
        return None, f"{large:,} of its triangles are larger than the texture and repeat it"
    if _loss(layout.in_single_precision()[layout.faces]) > _UV_LOSS:
        return None, "its uv extend further than single precision can tell texels apart"
    area = np.linalg.norm(Mesh(placed, source.faces).face_normals, axis=1)
    first, second = np.moveaxis(corners[:, 1:] - corners[:, :1], 1, 0)
    flat = np.abs(first[:, 0] * second[:, 1] - first[:, 1] * second[:, 0]) < _NO_AREA
    bare = float(area[flat].sum() / area.sum())
    if bare > _BARE:
        return None, f"{100 * bare:.0f} % of its surface has no area in the texture"
    triangle, uv = layout.copies()
    layers = uv_layers(uv.reshape(-1, 2), _own_corners(len(triangle)), _LAYOUT_SIZE)
    shared = float((layers > 1).sum() / max((layers > 0).sum(), 1))
    if shared > _OVERLAP:
        return None, f"{100 * shared:.0f} % of its texels belong to several places of the surface"
    return layout, ""


def _loss(uv: np.ndarray) -> float:
    """How far float32 moves any of the uv [..., 2]."""
    return float(np.abs(uv.astype(np.float32) - uv).max(initial=0.0))


def _own_corners(count: int) -> np.ndarray:
    """Triangles [T, 3] none of which share a vertex."""
    return np.arange(3 * count).reshape(-1, 3)


def _unwrapped(source: SourceMesh, placed: np.ndarray, size: int) -> UvLayout:
    """A new layout of the same triangles by xatlas."""
    # Files repeat vertices along the seams of their texture, and hold some that no triangle uses.
    unique, index = merged(placed[source.faces.reshape(-1)])
    flat = unwrap(Mesh(unique, index.reshape(-1, 3)), size, source.polygon, fewer=_FEWER)
    return UvLayout(flat.require("uv"), flat.faces)


def _divided(source: SourceMesh, layout: UvLayout) -> tuple[SourceMesh, int]:
    """The mesh whose polygons with two uv at a corner are their triangles instead, and how many those are.

    A new layout may cut through a polygon, as the texture of a folded one could not be flat.
    """
    corner = np.stack([np.repeat(source.polygon, 3), source.place.reshape(-1), layout.faces.reshape(-1)], axis=1)
    kinds = np.unique(corner, axis=0)
    twice = (np.diff(kinds[:, :2], axis=0) == 0).all(axis=1)
    cut = np.unique(kinds[1:][twice, 0])
    apart = np.isin(source.polygon, cut)
    first = np.diff(source.polygon, prepend=-1) != 0
    polygon = np.cumsum(first | apart) - 1
    return replace(source, polygon=polygon, place=np.where(apart[:, None], np.arange(3), source.place)), len(cut)


@dataclass(frozen=True)
class _Split:
    """Vertices with one uv and one normal each: the first V are those of the file, in its order; the rest repeat some."""

    faces: np.ndarray  # [T, 3]
    vertex: np.ndarray  # [n] vertex of the file
    uv: np.ndarray  # [n] its uv
    normal: np.ndarray  # [n] its normal


def _split(count: int, faces: np.ndarray, uv_faces: np.ndarray, normal_faces: np.ndarray) -> _Split:
    """Repeat those of V = ``count`` vertices that have several uv or normals."""
    key = np.stack([faces, uv_faces, normal_faces], axis=2).reshape(-1, 3)
    kinds, first, inverse = np.unique(key, axis=0, return_index=True, return_inverse=True)
    order = np.argsort(first, kind="stable")  # in the order of the file
    _, leading = np.unique(kinds[order, 0], return_index=True)
    own, others = order[np.sort(leading)], np.delete(order, leading)
    place = np.empty(len(kinds), dtype=np.int64)
    place[own] = kinds[own, 0]
    place[others] = count + np.arange(len(others))
    columns = np.zeros((count + len(others), 3), dtype=np.int64)
    columns[:count, 0] = np.arange(count)  # a vertex that no triangle uses has the first uv and normal
    columns[place] = kinds
    return _Split(place[inverse.reshape(-1)].reshape(-1, 3), *columns.T)


def export_painted(
    source: SourceMesh,
    to_box: np.ndarray,
    albedo: Color,
    folder: str | Path,
    options: ExportOptions,
    *,
    bound: float,
    transform=None,
    metadata: dict | None = None,
    report: Callable[[str], None] | None = None,
    device: torch.device | str = "cpu",
) -> ExportReport:
    """Write a mesh file with a texture: the same vertices, triangles and polygons, in the same order.

    The OBJ has the numbers of the file in the shortest decimals that mean the same float64. The GLB has them as float32,
    with the node of the file; a vertex with several uv or normals is repeated at the end.

    Args:
        source: the mesh.
        to_box: [4, 4] from the space of its file to the box.
        albedo: maps points [M, 3] of the box to sRGB colours [M, 3] in [0, 1].
        folder, options, bound, transform, metadata, report, device: as for :func:`nerf.mesh.export.export_surface`; what is
            about changing the surface has no effect.

    Raises:
        ExportError: a colour is not finite, the charts of a new layout do not fit, or a file was read back otherwise.
        OSError: a file cannot be written.
    """
    job = ExportJob(albedo, Path(folder), options, bound, checked(transform), metadata or {}, device, Progress(report))
    progress, placed = job.progress, moved(source.placed, to_box)
    source, layout, notes = _laid_out(source, placed, options.texture_size, progress)
    with explained("baking the texture", "lower --texture_size or --texture_supersample"):
        texture, coverage = _baked(source, placed, layout, job)
    progress.done("bake", f"baked {options.texture_size}^2 texels, {100 * coverage:.0f} % covered")
    # Vertices at the same place are one.
    closed = is_watertight(Mesh(source.vertices, source.faces, weld=merged(source.vertices)[1]))
    files = _write(source, placed, layout, texture, job, closed)
    progress.done("write", "wrote and read back " + ", ".join(path.name for path in files.values()))
    there = Mesh(source.placed, source.faces)
    used = there.corners.reshape(-1, 3)
    return ExportReport(
        files=files,
        vertices=len(source.vertices),
        faces=len(source.faces),
        parts_dropped=0,
        watertight=closed,
        cleaning=Cleaning(),
        decimation=Decimation(len(source.faces), 0.0, 0.0, 0),
        volume=signed_volume(there),
        bounds=(tuple(map(float, used.min(axis=0))), tuple(map(float, used.max(axis=0)))),
        texture_coverage=coverage,
        soundness=soundness(Mesh(there.vertices, there.faces, weld=merged(there.vertices)[1])),
        seconds=progress.seconds,
        notes=notes,
    )


def _laid_out(
    source: SourceMesh, placed: np.ndarray, size: int, progress: Progress
) -> tuple[SourceMesh, UvLayout, tuple[str, ...]]:
    """The uv of the file if they can be used, else new ones; the mesh with the polygons that they leave, and notes."""
    layout, reason = uv_layout(source, placed)
    if layout is not None:
        progress.done("unwrap", f"kept the {len(layout.uv):,} uv of the file")
        return source, layout, ()
    with explained("unwrapping the mesh", _FEWER):
        layout = _unwrapped(source, placed, size)
    source, cut = _divided(source, layout)
    kept = f"its vertices and triangles are unchanged{f', {cut:,} of its polygons are their triangles' if cut else ''}"
    progress.done("unwrap", f"unwrapped into {len(layout.uv):,} uv, as {reason}")
    return source, layout, (f"the mesh was unwrapped anew, as {reason}; {kept}",)


def _baked(source: SourceMesh, placed: np.ndarray, layout: UvLayout, job: ExportJob) -> tuple[np.ndarray, float]:
    """The texture [S, S, 3], and the fraction of it that triangles cover."""
    triangle, uv = layout.copies()
    corners = Mesh(placed[source.faces[triangle]].reshape(-1, 3), _own_corners(len(triangle)), uv=uv.reshape(-1, 2))
    return bake(corners, job.colors_at, job.options.texture_size, supersample=job.options.supersample)


def _normals(source: SourceMesh) -> tuple[np.ndarray, np.ndarray]:
    """Normals [K, 3] beside the vertices and their indices [T, 3]: those of the file, else smooth ones."""
    if len(source.normal_faces):
        return source.normals, source.normal_faces
    unique, index = merged(source.vertices)
    centred = unique - unique.mean(axis=0)
    smooth = vertex_normals(Mesh(centred / max(float(np.abs(centred).max()), 1e-300), index[source.faces]))
    return smooth[index], source.faces


def _write(
    source: SourceMesh, placed: np.ndarray, layout: UvLayout, texture: np.ndarray, job: ExportJob, closed: bool
) -> dict[str, Path]:
    """Write OBJ, GLB and the rest, and compare what is read back; then they replace the old ones."""
    normals, normal_faces = _normals(source)
    split = _split(len(source.vertices), source.faces, layout.faces, normal_faces)
    uv = layout.in_single_precision()[split.uv]
    flat = Mesh(source.vertices[split.vertex], split.faces, normals[split.normal], uv, split.vertex, texture=texture)
    node, centre = source.node, _centre(source)
    if centre is not None:
        node = node @ np.block([[np.eye(3), centre[:, None]], [np.zeros((1, 3)), np.ones((1, 1))]])
        flat = replace(flat, vertices=flat.vertices - centre)
    look, comment = job.look, job.comment
    with replace_folder(job.folder, FILES) as fresh, explained("writing the mesh", "lower --texture_size"):
        files = write_look(fresh, flat, look, comment)
        files["obj"] = write_obj_rows(fresh, _obj_rows(source, layout, normals, normal_faces), look, comment)
        matrix = None if np.array_equal(node, np.eye(4)) else node
        # One that is wound the wrong way would be shown from inside alone.
        outward = closed and signed_volume(Mesh(source.vertices, source.faces)) > 0
        files["glb"] = write_glb(fresh / "mesh.glb", flat, look, job.metadata, matrix, two_sided=not outward)
        _check_obj(files["obj"], source, layout)
        _check_glb(files["glb"], flat)
        if job.options.ply:
            colors = to_bytes(job.colors_at(placed))
            whole = Mesh(source.placed, source.faces, flat.require("normals")[: len(placed)], colors=colors)
            files["ply"] = write_ply(fresh / "mesh.ply", whole)
        if job.options.stl:
            files["stl"] = write_stl(fresh / "mesh.stl", Mesh(source.placed, source.faces))
            if not np.array_equal(read_mesh(files["stl"]).corners, source.placed[source.faces].astype(np.float32)):
                raise ExportError("mesh.stl was read back with other triangles; check the disk and write it again")
        if job.transform is not None:
            placing = placement(job.transform, job.options.export_frame)
            files["transform"] = write_transform(fresh, job.transform, placing, job.options.export_frame)
    return {name: job.folder / path.name for name, path in files.items()}


def _centre(source: SourceMesh) -> np.ndarray | None:
    """The middle [3] of a mesh that float32 would lose the shape of where it is; None for any other."""
    used = source.vertices[source.faces.reshape(-1)]
    size, reach = float(np.ptp(used, axis=0).max()), float(np.abs(used).max())
    exact = np.array_equal(source.vertices.astype(np.float32).astype(np.float64), source.vertices)
    return None if exact or reach < _FAR * size else 0.5 * (used.min(axis=0) + used.max(axis=0))


def _obj_rows(source: SourceMesh, layout: UvLayout, normals: np.ndarray, normal_faces: np.ndarray) -> list[str]:
    """The lines of the OBJ. Decimals are the shortest that are read as the same float64."""
    turned = normals
    if not np.array_equal(source.node, np.eye(4)):
        turned = moved_normals(normals, source.node)
    corners = np.stack([source.faces, layout.faces, normal_faces], axis=2) + 1
    return [
        text_rows("v %r %r %r\n", source.placed),
        text_rows("vt %r %r\n", layout.uv),
        text_rows("vn %r %r %r\n", turned),
        _face_rows(corners, source.polygon, source.place),
    ]


def _face_rows(corners: np.ndarray, polygon: np.ndarray, place: np.ndarray) -> str:
    """The f lines of triangles with indices [T, 3, 3]; those of one polygon [T], with places [T, 3] there, are one line."""
    if len(np.unique(polygon)) == len(polygon):
        return text_rows("f %d/%d/%d %d/%d/%d %d/%d/%d\n", corners)
    lines, start = [], np.flatnonzero(np.diff(polygon, prepend=-1))
    for a, b in zip(start, [*start[1:], len(polygon)], strict=True):
        _, first = np.unique(place[a:b], return_index=True)
        outline = corners[a:b].reshape(-1, 3)[first].tolist()
        lines.append("f " + " ".join(f"{v}/{vt}/{vn}" for v, vt, vn in outline) + "\n")
    return "".join(lines)


def _check_obj(path: Path, source: SourceMesh, layout: UvLayout) -> None:
    """Read an OBJ back: every number must be that of the source.

    Raises:
        ExportError: one is not.
    """
    read = read_source(path)
    pairs = {
        "position": (read.vertices, source.placed),
        "triangle": (read.faces, source.faces),
        "polygon": (read.polygon, np.unique(source.polygon, return_inverse=True)[1].reshape(-1)),
        "uv": (read.uv, layout.uv),
        "uv of a corner": (read.uv_faces, layout.faces),
    }
    for what, (found, wanted) in pairs.items():
        if not np.array_equal(found, wanted):
            raise ExportError(f"{path.name} was read back with another {what}; check the disk and write it again")


def _check_glb(path: Path, flat: Mesh) -> None:
    """Read a GLB back: positions, to the bit of their float32, triangles, uv and the texture must be those written.

    Raises:
        ExportError: they are not.
    """
    read = read_mesh(path)
    same = np.array_equal(read.vertices, flat.vertices.astype(np.float32).astype(np.float64))
    if not same or not np.array_equal(read.faces, flat.faces):
        raise ExportError(f"{path.name} was read back with other vertices or triangles; check the disk and write it again")
    check_texture(path, read, flat)
