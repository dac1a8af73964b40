"""Blender's ``transforms_{train,val,test}.json`` and the ``transforms.json`` of instant-ngp and nerfstudio."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nerf.core.errors import UserError
from nerf.core.files import read_json
from nerf.core.progress import track
from nerf.core.words import counted
from nerf.data.colmap import CAMERA_MODELS
from nerf.data.frames import (
    DISTORTION_TERMS,
    SPLITS,
    Frame,
    Intrinsics,
    ParsedDataset,
    ReadOptions,
    find_image,
    make_dataset,
    raise_no_images,
    same_path,
    split_by_holdout,
    warn_of_unused_masks,
)
from nerf.data.values import matrix, number, rigid

RATIONAL_MODEL = "FULL_OPENCV"  # whose k4 k5 k6 divide
NGP_SCALE = 0.33  # instant-ngp's default "scale" from the file's world to its own
NGP_OFFSET = (0.5, 0.5, 0.5)  # and its default "offset": the centre of its box
MASK_FOLDERS = ("masks", "mask")  # where other programs put masks
MIN_DETERMINANT = 1e-12  # below it a transform counts as singular


def find_transforms(folder: Path) -> dict[str, Path] | None:
    """The files of a dataset in this format by split; None if it is in another format."""
    if (folder / "transforms_train.json").exists():
        return {s: folder / f"transforms_{s}.json" for s in SPLITS if (folder / f"transforms_{s}.json").exists()}
    return {"train": folder / "transforms.json"} if (folder / "transforms.json").exists() else None


def read_transforms(folder: Path, files: Mapping[str, Path], options: ReadOptions) -> ParsedDataset:
    """The dataset of one ``transforms*.json`` per split, or of a single one under "train"."""
    documents = {split: _read_document(path) for split, path in files.items()}
    for split in SPLITS:
        _check_file_names(documents["train"].get(f"{split}_filenames", []), files["train"], f"{split}_filenames")
    found, missing = {}, []
    for split, document in documents.items():
        found[split], not_found = _read_frames(folder, files[split], document, options)
        missing += not_found
    if not found["train"]:
        raise_no_images(files["train"], folder / missing[0] if missing else None, missing)
    train, path = documents["train"], files["train"]
    everything = [frame for frames in found.values() for frame in frames]
    if not any(frame.mask for frame in everything):
        for name in MASK_FOLDERS:
            warn_of_unused_masks(folder / name, everything, 'a frame names its mask as "mask_path"')
    return make_dataset(
        folder,
        path,
        _split(found, missing, train, folder, path, options.holdout),
        missing,
        limit=_aabb(train, path),
        to_reconstruction=_to_reconstruction(train, path),
    )


def _read_document(path: Path) -> dict[str, Any]:
    """The JSON object of a file, with a list "frames"; what is inside is checked where it is read."""
    document = read_json(path, "correct it there, or export the cameras again")
    if not isinstance(document, dict) or not isinstance(document.get("frames"), list):
        raise UserError(f'{path}: expected an object with a list "frames", got {_describe(document)}')
    return document


def _describe(document: Any) -> str:
    """A JSON value in a few words, for error messages."""
    if isinstance(document, dict):
        return "an object with " + (", ".join(list(document)[:5]) or "nothing in it")
    return {list: "a list"}.get(type(document), f"{document!r:.40}")


def _check_file_names(value: Any, path: Path, key: str) -> None:
    """Raise unless ``value`` is a list of strings."""
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise UserError(f'{path}: "{key}" must be a list of file names, got {value!r:.60}')


def _read_frames(folder: Path, path: Path, document: dict, options: ReadOptions) -> tuple[list[Frame], list[str]]:
    """The frames whose photograph exists, and the names of those whose photograph does not."""
    frames, missing = [], []
    for position, entry in enumerate(track(document["frames"], f"reading {path.name}")):
        if not isinstance(entry, dict) or not isinstance(entry.get("file_path"), str):
            raise UserError(f'{path}, frame {position}: expected an object with a string "file_path", got {entry!r:.60}')
        name = entry["file_path"]
        where = f"{path}, frame {position} ({name})"
        image = find_image(folder, name)
        if image is None:
            missing.append(name)
            continue
        mask, normal = (_find_companion(folder, entry, key, where) for key in ("mask_path", "normal_path"))
        intrinsics, (depth, unit) = (
            _read_intrinsics(entry, document, where),
            _find_depth(folder, entry, document, where, options),
        )
        frames.append(Frame(name, image, _read_pose(entry, where), intrinsics, mask, normal, depth=depth, depth_unit=unit))
    return frames, missing


def _find_companion(folder: Path, entry: dict, key: str, where: str) -> Path | None:
    """The mask or normal map that a frame names under ``key``; None if it names none."""
    if not entry.get(key):
        return None
    path = find_image(folder, str(entry[key]))
    if path is None:
        raise UserError(f'{where}: its "{key}" {entry[key]} does not exist in {folder}; correct the path, or remove the key')
    return path


def _find_depth(folder: Path, entry: dict, document: dict, where: str, options: ReadOptions) -> tuple[Path | None, float]:
    """The depth map of a frame, and its unit: of nerfstudio's "depth_file_path", or of instant-ngp's "depth_path"."""
    if entry.get("depth_file_path"):
        return _find_companion(folder, entry, "depth_file_path", where), options.depth_unit
    scale = document.get("integer_depth_scale")
    if not entry.get("depth_path") or scale is None:
        return None, 0.0
    return _find_companion(folder, entry, "depth_path", where), number(scale, where, "integer_depth_scale", positive=True)


def _read_pose(entry: dict, where: str) -> Tensor:
    """Camera-to-world pose [4, 4] float64; its rotation is replaced by the nearest orthonormal one."""
    if "transform_matrix" not in entry:
        raise UserError(f'{where}: it has no "transform_matrix"; add the 4x4 matrix from camera to world')
    return rigid(matrix(entry["transform_matrix"], (3, 4), where, "transform_matrix"), where, "transform_matrix")


def _read_intrinsics(entry: dict, document: dict, where: str) -> Intrinsics:
    """Intrinsics of a frame; its own entries override those of the whole file."""

    def given(key: str, positive: bool = False) -> float | None:
        value = entry.get(key, document.get(key))
        return None if value is None else number(value, where, key, positive)

    model = entry.get("camera_model", document.get("camera_model"))
    fisheye = entry.get("is_fisheye", document.get("is_fisheye", False))
    if model is not None and (not isinstance(model, str) or model not in CAMERA_MODELS):
        raise UserError(
            f"{where}: camera model {model} is not supported, only {', '.join(CAMERA_MODELS)} are; "
            "undistort the photographs first (colmap image_undistorter)"
        )
    fisheye = bool(fisheye) or (model or "").endswith("FISHEYE")
    fx, fy = given("fl_x", positive=True), given("fl_y", positive=True)
    fov_x, fov_y = given("camera_angle_x", positive=True), given("camera_angle_y", positive=True)
    if fx is None and fy is None and fov_x is None and fov_y is None:
        raise UserError(f'{where}: there is no focal length; add "fl_x" in pixels or "camera_angle_x" in radians')
    if fx is not None or fy is not None:
        fov_x = fov_y = None
    for key, fov in (("camera_angle_x", fov_x), ("camera_angle_y", fov_y)):
        if fov is not None and fov >= math.pi and not fisheye:
            raise UserError(f'{where}: "{key}" is in radians and must be below pi, got {fov:g}')
    distortion = tuple(given(key) or 0.0 for key in DISTORTION_TERMS)
    if model == RATIONAL_MODEL:
        k4, k5, k6 = (given(key) or 0.0 for key in ("k4", "k5", "k6"))
        distortion = (*distortion[:3], 0.0, *distortion[4:], k4, k5, k6)
    cx, cy, width, height = given("cx"), given("cy"), given("w", positive=True), given("h", positive=True)
    return Intrinsics(fx, fy, cx, cy, fov_x, fov_y, width, height, distortion, fisheye)


def _split(
    found: dict[str, list[Frame]], missing: list[str], document: dict, folder: Path, path: Path, holdout: int
) -> dict[str, list[Frame]]:
    """Frames by split: from one file per split, from the lists of file names in a single file, or by holdout."""
    if set(found) != {"train"}:
        return found
    frames = found["train"]
    listed = {s: document[f"{s}_filenames"] for s in SPLITS if f"{s}_filenames" in document}
    if not listed:
        return split_by_holdout(frames, holdout)
    photograph = {same_path(frame.image): frame.name for frame in frames}  # names may differ: ./a.png, a.png, a
    known = {same_path(folder / name) for name in missing} | set(photograph)
    names = {}
    for split, entries in listed.items():
        files = [same_path(find_image(folder, entry) or folder / entry) for entry in entries]
        unknown = [entry for entry, file in zip(entries, files, strict=True) if file not in known]
        if unknown:
            raise UserError(
                f'{path}: "{split}_filenames" names {counted(len(unknown), "photograph")} that no frame has, first '
                f"{unknown[0]!r:.80}; write them as the frames do, or remove the list"
            )
        names[split] = set(files)
    held_out = set().union(*(inside for split, inside in names.items() if split != "train"))
    if not set(names) & {"val", "test"}:  # all others are for testing
        names["test"] = held_out = set(photograph) - names["train"]
    if both := names.setdefault("train", set(photograph) - held_out) & held_out:
        count = counted(len(both), "photograph is", "photographs are")
        raise UserError(f"{path}: {count} listed both for training and for testing, first {sorted(both)[0]}; list each once")
    ordered = sorted(frames, key=lambda frame: frame.name)
    return {split: [frame for frame in ordered if same_path(frame.image) in inside] for split, inside in names.items()}


def _aabb(document: dict, path: Path) -> tuple[Tensor, float] | None:
    """instant-ngp's box, centre [3] and half side: a cube of side ``aabb_scale`` around 0.5 in ``x_ngp = scale x + offset``."""
    side = document.get("aabb_scale")
    if side is None:
        return None
    side = number(side, str(path), "aabb_scale", positive=True)
    scale = number(document.get("scale", NGP_SCALE), str(path), "scale", positive=True)
    offset = document.get("offset", list(NGP_OFFSET))
    if not isinstance(offset, list) or len(offset) != 3:
        raise UserError(f'{path}: "offset" must be three numbers, got {offset!r:.40}')
    offset = torch.tensor([number(value, str(path), "offset") for value in offset], dtype=torch.float64)
    return (0.5 - offset) / scale, 0.5 * side / scale


def _to_reconstruction(document: dict, path: Path) -> Tensor:
    """[4, 4] from the file's world to the reconstruction's: the inverse of nerfstudio's applied_transform and applied_scale."""
    applied = torch.eye(4, dtype=torch.float64)
    if "applied_transform" in document:
        applied = matrix(document["applied_transform"], (3, 4), str(path), "applied_transform")
    applied[:3] *= number(document.get("applied_scale", 1.0), str(path), "applied_scale", positive=True)
    if not MIN_DETERMINANT <= torch.linalg.det(applied).abs() < math.inf:
        raise UserError(f'{path}: "applied_transform" is not invertible; correct or remove it')
    return torch.linalg.inv(applied)
