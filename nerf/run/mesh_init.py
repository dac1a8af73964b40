"""Initialises the mesh stage: from a NeRF of this program or of stable-dreamfusion, a mesh file, silhouettes, or a ball.

:func:`read_start` reads, before anything is built, the options that the source was made with;
:func:`initialize_mesh` sets the weights and distances of the built model. V points of the tetrahedral grid, n points along
an edge of a regular grid.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from nerf.config.config import Config
from nerf.config.kept import StoredStart, start_from_run
from nerf.config.limits import MESH_SUFFIXES
from nerf.config.stages import NERF, STAGE_KINDS
from nerf.core.cameras import project
from nerf.core.errors import ExportError, UserError
from nerf.core.progress import track
from nerf.core.structs import LevelSet
from nerf.data.posed_images import Photographs
from nerf.data.silhouettes import silhouette
from nerf.mesh import sdf
from nerf.mesh.hidden import fill_hidden, hidden_from
from nerf.mesh.level_set_grid import SMOOTH_CLIP, LevelSetGrid, quantity, sample_level_set, smoothed, why_empty
from nerf.mesh.mesh import MIN_PART, transformed
from nerf.render.dmtet import DMTetPath
from nerf.renderer import NeRFRenderer
from nerf.run import checkpoint, checkpoint_checks, stable_dreamfusion
from nerf.run.mesh_file import begin_painting, begin_with_colors, matrix_to_box
from nerf.run.workspace import CONFIG_FILE, stored_config

Kind = Literal["checkpoint", "stable-dreamfusion", "mesh"]

MARGIN = 0.08  # space between the object and the wall of the grid, as a fraction of the object's longest side
LEAST_MARGIN = 1e-3  # of the bound, for an object of almost no size
_CAVITY_DEPTH = 1e-3  # of the implicit function: least depth inside the surface of a cavity that is filled
_LEAST_SLOPE = 1e-6  # of the implicit function per cell


@dataclass(frozen=True)
class InitSource:
    """The file that the mesh stage is initialised from."""

    kind: Kind
    path: Path
    newest: bool = False  # of its stage in a workspace: where it is damaged, the whole one before it takes its place


def find_source(config: Config) -> InitSource | None:
    """The file that ``--init_with`` refers to; without the flag the newest NeRF of the workspace.

    Returns:
        The source, None if there is neither.

    Raises:
        UserError: there is no such file, it is of an unknown kind, or the workspace has no checkpoint.
    """
    given = config.dmtet.init_with
    if not given:
        own = checkpoint.latest(Path(config.output.workspace) / "checkpoints")
        return None if own is None else InitSource("checkpoint", own, newest=True)
    path = Path(given).expanduser()
    if path.is_dir():
        folder = path / "checkpoints"
        found = next(filter(None, (checkpoint.latest(folder, stage) for stage in STAGE_KINDS)), None)
        if found is None:
            raise UserError(f"--init_with {given}: the folder has no checkpoints/df_step_*.safetensors; give a workspace of a "
                            "finished NeRF, a checkpoint, a df.pth or a mesh")  # fmt: skip
        return InitSource("checkpoint", found, newest=True)
    if not path.is_file():
        raise UserError(f"--init_with {given}: no such file or folder")
    kinds: dict[str, Kind] = {".safetensors": "checkpoint"}
    kinds |= {suffix: "stable-dreamfusion" for suffix in checkpoint.PICKLE_SUFFIXES}
    kinds |= {suffix: "mesh" for suffix in MESH_SUFFIXES}
    kind = kinds.get(path.suffix.lower())
    if kind is None:
        raise UserError(f"--init_with {given}: expected a workspace or a file that ends in {', '.join(kinds)}")
    return InitSource(kind, path)


def read_start(config: Config) -> StoredStart:
    """What the options of a mesh stage depend on in its source.

    Raises:
        UserError: there is no such file, it is of an unknown kind, or it cannot be read.
    """
    source = find_source(config)
    if source is None or source.kind == "mesh":
        return StoredStart()
    if source.kind == "stable-dreamfusion":
        return StoredStart(stable_dreamfusion.read_stable_dreamfusion_field(source.path).options)
    stage = checkpoint.stage_of(source.path) or NERF.name
    own = source.path.parent.resolve() == (Path(config.output.workspace) / "checkpoints").resolve()
    folder = source.path.parent.parent
    if not (folder / CONFIG_FILE).is_file():
        return StoredStart(own_stage=stage if own else None)
    return start_from_run(stored_config(folder), stage, own)


def initialize_mesh(model: NeRFRenderer, config: Config, photos: Photographs | None = None) -> tuple[str, np.ndarray | None]:
    """Initialise the model of a mesh stage.

    Args:
        model: with a ``DMTetPath``.
        config: the options of the stage.
        photos: those that train it; without another source their silhouettes are carved.

    Returns:
        A sentence for the log, and the transform [4, 4] from the box to the world of the source, if that is another one
        (a mesh that had to be fitted into the box, now or when its checkpoint was made), else None.

    Raises:
        UserError: the source does not fit the model.
        ExportError: it holds no object, or one that the grid is too coarse for.
    """
    line, transform = _initialize(model, config, photos)
    surface = model.surface()
    if surface is None or len(surface.faces) == 0:
        raise ExportError(
            f"{line}; but the object is too thin for a grid of {config.dmtet.tet_grid_size} layers, and nothing of it is "
            "left: give a larger --tet_grid_size, or a lower --mesh_threshold if it is a NeRF of this program"
        )
    return line, transform


def _initialize(model: NeRFRenderer, config: Config, photos: Photographs | None) -> tuple[str, np.ndarray | None]:
    """:func:`initialize_mesh` without the check that a surface is left."""
    if config.painted:
        return begin_painting(model, config, photos)
    source, transform = find_source(config), None
    if source is None and photos is not None and silhouette(photos, 0) is not None:
        return _init_from_silhouettes(model, photos), None
    if source is None:
        return "the mesh is initialised as a ball: neither --init_with nor a NeRF in the workspace", None
    if source.kind == "mesh":
        return _init_from_mesh(model, source.path, config, photos)
    path = source.path
    if source.kind == "stable-dreamfusion":
        found = stable_dreamfusion.read_stable_dreamfusion_field(path)
        checkpoint_checks.load_module(model.field, found.tensors, path)
        threshold = found.threshold
    else:
        selected = "latest" if source.newest else str(path)
        loaded = checkpoint.load_selected(path.parent, selected, checkpoint.stage_of(path) or NERF.name)
        assert loaded is not None, "there is a checkpoint"
        path, tensors, meta, _ = loaded
        if photos is None and meta.get("transform") is not None:
            transform = np.asarray(meta["transform"])
        checkpoint_checks.require_parts(tensors, ("model", "ema"), path)
        state = tensors["model"] | {name: value for name, value in tensors["ema"].items() if name != "updates"}
        kind = STAGE_KINDS.get(str(meta.get("stage")))
        if kind is not None and kind.triangles:
            if "path.source_vertices" in state:
                raise UserError(f"--init_with {path}: that workspace paints a mesh file; give its mesh/mesh.glb")
            checkpoint_checks.load_module(model, state, path)
            return f"the mesh is initialised from the mesh of {path}", transform
        checkpoint_checks.require_stage(meta, NERF.name, path)
        for name in ("field", "background"):
            inside = {key.removeprefix(f"{name}."): value for key, value in state.items() if key.startswith(f"{name}.")}
            checkpoint_checks.load_module(getattr(model, name), inside, path)
        threshold = config.output.mesh_threshold
    level_set = model.level_set(threshold)
    level = _init_from_level_set(model, config, level_set, source.kind == "checkpoint")
    return f"the mesh is initialised from {path}, where its {quantity(level_set)} is {level:g}", transform


def _mesh_path(model: NeRFRenderer) -> DMTetPath:
    """The render path of a mesh stage."""
    if not isinstance(model.path, DMTetPath):
        raise TypeError(f"initialize_mesh: expected a model with a DMTetPath, got one with a {type(model.path).__name__}")
    return model.path


def _init_from_level_set(model: NeRFRenderer, config: Config, level_set: LevelSet, flagged: bool = True) -> float:
    """Extract the surface that the export would extract, with a grid that fills the object's own box; returns its level.

    ``flagged``: the level is that of ``--mesh_threshold``.
    """
    path, output = _mesh_path(model), config.output
    grid = sample_level_set(level_set, model.bound, output.mcubes_resolution, device=path.distance.device)
    cameras = hidden_from(config.mesh, config.camera)
    grid = smoothed(grid if cameras is None else fill_hidden(grid, cameras), output.mesh_smooth)
    implicit = grid.implicit(SMOOTH_CLIP)
    if not (implicit > 0).any():
        raise ExportError(why_empty(grid, "NeRF", flagged))
    implicit = _solid_parts(implicit.astype(np.float32))
    if (implicit > 0).all():
        raise ExportError(
            f"the NeRF fills its whole box: its {quantity(grid)} is nowhere {_outside(grid)} {grid.level:g}, where the mesh "
            f"would be extracted; {'give a higher --mesh_threshold, or ' if flagged else ''}train it longer"
        )
    inside = np.argwhere(implicit > 0) * grid.spacing - grid.bound
    points = path.start(*_box_around(inside.min(axis=0), inside.max(axis=0), model.bound))
    path.set_distance(-interpolated(implicit, grid.bound, points) / _slope(implicit, grid.spacing))
    return grid.level


def _outside(grid: LevelSetGrid) -> str:
    """On which side of the level the outside is, for messages."""
    return "below" if grid.inside == "above" else "above"


def _init_from_mesh(
    model: NeRFRenderer, path: Path, config: Config, photos: Photographs | None
) -> tuple[str, np.ndarray | None]:
    """Take the surface of a mesh file, fitted into the box if it extends beyond it or is small.

    With photographs the mesh must lie where the export would write it.
    """
    mesh = sdf.load_mesh(path)
    to_box, transform = matrix_to_box(mesh.vertices, path, model.bound, config, photos)
    mesh = transformed(mesh, to_box)
    low, high = mesh.bounds
    grid = _mesh_path(model)
    points = grid.start(*_box_around(low, high, model.bound))
    try:
        distance = sdf.signed_distance(mesh, points.cpu().numpy().astype(np.float64))
    except UserError as error:
        raise UserError(f"--init_with {path}: {error}") from None
    grid.set_distance(torch.from_numpy(distance).to(points))
    fitted = "" if transform is None else ", turned or fitted into the box; the export undoes that"
    line = f"the mesh is initialised from {path} ({len(mesh.faces):,} triangles{fitted})"
    return line + begin_with_colors(model, config, path, to_box), transform


def _init_from_silhouettes(model: NeRFRenderer, photos: Photographs) -> str:
    """Carve the visual hull, with a grid that fills the whole box first and the object's own box then."""
    path = _mesh_path(model)
    box = torch.zeros(3), torch.full((3,), model.bound)
    for _ in range(2):
        points = path.start(*box)
        distance = visual_hull(photos, points)
        inside = points[distance < 0]
        if len(inside) == 0:
            return "the mesh is initialised as a ball: the visual hull of the photographs' silhouettes is empty"
        low, high = inside.amin(0).cpu().numpy(), inside.amax(0).cpu().numpy()
        box = _box_around(low, high, model.bound)
    path.set_distance(distance)
    return f"the mesh is initialised from the visual hull of {len(photos)} silhouettes"


