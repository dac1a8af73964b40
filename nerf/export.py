"""From a trained field to mesh files: sample, extract, clean, decimate, unwrap, bake, write, read again.

The world of the files is that of the program, +Y up and the front towards +Z. A data set that was normalised on loading
has its scale and offset undone, or with ``export_frame="source"`` all of its transform; ``transform.json`` has both.
"""

import importlib.util
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from nerf.bake import Color, bake, light_depth, query_color
from nerf.files import write_atomically
from nerf.lattice import DEFAULT_THRESHOLD, Density, ExportError, Lattice, sample_lattice, smoothed
from nerf.mesh import (
    Mesh,
    decimate,
    is_watertight,
    largest_parts,
    marching_cubes,
    signed_volume,
    transformed,
    unwrap,
    vertex_normals,
)
from nerf.meshfile import check_file, write_glb, write_obj, write_ply

__all__ = ["ExportError", "ExportReport", "export_mesh", "extract_surface", "require_packages"]

FRAMES = ("object", "source")
_PACKAGES = {"skimage": "scikit-image", "trimesh": "trimesh", "xatlas": "xatlas",
             "fast_simplification": "fast-simplification"}  # module -> what pip calls it
_LOW_COVERAGE = 0.25  # of the texture; below, somebody should know


@dataclass(frozen=True)
class ExportReport:
    """What was written, and what can be said about it."""

    files: dict[str, Path]  # "obj", "mtl", "albedo", "glb", and "ply" and "transform" where asked for
    vertices: int  # of the welded surface
    faces: int
    parts_dropped: int  # floaters and cavities
    watertight: bool
    volume: float  # in the units of the file, > 0
    bounds: tuple[tuple[float, ...], tuple[float, ...]]  # lowest and highest corner in the file
    threshold: float  # density that counted as surface
    max_density: float
    queries: int  # lattice points that the field was asked about
    lattice: int  # points of the lattice along an edge
    texture_coverage: float  # fraction of the texture under a triangle
    seconds: dict[str, float] = field(default_factory=dict)  # by stage
    notes: tuple[str, ...] = ()  # what a user should know about this mesh

    def __str__(self) -> str:
        closed = "closed" if self.watertight else "not closed"
        dropped = f", {self.parts_dropped} loose parts dropped" if self.parts_dropped else ""
        names = ", ".join(path.name for path in self.files.values())
        return f"{self.faces:,} triangles, {closed}{dropped}; wrote {names} in {sum(self.seconds.values()):.1f} s"

    def as_dict(self) -> dict:
        """The report as JSON values."""
        values = dict(self.__dict__)
        values["files"] = {name: str(path) for name, path in self.files.items()}
        values["seconds"] = {name: round(value, 3) for name, value in self.seconds.items()}
        return values | {"bounds": [list(corner) for corner in self.bounds], "notes": list(self.notes)}


class _Progress:
    """Tells what is being done, and remembers how long each stage took."""

    def __init__(self, report: Callable[[str], None] | None):
        self.report = report or (lambda line: None)
        self.seconds: dict[str, float] = {}
        self.last = time.monotonic()

    def done(self, stage: str, line: str) -> None:
        """End a stage and say what came of it."""
        now = time.monotonic()
        self.seconds[stage] = now - self.last
        self.last = now
        self.report(f"export: {line} ({self.seconds[stage]:.1f} s)")


