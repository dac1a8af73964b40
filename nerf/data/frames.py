"""Records shared by all dataset formats: frames with intrinsics and poses, and their splits. No image is opened here.

Poses are camera-to-world with OpenGL axes (x right, y up, looking along -z) in the dataset's own world.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor

from nerf.core.errors import UserError

SPLITS = ("train", "val", "test")
IMAGE_SUFFIXES = ("", ".png", ".jpg", ".jpeg", ".PNG", ".JPG", ".JPEG", ".webp")  # "": the name already has its suffix
NO_DISTORTION = (0.0,) * 6
ASPECT_TOLERANCE = 0.02  # relative; rounding of a resized image stays below it, a rotated or cropped image far exceeds it


@dataclass(frozen=True)
class Intrinsics:
    """Camera intrinsics as a file gives them; what the file leaves out is None."""

    fx: float | None  # focal lengths in pixels of an image of ``width`` x ``height``
    fy: float | None
    cx: float | None  # principal point in the same pixels; None: the image centre
    cy: float | None
    fov_x: float | None = None  # horizontal field of view, radians; used where fx is None
    fov_y: float | None = None
    width: float | None = None  # image size that the pixels refer to; None: the size of the image file
    height: float | None = None
    distortion: tuple[float, ...] = NO_DISTORTION  # k1 k2 k3 k4 p1 p2 of OpenCV's radial-tangential model

    def scaled_to(self, width: int, height: int) -> tuple[float, float, float, float]:
        """fx, fy, cx, cy for an image file of ``width`` x ``height`` pixels.

        Raises:
            UserError: the aspect ratio of the image differs from the camera's.
        """
        own_width, own_height = self.width or width, self.height or height
        scale_x, scale_y = width / own_width, height / own_height
        if abs(scale_x / scale_y - 1) > ASPECT_TOLERANCE:
            raise UserError(
                f"it is {width}x{height} pixels, but its camera is for {own_width:g}x{own_height:g}; if it was rotated or "
                "cropped, give the image that the camera was calibrated for"
            )
        fx = _focal_length(self.fx, self.fov_x, own_width)
        fy = _focal_length(self.fy, self.fov_y, own_height)
        fx, fy = fx or fy, fy or fx
        if fx is None or fy is None:
            raise UserError("its camera has neither a focal length nor a field of view; give one of them")
        cx = own_width / 2 if self.cx is None else self.cx
        cy = own_height / 2 if self.cy is None else self.cy
        return fx * scale_x, fy * scale_y, cx * scale_x, cy * scale_y


def _focal_length(pixels: float | None, fov: float | None, size: float) -> float | None:
    """The focal length in pixels as given, or from a field of view in radians across ``size`` pixels."""
    if pixels is not None or fov is None:
        return pixels
    return size / (2 * math.tan(fov / 2))


@dataclass(frozen=True)
class Frame:
    """One posed photograph and the files that belong to it."""

    name: str  # as written in the dataset
    image: Path
    pose: Tensor  # [4, 4] float64, camera to the dataset's world
    intrinsics: Intrinsics
    mask: Path | None = None  # pixels that are black in it are ignored
    normal: Path | None = None  # normal map in the axes of the dataset's world, colour = (n + 1) / 2
    alpha: Path | None = None  # alpha channel in a file of its own; white is opaque


@dataclass(frozen=True)
class ParsedDataset:
    """All frames of a folder and their splits; each frame is listed once, the training frames first."""

    folder: Path
    frames: tuple[Frame, ...]
    splits: Mapping[str, tuple[int, ...]]  # split name -> indices into ``frames``
    missing: tuple[str, ...]  # names of photographs that are listed in the dataset but do not exist
    box: tuple[Tensor, float] | None = None  # centre [3] and half side of the scene box, where the dataset prescribes one
    to_reconstruction: Tensor | None = None  # [4, 4] from the dataset's world to the original reconstruction's; None: identity
    points: Tensor | None = None  # [P, 3] float64 sparse point cloud of the reconstruction, if it was kept


def find_image(folder: Path, name: str) -> Path | None:
    """The image file ``folder/name``, with an image suffix appended if the name lacks one; None if there is none."""
    base = folder / name.replace("\\", "/")
    return next((path for path in (Path(f"{base}{suffix}") for suffix in IMAGE_SUFFIXES) if path.is_file()), None)


def pose_from_opencv(rotation: Tensor, centre: Tensor) -> Tensor:
    """Camera-to-world pose [4, 4] with OpenGL axes.

    Args:
        rotation: [3, 3] world to camera with OpenCV axes (x right, y down, z forward).
        centre: [3] camera centre in world coordinates.
    """
    pose = torch.eye(4, dtype=rotation.dtype)
    pose[:3, :3] = rotation.T * torch.tensor([1.0, -1.0, -1.0], dtype=rotation.dtype)
    pose[:3, 3] = centre
    return pose


def split_by_holdout(frames: Sequence[Frame], holdout: int) -> dict[str, list[Frame]]:
    """Every ``holdout``-th frame in the order of names as "test", the others as "train"; 0 puts all in "train"."""
    ordered = sorted(frames, key=lambda frame: frame.name)
    if not holdout:
        return {"train": ordered}
    return {"train": [f for i, f in enumerate(ordered) if i % holdout], "test": ordered[::holdout]}


def make_dataset(
    folder: Path,
    source: Path,
    frames_of_split: Mapping[str, Sequence[Frame]],
    missing: Sequence[str],
    holdout: int,
    box: tuple[Tensor, float] | None = None,
    to_reconstruction: Tensor | None = None,
    points: Tensor | None = None,
) -> ParsedDataset:
    """Build the dataset of a folder from the frames of each split.

    Without a validation split the test split is used for validation, and vice versa.

    Args:
        folder: the folder of the dataset.
        source: the file that describes it, for error messages.
        frames_of_split: frames by split name.
        missing: names of photographs that do not exist.
        holdout: value of ``--holdout``, for error messages.
        box: see :class:`ParsedDataset`, as the following ones.
        to_reconstruction: [4, 4].
        points: [P, 3].

    Raises:
        UserError: the training split is empty.
    """
    frames: list[Frame] = []
    splits: dict[str, tuple[int, ...]] = {"train": ()}
    for split in (s for s in SPLITS if frames_of_split.get(s)):
        splits[split] = tuple(range(len(frames), len(frames) + len(frames_of_split[split])))
        frames += frames_of_split[split]
    splits.setdefault("val", splits.get("test", ()))
    splits.setdefault("test", splits["val"])
    if not splits["train"]:
        raise UserError(f"{source}: no photograph is left for training; raise --holdout, which is {holdout}")
    return ParsedDataset(folder, tuple(frames), splits, tuple(missing), box, to_reconstruction, points)


def raise_no_images(source: Path, first: Path | None, missing: Sequence[str]) -> NoReturn:
    """Raise the error for a dataset none of whose photographs exists.

    Args:
        source: the file that describes the dataset.
        first: where the first photograph should be, if any is listed.
        missing: names of the listed photographs.

    Raises:
        UserError: always.
    """
    if missing:
        raise UserError(f"{source}: none of its {len(missing)} photographs exists; the first should be {first}")
    raise UserError(f"{source} lists no photograph; give a dataset with at least one")
