"""Polycam's raw data: ``keyframes`` with one JSON file of a camera, one photograph and one depth map per keyframe."""

import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from nerf.core.errors import UserError
from nerf.core.files import read_json
from nerf.core.progress import track
from nerf.data.frames import (
    Frame,
    Intrinsics,
    ParsedDataset,
    ReadOptions,
    find_image,
    find_mask,
    make_dataset,
    raise_no_images,
    split_by_holdout,
)
from nerf.data.values import LAST_ROW, number, rigid

log = logging.getLogger("somnia.photographs")

# Folders of cameras and of their photographs: as optimised by Polycam after the capture, or as the phone tracked them.
FOLDERS = (("corrected_cameras", "corrected_images"), ("cameras", "images"))
DEPTH_UNIT = 1e-3  # metres for each level of a depth map
UP = (0.0, 1.0, 0.0)  # of ARKit's world, which is aligned with gravity
_WAY_OUT = "export the raw data again"


@dataclass(frozen=True)
class Keyframes:
    """What identifies the format."""

    folder: Path
    cameras: Path
    images: Path


def find_polycam(folder: Path) -> Keyframes | None:
    """The keyframes of a folder in this format: in ``keyframes`` or in the folder itself; corrected ones if there are some."""
    for keyframes in (folder / "keyframes", folder):
        for cameras, images in FOLDERS:
            if (keyframes / images).is_dir() and any((keyframes / cameras).glob("*.json")):
                return Keyframes(keyframes, keyframes / cameras, keyframes / images)
    return None


def read_polycam(folder: Path, found: Keyframes, options: ReadOptions) -> ParsedDataset:
    """Read the keyframes: ``t_00`` to ``t_23`` map from the camera, with OpenGL axes, to ARKit's world, in metres, +Y up.

    Depth maps in ``depth`` are of 16 bits, in millimetres along the viewing direction.

    Args:
        folder: of the dataset.
        found: see :func:`find_polycam`.
        options: how many photographs are held out.

    Raises:
        UserError: a file is broken, or no photograph exists.
    """
    if found.cameras.name != FOLDERS[0][0]:
        log.warning(
            "%s: there are no corrected cameras, so those that the phone tracked are used, and they drift; process the capture "
            "in Polycam before the export for better ones",
            found.folder,
        )
    files = sorted(found.cameras.glob("*.json"))
    frames, missing = [], []
    for path in track(files, "reading the keyframes"):
        image = find_image(found.images, path.stem)
        if image is None:
            missing.append(f"{found.images.name}/{path.stem}")
            continue
        pose, intrinsics = _camera(path)
        depth = find_mask(found.folder / "depth", path.stem)
        frames.append(Frame(image.name, image, pose, intrinsics, depth=depth, depth_unit=DEPTH_UNIT))
    if not frames:
        raise_no_images(found.cameras, found.images / files[0].stem, missing)
    up = torch.tensor(UP, dtype=torch.float64)
    return make_dataset(folder, found.cameras, split_by_holdout(frames, options.holdout), missing, up=up)


def _camera(path: Path) -> tuple[Tensor, Intrinsics]:
    """Pose and intrinsics of a keyframe."""
    entry = read_json(path, _WAY_OUT)
    if not isinstance(entry, dict):
        raise UserError(f"{path}: expected an object with fx, fy, cx, cy and t_00 to t_23, got {entry!r:.40}; {_WAY_OUT}")
    rows = [[number(entry.get(f"t_{i}{j}"), str(path), f"t_{i}{j}") for j in range(4)] for i in range(3)]
    pose = rigid(torch.tensor([*rows, LAST_ROW], dtype=torch.float64), str(path), "t")
    fx, fy, width, height = (number(entry.get(key), str(path), key, positive=True) for key in ("fx", "fy", "width", "height"))
    cx, cy = (number(entry.get(key), str(path), key) for key in ("cx", "cy"))
    return pose, Intrinsics(fx, fy, cx, cy, width=width, height=height)
