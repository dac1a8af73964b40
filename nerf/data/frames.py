"""Records shared by all dataset formats: frames with intrinsics and poses, and their splits. No image is opened here.

Poses are camera-to-world with OpenGL axes (x right, y up, looking along -z) in the dataset's own world.
"""

import logging
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor

from nerf.core.errors import UserError
from nerf.core.files import is_file
from nerf.core.words import counted

log = logging.getLogger("somnia.photographs")

SPLITS = ("train", "val", "test")
IMAGE_SUFFIXES = ("", ".png", ".jpg", ".jpeg", ".PNG", ".JPG", ".JPEG", ".webp")  # "": the name already has its suffix
DISTORTION_TERMS = ("k1", "k2", "k3", "k4", "p1", "p2")  # of a lens, in the order of ``Intrinsics.distortion``
DENOMINATOR_TERMS = ("d1", "d2", "d3")  # and those that follow in a rational model
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")  # of plain pictures
NO_DISTORTION = (0.0,) * len(DISTORTION_TERMS)
LARGEST_SIZE = 1e6  # pixels along an edge
FOCAL_RANGE = (1e-3, 1e9)  # pixels; a lens outside of it has no picture, or no perspective
FARTHEST = 1e12  # of a camera from the origin of its dataset; squares of larger numbers overflow in single precision
STRONGEST_DISTORTION = 1e6  # of a coefficient of a lens
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
    distortion: tuple[float, ...] = NO_DISTORTION  # k1 k2 k3 k4 p1 p2 of OpenCV's model, and d1 d2 d3 of a rational one
    fisheye: bool = False  # an equidistant lens, whose distortion is of the angle

    def scaled_to(self, width: int, height: int) -> tuple[float, float, float, float]:
        """fx, fy, cx, cy for an image file of ``width`` x ``height`` pixels.

        Raises:
            UserError: the aspect ratio of the image differs from the camera's.
        """
        own_width, own_height = self.width or width, self.height or height
        if not max(own_width, own_height) <= LARGEST_SIZE:
            raise UserError(f"its camera is for {own_width:g}x{own_height:g} pixels; correct its width and height")
        scale_x, scale_y = width / own_width, height / own_height
        if abs(scale_x / scale_y - 1) > ASPECT_TOLERANCE:
            raise UserError(
                f"it is {width}x{height} pixels, but its camera is for {own_width:g}x{own_height:g}; if it was rotated or "
                "cropped, give the image that the camera was calibrated for"
            )
        fx = _focal_length(self.fx, self.fov_x, own_width, self.fisheye)
        fy = _focal_length(self.fy, self.fov_y, own_height, self.fisheye)
        fx, fy = fx or fy, fy or fx
        if fx is None or fy is None:
            raise UserError("its camera has neither a focal length nor a field of view; give one of them")
        cx = own_width / 2 if self.cx is None else self.cx
        cy = own_height / 2 if self.cy is None else self.cy
        fx, fy, cx, cy = fx * scale_x, fy * scale_y, cx * scale_x, cy * scale_y
        low, high = FOCAL_RANGE
        if not (low <= fx <= high and low <= fy <= high and abs(cx) <= high and abs(cy) <= high):
            raise UserError(
                f"its camera has focal lengths of {fx:g} and {fy:g} and its centre at {cx:g}, {cy:g} in pixels of the image, "
                "which no camera has; correct them"
            )
        strongest = max(map(abs, self.distortion))
        if not strongest <= STRONGEST_DISTORTION:
            raise UserError(f"its camera has a distortion coefficient of {strongest:g}, which no lens has; correct it")
        return fx, fy, cx, cy

    def half_angle(self, focal: float, pixels: float) -> float:
        """Half of the field of view in radians across ``pixels`` at a focal length in pixels; distortion is ignored."""
        half = pixels / 2 / focal
        return half if self.fisheye else math.atan(half)


def _focal_length(pixels: float | None, fov: float | None, size: float, fisheye: bool) -> float | None:
    """The focal length in pixels as given, or from a field of view in radians across ``size`` pixels."""
    if pixels is not None or fov is None:
        return pixels
    return size / fov if fisheye else size / (2 * math.tan(fov / 2))