def visual_hull(photos: Photographs, points: Tensor) -> Tensor:
    """Signed distance [V] of points [V, 3] to the visual hull, scene units, negative inside (Laurentini 1994).

    The maximum over the views of the distance to the silhouette's outline in the image, scaled to the point's depth: exact
    in sign, and near the surface close to the distance. Points outside a view's image are not constrained by it.
    """
    from scipy.ndimage import distance_transform_edt

    hull = torch.full((len(points),), -torch.inf, device=points.device)
    for i in track(range(len(photos)), "carving the visual hull"):
        shown, view = silhouette(photos, i), photos.view(i)
        if shown is None:
            continue
        mask = shown.cpu().numpy()
        outline = distance_transform_edt(~mask) - distance_transform_edt(mask)
        xy, depth = project(view, points)
        size = torch.tensor([view.width, view.height], device=points.device)
        at = (2 * xy[0] / size - 1)[None, None]
        image = torch.from_numpy(outline).to(points)[None, None]
        pixels = functional.grid_sample(image, at, mode="bilinear", padding_mode="border", align_corners=False).reshape(-1)
        seen = (at[0, 0].abs() <= 1).all(-1) & (depth[0] > 0)
        hull = torch.where(seen, torch.maximum(hull, pixels * depth[0] / view.fy), hull)
    return hull.nan_to_num(neginf=float(points.abs().max()))


