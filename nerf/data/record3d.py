"""Record3D's export: ``metadata.json`` (or ``metadata``) with poses and intrinsics, and the frames ``rgb/0.jpg`` onwards."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nerf.core.errors import UserError
from nerf.core.files import read_json
from nerf.core.words import counted
from nerf.data.frames import (
    Frame,
    Intrinsics,
    ParsedDataset,
    ReadOptions,
    list_pictures,
    make_dataset,
    raise_no_images,
    split_by_holdout,
)
from nerf.data.values import number, rotation_of_quaternion

METADATA = ("metadata.json", "metadata")
FRAMES = ("rgb", "rgbd")  # of the EXR and JPG sequence, and of the unpacked .r3d file
PLACES = ("", "EXR_RGBD")  # of both in the folder of a capture
QUATERNION_TOLERANCE = 1e-2  # deviation of a quaternion's length from 1
UP = (0.0, 1.0, 0.0)  # of ARKit's world, which is aligned with gravity
_WAY_OUT = "export the capture again"


@dataclass(frozen=True)
class Capture:
    """What identifies the format."""

    metadata: Path
    frames: Path


def find_record3d(folder: Path) -> Capture | None:
    """The metadata and the folder of frames of a folder in this format, or None."""
    for place in PLACES:
        metadata = next((path for name in METADATA if (path := folder / place / name).is_file()), None)
        frames = next((path for name in FRAMES if (path := folder / place / name).is_dir()), None)
        if metadata is not None and frames is not None:
            return Capture(metadata, frames)
    return None


def read_record3d(folder: Path, found: Capture, options: ReadOptions) -> ParsedDataset:
    """Read the frames: frame i has the i-th pose, a quaternion (x, y, z, w) and a position in metres, from the camera with
    OpenGL axes to ARKit's world, +Y up.

    Intrinsics are those of each frame (``perFrameIntrinsicCoeffs``: fx, fy, cx, cy) or of all (``K``, by columns).

    Args:
        folder: of the dataset.
        found: see :func:`find_record3d`.
        options: how many photographs are held out.

    Raises:
        UserError: a file is broken, or the frames have other numbers than the poses.
    """
    path = found.metadata
    document = read_json(path, _WAY_OUT)
    if not isinstance(document, dict) or not isinstance(document.get("poses"), list):
        raise UserError(f'{path}: expected an object with a list "poses", got {document!r:.60}; {_WAY_OUT}')
    pictures = list_pictures(found.frames)
    unnumbered = next((picture for picture in pictures if not picture.stem.isdecimal()), None)
    if unnumbered is not None:
        raise UserError(f"{unnumbered}: frames are named by their number, as 0.jpg; remove it, or {_WAY_OUT}")
    if not pictures:
        raise_no_images(path, None, ())
    by_number = {int(picture.stem): picture for picture in pictures}
    poses = document["poses"]
    if max(by_number) >= len(poses):
        raise UserError(
            f"{path}: it has {counted(len(poses), 'pose')}, and there is a frame {by_number[max(by_number)]}; {_WAY_OUT}"
        )
    size = tuple(number(document.get(key), str(path), key, positive=True) for key in ("w", "h"))
    frames = []
    for i in sorted(by_number):
        fx, fy, cx, cy = _intrinsics(document, i, str(path))
        intrinsics = Intrinsics(fx, fy, cx, cy, width=size[0], height=size[1])
        frames.append(Frame(f"{i:06d}", by_number[i], _pose(poses[i], f"{path}, pose {i}"), intrinsics))
    missing = [f"{found.frames.name}/{i}" for i in range(len(poses)) if i not in by_number]
    up = torch.tensor(UP, dtype=torch.float64)
    return make_dataset(folder, path, split_by_holdout(frames, options.holdout), missing, up=up)


def _numbers(value: Any, count: int, where: str, key: str) -> list[float]:
    """A JSON value as a list of ``count`` finite numbers."""
    if not isinstance(value, list) or len(value) != count:
        raise UserError(f'{where}: "{key}" must be {count} numbers, got {value!r:.60}; {_WAY_OUT}')
    return [number(one, where, key) for one in value]


def _pose(value: Any, where: str) -> Tensor:
    """Camera-to-world pose [4, 4] of quaternion and position."""
    x, y, z, w, *position = _numbers(value, 7, where, "poses")
    length = (x * x + y * y + z * z + w * w) ** 0.5
    if not abs(length - 1) <= QUATERNION_TOLERANCE:
        raise UserError(f"{where}: its first four numbers must be a unit quaternion, got one of length {length:g}; {_WAY_OUT}")
    pose = torch.eye(4, dtype=torch.float64)
    pose[:3, :3] = rotation_of_quaternion(w / length, x / length, y / length, z / length)
    pose[:3, 3] = torch.tensor(position, dtype=torch.float64)
    return pose


def _intrinsics(document: dict, i: int, where: str) -> tuple[float, float, float, float]:
    """fx, fy, cx, cy of a frame."""
    each = document.get("perFrameIntrinsicCoeffs")
    if isinstance(each, list) and i < len(each):
        fx, fy, cx, cy = _numbers(each[i], 4, f"{where}, frame {i}", "perFrameIntrinsicCoeffs")
    else:
        fx, _, _, _, fy, _, cx, cy, _ = _numbers(document.get("K"), 9, where, "K")
    if min(fx, fy) <= 0:
        raise UserError(f"{where}, frame {i}: focal lengths must be positive, got {fx:g} and {fy:g}; {_WAY_OUT}")
    return fx, fy, cx, cy
