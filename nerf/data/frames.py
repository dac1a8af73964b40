"""Posed photographs as every layout on disk describes them: their files, lenses, poses and splits. Opens no picture.

Poses are camera-to-world with OpenGL axes (x right, y up, looks along -z) in the world of the data.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from nerf.core.errors import UserError

SPLITS = ("train", "val", "test")
SUFFIXES = ("", ".png", ".jpg", ".jpeg", ".PNG", ".JPG", ".JPEG", ".webp")
NO_DISTORTION = (0.0,) * 6
ASPECT_TOLERANCE = 0.02  # a shrunk photograph's aspect is off by less, a turned one's by far more


@dataclass(frozen=True)
class Lens:
    """Intrinsics as a file gives them; what it leaves out is None."""

    fx: float | None  # pixels of an image of ``width`` x ``height``
    fy: float | None
    cx: float | None
    cy: float | None
    angle_x: float | None = None  # horizontal field of view, radians
    angle_y: float | None = None
    width: float | None = None  # the image size that the pixels refer to; None: that of the picture itself
    height: float | None = None
    distortion: tuple[float, ...] = NO_DISTORTION  # k1 k2 k3 k4 p1 p2

    def pixels(self, width: int, height: int) -> tuple[float, float, float, float]:
        """fx, fy, cx, cy for a picture that really is ``width`` x ``height`` pixels.

        Raises:
            UserError: the picture's aspect is not the file's.
        """
        own_width, own_height = self.width or width, self.height or height
        scale_x, scale_y = width / own_width, height / own_height
        if abs(scale_x / scale_y - 1) > ASPECT_TOLERANCE:
            raise UserError(
                f"it is {width}x{height} pixels, but its camera is for {own_width:g}x{own_height:g}; was it turned or cropped?"
            )
        fx = _focal(self.fx, self.angle_x, own_width)
        fy = _focal(self.fy, self.angle_y, own_height)
        fx, fy = fx or fy, fy or fx
        cx = own_width / 2 if self.cx is None else self.cx
        cy = own_height / 2 if self.cy is None else self.cy
        return fx * scale_x, fy * scale_y, cx * scale_x, cy * scale_y


def _focal(pixels: float | None, angle: float | None, size: float) -> float | None:
    if pixels is not None or angle is None:
        return pixels
    return size / (2 * math.tan(angle / 2))


@dataclass(frozen=True)
class Frame:
    """One photograph as its file describes it."""

    name: str  # as written in the file
    image: Path
    pose: Tensor  # [4, 4] float64, camera to the data's world
    lens: Lens
    mask: Path | None = None  # black where the photograph shall be ignored
    normal: Path | None = None  # normals in the axes of the data's world, (n + 1) / 2 as colours
    alpha: Path | None = None  # opacity, for photographs whose file has none: white where the object is


@dataclass(frozen=True)
class PhotoFiles:
    """A folder of photographs, split; ``frames`` lists each photograph once, the training ones first."""

    folder: Path
    frames: tuple[Frame, ...]
    splits: Mapping[str, tuple[int, ...]]  # name -> numbers into ``frames``
    missing: tuple[str, ...]  # photographs that the files name and that are not there
    box: tuple[Tensor, float] | None = None  # centre [3] and half side that the data prescribes
    recorded: Tensor | None = None  # [4, 4] from the data's world to that of the reconstruction; None: it is that
    points: Tensor | None = None  # [P, 3] float64 points of surfaces, where the reconstruction kept them


def find_picture(folder: Path, name: str) -> Path | None:
    """The file of that name, with or without the suffix of a picture."""
    base = folder / name.replace("\\", "/")
    return next((path for path in (Path(f"{base}{suffix}") for suffix in SUFFIXES) if path.is_file()), None)


def from_opencv(rotation: Tensor, centre: Tensor) -> Tensor:
    """A pose [4, 4] from world-to-camera rotation [3, 3] with OpenCV axes (x right, y down, z ahead) and the centre."""
    pose = torch.eye(4, dtype=rotation.dtype)
    pose[:3, :3] = rotation.T * torch.tensor([1.0, -1.0, -1.0], dtype=rotation.dtype)
    pose[:3, 3] = centre
    return pose


def held_out(frames: Sequence[Frame], holdout: int) -> dict[str, list[Frame]]:
    """Every ``holdout``-th photograph in the order of the names as "test", the rest as "train"; 0 holds none out."""
    ordered = sorted(frames, key=lambda frame: frame.name)
    if not holdout:
        return {"train": ordered}
    return {"train": [f for i, f in enumerate(ordered) if i % holdout], "test": ordered[::holdout]}


def gather(
    folder: Path, source: Path, groups: Mapping[str, Sequence[Frame]], missing: Sequence[str], holdout: int, **more
) -> PhotoFiles:
    """The photographs of a folder from the frames of each split.

    Without a validation split, the test is that too, or vice versa.

    Args:
        folder: the data set.
        source: the file that describes it, for the messages.
        groups: frames by split.
        missing: names of photographs that are not there.
        holdout: what the user asked for, for the message.
        more: further fields of :class:`PhotoFiles`.

    Raises:
        UserError: nothing is left to train from.
    """
    frames, splits = [], {"train": ()}
    for split in (s for s in SPLITS if groups.get(s)):
        splits[split] = tuple(range(len(frames), len(frames) + len(groups[split])))
        frames += groups[split]
    splits.setdefault("val", splits.get("test", ()))
    splits.setdefault("test", splits["val"])
    if not splits["train"]:
        raise UserError(f"{source}: no photograph is left to train from; raise --holdout, which is {holdout}")
    return PhotoFiles(folder, tuple(frames), splits, tuple(missing), **more)


def refuse_without_photographs(source: Path, first: Path | None, missing: Sequence[str]) -> None:
    """Raise because a description names no photograph that exists; ``first`` is where the first would be.

    Raises:
        UserError: always.
    """
    if missing:
        raise UserError(f"{source}: none of its {len(missing)} photographs exists; the first would be {first}")
    raise UserError(f"{source} describes no photograph, so there is nothing to learn from")