@dataclass(frozen=True)
class ReadOptions:
    """What a reader of a folder is asked for."""

    holdout: int = 8  # every so many photographs one is held out, where the dataset has no split of its own; 0: none
    downscale: int = 1  # the factor by which photographs will be reduced; a folder of reduced ones is then read
    depth_unit: float = 1e-3  # units of the dataset's world for each level of a depth map whose format has no unit of its own


@dataclass(frozen=True)
class Frame:
    """One posed photograph and the files that belong to it."""

    name: str  # as written in the dataset
    image: Path
    pose: Tensor  # [4, 4] float64, camera to the dataset's world
    intrinsics: Intrinsics
    mask: Path | None = None  # black pixels are ignored, all others are valid
    normal: Path | None = None  # normal map in the axes of the dataset's world, colour = (n + 1) / 2
    alpha: Path | None = None  # alpha channel in a file of its own; white is opaque
    depth: Path | None = None  # depth map: an image of 16 bits, or an npy file of floating-point numbers; 0: unknown
    depth_unit: float = (
        0.0  # units of the dataset's world for each level of the depth map; 0: known up to a scale and an offset
    )


@dataclass(frozen=True)
class ParsedDataset:
    """All frames of a folder and their splits; each frame is listed once, the training frames first."""

    folder: Path
    frames: tuple[Frame, ...]
    splits: Mapping[str, tuple[int, ...]]  # split name -> indices into ``frames``
    missing: tuple[str, ...]  # names of photographs that are listed in the dataset but do not exist
    box: tuple[Tensor, float] | None = None  # centre [3] and half side of the scene box, where the dataset prescribes one
    limit: tuple[Tensor, float] | None = None  # centre [3] and half side of a box that the scene does not exceed
    to_reconstruction: Tensor | None = None  # [4, 4] from the dataset's world to the original reconstruction's; None: identity
    points: Tensor | None = None  # [P, 3] float64 sparse point cloud of the reconstruction, if it was kept
    up: Tensor | None = None  # [3] unit up direction in the dataset's world, where its format defines one
    downscaled: int = 1  # the factor by which the photographs that were found are reduced already
    ranges: Tensor | None = None  # [I, 2] float64 near and far plane of each frame in the dataset's units; None: not known
    open_air: bool = False  # the photographs show more than any box of the scene holds, the sky for example


def list_pictures(folder: Path) -> list[Path]:
    """The pictures of a folder by their suffix, sorted by name, without hidden ones (``._0.png`` of macOS); none if missing."""
    if not folder.is_dir():
        return []
    names = (path for path in folder.iterdir() if path.suffix.lower() in PICTURE_SUFFIXES and not path.name.startswith("."))
    return sorted(path for path in names if not path.is_dir())


def downscaled_folder(folder: Path, factor: int) -> tuple[Path, int]:
    """The folder of photographs to read beside ``folder``, and by how much they are reduced already.

    ``images_4`` in place of ``images`` where photographs reduced by 4 are asked for, as LLFF and the mip-NeRF 360 data have
    them, or where ``images`` itself is missing.
    """
    asked = folder.with_name(f"{folder.name}_{factor}")
    if factor > 1 and asked.is_dir():
        return asked, factor
    if not folder.is_dir():
        numbered = (
            (int(p.name.rpartition("_")[2]), p)
            for p in folder.parent.glob(f"{folder.name}_*")
            if p.name.rpartition("_")[2].isdigit()
        )
        reduced = sorted((number, path) for number, path in numbered if path.is_dir() and list_pictures(path))
        if reduced:
            return reduced[0][1], 1
    return folder, 1


def find_image(folder: Path, name: str) -> Path | None:
    """The image file ``folder/name``, with an image suffix appended if the name lacks one; None if there is none."""
    base = str(folder / name.replace("\\", "/"))
    return next((Path(path) for path in (base + suffix for suffix in IMAGE_SUFFIXES) if is_file(path)), None)


