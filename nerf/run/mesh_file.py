"""A mesh file at the beginning of the mesh stage: where it lies in the box, its colours, and the path that paints it.

V vertices, P points on the surface.
"""

from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from nerf.config.config import Config
from nerf.core.cameras import project
from nerf.core.errors import UserError
from nerf.core.progress import track
from nerf.core.structs import Points, RenderSettings
from nerf.data.posed_images import Photographs
from nerf.data.silhouettes import silhouette
from nerf.mesh.mesh import Mesh, moved
from nerf.mesh.placement import placement
from nerf.mesh.sdf import fit
from nerf.mesh.source import digest_of_file, read_source
from nerf.mesh.surface_colors import sample_colors
from nerf.render.triangles import FixedMeshPath
from nerf.renderer import NeRFRenderer

FITTED_EXTENT = 0.8  # of the bound: how far a mesh that had to be fitted into the box extends towards the wall
SMALLEST_EXTENT = 0.25  # of the bound: a smaller mesh is fitted into the box
COLOR_POINTS, COLOR_BATCH, COLOR_STEPS, COLOR_RATE = 1 << 18, 1 << 13, 250, 2e-3  # of the fit of the field to colours
_CHECKED_VIEWS = 8  # photographs in which the place of a mesh is looked at
_PLACED = 0.5  # share of the vertices that must show on the object there


def matrix_to_box(
    vertices: np.ndarray, path: Path, bound: float, config: Config, photos: Photographs | None
) -> tuple[np.ndarray, np.ndarray | None]:
    """Where a mesh file lies in the box.

    With photographs it must lie where the export would write it. Without, ``--init_up`` and ``--init_front`` turn it, and it
    keeps its place, unless it extends beyond the box or is small: then it is centred and scaled.

    Args:
        vertices: [V, 3] of its triangles, in the space of the file.
        path: of the file, for messages.
        bound: half the side of the box.
        config: the options of the stage.
        photos: those that train it.

    Returns:
        The matrix [4, 4] from the file to the box; and the one back, where the export has to undo it.

    Raises:
        UserError: it lies outside the box of the photographs.
    """
    if photos is not None:
        matrix = np.linalg.inv(placement(np.asarray(photos.transform), config.output.export_frame))
        extent = float(np.abs(moved(vertices, matrix)).max())
        if extent > bound:
            raise UserError(
                f"--init_with {path}: in the box of the photographs the mesh reaches {extent:.3g} from the middle, and the box "
                f"ends at {bound:g}; it must lie where this run would export it, try --export_frame source"
            )
        return matrix, None
    turn, back = turn_of(config.dmtet.init_up, config.dmtet.init_front), np.eye(4)
    if not SMALLEST_EXTENT * bound <= float(np.abs(vertices).max()) <= bound:
        _, back = fit(Mesh(vertices, np.zeros((0, 3), dtype=np.int64)), FITTED_EXTENT * bound)
    matrix = turn @ np.linalg.inv(back)
    return matrix, None if np.array_equal(matrix, np.eye(4)) else back @ turn.T


def turn_of(up: str, front: str) -> np.ndarray:
    """The rotation [4, 4] that takes two axes of a file, such as "z" and "-y", to +Y and +Z."""
    axes = [np.eye(3)["xyz".index(axis[-1])] * (-1.0 if axis[0] == "-" else 1.0) for axis in (up, front)]
    turn = np.eye(4)
    turn[:3, :3] = np.stack([np.cross(*axes), *axes])
    return turn


