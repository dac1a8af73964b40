"""The export pipeline: extract or take a surface, clean, decimate, unwrap, bake, write, read back.

The surface is extracted from a field (:func:`export_level_set`) or given as triangles (:func:`export_surface`); all later
stages are the same. V vertices, T triangles, P points.

The axes of the files are those of the program, +Y up and the front towards +Z. The scale and offset of a data set that was
normalised on loading are undone, or with ``export_frame="source"`` all of its transform; ``transform.json`` has both.
"""

import importlib.util
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nerf.config.groups import SURFACE_DENSITY
from nerf.core.errors import ExportError
from nerf.core.files import replace_folder
from nerf.core.memory import explained
from nerf.core.structs import LevelSet
from nerf.mesh.crop import crop_box
from nerf.mesh.decimate import Decimation
from nerf.mesh.export_options import ExportOptions
from nerf.mesh.finish import LESS_GRID, FinishedSurface, finish, finish_given
from nerf.mesh.io import Material, check_file, write_glb, write_obj, write_ply, write_stl
from nerf.mesh.isosurface import extract_surface
from nerf.mesh.level_set_grid import quantity
from nerf.mesh.mesh import Mesh, is_watertight, signed_volume, transformed, vertex_normals
from nerf.mesh.normal_map import bake_normals, nearest_normals, vertex_tangents
from nerf.mesh.photo_colors import Photo, PhotoColors
from nerf.mesh.placement import check_transform, on_ground, placement, write_transform
from nerf.mesh.repair import Cleaning
from nerf.mesh.soundness import Soundness, soundness
from nerf.mesh.texture import Color, bake, light_depth, query_color, to_bytes
from nerf.mesh.uv import unwrap

_PACKAGES = {
    "skimage": "scikit-image",
    "trimesh": "trimesh",
    "xatlas": "xatlas",
    "fast_simplification": "fast-simplification",
}  # module -> its name for pip
# All files that an export may write; others in its folder are the user's.
FILES = ("mesh.obj", "mesh.mtl", "albedo.png", "normal.png", "mesh.glb", "mesh.ply", "mesh.stl", "transform.json")
_LESS_TEXTURE = "lower --texture_size or --texture_supersample"
_LOW_COVERAGE = 0.25  # of the texture below which a note is made
_OPAQUE = 2.0 * SURFACE_DENSITY  # a field whose highest density is lower is still foggy


@dataclass(frozen=True)
class ExportReport:
    """What was written, and its properties."""

    files: dict[str, Path]  # "obj", "mtl", "albedo", "glb"; "normal", "ply", "stl", "transform" depending on options and data
    vertices: int  # of the welded surface
    faces: int
    parts_dropped: int  # floaters and cavities
    watertight: bool
    cleaning: Cleaning  # vertices welded, holes capped, holes left open
    decimation: Decimation  # how far the surface was moved
    volume: float  # in the units of the file, > 0
    bounds: tuple[tuple[float, ...], tuple[float, ...]]  # lowest and highest corner in the file
    texture_coverage: float  # fraction of the texture under a triangle
    soundness: Soundness  # handles, caves, base, thin walls
    level: float | None = None  # value of the field at the surface; None, as the next three, of a given surface
    max_density: float | None = None  # None of a signed distance
    queries: int | None = None  # points at which the field was evaluated to find the surface
    grid_points: int | None = None  # along an edge of the grid
    seconds: dict[str, float] = field(default_factory=dict)  # by stage
    notes: tuple[str, ...] = ()  # possible defects of the mesh, and what to do about them

    def __str__(self) -> str:
        closed = ("closed" if self.watertight else "not closed") + self.soundness.said()
        dropped = f", {self.parts_dropped} loose parts dropped" if self.parts_dropped else ""
        names = ", ".join(path.name for path in self.files.values())
        return f"{self.faces:,} triangles, {closed}{dropped}; wrote {names} in {sum(self.seconds.values()):.1f} s"

    def as_dict(self) -> dict:
        """The report as JSON values."""
        values = dict(self.__dict__)
        values["files"] = {name: str(path) for name, path in self.files.items()}
        values["seconds"] = {name: round(value, 3) for name, value in self.seconds.items()}
        values |= {"cleaning": asdict(self.cleaning), "decimation": asdict(self.decimation)}
        values |= {"soundness": asdict(self.soundness)}
        return values | {"bounds": [list(corner) for corner in self.bounds], "notes": list(self.notes)}


