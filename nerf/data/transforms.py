"""Posed photographs on disk: which layout a folder has, and what ``transforms.json`` says. Opens no picture.

Four layouts: Blender's ``transforms_{train,val,test}.json``, instant-ngp's and nerfstudio's ``transforms.json``, COLMAP's
sparse models (``provider_colmap``), and NeuS's camera matrices (``provider_neus``).
"""

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nerf.core.errors import UserError
from nerf.data.colmap import models_of, read_colmap
from nerf.data.frames import SPLITS, Frame, Lens, PhotoFiles, find_picture, gather, held_out, refuse_without_photographs
from nerf.data.neus import cameras_of, read_neus

PINHOLES = ("PINHOLE", "SIMPLE_PINHOLE", "OPENCV", "SIMPLE_RADIAL", "RADIAL")
LENS_TERMS = ("k1", "k2", "k3", "k4", "p1", "p2")
ROTATION_TOLERANCE = 1e-2  # of R^T R - 1: files round to a few digits, a scaled or sheared pose is off by far more


def read_folder(folder: str | Path, holdout: int = 8) -> PhotoFiles:
    """Read the description of a folder of posed photographs.

    Photographs that a file names and that do not exist are left out and listed. Where the data has no test split of its
    own (``transforms_test.json``, or ``test_filenames`` as nerfstudio writes), every ``holdout``-th photograph in the
    order of the names is the test and the rest trains. Without a validation split, the test is that too, or vice versa.

    Args:
        folder: holds ``transforms.json`` or ``transforms_train.json``, a COLMAP model, or NeuS's camera matrices.
        holdout: 0 holds none out.

    Raises:
        UserError: anything missing, broken or not understood, with the file and the place in it.
    """
    try:
        return _read_folder(Path(folder), holdout)
    except PermissionError as error:
        raise UserError(f"--data {folder}: you may not read {error.filename}; give yourself the right to, or a copy") from error


def _read_folder(folder: Path, holdout: int) -> PhotoFiles:
    if not folder.is_dir():
        what = "a file; give the folder it is in" if folder.exists() else "not there"
        raise UserError(
            f"--data must name a folder of photographs with transforms.json, a COLMAP model or NeuS cameras; {folder} is {what}"
        )
    if (folder / "transforms_train.json").exists():
        named = {s: folder / f"transforms_{s}.json" for s in SPLITS if (folder / f"transforms_{s}.json").exists()}
    elif (folder / "transforms.json").exists():
        named = {"train": folder / "transforms.json"}
    elif models_of(folder):
        return read_colmap(folder, holdout)
    elif cameras_of(folder):
        return read_neus(folder, holdout)
    else:
        raise UserError(
            f"--data {folder}: there is neither transforms.json nor transforms_train.json in it, no COLMAP model "
            "(sparse/0 with cameras and images, .bin or .txt) and no cameras_sphere.npz; docs/photographs.md "
            "describes each layout"
        )
    documents = {split: _read_json(path) for split, path in named.items()}
    for split in SPLITS:
        _check_list_of_names(documents["train"].get(f"{split}_filenames", []), named["train"], f"{split}_filenames")
    found, missing = {}, []
    for split, document in documents.items():
        found[split], gone = _read_frames(folder, named[split], document)
        missing += gone
    if not found["train"]:
        refuse_without_photographs(named["train"], folder / missing[0] if missing else None, missing)
    train = documents["train"]
    groups = _split(found, train, holdout)
    box, recorded = _prescribed_box(train, named["train"]), _recorded_world(train, named["train"])
    return gather(folder, named["train"], groups, missing, holdout, box=box, recorded=recorded)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path} is not valid JSON, line {error.lineno} column {error.colno}: {error.msg}; mend it there"
        ) from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not a text file (byte {error.start}: {error.reason})") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except RecursionError as error:
        raise UserError(f"{path} is not a description of photographs: it is nested too deeply") from error
    if not isinstance(document, dict) or not isinstance(document.get("frames"), list):
        raise UserError(f'{path}: expected an object with a list "frames", got {_kind(document)}')
    return document


def _kind(document: Any) -> str:
    if isinstance(document, dict):
        return "an object with " + (", ".join(list(document)[:5]) or "nothing in it")
    return {list: "a list"}.get(type(document), f"{document!r:.40}")


def _check_list_of_names(value: Any, path: Path, key: str) -> None:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise UserError(f'{path}: "{key}" must be a list of file names, got {value!r:.60}')


def _read_frames(folder: Path, path: Path, document: dict) -> tuple[list[Frame], list[str]]:
    """The frames whose photograph exists, and the names of the others."""
    frames, missing = [], []
    for number, entry in enumerate(document["frames"]):
        if not isinstance(entry, dict) or not isinstance(entry.get("file_path"), str):
            raise UserError(f'{path}, frame {number}: expected an object with a text "file_path", got {entry!r:.60}')
        name = entry["file_path"]
        where = f"{path}, frame {number} ({name})"
        image = find_picture(folder, name)
        if image is None:
            missing.append(name)
            continue
        mask, normal = (_find_beside(folder, entry, key, where) for key in ("mask_path", "normal_path"))
        lens = _read_lens(entry, document, where)
        frames.append(Frame(name, image, _read_pose(entry, where), lens, mask, normal))
    return frames, missing


def _find_beside(folder: Path, entry: dict, key: str, where: str) -> Path | None:
    """The file that a frame names under ``key``, or None if it names none."""
    if not entry.get(key):
        return None
    path = find_picture(folder, str(entry[key]))
    if path is None:
        raise UserError(f'{where}: its "{key}" {entry[key]} does not exist in {folder}; mend the path, or leave the key out')
    return path


