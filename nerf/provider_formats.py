"""Posed photographs on disk: which files there are, what cameras took them, and which are held out. Opens no picture.

Two layouts: Blender's ``transforms_{train,val,test}.json``, and instant-ngp's and nerfstudio's ``transforms.json``.
Poses are camera-to-world with OpenGL axes (x right, y up, looks along -z) in the world of the file.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nerf.errors import UserError

SPLITS = ("train", "val", "test")
SUFFIXES = ("", ".png", ".jpg", ".jpeg", ".PNG", ".JPG", ".JPEG", ".webp")
PINHOLES = ("PINHOLE", "SIMPLE_PINHOLE", "OPENCV", "SIMPLE_RADIAL", "RADIAL")
LENS_TERMS = ("k1", "k2", "k3", "k4", "p1", "p2")
ROTATION_TOLERANCE = 1e-2  # of R^T R - 1: files round to a few digits, a scaled or sheared pose is off by far more
ASPECT_TOLERANCE = 0.02  # a shrunk photograph's aspect is off by less, a turned one's by far more


@dataclass(frozen=True)
class Lens:
    """Intrinsics as a file gives them; what it leaves out is None."""

    fx: float | None  # pixels of an image of ``width`` x ``height``
    fy: float | None
    cx: float | None
    cy: float | None
    angle_x: float | None  # horizontal field of view, radians
    angle_y: float | None
    width: float | None  # the image size that the pixels refer to; None: that of the picture itself
    height: float | None
    distortion: tuple[float, ...]  # k1 k2 k3 k4 p1 p2

    def pixels(self, width: int, height: int) -> tuple[float, float, float, float]:
        """fx, fy, cx, cy for a picture that really is ``width`` x ``height`` pixels.

        Raises:
            UserError: the picture's aspect is not the file's.
        """
        own_width, own_height = self.width or width, self.height or height
        scale_x, scale_y = width / own_width, height / own_height
        if abs(scale_x / scale_y - 1) > ASPECT_TOLERANCE:
            raise UserError(f"it is {width}x{height} pixels, but its camera is for {own_width:g}x{own_height:g}; "
                            "was it turned or cropped?")
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
    mask: Path | None  # black where the photograph shall be ignored
    normal: Path | None  # normals in the axes of the file's world, (n + 1) / 2 as colours
    pose: Tensor  # [4, 4] float64, camera to the file's world
    lens: Lens


@dataclass(frozen=True)
class PhotoFiles:
    """A folder of photographs, split; ``frames`` lists each photograph once, the training ones first."""

    folder: Path
    frames: tuple[Frame, ...]
    splits: dict[str, tuple[int, ...]]  # name -> numbers into ``frames``
    missing: tuple[str, ...]  # photographs that the files name and that are not there
    box: tuple[Tensor, float] | None  # centre [3] and half side that the file prescribes (instant-ngp's aabb_scale)
    recorded: Tensor  # [4, 4] from the file's world to that of the reconstruction it was made from


def read_folder(folder: str | Path, holdout: int = 8) -> PhotoFiles:
    """Read the description of a folder of posed photographs.

    Photographs that a file names and that do not exist are left out and listed. Where the data has no test split of its
    own (``transforms_test.json``, or ``test_filenames`` as nerfstudio writes), every ``holdout``-th photograph in the
    order of the names is the test and the rest trains. Without a validation split, the test is that too, or vice versa.

    Args:
        folder: holds ``transforms.json`` or ``transforms_train.json``.
        holdout: 0 holds none out.

    Raises:
        UserError: anything missing, broken or not understood, with the file and the place in it.
    """
    try:
        return _read_folder(Path(folder), holdout)
    except PermissionError as error:
        raise UserError(f"--data {folder}: you may not read {error.filename}") from error


def _read_folder(folder: Path, holdout: int) -> PhotoFiles:
    if not folder.is_dir():
        what = "a file; give the folder it is in" if folder.exists() else "not there"
        raise UserError(f"--data must name a folder with transforms.json or transforms_train.json; {folder} is {what}")
    if (folder / "transforms_train.json").exists():
        named = {s: folder / f"transforms_{s}.json" for s in SPLITS if (folder / f"transforms_{s}.json").exists()}
    elif (folder / "transforms.json").exists():
        named = {"train": folder / "transforms.json"}
    else:
        raise UserError(f"--data {folder}: there is neither transforms.json nor transforms_train.json in it"
                        f"{_other_layout(folder)}")
    documents = {split: _read_json(path) for split, path in named.items()}
    for split in SPLITS:
        _check_list_of_names(documents["train"].get(f"{split}_filenames", []), named["train"], f"{split}_filenames")
    found, missing = {}, []
    for split, document in documents.items():
        found[split], gone = _read_frames(folder, named[split], document)
        missing += gone
    if not found["train"]:
        raise _no_photographs(named["train"], missing)
    frames, splits = _split(found, documents["train"], holdout)
    if not splits["train"]:
        raise UserError(f"{named['train']}: no photograph is left to train from; raise --holdout, which is {holdout}")
    box = _prescribed_box(documents["train"], named["train"])
    return PhotoFiles(folder, frames, splits, tuple(missing), box, _recorded_world(documents["train"], named["train"]))


def _other_layout(folder: Path) -> str:
    """What to say about data of a kind that is not read."""
    if (folder / "sparse").exists():
        return "; COLMAP models are not read yet, convert it with nerfstudio or instant-ngp's colmap2nerf.py"
    if (folder / "cameras_sphere.npz").exists():
        return "; NeuS/DTU folders are not read yet, convert it to transforms.json"
    return ""


def _no_photographs(path: Path, missing: list[str]) -> UserError:
    if missing:
        return UserError(f"{path}: none of its {len(missing)} photographs exists; the first would be "
                         f"{path.parent / missing[0]}")
    return UserError(f"{path}: \"frames\" is empty, so there is nothing to learn from")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not valid JSON, line {error.lineno} column {error.colno}: {error.msg}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not a text file (byte {error.start}: {error.reason})") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except RecursionError as error:
        raise UserError(f"{path} is not a description of photographs: it is nested too deeply") from error
    if not isinstance(document, dict) or not isinstance(document.get("frames"), list):
        raise UserError(f"{path}: expected an object with a list \"frames\", got {_kind(document)}")
    return document


def _kind(document: Any) -> str:
    if isinstance(document, dict):
        return "an object with " + (", ".join(list(document)[:5]) or "nothing in it")
    return {list: "a list"}.get(type(document), f"{document!r:.40}")


def _check_list_of_names(value: Any, path: Path, key: str) -> None:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise UserError(f"{path}: \"{key}\" must be a list of file names, got {value!r:.60}")


def _read_frames(folder: Path, path: Path, document: dict) -> tuple[list[Frame], list[str]]:
    """The frames whose photograph exists, and the names of the others."""
    frames, missing = [], []
    for number, entry in enumerate(document["frames"]):
        if not isinstance(entry, dict) or not isinstance(entry.get("file_path"), str):
            raise UserError(f"{path}, frame {number}: expected an object with a text \"file_path\", got {entry!r:.60}")
        name = entry["file_path"]
        where = f"{path}, frame {number} ({name})"
        image = _find(folder, name)
        if image is None:
            missing.append(name)
            continue
        mask, normal = (_find_beside(folder, entry, key, where) for key in ("mask_path", "normal_path"))
        lens = _read_lens(entry, document, where)
        frames.append(Frame(name, image, mask, normal, _read_pose(entry, where), lens))
    return frames, missing


def _find_beside(folder: Path, entry: dict, key: str, where: str) -> Path | None:
    """The file that a frame names under ``key``, or None if it names none."""
    if not entry.get(key):
        return None
    path = _find(folder, str(entry[key]))
    if path is None:
        raise UserError(f"{where}: its \"{key}\" {entry[key]} does not exist in {folder}")
    return path


def _find(folder: Path, name: str) -> Path | None:
    """The file of that name, with or without the suffix of a picture."""
    base = folder / name.replace("\\", "/")
    return next((path for path in (Path(f"{base}{suffix}") for suffix in SUFFIXES) if path.is_file()), None)


def _number(value: Any, where: str, key: str, positive: bool = False) -> float:
    """A finite number out of JSON, which may hold anything."""
    try:
        number = math.nan if isinstance(value, (bool, str)) else float(value)
    except (TypeError, OverflowError):
        number = math.nan
    if not math.isfinite(number) or (positive and number <= 0):
        raise UserError(f"{where}: \"{key}\" must be a {'positive ' * positive}number, got {value!r:.40}")
    return number


def _matrix(value: Any, rows: tuple[int, ...], where: str, key: str) -> Tensor:
    """A 3x4 or 4x4 matrix of numbers as [4, 4] float64."""
    try:
        matrix = torch.tensor(value, dtype=torch.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{where}: \"{key}\" must be 4x4 numbers, got {value!r:.60}") from error
    if matrix.ndim != 2 or matrix.shape[0] not in rows or matrix.shape[1] != 4:
        raise UserError(f"{where}: \"{key}\" must be 4x4 numbers, got {'x'.join(map(str, matrix.shape)) or value}")
    if not matrix.isfinite().all():
        raise UserError(f"{where}: \"{key}\" holds numbers that are not finite")
    return torch.cat([matrix[:3], torch.tensor([[0.0, 0.0, 0.0, 1.0]], dtype=torch.float64)])


def _read_pose(entry: dict, where: str) -> Tensor:
    """Camera-to-world [4, 4] float64 with an exact rotation."""
    if "transform_matrix" not in entry:
        raise UserError(f"{where}: it has no \"transform_matrix\"")
    pose = _matrix(entry["transform_matrix"], (3, 4), where, "transform_matrix")
    rotation = pose[:3, :3]
    off = (rotation.T @ rotation - torch.eye(3, dtype=torch.float64)).abs().max().item()
    if off > ROTATION_TOLERANCE:
        raise UserError(f"{where}: the left 3x3 of \"transform_matrix\" must be a rotation, but its columns are not "
                        f"orthonormal (off by {off:.2g})")
    if torch.linalg.det(rotation) < 0:
        raise UserError(f"{where}: the left 3x3 of \"transform_matrix\" is a mirror image (determinant -1); "
                        "negate one axis so that it is a rotation")
    left, _, right = torch.linalg.svd(rotation)
    pose[:3, :3] = left @ right
    return pose


def _read_lens(entry: dict, document: dict, where: str) -> Lens:
    """Intrinsics of a frame; its own entries go over those of the whole file."""
    def number(key: str, positive: bool = False) -> float | None:
        value = entry.get(key, document.get(key))
        return None if value is None else _number(value, where, key, positive)

    model = entry.get("camera_model", document.get("camera_model"))
    fisheye = entry.get("is_fisheye", document.get("is_fisheye", False))
    if fisheye or (model is not None and model not in PINHOLES):
        raise UserError(f"{where}: camera model {model or 'fisheye'} is not read, only {', '.join(PINHOLES)} are; "
                        "undistort the photographs first (colmap image_undistorter)")
    fx, fy = number("fl_x", positive=True), number("fl_y", positive=True)
    angle_x, angle_y = number("camera_angle_x", positive=True), number("camera_angle_y", positive=True)
    if fx is None and fy is None and angle_x is None and angle_y is None:
        raise UserError(f"{where}: there is no focal length; give \"fl_x\" in pixels or \"camera_angle_x\" in radians")
    if fx is not None or fy is not None:
        angle_x = angle_y = None
    for key, angle in (("camera_angle_x", angle_x), ("camera_angle_y", angle_y)):
        if angle is not None and angle >= math.pi:
            raise UserError(f"{where}: \"{key}\" must lie below pi, as it is in radians, got {angle:g}")
    distortion = tuple(number(key) or 0.0 for key in LENS_TERMS)
    return Lens(fx, fy, number("cx"), number("cy"), angle_x, angle_y, number("w", positive=True),
                number("h", positive=True), distortion)


def _split(found: dict[str, list[Frame]], document: dict, holdout: int) -> tuple[tuple[Frame, ...], dict]:
    """All frames, and for each split the numbers of its own."""
    groups = dict(found)
    if set(found) == {"train"}:
        listed = {s: set(document[f"{s}_filenames"]) for s in SPLITS if f"{s}_filenames" in document}
        ordered = sorted(found["train"], key=lambda frame: frame.name)
        if set(listed) & {"val", "test"}:
            kept_out = set().union(*(names for s, names in listed.items() if s != "train"))
            listed.setdefault("train", {frame.name for frame in ordered} - kept_out)
            groups = {s: [frame for frame in ordered if frame.name in names] for s, names in listed.items()}
        elif holdout:
            groups = {"train": [f for i, f in enumerate(ordered) if i % holdout], "test": ordered[::holdout]}
    groups = {s: groups[s] for s in SPLITS if groups.get(s)}
    frames, splits = [], {"train": ()}
    for split, members in groups.items():
        splits[split] = tuple(range(len(frames), len(frames) + len(members)))
        frames += members
    splits.setdefault("val", splits.get("test", ()))
    splits.setdefault("test", splits["val"])
    return tuple(frames), splits


def _prescribed_box(document: dict, path: Path) -> tuple[Tensor, float] | None:
    """instant-ngp's box: a cube of side ``aabb_scale`` around 0.5, in units where ``x_ngp = 0.33 x + 0.5``."""
    side = document.get("aabb_scale")
    if side is None:
        return None
    side = _number(side, str(path), "aabb_scale", positive=True)
    scale = _number(document.get("scale", 0.33), str(path), "scale", positive=True)
    offset = document.get("offset", [0.5, 0.5, 0.5])
    if not isinstance(offset, list) or len(offset) != 3:
        raise UserError(f"{path}: \"offset\" must be three numbers, got {offset!r:.40}")
    offset = torch.tensor([_number(value, str(path), "offset") for value in offset], dtype=torch.float64)
    return (0.5 - offset) / scale, 0.5 * side / scale


def _recorded_world(document: dict, path: Path) -> Tensor:
    """From the file's world back to the reconstruction's, undoing nerfstudio's applied_transform and applied_scale."""
    applied = torch.eye(4, dtype=torch.float64)
    if "applied_transform" in document:
        applied = _matrix(document["applied_transform"], (3, 4), str(path), "applied_transform")
    applied[:3] *= _number(document.get("applied_scale", 1.0), str(path), "applied_scale", positive=True)
    if torch.linalg.det(applied).abs() < 1e-12:
        raise UserError(f"{path}: \"applied_transform\" cannot be inverted")
    return torch.linalg.inv(applied)