class Progress:
    """Reports the progress of the stages, and measures their durations."""

    def __init__(self, report: Callable[[str], None] | None):
        self.report = report or (lambda line: None)
        self.seconds: dict[str, float] = {}
        self.last = time.monotonic()

    def done(self, stage: str, line: str, seconds: float | None = None) -> None:
        """End a stage and report its result; ``seconds`` if it was not done just now."""
        now = time.monotonic()
        self.seconds[stage] = now - self.last if seconds is None else seconds
        self.last = now
        self.report(f"export: {line} ({self.seconds[stage]:.1f} s)")


def require_packages() -> None:
    """Check, without importing them, that the packages of the export are installed.

    Raises:
        ExportError: some are missing; the message has the pip command.
    """
    missing = [package for module, package in _PACKAGES.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise ExportError(f"writing a mesh needs {', '.join(missing)}; run: pip install {' '.join(missing)}")


def export_level_set(
    level_set: LevelSet,
    albedo: Color,
    bound: float,
    folder: str | Path,
    options: ExportOptions,
    *,
    transform=None,
    metadata: dict | None = None,
    report: Callable[[str], None] | None = None,
    device: torch.device | str = "cpu",
    photos: Sequence[Callable[[], Photo]] = (),
) -> ExportReport:
    """Write the surface of a field to ``mesh.obj``, ``mesh.mtl``, ``albedo.png`` and ``mesh.glb``.

    The colour of a density is evaluated at the depth from which light reaches the observer, that of a signed distance on
    the surface. What photographs see of it has their colours instead.

    Args:
        level_set: a density or a signed distance, evaluated at points [M, 3] in [-bound, bound]^3.
        albedo: maps points [M, 3] to sRGB colours [M, 3] in [0, 1].
        bound: half the edge of the box; a surface that touches a wall is closed there.
        folder: where files are written or replaced, all at once at the end; others are kept. Created if missing.
        options: of the extraction, and of everything after it.
        transform: [4, 4] from the box to the data's own world, if the data was normalised on loading.
        metadata: JSON values for the GLB's ``asset`` and the headers of OBJ and MTL: prompt, seed, licence notes, copyright.
        report: called with a line at the end of each stage.
        device: of the field.
        photos: of the object, in the space of the box; see :class:`PhotoColors`.

    Returns:
        The report. All files have been read back and compared by then.

    Raises:
        ExportError: there is no surface (empty, solid, NaN), or a file does not hold what was written.
        ValueError: an argument out of range.
        OSError: a file cannot be written.
    """
    job = ExportJob(albedo, Path(folder), options, bound, checked(transform), metadata or {}, device, Progress(report), photos)
    if options.crop is not None:
        level_set = crop_box(options.crop, job.transform, options.export_frame).level_set(level_set)
    with explained("extracting the surface", LESS_GRID):
        mesh, grid = extract_surface(level_set, bound, options.resolution, options.smooth, device, options.fill_hidden)
    job.progress.done(
        "surface",
        f"{len(mesh.faces):,} triangles from a grid of {' x '.join(str(n - 1) for n in grid.values.shape)} cells; the "
        f"{quantity(grid)} was evaluated at {grid.queries:,} points",
    )
    common: dict[str, Any] = {"level": grid.level, "queries": grid.queries, "grid_points": grid.cells + 1}
    spacing, highest, distance = grid.spacing, grid.span[2], not grid.logarithmic
    del grid  # half a gigabyte at 512^3
    surface = finish(mesh, options, bound)
    if distance:
        return replace(_deliver(surface, job), **common)

    def inset(clean: Mesh) -> np.ndarray:
        return light_depth(level_set.value, clean.vertices, clean.require("normals"), spacing, device=device)

    done = _deliver(surface, job, inset)
    return replace(done, max_density=highest, notes=done.notes + _fog_notes(highest), **common)


def _fog_notes(highest: float) -> tuple[str, ...]:
    """What to say of a density whose highest value is too low for a solid object; nothing for others."""
    if highest >= _OPAQUE:
        return ()
    return (
        f"the highest density is {highest:.3g}, below {_OPAQUE:g}: the object is still foggy, and "
        "longer training makes it more opaque",
    )


def export_surface(
    surface: Mesh | FinishedSurface,
    albedo: Color,
    folder: str | Path,
    options: ExportOptions,
    *,
    bound: float,
    transform=None,
    metadata: dict | None = None,
    report: Callable[[str], None] | None = None,
    device: torch.device | str = "cpu",
    photos: Sequence[Callable[[], Photo]] = (),
) -> ExportReport:
    """Write a given surface, such as that of a tetrahedral grid, to the same files; its colour is evaluated on the surface.

    Args:
        surface: vertices [V, 3] and faces [T, 3], counter-clockwise seen from outside, other attributes are ignored; or what
            :func:`nerf.mesh.finish.finish_given` made of them with the same options.
        albedo: maps points [M, 3] to sRGB colours [M, 3] in [0, 1].
        bound: half the edge of the box that holds the surface.
        folder, options, transform, metadata, report, device, photos: as for :func:`export_level_set`.

    Returns:
        The report; its entries about the extraction are None.

    Raises:
        ExportError: there is no surface (empty, NaN, inside out), or a file does not hold what was written.
        ValueError: an argument out of range.
        OSError: a file cannot be written.
    """
    job = ExportJob(albedo, Path(folder), options, bound, checked(transform), metadata or {}, device, Progress(report), photos)
    if isinstance(surface, Mesh):
        surface = finish_given(surface, options, bound, job.transform)
    return _deliver(surface, job)


@dataclass(frozen=True)
class ExportJob:
    """All arguments of an export but its surface; built, and so checked, before any work is done."""

    albedo: Color
    folder: Path
    options: ExportOptions
    bound: float
    transform: np.ndarray | None
    metadata: dict
    device: torch.device | str
    progress: Progress
    photos: Sequence[Callable[[], Photo]] = ()

    def __post_init__(self):
        require_packages()

    @property
    def look(self) -> Material:
        """The material, named after the prompt where there is one."""
        name = " ".join(str(self.metadata.get("prompt", "")).split())
        return replace(self.options.material, name=name) if name else self.options.material

    @property
    def comment(self) -> str:
        """The lines at the head of the OBJ and the MTL."""
        return "\n".join(f"{key}: {value}" for key, value in self.metadata.items())

    def colors_at(self, points: np.ndarray) -> np.ndarray:
        """sRGB colours [P, 3] in [0, 1] of points [P, 3]."""
        return query_color(self.albedo, points, self.device)


def _deliver(surface: FinishedSurface, job: ExportJob, inset: Callable[[Mesh], np.ndarray] | None = None) -> ExportReport:
    """Unwrap, bake and write a surface; ``inset`` gives the depth [V] below its mesh at which colours are evaluated."""
    options, progress, mesh = job.options, job.progress, surface.mesh
    progress.done("clean", str(surface), surface.seconds)
    with explained("unwrapping the mesh", "lower --decimate_target"):
        flat = unwrap(mesh, options.texture_size)
    progress.done("unwrap", f"unwrapped into {len(flat.vertices):,} vertices")
    depth = np.zeros(len(mesh.vertices)) if inset is None else inset(mesh)
    with explained("baking the texture", _LESS_TEXTURE):
        seen = PhotoColors(job.photos, mesh, job.bound) if job.photos else None
        flat, coverage = _bake(surface.fine, flat, depth, job, seen)
    used = f" from {len(job.photos)} photographs" if job.photos else ""
    progress.done("bake", f"baked {options.texture_size}^2 texels{used}, {100 * coverage:.0f} % covered")
    placing = placement(job.transform, options.export_frame)
    if options.ground:
        placing = on_ground(placing, flat.vertices)
    flat, painted = transformed(flat, placing), None
    if options.ply:
        colors = job.colors_at(mesh.vertices - depth[:, None] * mesh.require("normals"))
        colors = colors if seen is None else seen.over(mesh.vertices, mesh.require("normals"), colors)
        painted = transformed(replace(mesh, colors=to_bytes(colors)), placing)
    with explained("writing the mesh", f"lower --decimate_target, or {_LESS_TEXTURE}"):
        files = _write(job, flat, painted, placing)
    progress.done("write", "wrote and read back " + ", ".join(path.name for path in files.values()))
    sound, height = soundness(flat), float(np.ptp(flat.bounds[:, 1]))
    progress.done("measure", "looked for caves, handles and thin walls")
    return ExportReport(
        files=files,
        vertices=len(mesh.vertices),
        faces=len(mesh.faces),
        parts_dropped=surface.dropped,
        watertight=is_watertight(flat),
        cleaning=surface.cleaning,
        decimation=surface.decimation,
        volume=signed_volume(flat),
        bounds=(tuple(map(float, flat.bounds[0])), tuple(map(float, flat.bounds[1]))),
        texture_coverage=coverage,
        soundness=sound,
        seconds=progress.seconds,
        notes=_notes(mesh, job, surface.cleaning, coverage) + sound.notes(height, options.ground),
    )


def _bake(fine: Mesh, flat: Mesh, depth: np.ndarray, job: ExportJob, seen: PhotoColors | None) -> tuple[Mesh, float]:
    """The unwrapped mesh with its textures, and the fraction of them that triangles cover."""
    options, inset = job.options, depth[flat.require("weld")]
    over = None if seen is None else seen.over
    texture, coverage = bake(flat, job.colors_at, options.texture_size, inset, options.supersample, over)
    flat = replace(flat, texture=texture)
    if seen is not None:
        flat = replace(flat, texture=seen.fitted(flat))
    if not options.normal_map:
        return flat, coverage
    flat = replace(flat, tangents=vertex_tangents(flat))
    normals = nearest_normals(replace(fine, normals=vertex_normals(fine)), job.bound)
    image = bake_normals(flat, normals, options.texture_size, options.supersample)
    return replace(flat, normal_texture=image), coverage


def checked(transform) -> np.ndarray | None:
    """A given transform, checked, or None."""
    return None if transform is None else check_transform(transform)


def _write(job: ExportJob, mesh: Mesh, painted: Mesh | None, placing: np.ndarray) -> dict[str, Path]:
    """Write OBJ (with MTL and textures), GLB and the rest, and compare what is read back; then they replace the old ones.

    Args:
        job: the arguments of the export.
        mesh: with its textures, in the axes of the files.
        painted: the same surface with vertex colours, for ``mesh.ply``; None: not asked for.
        placing: matrix [4, 4] from the box to the files.
    """
    with replace_folder(job.folder, FILES) as fresh:
        files = write_obj(fresh, mesh, job.look, job.comment)
        files["glb"] = write_glb(fresh / "mesh.glb", mesh, job.look, job.metadata)
        check_file(files["obj"], mesh)
        check_file(files["glb"], mesh)
        if painted is not None:
            files["ply"] = write_ply(fresh / "mesh.ply", painted)
            check_file(files["ply"], painted)
        if job.options.stl:
            files["stl"] = write_stl(fresh / "mesh.stl", mesh)
            check_file(files["stl"], mesh)
        if job.transform is not None or job.options.ground:
            files["transform"] = write_transform(fresh, job.transform, placing, job.options.export_frame)
    return {name: job.folder / path.name for name, path in files.items()}


def _notes(mesh: Mesh, job: ExportJob, cleaning: Cleaning, coverage: float) -> tuple[str, ...]:
    """Possible defects of the mesh, and what to do about them."""
    notes, wanted = [], job.options.decimate_target
    if cleaning.open_loops:
        notes.append(
            f"the surface has {len(cleaning.open_loops)} holes away from the walls of the box, which were left "
            f"open; the longest boundary is {cleaning.open_loops[0]:.3g} scene units"
        )
    elif not is_watertight(mesh):
        notes.append("the surface is not closed everywhere; another --decimate_target may help")
    if job.options.max_error and len(mesh.faces) > 1.01 * wanted > 0:
        notes.append(
            f"{len(mesh.faces):,} triangles were kept instead of {wanted:,}, so that no part moved by more than "
            f"{job.options.max_error:g} scene units"
        )
    elif len(mesh.faces) > 1.1 * wanted > 0:
        notes.append(f"{len(mesh.faces):,} triangles were kept instead of {wanted:,}; decimation cannot go further")
    if coverage < _LOW_COVERAGE:
        notes.append(f"triangles cover only {100 * coverage:.0f} % of the texture; raise --texture_size to keep detail")
    if float(np.abs(mesh.vertices).max()) >= job.bound * (1 - 1e-6):
        notes.append("the surface touches the wall of the box and was closed there; --bound may be too small")
    return tuple(notes)
