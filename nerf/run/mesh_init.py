"""What the mesh stage starts from: a NeRF of this program or the peer, a mesh file, silhouettes, or a ball.

``read_start`` reads, before anything is built, the options that the start was made with; ``begin`` fills the built model.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from nerf.config.config import Config
from nerf.config.resolve import StoredStart, start_from_run
from nerf.config.stages import DMTET, STAGE_KINDS
from nerf.core.cameras import project
from nerf.core.errors import UserError
from nerf.data.posed_images import Photographs
from nerf.mesh import sdf
from nerf.mesh.density_grid import SMOOTH_CLIP, Lattice, sample_lattice, smoothed
from nerf.mesh.export import placement
from nerf.mesh.mesh import transformed
from nerf.renderer import NeRFRenderer
from nerf.run import checkpoint, stable_dreamfusion
from nerf.run.workspace import CONFIG_FILE, stored_config

MARGIN = 0.08  # room between the object and the wall of the grid, as a share of the object's longest side
MIN_PART = 0.01  # parts with a smaller share of the biggest part's volume are floaters
HALF_OF_BOX = 0.8  # how far a mesh that had to be fitted reaches towards the wall


@dataclass(frozen=True)
class Start:
    """Where the mesh stage starts."""

    kind: str  # "checkpoint", "peer", "mesh" or "ball"
    path: Path | None = None


def find(config: Config) -> Start:
    """What ``--init_with`` means; without it, the newest NeRF of the workspace, else a ball.

    Raises:
        UserError: there is no such file, it is of no known kind, or the workspace has no checkpoint.
    """
    said = config.dmtet.init_with
    if not said:
        own = checkpoint.latest(Path(config.output.workspace) / "checkpoints")
        return Start("ball") if own is None else Start("checkpoint", own)
    path = Path(said).expanduser()
    if path.is_dir():
        folder = path / "checkpoints"
        found = next(filter(None, (checkpoint.latest(folder, stage) for stage in STAGE_KINDS)), None)
        if found is None:
            raise UserError(f"--init_with {said}: the folder has no checkpoints/df_step_*.safetensors; give a workspace of a "
                            "finished NeRF, a checkpoint, a df.pth or a mesh")  # fmt: skip
        return Start("checkpoint", found)
    if not path.is_file():
        raise UserError(f"--init_with {said}: no such file or folder")
    kinds = dict.fromkeys((".safetensors",), "checkpoint") | dict.fromkeys(checkpoint.PICKLE_SUFFIXES, "peer")
    kinds |= dict.fromkeys(sdf.SUFFIXES, "mesh")
    kind = kinds.get(path.suffix.lower())
    if kind is None:
        raise UserError(f"--init_with {said}: expected a workspace or a file that ends in {', '.join(kinds)}")
    return Start(kind, path)


def read_start(config: Config) -> StoredStart:
    """What the mesh stage starts from, as far as options depend on it.

    Raises:
        UserError: there is no such file, it is of no known kind, or it cannot be read.
    """
    start = find(config)
    if start.kind == "peer":
        return StoredStart(stable_dreamfusion.read_peer_field(start.path).options)
    if start.path is None or start.kind != "checkpoint":
        return StoredStart()
    stage = checkpoint.stage_of(start.path) or DMTET.starts_from
    own = start.path.parent.resolve() == (Path(config.output.workspace) / "checkpoints").resolve()
    folder = start.path.parent.parent
    if not (folder / CONFIG_FILE).is_file():
        return StoredStart(own_stage=stage if own else None)
    return start_from_run(stored_config(folder), stage, own)


def begin(model: NeRFRenderer, config: Config, photos: Photographs | None = None) -> tuple[str, np.ndarray | None]:
    """Fill the model of a mesh stage with what it starts from.

    Args:
        model: with a ``DMTetPath``.
        config: the options of the stage.
        photos: those that train it; silhouettes make a better start than a ball.

    Returns:
        A sentence for the log, and the transform [4, 4] from the box to the world of what was taken, if that has another
        (a mesh that had to be fitted into the box, now or when its checkpoint was made), else None.

    Raises:
        UserError: the start does not fit the model, or there is no object in it, or one that the grid is too coarse for.
    """
    line, transform = _fill(model, config, photos)
    if len(model.surface().faces) == 0:
        raise UserError(
            f"{line}; but it is too thin for a grid of {config.dmtet.tet_grid_size} layers, and nothing of it is "
            "left: give a larger --tet_grid_size, or a lower --mesh_threshold if it is a NeRF"
        )
    return line, transform


def _fill(model: NeRFRenderer, config: Config, photos: Photographs | None) -> tuple[str, np.ndarray | None]:
    """What :func:`begin` does, whether anything is left of it or not."""
    start, transform = find(config), None
    if start.kind == "ball" and photos is not None and silhouette(photos, 0) is not None:
        return _begin_with_silhouettes(model, photos), None
    if start.kind == "ball":
        return "the mesh starts as a ball: neither --init_with nor a NeRF in the workspace", None
    if start.kind == "mesh":
        return _begin_with_mesh(model, start.path, config, photos)
    if start.kind == "peer":
        found = stable_dreamfusion.read_peer_field(start.path)
        checkpoint.load_module(model.field, found.tensors, start.path)
        threshold = found.threshold
    else:
        tensors, meta = checkpoint.load(start.path)
        if photos is None and meta.get("transform") is not None:
            transform = np.asarray(meta["transform"])
        state = tensors["model"] | {name: value for name, value in tensors["ema"].items() if name != "updates"}
        kind = STAGE_KINDS.get(meta.get("stage"))
        if kind is not None and kind.triangles:
            checkpoint.load_module(model, state, start.path)
            return f"the mesh starts from the mesh of {start.path}", transform
        checkpoint.require_stage(meta, DMTET.starts_from, start.path)
        for name in ("field", "background"):
            inside = {key.removeprefix(f"{name}."): value for key, value in state.items() if key.startswith(f"{name}.")}
            checkpoint.load_module(getattr(model, name), inside, start.path)
        threshold = config.output.mesh_threshold
    _begin_with_density(model, config, threshold)
    return f"the mesh starts from {start.path}, where its density is {threshold:g}", transform


def _begin_with_density(model: NeRFRenderer, config: Config, threshold: float) -> None:
    """Cut the grid where the export would cut the field, and let it fill the object's box."""
    device = model.path.extent.device
    lattice = sample_lattice(
        model.level_set(threshold).value, model.bound, config.output.mcubes_resolution, threshold, device=device
    )
    lattice = smoothed(lattice, config.output.mesh_smooth)
    level = np.log(np.clip(lattice.density / lattice.threshold, 1.0 / SMOOTH_CLIP, SMOOTH_CLIP))
    if not (level > 0).any():
        raise UserError(
            f"the NeRF is empty: its highest density is {float(lattice.density.max()):.3g}, and the mesh starts where it is "
            f"{threshold:g}; train it longer, or give a lower --mesh_threshold"
        )
    level = _solid_parts(level.astype(np.float32))
    if (level > 0).all():
        raise UserError(
            f"the NeRF fills its whole box: its density is nowhere below {threshold:g}, where the mesh would "
            "start; train it longer"
        )
    inside = np.argwhere(level > 0) * lattice.spacing - lattice.bound
    points = model.path.start(*_box_around(inside.min(axis=0), inside.max(axis=0), model.bound))
    model.path.set_distance(-sampled(level, lattice, points) / _slope(level, lattice))