def find_mask(folder: Path, name: str, also: tuple[str, ...] = ()) -> Path | None:
    """The mask of the photograph ``name``: ``NAME``, ``NAME.png``, or with another suffix of pictures or of ``also``."""
    names = (name, f"{name}.png", *(os.path.splitext(name)[0] + suffix for suffix in IMAGE_SUFFIXES + also))
    return next((path for path in (folder / name for name in names) if is_file(path)), None)


def same_path(path: str | Path) -> str:
    """A path in the form in which two paths to one file are equal: without ``./``, ``a/../`` and backslashes."""
    return os.path.normpath(str(path).replace("\\", "/"))


def warn_of_unused_masks(folder: Path, frames: Sequence[Frame], way_out: str) -> None:
    """Log a warning if there is a folder of masks, and photographs have none.

    Args:
        folder: of masks; it may be missing.
        frames: the photographs that were found.
        way_out: how a mask is found.
    """
    without = [frame for frame in frames if frame.mask is None]
    if without and folder.is_dir() and any(folder.iterdir()):
        log.warning(
            "%s: %s no mask there, first %s, so all of their pixels are used; %s",
            folder,
            counted(len(without), f"of {len(frames)} photographs has", f"of {len(frames)} photographs have"),
            without[0].name,
            way_out,
        )


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
    """Every ``holdout``-th frame in the order of names as "test", the others as "train"; 0 puts all in "train".

    Raises:
        UserError: nothing would be left for training.
    """
    ordered = sorted(frames, key=lambda frame: frame.name)
    if not holdout:
        return {"train": ordered}
    if len(frames) == 1:
        raise UserError(
            f"there is a single photograph, and --holdout {holdout} holds out the first of every {holdout}; give --holdout 0 "
            "to train on it, or add photographs from other positions"
        )
    if holdout == 1:
        raise UserError(
            f"--holdout 1 holds out every one of the {len(frames)} photographs; give 2 or more, or 0 to hold out none"
        )
    return {"train": [f for i, f in enumerate(ordered) if i % holdout], "test": ordered[::holdout]}


def make_dataset(
    folder: Path,
    source: Path,
    frames_of_split: Mapping[str, Sequence[Frame]],
    missing: Sequence[str],
    box: tuple[Tensor, float] | None = None,
    limit: tuple[Tensor, float] | None = None,
    to_reconstruction: Tensor | None = None,
    points: Tensor | None = None,
    up: Tensor | None = None,
    downscaled: int = 1,
) -> ParsedDataset:
    """Build the dataset of a folder from the frames of each split.

    Without a validation split the test split is used for validation, and vice versa.

    Args:
        folder: the folder of the dataset.
        source: the file that describes it, for error messages.
        frames_of_split: frames by split name.
        missing: names of photographs that do not exist.
        box: see :class:`ParsedDataset`, as the following ones.
        to_reconstruction: [4, 4].
        points: [P, 3].
        up: [3].
        downscaled: a factor.

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
        gone = f", and {len(missing)} that it lists do not exist, first {missing[0]}" if missing else ""
        raise UserError(f"{source}: it lists no photograph for training that exists{gone}; correct its lists of file names")
    for frame in frames:
        if not frame.pose.abs().max() <= FARTHEST:
            raise UserError(f"{source}: the pose of {frame.name} has numbers beyond {FARTHEST:g}; correct it")
    _warn_of_leaks(source, frames, splits)
    return ParsedDataset(folder, tuple(frames), splits, tuple(missing), box, limit, to_reconstruction, points, up, downscaled)


def _warn_of_leaks(source: Path, frames: Sequence[Frame], splits: Mapping[str, tuple[int, ...]]) -> None:
    """Log a warning if a photograph is both trained on and held out."""
    trained = {same_path(frames[i].image) for i in splits["train"]}
    both = [frame.name for frame in frames[len(splits["train"]) :] if same_path(frame.image) in trained]
    if both:
        log.warning(
            "%s: %s also trained on, first %s, so test results are too good; list each only once",
            source,
            counted(len(both), "held-out photograph is", "held-out photographs are"),
            both[0],
        )


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
        raise UserError(
            f"{source}: none of the photographs that it lists ({len(missing)}) exists; put them there, the first as {first}"
        )
    raise UserError(f"{source} lists no photograph; give a dataset with at least one")