def require_packages() -> None:
    """Check, without importing them, that the packages of the export are installed; worth calling before training.

    Raises:
        ExportError: some are missing; the sentence holds the pip command.
    """
    missing = [package for module, package in _PACKAGES.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise ExportError(f"writing a mesh needs {', '.join(missing)}; run: pip install {' '.join(missing)}")


def extract_surface(density: Density, bound: float, resolution: int = 128, threshold: float | None = DEFAULT_THRESHOLD,
                    decimate_target: int = 0, min_part: float = 0.01, occupied=None,
                    device: torch.device | str = "cpu", smooth: float = 0.0) -> tuple[Mesh, Lattice, int]:
    """The surface of a density field, without a texture.

    Args: as ``export_mesh``.

    Returns:
        A welded mesh with smooth normals in the field's coordinates, the lattice it came from, and the number of loose
        parts that were dropped.

    Raises:
        ExportError: an empty, solid, NaN or inside-out field.
    """
    lattice = smoothed(sample_lattice(density, bound, resolution, threshold, occupied, device), smooth)
    mesh, dropped = largest_parts(marching_cubes(lattice, density if smooth == 0 else None, device), min_part)
    mesh = decimate(mesh, decimate_target)
    return replace(mesh, normals=vertex_normals(mesh)), lattice, dropped


def export_mesh(density: Density, albedo: Color, bound: float, folder: str | Path, resolution: int = 128,
                threshold: float | None = DEFAULT_THRESHOLD, decimate_target: int = 50_000, texture_size: int = 1024,
                transform=None, export_frame: str = "object", metadata: dict | None = None,
                report: Callable[[str], None] | None = None, occupied=None, min_part: float = 0.01,
                ply: bool = False, device: torch.device | str = "cpu", smooth: float = 0.0) -> ExportReport:
    """Turn a density field with an albedo into ``mesh.obj``, ``mesh.mtl``, ``albedo.png`` and ``mesh.glb``.

    Args:
        density: maps points [M, 3] in [-bound, bound]^3 to densities [M] (extinction per unit).
        albedo: maps points [M, 3] to sRGB colours [M, 3] in [0, 1].
        bound: half the edge of the box; a surface that touches its wall is closed there.
        folder: where the files go; made if missing.
        resolution: lattice cells along an edge.
        threshold: the density that counts as surface; None lets ``lattice.auto_threshold`` choose.
        decimate_target: about how many triangles to keep; 0 or less keeps all.
        texture_size: texels along an edge of the texture.
        transform: [4, 4] from the box to the data's own world, if the data was normalised on loading.
        export_frame: "object" undoes the transform's scale and offset and keeps +Y up; "source" undoes all of it.
        metadata: JSON values for the GLB's ``asset.extras`` and the head of the OBJ: prompt, seed, licence notes.
        report: takes a line at the end of each stage.
        occupied: maps points [M, 3] to bool [M], False where the field is known to be empty; saves queries.
        min_part: parts with a smaller fraction of the biggest part's volume are dropped as floaters.
        ply: write ``mesh.ply`` with vertex colours as well.
        device: where the field lives.
        smooth: standard deviation, in cells, of the Gaussian that smooths the log density; 0 for none.

    Returns:
        The report. All files have been read again and compared by then.

    Raises:
        ExportError: there is no mesh to write (empty, solid, NaN) or a file does not hold what was written; why.
        ValueError: an argument out of range.
        OSError: a file cannot be written.
    """
    if export_frame not in FRAMES or texture_size < 16:
        raise ValueError(f"export_mesh: expected export_frame in {FRAMES} and texture_size >= 16, got {export_frame!r} "
                         f"and {texture_size}")
    require_packages()
    placing = _placing(transform, export_frame)
    folder, metadata, progress = Path(folder), metadata or {}, _Progress(report)
    mesh, lattice, dropped = extract_surface(density, bound, resolution, threshold, decimate_target, min_part, occupied,
                                             device, smooth)
    progress.done("surface", f"{len(mesh.faces):,} triangles from a {lattice.cells}^3 lattice, {lattice.queries:,} of "
                             f"its {lattice.density.size:,} points asked")

    flat = unwrap(mesh, texture_size)
    progress.done("unwrap", f"unwrapped into {len(flat.vertices):,} vertices")
    inset = light_depth(density, mesh.vertices, mesh.normals, lattice.spacing, device=device)
    texture, coverage = bake(flat, lambda points: query_color(albedo, points, device), texture_size, inset[flat.weld])
    progress.done("bake", f"baked {texture_size}^2 texels, {100 * coverage:.0f} % covered")
    flat = transformed(replace(flat, texture=texture), placing)
    files = _write(folder, flat, metadata)
    if ply:
        colors = query_color(albedo, mesh.vertices - inset[:, None] * mesh.normals, device)
        painted = transformed(replace(mesh, colors=np.round(colors * 255.0).astype(np.uint8)), placing)
        files["ply"] = write_ply(folder / "mesh.ply", painted)
        check_file(files["ply"], painted)
    if transform is not None:
        files["transform"] = _write_transform(folder, np.asarray(transform, dtype=np.float64), placing, export_frame)
    progress.done("write", "wrote and read again " + ", ".join(path.name for path in files.values()))
    return _summary(mesh, flat, lattice, dropped, coverage, files, progress)


def _placing(transform, export_frame: str) -> np.ndarray:
    """[4, 4] from the box to the file: the whole transform, or its scale and offset in the axes of the box."""
    if transform is None:
        return np.eye(4)
    matrix = np.asarray(transform, dtype=np.float64)
    if matrix.shape != (4, 4) or not np.isfinite(matrix).all():
        raise ValueError(f"export_mesh: expected transform as a finite [4, 4], got {list(matrix.shape)}")
    determinant = np.linalg.det(matrix[:3, :3])
    if determinant <= 0:
        raise ValueError(f"export_mesh: the transform mirrors or flattens (determinant {determinant:.4g}), and a mesh "
                         "is never mirrored; its 3x3 part must be a rotation times a positive scale")
    if export_frame == "source":
        return matrix
    scale = np.cbrt(determinant)
    rotation = matrix[:3, :3] / scale
    placing = np.eye(4)
    placing[:3, :3] *= scale
    placing[:3, 3] = rotation.T @ matrix[:3, 3]
    return placing


def _write(folder: Path, mesh: Mesh, metadata: dict) -> dict[str, Path]:
    """Write OBJ (with MTL and texture) and GLB, and compare what is read back."""
    comment = "\n".join(f"{key}: {value}" for key, value in metadata.items())
    obj, mtl, albedo = write_obj(folder, mesh, comment)
    glb = write_glb(folder / "mesh.glb", mesh, metadata)
    check_file(obj, mesh)
    check_file(glb, mesh)
    return {"obj": obj, "mtl": mtl, "albedo": albedo, "glb": glb}


def _write_transform(folder: Path, transform: np.ndarray, placing: np.ndarray, export_frame: str) -> Path:
    """``transform.json``: 4x4 matrices (rows, column vectors) between box, file and source."""
    content = {
        "export_frame": export_frame,
        "convention": "p_to = matrix @ (x, y, z, 1); box: trained in, +Y up, front +Z; file: mesh.obj and mesh.glb; "
                      "source: the data's own world",
        "box_to_file": placing.tolist(),
        "box_to_source": transform.tolist(),
        "file_to_source": (transform @ np.linalg.inv(placing)).tolist(),
    }
    text = json.dumps(content, indent=1)
    return write_atomically(folder / "transform.json", lambda path: path.write_text(text, encoding="utf-8"))


def _summary(mesh: Mesh, flat: Mesh, lattice: Lattice, dropped: int, coverage: float, files: dict[str, Path],
             progress: _Progress) -> ExportReport:
    """Collect the figures, and notes on what looks wrong."""
    closed = is_watertight(flat)
    highest = float(lattice.density.max())
    notes = []
    if not closed:
        notes.append("the surface is not closed everywhere; another --decimate_target may mend it")
    if coverage < _LOW_COVERAGE:
        notes.append(f"triangles cover only {100 * coverage:.0f} % of the texture; raise --texture_size to keep detail")
    if highest < 2.0 * DEFAULT_THRESHOLD:
        notes.append(f"the highest density is {highest:.3g}, below {2 * DEFAULT_THRESHOLD:g}: the object is still "
                     "foggy, and longer training makes it firmer")
    if float(np.abs(mesh.vertices).max()) >= lattice.bound * (1 - 1e-6):
        notes.append("the surface touches the wall of the box and was closed there; --bound may be too small")
    return ExportReport(
        files=files, vertices=len(mesh.vertices), faces=len(mesh.faces), parts_dropped=dropped, watertight=closed,
        volume=signed_volume(flat), bounds=tuple(tuple(map(float, corner)) for corner in flat.bounds),
        threshold=lattice.threshold, max_density=highest, queries=lattice.queries, lattice=lattice.density.shape[0],
        texture_coverage=coverage, seconds=progress.seconds, notes=tuple(notes))