def begin_painting(model: NeRFRenderer, config: Config, photos: Photographs | None = None) -> tuple[str, np.ndarray | None]:
    """Put the triangles of the mesh file into a model that paints them, and its colours into the field.

    Returns:
        A sentence for the log, and the transform [4, 4] from the box to the file, if the mesh had to be fitted into the box.

    Raises:
        UserError: the file cannot be read or painted.
    """
    if not isinstance(model.path, FixedMeshPath):
        raise TypeError(f"begin_painting: expected a model with a FixedMeshPath, got a {type(model.path).__name__}")
    path = Path(config.dmtet.init_with).expanduser()
    source = read_source(path)
    used = source.placed[source.faces.reshape(-1)]
    to_box, transform = matrix_to_box(used, path, model.bound, config, photos)
    model.path.set_mesh(source, to_box)
    line = f"the {len(source.faces):,} triangles of {path} are painted as they are"
    line += "" if transform is None else ", turned or fitted into the box for that"
    if photos is not None:
        line += _place_in_photographs(moved(used, to_box), photos, config)
    return line + begin_with_colors(model, config, path, to_box), transform


def _place_in_photographs(vertices: np.ndarray, photos: Photographs, config: Config) -> str:
    """A warning where a mesh of vertices [V, 3] in the box does not lie on the object that the photographs show, else ""."""
    points, shares = torch.from_numpy(vertices).float(), []
    for i in np.unique(np.linspace(0, len(photos) - 1, _CHECKED_VIEWS).astype(int)).tolist():
        mask, view = silhouette(photos, i), photos.view(i).to("cpu")
        if mask is None:
            continue
        xy, depth = project(view, points)
        column, row = xy[0].floor().long().unbind(-1)
        inside = (column >= 0) & (column < view.width) & (row >= 0) & (row < view.height) & (depth[0] > 0)
        if bool(inside.any()):
            shares.append(float(mask.cpu()[row[inside], column[inside]].float().mean()))
    if not shares or float(np.mean(shares)) >= _PLACED:
        return ""
    other = "object" if config.output.export_frame == "source" else "source"
    return (
        f"; warning: only {100 * float(np.mean(shares)):.0f} % of its vertices lie on the object that the photographs show, so "
        f"it may lie elsewhere than they say; try --export_frame {other}"
    )


def begin_with_colors(model: NeRFRenderer, config: Config, path: Path, to_box: np.ndarray) -> str:
    """Fit the colours of the field to those of a mesh file, where it has some and ``--init_colors`` is on.

    Returns:
        The rest of a sentence for the log; empty if there are none.
    """
    found = sample_colors(path, COLOR_POINTS) if config.dmtet.init_colors else None
    if found is None:
        return ""
    device = next(model.parameters()).device
    points, colors = (torch.from_numpy(one).float().to(device) for one in (moved(found[0], to_box), found[1]))
    groups = model.field.param_groups(COLOR_RATE)
    optimizer, random = torch.optim.Adam(groups), torch.Generator().manual_seed(0)
    settings, error = RenderSettings(), 0.0
    for step in track(range(COLOR_STEPS), "beginning with the colours of the mesh"):
        for group in optimizer.param_groups:
            group["lr"] = group.setdefault("initial_lr", group["lr"]) * 0.1 ** (step / COLOR_STEPS)
        chosen = torch.randint(len(points), (COLOR_BATCH,), generator=random).to(device)
        albedo = model.field.query(Points(points[chosen]), settings).require("albedo")
        loss = functional.mse_loss(albedo, colors[chosen])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if step == COLOR_STEPS - 1:
            error = float((albedo.detach() - colors[chosen]).abs().mean())
    optimizer.zero_grad(set_to_none=True)
    return f"; its colours are where the training begins (mean difference {error:.3f})"


def check_same(model: NeRFRenderer, config: Config) -> None:
    """Check that the mesh file of ``--init_with`` is the one that a resumed run paints, where that is still there.

    Raises:
        UserError: it is another one, or has changed.
    """
    path = Path(config.dmtet.init_with).expanduser()
    painted = model.path.painted()
    if painted is None or not config.dmtet.init_with or not path.is_file():
        return
    if not np.array_equal(digest_of_file(path), painted[0].digest):
        raise UserError(
            f"--init_with {path} is another mesh than the one that workspace {config.output.workspace} paints, or has changed "
            "since; leave the flag out to go on with the mesh of the workspace, choose another --workspace, or start over with "
            "--dmtet --ckpt scratch"
        )
