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
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from nerf.core.errors import ExportError
from nerf.core.files import write_atomically
from nerf.mesh.decimate import Decimation, decimate_within
from nerf.mesh.density_grid import DEFAULT_THRESHOLD, Density, Lattice, sample_lattice, smoothed
from nerf.mesh.io import Material, check_file, write_glb, write_obj, write_ply
from nerf.mesh.isosurface import marching_cubes
from nerf.mesh.mesh import Mesh, is_watertight, largest_parts, signed_volume, transformed, vertex_normals
from nerf.mesh.normal_map import bake_normals, nearest_normals, vertex_tangents
from nerf.mesh.repair import APART, Cleaning, clean_surface, separate, without_slivers
from nerf.mesh.texture import Color, bake, light_depth, query_color, to_bytes
from nerf.mesh.uv import unwrap

__all__ = [
    "ExportError",
    "ExportOptions",
    "ExportReport",
    "export_mesh",
    "export_surface",
    "extract_surface",
    "require_packages",
]

FRAMES = ("object", "source")
LARGEST_TEXTURE = 4096
MOST_SAMPLES = 4
_PACKAGES = {
    "skimage": "scikit-image",
    "trimesh": "trimesh",
    "xatlas": "xatlas",
    "fast_simplification": "fast-simplification",
}  # module -> what pip calls it
_SAY_SECONDS = 5.0  # a stage that takes longer says how far it is this often
_LOW_COVERAGE = 0.25  # of the texture; below, somebody should know


@dataclass(frozen=True)
class ExportOptions:
    """How a surface becomes files, wherever it came from.

    A texture of 1024 takes 1 s and little memory for a field that costs nothing, one of 4096 12 s of one core and 1 GB,
    with ``supersample=2`` 35 s and no more memory; a real field is asked once for each sample, which takes longer.

    Raises:
        ValueError: a value is out of range.
    """

    decimate_target: int = 50_000  # about how many triangles to keep; 0 or less keeps all
    max_error: float = 0.0  # scene units that decimation may move the surface; more triangles are kept for it; 0: any
    texture_size: int = 1024  # texels along an edge of the texture
    supersample: int = 1  # a texel is the mean of n x n colours
    normal_map: bool = False  # write the normals of the surface before its decimation as a tangent-space picture
    roughness: float = 1.0  # of the material, 0 mirror to 1 chalk
    metallic: float = 0.0  # of the material, 0 to 1
    min_part: float = 0.01  # parts with a smaller fraction of the biggest part's volume are dropped as floaters
    ply: bool = False  # write mesh.ply with vertex colours as well
    export_frame: str = "object"  # undo the data's scale and offset and keep +Y up; "source": undo all of its transform

    def __post_init__(self):
        if self.export_frame not in FRAMES:
            raise ValueError(f"ExportOptions: expected export_frame in {FRAMES}, got {self.export_frame!r}")
        if not 16 <= self.texture_size <= LARGEST_TEXTURE:
            raise ValueError(
                f"ExportOptions: expected texture_size in [16, {LARGEST_TEXTURE}], got {self.texture_size}; "
                "larger ones need gigabytes of memory, and many viewers refuse them"
            )
        if not 1 <= self.supersample <= MOST_SAMPLES:
            raise ValueError(
                f"ExportOptions: expected supersample in [1, {MOST_SAMPLES}], got {self.supersample}; it "
                "is the square root of the colours a texel is the mean of"
            )
        if not 0.0 <= self.max_error < np.inf:
            raise ValueError(f"ExportOptions: expected max_error >= 0 scene units, got {self.max_error}; 0 is no bound")
        Material(self.roughness, self.metallic)


DEFAULTS = ExportOptions()


@dataclass(frozen=True)
class ExportReport:
    """What was written, and what can be said about it."""

    files: dict[str, Path]  # "obj", "mtl", "albedo", "glb", and "ply" and "transform" where asked for
    vertices: int  # of the welded surface
    faces: int
    parts_dropped: int  # floaters and cavities
    watertight: bool
    cleaning: Cleaning  # what was welded, capped and left open
    decimation: Decimation  # how far the surface was moved, in scene units
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
        values |= {"cleaning": asdict(self.cleaning), "decimation": asdict(self.decimation)}
        return values | {"bounds": [list(corner) for corner in self.bounds], "notes": list(self.notes)}


