"""LLFF's ``poses_bounds.npy`` beside ``images``: forward-facing captures as local light field fusion writes them."""

import io
import logging
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nerf.core.errors import UserError
from nerf.core.files import read_bytes, reading
from nerf.data.frames import (
    Frame,
    Intrinsics,
    ParsedDataset,
    ReadOptions,
    downscaled_folder,
    list_pictures,
    make_dataset,
    raise_no_images,
    split_by_holdout,
)
from nerf.data.values import rigid

log = logging.getLogger("somnia.photographs")

FILE = "poses_bounds.npy"
COLUMNS = 17  # of a photograph: a 3x5 matrix, rotation | position | height, width, focal length, then near and far
FAR_SHARE = 0.75  # of the inverse depth at which the scene is centred, between near (0) and far (1), as in NeRF's code
BOX_MARGIN = 1.1  # of the box around what the cameras see there, and around the cameras
_WAY_OUT = "export the cameras again"


def find_poses_bounds(folder: Path) -> Path | None:
    """The file of poses of a folder in this format, or None."""
    return folder / FILE if (folder / FILE).is_file() else None


def read_llff(folder: Path, path: Path, options: ReadOptions) -> ParsedDataset:
    """Read a folder in which row i of the file is the camera of the i-th photograph by name.

    The columns of a rotation are the camera's down, right and backward axes in the world (Mildenhall et al. 2019, the README
    of its code). Focal length, height and width are those of the photographs from which the poses were found; the
    photographs may be reduced. The principal point is the centre. The scene's box is centred in front of the mean camera, at
    a depth between the near and far bounds, and holds the cameras.

    Args:
        folder: contains ``images``, or reduced ones in ``images_4`` and the like.
        path: of the poses.
        options: how many photographs are held out, and whether reduced ones are read.

    Raises:
        UserError: the file is broken, or there is not one row for each photograph.
    """
    with reading(path, _WAY_OUT):
        rows = np.lib.format.read_array(io.BytesIO(read_bytes(path, _WAY_OUT)), allow_pickle=False)
    if rows.dtype.kind not in "fiu" or rows.ndim != 2 or rows.shape[1] != COLUMNS or not np.isfinite(rows).all():
        raise UserError(f"{path}: expected rows of {COLUMNS} finite numbers, got {rows.dtype} {list(rows.shape)}; {_WAY_OUT}")
    images, downscaled = downscaled_folder(folder / "images", options.downscale)
    pictures = list_pictures(images)
    if len(pictures) != len(rows) and images.name != "images" and len(list_pictures(folder / "images")) == len(rows):
        images, downscaled, pictures = folder / "images", 1, list_pictures(folder / "images")
    if not pictures:
        raise_no_images(path, None, ())
    if len(pictures) != len(rows):
        raise UserError(
            f"{path}: it has {len(rows)} cameras, and there are {len(pictures)} photographs in {images}, which are matched by "
            "their order; put the missing photographs back, or export the cameras of these"
        )
    table = torch.from_numpy(rows.astype(np.float64))
    frames = [
        _frame(picture, row[:15].reshape(3, 5), f"{path}, row {i}")
        for i, (picture, row) in enumerate(zip(pictures, table, strict=True))
    ]
    box = _box(torch.stack([frame.pose for frame in frames]), table, path)
    return make_dataset(folder, path, split_by_holdout(frames, options.holdout), (), box=box, downscaled=downscaled)


def _frame(picture: Path, row: Tensor, where: str) -> Frame:
    """A photograph from its 3x5 matrix."""
    down, right, back, position, (height, width, focal) = row.T
    if min(height, width, focal) <= 0:
        raise UserError(
            f"{where}: height, width and focal length must be positive, got {height:g}, {width:g}, {focal:g}; {_WAY_OUT}"
        )
    pose = torch.eye(4, dtype=torch.float64)
    pose[:3] = torch.stack([right, -down, back, position], -1)
    intrinsics = Intrinsics(float(focal), float(focal), None, None, width=float(width), height=float(height))
    return Frame(picture.name, picture, rigid(pose, where, "pose"), intrinsics)


def _box(pose: Tensor, table: Tensor, path: Path) -> tuple[Tensor, float] | None:
    """The scene's box, centre [3] and half side; None where the bounds are no depths."""
    near, far = table[:, 15].quantile(0.05), table[:, 16].quantile(0.95)
    if not 0 < near < far:
        log.warning("%s: the bounds of the depths are not 0 < near < far, so they are not used", path)
        return None
    depth = 1 / ((1 - FAR_SHARE) / near + FAR_SHARE / far)
    forward = torch.nn.functional.normalize(-pose[:, :3, 2].mean(0), dim=0)
    centre = pose[:, :3, 3].mean(0) + depth * forward
    across = depth * (table[:, [4, 9]].amax(-1) / 2 / table[:, 14]).median()  # height and width over the focal length
    return centre, BOX_MARGIN * max(float((pose[:, :3, 3] - centre).norm(dim=-1).max()), float(across))