def _begin_with_mesh(
    model: NeRFRenderer, path: Path, config: Config, photos: Photographs | None
) -> tuple[str, np.ndarray | None]:
    """Take the surface of a mesh file; one that does not lie well in the box is fitted into it.

    With photographs it has a place of its own: where the export would write it.
    """
    mesh, transform = sdf.load_mesh(path), None
    if photos is not None:
        mesh = transformed(mesh, np.linalg.inv(placement(np.asarray(photos.transform), config.output.export_frame)))
    extent = float(np.abs(mesh.bounds).max())
    if photos is not None and extent > model.bound:
        raise UserError(
            f"--init_with {path}: in the box of the photographs the mesh reaches {extent:.3g} from the middle, and the box "
            f"ends at {model.bound:g}; it must lie where this run would export it, try --export_frame source"
        )
    if photos is None and not 0.25 * model.bound <= extent <= model.bound:
        mesh, transform = sdf.fit(mesh, HALF_OF_BOX * model.bound)
    low, high = mesh.bounds
    points = model.path.start(*_box_around(low, high, model.bound))
    try:
        distance = sdf.signed_distance(mesh, points.cpu().numpy().astype(np.float64))
    except UserError as error:
        raise UserError(f"--init_with {path}: {error}") from None
    model.path.set_distance(torch.from_numpy(distance).to(points))
    fitted = "" if transform is None else ", fitted into the box; the export undoes that"
    return f"the mesh starts from {path} ({len(mesh.faces):,} triangles{fitted})", transform


