"""From a surface to mesh files: clean, decimate, unwrap, bake, write, read again.

The surface comes from a density field (``export_mesh``) or ready made from elsewhere (``export_surface``); everything
after that is one road.

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

__all__ = ["ExportError", "ExportOptions", "ExportReport", "export_mesh", "export_surface", "extract_surface",
           "require_packages"]

FRAMES = ("object", "source")
_PACKAGES = {"skimage": "scikit-image", "trimesh": "trimesh", "xatlas": "xatlas",
             "fast_simplification": "fast-simplification"}  # module -> what pip calls it
_LOW_COVERAGE = 0.25  # of the texture; below, somebody should know


@dataclass(frozen=True)
class ExportOptions:
    """How a surface becomes files, wherever it came from.

    Raises:
        ValueError: a value is out of range.
    """

    decimate_target: int = 50_000  # about how many triangles to keep; 0 or less keeps all
    texture_size: int = 1024  # texels along an edge of the texture
    min_part: float = 0.01  # parts with a smaller fraction of the biggest part's volume are dropped as floaters
    ply: bool = False  # write mesh.ply with vertex colours as well
    export_frame: str = "object"  # undo the data's scale and offset and keep +Y up; "source": undo all of its transform

    def __post_init__(self):
        if self.export_frame not in FRAMES or self.texture_size < 16:
            raise ValueError(f"ExportOptions: expected export_frame in {FRAMES} and texture_size >= 16, got "
                             f"{self.export_frame!r} and {self.texture_size}")


DEFAULTS = ExportOptions()


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
    texture_coverage: float  # fraction of the texture under a triangle
    threshold: float | None = None  # density that counted as surface; None, as the next three, without a density field
    max_density: float | None = None
    queries: int | None = None  # lattice points that the field was asked about
    lattice: int | None = None  # points of the lattice along an edge
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
                    occupied=None, device: torch.device | str = "cpu", smooth: float = 0.0) -> tuple[Mesh, Lattice]:
    """The surface of a density field as marching cubes finds it, with its floaters, and the lattice it came from.

    Args: as ``export_mesh``.

    Raises:
        ExportError: an empty, solid or NaN field.
    """
    lattice = smoothed(sample_lattice(density, bound, resolution, threshold, occupied, device), smooth)
    return marching_cubes(lattice, density if smooth == 0 else None, device), lattice


def export_mesh(density: Density, albedo: Color, bound: float, folder: str | Path, options: ExportOptions = DEFAULTS, *,
                resolution: int = 128, threshold: float | None = DEFAULT_THRESHOLD, smooth: float = 0.0, occupied=None,
                transform=None, metadata: dict | None = None, report: Callable[[str], None] | None = None,
                device: torch.device | str = "cpu") -> ExportReport:
    """Turn a density field with an albedo into ``mesh.obj``, ``mesh.mtl``, ``albedo.png`` and ``mesh.glb``.

    Args:
        density: maps points [M, 3] in [-bound, bound]^3 to densities [M] (extinction per unit).
        albedo: maps points [M, 3] to sRGB colours [M, 3] in [0, 1].
        bound: half the edge of the box; a surface that touches its wall is closed there.
        folder: where the files go; made if missing.
        options: everything that is done to the surface.
        resolution: lattice cells along an edge.
        threshold: the density that counts as surface; None lets ``lattice.auto_threshold`` choose.
        smooth: standard deviation, in cells, of the Gaussian that smooths the log density; 0 for none.
        occupied: maps points [M, 3] to bool [M], False where the field is known to be empty; saves queries.
        transform: [4, 4] from the box to the data's own world, if the data was normalised on loading.
        metadata: JSON values for the GLB's ``asset.extras`` and the head of the OBJ: prompt, seed, licence notes.
        report: takes a line at the end of each stage.
        device: where the field lives.

    Returns:
        The report. All files have been read again and compared by then.

    Raises:
        ExportError: there is no mesh to write (empty, solid, NaN) or a file does not hold what was written; why.
        ValueError: an argument out of range.
        OSError: a file cannot be written.
    """
    job = _Job(albedo, Path(folder), options, bound, _transform(transform), metadata or {}, device, _Progress(report))
    mesh, lattice = extract_surface(density, bound, resolution, threshold, occupied, device, smooth)
    job.progress.done("surface", f"{len(mesh.faces):,} triangles from a {lattice.cells}^3 lattice, {lattice.queries:,} "
                                 f"of its {lattice.density.size:,} points asked")

    def inset(clean: Mesh) -> np.ndarray:
        return light_depth(density, clean.vertices, clean.normals, lattice.spacing, device=device)

    done = _finish(mesh, job, inset)
    highest = float(lattice.density.max())
    foggy = f"the highest density is {highest:.3g}, below {2 * DEFAULT_THRESHOLD:g}: the object is still foggy, and " \
            "longer training makes it firmer"
    return replace(done, threshold=lattice.threshold, max_density=highest, queries=lattice.queries,
                   lattice=lattice.density.shape[0],
                   notes=done.notes + ((foggy,) if highest < 2.0 * DEFAULT_THRESHOLD else ()))


def export_surface(mesh: Mesh, albedo: Color, folder: str | Path, options: ExportOptions = DEFAULTS, *, bound: float,
                   transform=None, metadata: dict | None = None, report: Callable[[str], None] | None = None,
                   device: torch.device | str = "cpu") -> ExportReport:
    """Turn a surface that is there already, say of a tetrahedral grid, into the same files; the colour is that at it.

    Args:
        mesh: vertices [V, 3] and faces [T, 3], counter-clockwise seen from outside; nothing else of it is used.
        albedo: maps points [M, 3] to sRGB colours [M, 3] in [0, 1].
        bound: half the edge of the box that the surface was made in.
        folder, options, transform, metadata, report, device: as ``export_mesh``.

    Returns:
        The report; what it says of a density lattice is None.

    Raises:
        ExportError: there is no mesh to write (empty, NaN, inside out) or a file does not hold what was written; why.
        ValueError: an argument out of range.
        OSError: a file cannot be written.
    """
    job = _Job(albedo, Path(folder), options, bound, _transform(transform), metadata or {}, device, _Progress(report))
    if len(mesh.faces) == 0:
        raise ExportError("the surface is empty: no cell has a corner inside and one outside; train longer, or start "
                          "from a NeRF that holds an object")
    if not np.isfinite(mesh.vertices).all():
        count = int((~np.isfinite(mesh.vertices).all(axis=1)).sum())
        raise ExportError(f"{count} of {len(mesh.vertices)} vertices are NaN or infinite; training has diverged: resume "
                          "an earlier checkpoint with a lower --lr")
    return _finish(Mesh(mesh.vertices.astype(np.float64), mesh.faces.astype(np.int64)), job)


@dataclass(frozen=True)
class _Job:
    """All of an export but its surface; made before any work is done, so that a wrong argument costs nothing."""

    albedo: Color
    folder: Path
    options: ExportOptions
    bound: float
    transform: np.ndarray | None
    metadata: dict
    device: torch.device | str
    progress: _Progress

    def __post_init__(self):
        require_packages()

    def paint(self, points: np.ndarray) -> np.ndarray:
        """sRGB colours [P, 3] in [0, 1] of points [P, 3]."""
        return query_color(self.albedo, points, self.device)


def _finish(raw: Mesh, job: _Job, inset: Callable[[Mesh], np.ndarray] | None = None) -> ExportReport:
    """Everything after the surface; ``inset`` says how far below the vertices of the clean mesh its colour lies, [V]."""
    options, progress = job.options, job.progress
    mesh, dropped = largest_parts(raw, options.min_part)
    mesh = decimate(mesh, options.decimate_target)
    mesh = replace(mesh, normals=vertex_normals(mesh))
    progress.done("clean", f"{len(mesh.faces):,} triangles kept")
    flat = unwrap(mesh, options.texture_size)
    progress.done("unwrap", f"unwrapped into {len(flat.vertices):,} vertices")
    depth = np.zeros(len(mesh.vertices)) if inset is None else inset(mesh)
    texture, coverage = bake(flat, job.paint, options.texture_size, depth[flat.weld])
    progress.done("bake", f"baked {options.texture_size}^2 texels, {100 * coverage:.0f} % covered")
    placing = _placing(job.transform, options.export_frame)
    flat = transformed(replace(flat, texture=texture), placing)
    files = _write(job.folder, flat, job.metadata)
    if options.ply:
        colors = job.paint(mesh.vertices - depth[:, None] * mesh.normals)
        painted = transformed(replace(mesh, colors=np.round(colors * 255.0).astype(np.uint8)), placing)
        files["ply"] = write_ply(job.folder / "mesh.ply", painted)
        check_file(files["ply"], painted)
    if job.transform is not None:
        files["transform"] = _write_transform(job.folder, job.transform, placing, options.export_frame)
    progress.done("write", "wrote and read again " + ", ".join(path.name for path in files.values()))
    return _summary(mesh, flat, job, dropped, coverage, files)


def _transform(matrix) -> np.ndarray | None:
    """A given transform as float64 [4, 4], checked."""
    if matrix is None:
        return None
    matrix = np.asarray(matrix, dtype=np.float64)
    if matrix.shape != (4, 4) or not np.isfinite(matrix).all():
        raise ValueError(f"export: expected transform as a finite [4, 4], got {list(matrix.shape)}")
    determinant = np.linalg.det(matrix[:3, :3])
    if determinant <= 0:
        raise ValueError(f"export: the transform mirrors or flattens (determinant {determinant:.4g}), and a mesh "
                         "is never mirrored; its 3x3 part must be a rotation times a positive scale")
    return matrix


def _placing(transform: np.ndarray | None, export_frame: str) -> np.ndarray:
    """[4, 4] from the box to the file: the whole transform, or its scale and offset in the axes of the box."""
    if transform is None:
        return np.eye(4)
    if export_frame == "source":
        return transform
    scale = np.cbrt(np.linalg.det(transform[:3, :3]))
    rotation = transform[:3, :3] / scale
    placing = np.eye(4)
    placing[:3, :3] *= scale
    placing[:3, 3] = rotation.T @ transform[:3, 3]
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


def _summary(mesh: Mesh, flat: Mesh, job: _Job, dropped: int, coverage: float, files: dict[str, Path]) -> ExportReport:
    """Collect the figures, and notes on what looks wrong."""
    closed = is_watertight(flat)
    notes = []
    if not closed:
        notes.append("the surface is not closed everywhere; another --decimate_target may mend it")
    if coverage < _LOW_COVERAGE:
        notes.append(f"triangles cover only {100 * coverage:.0f} % of the texture; raise --texture_size to keep detail")
    if float(np.abs(mesh.vertices).max()) >= job.bound * (1 - 1e-6):
        notes.append("the surface touches the wall of the box and was closed there; --bound may be too small")
    return ExportReport(
        files=files, vertices=len(mesh.vertices), faces=len(mesh.faces), parts_dropped=dropped, watertight=closed,
        volume=signed_volume(flat), bounds=tuple(tuple(map(float, corner)) for corner in flat.bounds),
        texture_coverage=coverage, seconds=job.progress.seconds, notes=tuple(notes))