class _Progress:
    """Tells what is being done, and remembers how long each stage took."""

    def __init__(self, report: Callable[[str], None] | None):
        self.report = report or (lambda line: None)
        self.seconds: dict[str, float] = {}
        self.last = self.said = time.monotonic()

    def done(self, stage: str, line: str) -> None:
        """End a stage and say what came of it."""
        now = time.monotonic()
        self.seconds[stage] = now - self.last
        self.last = self.said = now
        self.report(f"export: {line} ({self.seconds[stage]:.1f} s)")

    def within(self, doing: str) -> Callable[[int, int], None]:
        """A function that takes how much of a stage is done, and says so every few seconds."""

        def tell(done: int, total: int) -> None:
            now = time.monotonic()
            if now - self.said >= _SAY_SECONDS and done < total:
                self.said = now
                left = (now - self.last) * (total - done) / max(done, 1)
                self.report(f"export: {doing}, {100 * done / total:.0f} % (about {left:.0f} s left)")

        return tell


def require_packages() -> None:
    """Check, without importing them, that the packages of the export are installed; worth calling before training.

    Raises:
        ExportError: some are missing; the sentence holds the pip command.
    """
    missing = [package for module, package in _PACKAGES.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise ExportError(f"writing a mesh needs {', '.join(missing)}; run: pip install {' '.join(missing)}")


def extract_surface(
    density: Density,
    bound: float,
    resolution: int = 128,
    threshold: float | None = DEFAULT_THRESHOLD,
    occupied=None,
    device: torch.device | str = "cpu",
    smooth: float = 0.0,
) -> tuple[Mesh, Lattice]:
    """The surface of a density field as marching cubes finds it, with its floaters, and the lattice it came from.

    Args: as ``export_mesh``.

    Raises:
        ExportError: an empty, solid or NaN field.
    """
    lattice = smoothed(sample_lattice(density, bound, resolution, threshold, occupied, device), smooth)
    return marching_cubes(lattice, density if smooth == 0 else None, device), lattice


def export_mesh(
    density: Density,
    albedo: Color,
    bound: float,
    folder: str | Path,
    options: ExportOptions = DEFAULTS,
    *,
    resolution: int = 128,
    threshold: float | None = DEFAULT_THRESHOLD,
    smooth: float = 0.0,
    occupied=None,
    transform=None,
    metadata: dict | None = None,
    report: Callable[[str], None] | None = None,
    device: torch.device | str = "cpu",
) -> ExportReport:
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
    job.progress.done(
        "surface",
        f"{len(mesh.faces):,} triangles from a {lattice.cells}^3 lattice, {lattice.queries:,} "
        f"of its {lattice.density.size:,} points asked",
    )

    def inset(clean: Mesh) -> np.ndarray:
        return light_depth(density, clean.vertices, clean.normals, lattice.spacing, device=device)

    done = _finish(mesh, job, inset)
    highest = float(lattice.density.max())
    foggy = (
        f"the highest density is {highest:.3g}, below {2 * DEFAULT_THRESHOLD:g}: the object is still foggy, and "
        "longer training makes it firmer"
    )
    return replace(
        done,
        threshold=lattice.threshold,
        max_density=highest,
        queries=lattice.queries,
        lattice=lattice.density.shape[0],
        notes=done.notes + ((foggy,) if highest < 2.0 * DEFAULT_THRESHOLD else ()),
    )


def export_surface(
    mesh: Mesh,
    albedo: Color,
    folder: str | Path,
    options: ExportOptions = DEFAULTS,
    *,
    bound: float,
    wall: float | None = None,
    transform=None,
    metadata: dict | None = None,
    report: Callable[[str], None] | None = None,
    device: torch.device | str = "cpu",
) -> ExportReport:
    """Turn a surface that is there already, say of a tetrahedral grid, into the same files; its colour is that at it.

    Args:
        mesh: vertices [V, 3] and faces [T, 3], counter-clockwise seen from outside; nothing else of it is used.
        albedo: maps points [M, 3] to sRGB colours [M, 3] in [0, 1].
        bound: half the edge of the box that the surface was made in.
        wall: openings whose rims lie within this distance of its walls are closed; None: a thousandth of bound.
        folder, options, transform, metadata, report, device: as ``export_mesh``.

    Returns:
        The report; what it says of a density lattice is None.

    Raises:
        ExportError: there is no mesh to write (empty, NaN, inside out) or a file does not hold what was written; why.
        ValueError: an argument out of range.
        OSError: a file cannot be written.
    """
    job = _Job(albedo, Path(folder), options, bound, _transform(transform), metadata or {}, device, _Progress(report), wall)
    if len(mesh.faces) == 0:
        raise ExportError(
            "the surface is empty: no cell has a corner inside and one outside; train longer, or start "
            "from a NeRF that holds an object"
        )
    if not np.isfinite(mesh.vertices).all():
        count = int((~np.isfinite(mesh.vertices).all(axis=1)).sum())
        raise ExportError(
            f"{count} of {len(mesh.vertices)} vertices are NaN or infinite; training has diverged: resume "
            "an earlier checkpoint with smaller --lr_distance and --lr_offset"
        )
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
    wall: float | None = None

    def __post_init__(self):
        require_packages()

    def paint(self, points: np.ndarray) -> np.ndarray:
        """sRGB colours [P, 3] in [0, 1] of points [P, 3]."""
        return query_color(self.albedo, points, self.device)


def _finish(raw: Mesh, job: _Job, inset: Callable[[Mesh], np.ndarray] | None = None) -> ExportReport:
    """Everything after the surface; ``inset`` says how far below the vertices of the clean mesh its colour lies, [V]."""
    options, progress = job.options, job.progress
    fine, cleaning = clean_surface(raw, job.bound, job.wall)
    fine, dropped = largest_parts(fine, options.min_part)
    mesh, decimation = decimate_within(fine, options.decimate_target, options.max_error)
    mesh = without_slivers(mesh, job.bound)
    mesh = separate(replace(mesh, normals=vertex_normals(mesh)), APART * 2.0 * job.bound)
    moved = f", moved by {decimation.farthest:.2g} at most and {decimation.mean:.2g} on average"
    progress.done("clean", f"{len(mesh.faces):,} triangles kept{moved if decimation.tries else ''}")
    flat = unwrap(mesh, options.texture_size, progress=progress.within("unwrapping"))
    progress.done("unwrap", f"unwrapped into {len(flat.vertices):,} vertices")
    depth = np.zeros(len(mesh.vertices)) if inset is None else inset(mesh)
    flat, coverage = _bake(fine, flat, depth, job)
    progress.done("bake", f"baked {options.texture_size}^2 texels, {100 * coverage:.0f} % covered")
    placing = placement(job.transform, options.export_frame)
    flat = transformed(flat, placing)
    files = _write(job, flat)
    if options.ply:
        colors = job.paint(mesh.vertices - depth[:, None] * mesh.normals)
        painted = transformed(replace(mesh, colors=to_bytes(colors)), placing)
        files["ply"] = write_ply(job.folder / "mesh.ply", painted)
        check_file(files["ply"], painted)
    if job.transform is not None:
        files["transform"] = _write_transform(job.folder, job.transform, placing, options.export_frame)
    progress.done("write", "wrote and read again " + ", ".join(path.name for path in files.values()))
    return ExportReport(
        files=files,
        vertices=len(mesh.vertices),
        faces=len(mesh.faces),
        parts_dropped=dropped,
        watertight=is_watertight(flat),
        cleaning=cleaning,
        decimation=decimation,
        volume=signed_volume(flat),
        bounds=tuple(tuple(map(float, corner)) for corner in flat.bounds),
        texture_coverage=coverage,
        seconds=progress.seconds,
        notes=_notes(mesh, job, cleaning, coverage),
    )


def _bake(fine: Mesh, flat: Mesh, depth: np.ndarray, job: _Job) -> tuple[Mesh, float]:
    """The unwrapped mesh with its textures, and how much of them triangles cover."""
    options, progress = job.options, job.progress
    texture, coverage = bake(
        flat, job.paint, options.texture_size, depth[flat.weld], options.supersample, progress.within("baking colours")
    )
    flat = replace(flat, texture=texture)
    if not options.normal_map:
        return flat, coverage
    flat = replace(flat, tangents=vertex_tangents(flat))
    normals = nearest_normals(replace(fine, normals=vertex_normals(fine)))
    picture = bake_normals(flat, normals, options.texture_size, options.supersample, progress.within("baking normals"))
    return replace(flat, normal_texture=picture), coverage


def _transform(matrix) -> np.ndarray | None:
    """A given transform as float64 [4, 4], checked."""
    if matrix is None:
        return None
    matrix = np.asarray(matrix, dtype=np.float64)
    if matrix.shape != (4, 4) or not np.isfinite(matrix).all():
        raise ValueError(f"export: expected transform as a finite [4, 4], got {list(matrix.shape)}")
    determinant = np.linalg.det(matrix[:3, :3])
    if determinant <= 0:
        raise ValueError(
            f"export: the transform mirrors or flattens (determinant {determinant:.4g}), and a mesh "
            "is never mirrored; its 3x3 part must be a rotation times a positive scale"
        )
    return matrix


def placement(transform: np.ndarray | None, export_frame: str) -> np.ndarray:
    """The matrix [4, 4] from the box to the file.

    Args:
        transform: [4, 4] from the box to the data's own world, None if they are one.
        export_frame: "source" takes all of it, "object" its scale and offset, in the axes of the box.
    """
    if transform is None:
        return np.eye(4)
    if export_frame == "source":
        return transform
    scale = np.cbrt(np.linalg.det(transform[:3, :3]))
    rotation = transform[:3, :3] / scale
    matrix = np.eye(4)
    matrix[:3, :3] *= scale
    matrix[:3, 3] = rotation.T @ transform[:3, 3]
    return matrix


def _write(job: _Job, mesh: Mesh) -> dict[str, Path]:
    """Write OBJ (with MTL and pictures) and GLB, and compare what is read back."""
    comment = "\n".join(f"{key}: {value}" for key, value in job.metadata.items())
    material = Material(job.options.roughness, job.options.metallic)
    files = write_obj(job.folder, mesh, comment, material)
    files["glb"] = write_glb(job.folder / "mesh.glb", mesh, job.metadata, material)
    check_file(files["obj"], mesh)
    check_file(files["glb"], mesh)
    return files


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


def _notes(mesh: Mesh, job: _Job, cleaning: Cleaning, coverage: float) -> tuple[str, ...]:
    """What looks wrong, and what to do about it."""
    notes, wanted = [], job.options.decimate_target
    if cleaning.open_rims:
        notes.append(
            f"the surface has {len(cleaning.open_rims)} openings away from the walls of the box, which were left "
            f"open; the longest rim is {cleaning.open_rims[0]:.3g} scene units"
        )
    elif not is_watertight(mesh):
        notes.append("the surface is not closed everywhere; another --decimate_target may mend it")
    if job.options.max_error and len(mesh.faces) > 1.01 * wanted > 0:
        notes.append(
            f"{len(mesh.faces):,} triangles were kept and not {wanted:,}, so that no part moved by more than "
            f"{job.options.max_error:g} scene units"
        )
    elif len(mesh.faces) > 1.1 * wanted > 0:
        notes.append(f"{len(mesh.faces):,} triangles were kept and not {wanted:,}, as far as decimation came")
    if coverage < _LOW_COVERAGE:
        notes.append(f"triangles cover only {100 * coverage:.0f} % of the texture; raise --texture_size to keep detail")
    if float(np.abs(mesh.vertices).max()) >= job.bound * (1 - 1e-6):
        notes.append("the surface touches the wall of the box and was closed there; --bound may be too small")
    return tuple(notes)