def _begin_with_silhouettes(model: NeRFRenderer, photos: Photographs) -> str:
    """Carve the grid to the visual hull, in the whole box first and then in the object's own."""
    box = torch.zeros(3), torch.full((3,), model.bound)
    for _ in range(2):
        points = model.path.start(*box)
        distance = visual_hull(photos, points)
        inside = points[distance < 0]
        if len(inside) == 0:
            return "the mesh starts as a ball: the silhouettes of the photographs have nothing in common"
        low, high = inside.amin(0).cpu().numpy(), inside.amax(0).cpu().numpy()
        box = _box_around(low, high, model.bound)
    model.path.set_distance(distance)
    return f"the mesh starts from the visual hull of {len(photos)} silhouettes"


def silhouette(photos: Photographs, i: int) -> Tensor | None:
    """Where photograph ``i`` shows the object, bool [H, W]; None if neither alpha nor a mask says."""
    alpha, valid = photos.alpha(i), photos.valid_mask(i)
    if alpha is None:
        return valid
    return alpha > 0.5 if valid is None else (alpha > 0.5) & valid


def visual_hull(photos: Photographs, points: Tensor) -> Tensor:
    """Signed distance [V] of points [V, 3] to the visual hull, scene units, negative inside (Laurentini 1994).

    It is the largest over the views of the distance to the silhouette's outline in the picture, brought to the point's own
    depth: exact in sign, and near the surface close to the distance. A view that does not see a point says nothing of it.
    """
    from scipy.ndimage import distance_transform_edt

    hull = torch.full((len(points),), -torch.inf, device=points.device)
    for i in range(len(photos)):
        shown, view = silhouette(photos, i).cpu().numpy(), photos.view(i)
        outline = distance_transform_edt(~shown) - distance_transform_edt(shown)
        xy, depth = project(view, points)
        size = torch.tensor([view.width, view.height], device=points.device)
        at = (2 * xy[0] / size - 1)[None, None]
        field = torch.from_numpy(outline).to(points)[None, None]
        pixels = functional.grid_sample(field, at, mode="bilinear", padding_mode="border", align_corners=False).reshape(-1)
        seen = (at[0, 0].abs() <= 1).all(-1) & (depth[0] > 0)
        hull = torch.where(seen, torch.maximum(hull, pixels * depth[0] / view.fy), hull)
    return hull.nan_to_num(neginf=float(points.abs().max()))


def _box_around(low: np.ndarray, high: np.ndarray, bound: float) -> tuple[Tensor, Tensor]:
    """Centre [3] and half the sides [3] of a box around an object, with room for it to grow inside [-bound, bound]^3."""
    margin = max(MARGIN * float((high - low).max()), 1e-3 * bound)
    low, high = np.maximum(low - margin, -bound), np.minimum(high + margin, bound)
    return torch.tensor((low + high) / 2, dtype=torch.float32), torch.tensor((high - low) / 2, dtype=torch.float32)


def _solid_parts(level: np.ndarray) -> np.ndarray:
    """The level [n, n, n] without floaters (small connected parts above zero) and without cavities."""
    from scipy import ndimage

    label, count = ndimage.label(level > 0)
    size = np.bincount(label.reshape(-1), minlength=count + 1)
    size[0] = 0
    small = (size < MIN_PART * size.max())[label] & (label > 0)
    level = np.where(small, -np.abs(level), level)
    cavity = ndimage.binary_fill_holes(level > 0) & (level <= 0)
    return np.where(cavity, np.abs(level).clip(min=1e-3), level)


def _slope(level: np.ndarray, lattice: Lattice) -> float:
    """How fast the level falls through its zero, per scene unit: the median over lattice edges that cross it."""
    steps = []
    for axis in range(3):
        a, b = np.moveaxis(level, axis, 0)[:-1], np.moveaxis(level, axis, 0)[1:]
        steps.append(np.abs(a - b)[(a > 0) != (b > 0)])
    return max(float(np.median(np.concatenate(steps))), 1e-6) / lattice.spacing


def sampled(level: np.ndarray, lattice: Lattice, points: Tensor) -> Tensor:
    """The level [n, n, n] at points [V, 3] of the box, trilinear, [V]."""
    volume = torch.from_numpy(level).to(points)[None, None]
    at = (points / lattice.bound).flip(-1)[None, None, None]  # grid_sample counts the last axis first
    return functional.grid_sample(volume, at, mode="bilinear", padding_mode="border", align_corners=True).reshape(-1)