def _box_around(low: np.ndarray, high: np.ndarray, bound: float) -> tuple[Tensor, Tensor]:
    """Centre [3] and half the sides [3] of a box around an object, with a margin, inside [-bound, bound]^3."""
    margin = max(MARGIN * float((high - low).max()), LEAST_MARGIN * bound)
    low, high = np.maximum(low - margin, -bound), np.minimum(high + margin, bound)
    return torch.tensor((low + high) / 2, dtype=torch.float32), torch.tensor((high - low) / 2, dtype=torch.float32)


def _solid_parts(implicit: np.ndarray) -> np.ndarray:
    """The implicit function [n, n, n] without floaters (small connected parts above zero) and without cavities."""
    from scipy import ndimage

    label, count = ndimage.label(implicit > 0)
    size = np.bincount(label.reshape(-1), minlength=count + 1)
    size[0] = 0
    small = (size < MIN_PART * size.max())[label] & (label > 0)
    implicit = np.where(small, -np.abs(implicit), implicit)
    cavity = ndimage.binary_fill_holes(implicit > 0) & (implicit <= 0)
    return np.where(cavity, np.abs(implicit).clip(min=_CAVITY_DEPTH), implicit)


def _slope(implicit: np.ndarray, spacing: float) -> float:
    """The slope of the implicit function [n, n, n] at the surface, per scene unit: the median over grid edges that cross it."""
    steps = []
    for axis in range(3):
        a, b = np.moveaxis(implicit, axis, 0)[:-1], np.moveaxis(implicit, axis, 0)[1:]
        steps.append(np.abs(a - b)[(a > 0) != (b > 0)])
    return max(float(np.median(np.concatenate(steps))), _LEAST_SLOPE) / spacing


def interpolated(values: np.ndarray, bound: float, points: Tensor) -> Tensor:
    """Values [n, n, n] on a regular grid over [-bound, bound]^3 at points [V, 3], trilinear, [V]."""
    volume = torch.from_numpy(values).to(points)[None, None]
    at = (points / bound).flip(-1)[None, None, None]  # grid_sample counts the last axis first
    return functional.grid_sample(volume, at, mode="bilinear", padding_mode="border", align_corners=True).reshape(-1)