def _number(value: Any, where: str, key: str, positive: bool = False) -> float:
    """A finite number out of JSON, which may hold anything."""
    try:
        number = math.nan if isinstance(value, (bool, str)) else float(value)
    except (TypeError, OverflowError):
        number = math.nan
    if not math.isfinite(number) or (positive and number <= 0):
        raise UserError(f'{where}: "{key}" must be a {"positive " * positive}number, got {value!r:.40}')
    return number


def _matrix(value: Any, rows: tuple[int, ...], where: str, key: str) -> Tensor:
    """A 3x4 or 4x4 matrix of numbers as [4, 4] float64."""
    try:
        matrix = torch.tensor(value, dtype=torch.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f'{where}: "{key}" must be 4x4 numbers, got {value!r:.60}') from error
    if matrix.ndim != 2 or matrix.shape[0] not in rows or matrix.shape[1] != 4:
        raise UserError(f'{where}: "{key}" must be 4x4 numbers, got {"x".join(map(str, matrix.shape)) or value}')
    if not matrix.isfinite().all():
        raise UserError(f'{where}: "{key}" holds numbers that are not finite')
    return torch.cat([matrix[:3], torch.tensor([[0.0, 0.0, 0.0, 1.0]], dtype=torch.float64)])


def _read_pose(entry: dict, where: str) -> Tensor:
    """Camera-to-world [4, 4] float64 with an exact rotation."""
    if "transform_matrix" not in entry:
        raise UserError(f'{where}: it has no "transform_matrix"; give it the 4x4 matrix from camera to world')
    pose = _matrix(entry["transform_matrix"], (3, 4), where, "transform_matrix")
    rotation = pose[:3, :3]
    off = (rotation.T @ rotation - torch.eye(3, dtype=torch.float64)).abs().max().item()
    if off > ROTATION_TOLERANCE:
        raise UserError(
            f'{where}: the left 3x3 of "transform_matrix" must be a rotation, but its columns are not '
            f"orthonormal (off by {off:.2g})"
        )
    if torch.linalg.det(rotation) < 0:
        raise UserError(
            f'{where}: the left 3x3 of "transform_matrix" is a mirror image (determinant -1); '
            "negate one axis so that it is a rotation"
        )
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
        raise UserError(
            f"{where}: camera model {model or 'fisheye'} is not read, only {', '.join(PINHOLES)} are; "
            "undistort the photographs first (colmap image_undistorter)"
        )
    fx, fy = number("fl_x", positive=True), number("fl_y", positive=True)
    angle_x, angle_y = number("camera_angle_x", positive=True), number("camera_angle_y", positive=True)
    if fx is None and fy is None and angle_x is None and angle_y is None:
        raise UserError(f'{where}: there is no focal length; give "fl_x" in pixels or "camera_angle_x" in radians')
    if fx is not None or fy is not None:
        angle_x = angle_y = None
    for key, angle in (("camera_angle_x", angle_x), ("camera_angle_y", angle_y)):
        if angle is not None and angle >= math.pi:
            raise UserError(f'{where}: "{key}" must lie below pi, as it is in radians, got {angle:g}')
    distortion = tuple(number(key) or 0.0 for key in LENS_TERMS)
    return Lens(
        fx, fy, number("cx"), number("cy"), angle_x, angle_y, number("w", positive=True), number("h", positive=True), distortion
    )


def _split(found: dict[str, list[Frame]], document: dict, holdout: int) -> dict[str, list[Frame]]:
    """The frames of each split: those of a file each, those that the file lists, or every so manyth."""
    if set(found) != {"train"}:
        return found
    frames = found["train"]
    listed = {s: set(document[f"{s}_filenames"]) for s in SPLITS if f"{s}_filenames" in document}
    if not set(listed) & {"val", "test"}:
        return held_out(frames, holdout)
    kept_out = set().union(*(names for s, names in listed.items() if s != "train"))
    listed.setdefault("train", {frame.name for frame in frames} - kept_out)
    ordered = sorted(frames, key=lambda frame: frame.name)
    return {s: [frame for frame in ordered if frame.name in names] for s, names in listed.items()}


def _prescribed_box(document: dict, path: Path) -> tuple[Tensor, float] | None:
    """instant-ngp's box: a cube of side ``aabb_scale`` around 0.5, in units where ``x_ngp = 0.33 x + 0.5``."""
    side = document.get("aabb_scale")
    if side is None:
        return None
    side = _number(side, str(path), "aabb_scale", positive=True)
    scale = _number(document.get("scale", 0.33), str(path), "scale", positive=True)
    offset = document.get("offset", [0.5, 0.5, 0.5])
    if not isinstance(offset, list) or len(offset) != 3:
        raise UserError(f'{path}: "offset" must be three numbers, got {offset!r:.40}')
    offset = torch.tensor([_number(value, str(path), "offset") for value in offset], dtype=torch.float64)
    return (0.5 - offset) / scale, 0.5 * side / scale


def _recorded_world(document: dict, path: Path) -> Tensor:
    """From the file's world back to the reconstruction's, undoing nerfstudio's applied_transform and applied_scale."""
    applied = torch.eye(4, dtype=torch.float64)
    if "applied_transform" in document:
        applied = _matrix(document["applied_transform"], (3, 4), str(path), "applied_transform")
    applied[:3] *= _number(document.get("applied_scale", 1.0), str(path), "applied_scale", positive=True)
    if torch.linalg.det(applied).abs() < 1e-12:
        raise UserError(f'{path}: "applied_transform" cannot be inverted')
    return torch.linalg.inv(applied)
