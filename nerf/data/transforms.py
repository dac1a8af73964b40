"""Datasets of posed photographs: detection of the format, and the parser of ``transforms.json``. No image is opened here.

Four formats: Blender's ``transforms_{train,val,test}.json`` and the ``transforms.json`` of instant-ngp and nerfstudio (here),
COLMAP's sparse models (``nerf/data/colmap.py``), and NeuS's projection matrices (``nerf/data/neus.py``).
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor

from nerf.core.errors import UserError
from nerf.core.files import read_json
from nerf.core.progress import track
from nerf.core.words import counted
from nerf.data.colmap import find_models, read_colmap
from nerf.data.frames import (
    SPLITS,
    Frame,
    Intrinsics,
    ParsedDataset,
    find_image,
    make_dataset,
    raise_no_images,
    same_path,
    split_by_holdout,
    warn_of_unused_masks,
)
from nerf.data.neus import find_camera_file, read_neus

PERSPECTIVE_MODELS = ("PINHOLE", "SIMPLE_PINHOLE", "OPENCV", "SIMPLE_RADIAL", "RADIAL")
DISTORTION_TERMS = ("k1", "k2", "k3", "k4", "p1", "p2")
ROTATION_TOLERANCE = 1e-2  # of |R^T R - 1|: rounding to a few digits stays below it, a scale or shear far exceeds it
NGP_SCALE = 0.33  # instant-ngp's default "scale" from the file's world to its own
NGP_OFFSET = (0.5, 0.5, 0.5)  # and its default "offset": the centre of its box
MASK_FOLDERS = ("masks", "mask")  # where other programs put masks
LAST_ROW_TOLERANCE = 1e-6  # of the last row of a matrix, which is 0 0 0 1
MIN_DETERMINANT = 1e-12  # below it a transform counts as singular


def read_folder(folder: str | Path, holdout: int = 8) -> ParsedDataset:
    """Parse a folder of posed photographs in any supported format.

    Photographs that are listed but do not exist are skipped and reported in ``missing``. If the dataset defines no split
    of its own (``transforms_test.json``, or ``test_filenames`` as nerfstudio writes), every ``holdout``-th photograph in
    the order of names is held out for testing. Without a validation split the test split is used for validation, and vice
    versa.

    Args:
        folder: contains ``transforms.json`` or ``transforms_train.json``, a COLMAP model, or NeuS's camera matrices.
        holdout: every ``holdout``-th photograph is held out; 0: none.

    Raises:
        UserError: a file is missing, broken or not supported; the message names the file and the position in it.
    """
    try:
        return _read_folder(Path(folder), holdout)
    except PermissionError as error:
        raise UserError(
            f"--data {folder}: no permission to read {error.filename}; change its permissions, or make a copy"
        ) from error


def _read_folder(folder: Path, holdout: int) -> ParsedDataset:
    """What :func:`read_folder` does, with the operating system's errors."""
    if not folder.is_dir():
        problem = "is a file; give the folder that contains it" if folder.exists() else "does not exist"
        raise UserError(
            f"--data must name a folder of photographs with transforms.json, a COLMAP model or NeuS cameras; {folder} {problem}"
        )
    if (folder / "transforms_train.json").exists():
        files = {s: folder / f"transforms_{s}.json" for s in SPLITS if (folder / f"transforms_{s}.json").exists()}
    elif (folder / "transforms.json").exists():
        files = {"train": folder / "transforms.json"}
    elif models := find_models(folder):
        return read_colmap(folder, models, holdout)
    elif cameras := find_camera_file(folder):
        return read_neus(folder, cameras, holdout)
    else:
        raise UserError(
            f"--data {folder}: there is neither transforms.json nor transforms_train.json in it, no COLMAP model "
            "(sparse/0 with cameras and images, .bin or .txt) and no cameras_sphere.npz; docs/photographs.md "
            "describes each format"
        )
    return _read_transforms(folder, files, holdout)


def _read_transforms(folder: Path, files: Mapping[str, Path], holdout: int) -> ParsedDataset:
    """The dataset of one ``transforms*.json`` per split, or of a single one under "train"."""
    documents = {split: _read_document(path) for split, path in files.items()}
    for split in SPLITS:
        _check_file_names(documents["train"].get(f"{split}_filenames", []), files["train"], f"{split}_filenames")
    found, missing = {}, []
    for split, document in documents.items():
        found[split], not_found = _read_frames(folder, files[split], document)
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
        _split(found, missing, train, folder, path, holdout),
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


def _read_frames(folder: Path, path: Path, document: dict) -> tuple[list[Frame], list[str]]:
    """The frames whose photograph exists, and the names of those whose photograph does not."""
    frames, missing = [], []
    for number, entry in enumerate(track(document["frames"], f"reading {path.name}")):
        if not isinstance(entry, dict) or not isinstance(entry.get("file_path"), str):
            raise UserError(f'{path}, frame {number}: expected an object with a string "file_path", got {entry!r:.60}')
        name = entry["file_path"]
        where = f"{path}, frame {number} ({name})"
        image = find_image(folder, name)
        if image is None:
            missing.append(name)
            continue
        mask, normal = (_find_companion(folder, entry, key, where) for key in ("mask_path", "normal_path"))
        intrinsics = _read_intrinsics(entry, document, where)
        frames.append(Frame(name, image, _read_pose(entry, where), intrinsics, mask, normal))
    return frames, missing


def _find_companion(folder: Path, entry: dict, key: str, where: str) -> Path | None:
    """The mask or normal map that a frame names under ``key``; None if it names none."""
    if not entry.get(key):
        return None
    path = find_image(folder, str(entry[key]))
    if path is None:
        raise UserError(f'{where}: its "{key}" {entry[key]} does not exist in {folder}; correct the path, or remove the key')
    return path


def _number(value: Any, where: str, key: str, positive: bool = False) -> float:
    """A JSON value as a finite number."""
    try:
        number = math.nan if isinstance(value, (bool, str)) else float(value)
    except (TypeError, OverflowError):
        number = math.nan
    if not math.isfinite(number) or (positive and number <= 0):
        raise UserError(f'{where}: "{key}" must be a {"positive " * positive}number, got {value!r:.40}')
    return number


def _matrix(value: Any, rows: tuple[int, ...], where: str, key: str) -> Tensor:
    """A JSON value as a matrix [4, 4] float64; ``rows`` are the allowed numbers of rows."""
    try:
        matrix = torch.tensor(msgspec.convert(value, list[list[float]]), dtype=torch.float64)
    except (msgspec.ValidationError, ValueError) as error:
        raise UserError(f'{where}: "{key}" must be 4x4 numbers, got {value!r:.60}') from error
    if matrix.ndim != 2 or matrix.shape[0] not in rows or matrix.shape[1] != 4:
        raise UserError(f'{where}: "{key}" must be 4x4 numbers, got {"x".join(map(str, matrix.shape)) or value}')
    if not matrix.isfinite().all():
        raise UserError(f'{where}: "{key}" holds numbers that are not finite')
    last = torch.tensor([0.0, 0.0, 0.0, 1.0], dtype=torch.float64)
    if len(matrix) == 4 and not (matrix[3] - last).abs().max() <= LAST_ROW_TOLERANCE:
        hint = "; exchange its rows and columns" if (matrix[:, 3] - last).abs().max() <= LAST_ROW_TOLERANCE else ""
        row = ", ".join(f"{value:g}" for value in matrix[3].tolist())
        raise UserError(f'{where}: the last row of "{key}" must be 0, 0, 0, 1, got {row}{hint or "; correct it"}')
    return torch.cat([matrix[:3], torch.tensor([[0.0, 0.0, 0.0, 1.0]], dtype=torch.float64)])


def _read_pose(entry: dict, where: str) -> Tensor:
    """Camera-to-world pose [4, 4] float64; its rotation is replaced by the nearest orthonormal one."""
    if "transform_matrix" not in entry:
        raise UserError(f'{where}: it has no "transform_matrix"; add the 4x4 matrix from camera to world')
    pose = _matrix(entry["transform_matrix"], (3, 4), where, "transform_matrix")
    rotation = pose[:3, :3]
    error = (rotation.T @ rotation - torch.eye(3, dtype=torch.float64)).abs().max().item()
    if error > ROTATION_TOLERANCE:
        raise UserError(
            f'{where}: the left 3x3 of "transform_matrix" must be a rotation, but its columns are not '
            f"orthonormal (error {error:.2g}); remove scale and shear"
        )
    if torch.linalg.det(rotation) < 0:
        raise UserError(
            f'{where}: the left 3x3 of "transform_matrix" is a reflection (determinant -1); '
            "negate one axis to make it a rotation"
        )
    left, _, right = torch.linalg.svd(rotation)
    pose[:3, :3] = left @ right
    return pose


def _read_intrinsics(entry: dict, document: dict, where: str) -> Intrinsics:
    """Intrinsics of a frame; its own entries override those of the whole file."""

    def number(key: str, positive: bool = False) -> float | None:
        value = entry.get(key, document.get(key))
        return None if value is None else _number(value, where, key, positive)

    model = entry.get("camera_model", document.get("camera_model"))
    fisheye = entry.get("is_fisheye", document.get("is_fisheye", False))
    if fisheye or (model is not None and model not in PERSPECTIVE_MODELS):
        raise UserError(
            f"{where}: camera model {model or 'fisheye'} is not supported, only {', '.join(PERSPECTIVE_MODELS)} are; "
            "undistort the photographs first (colmap image_undistorter)"
        )
    fx, fy = number("fl_x", positive=True), number("fl_y", positive=True)
    fov_x, fov_y = number("camera_angle_x", positive=True), number("camera_angle_y", positive=True)
    if fx is None and fy is None and fov_x is None and fov_y is None:
        raise UserError(f'{where}: there is no focal length; add "fl_x" in pixels or "camera_angle_x" in radians')
    if fx is not None or fy is not None:
        fov_x = fov_y = None
    for key, fov in (("camera_angle_x", fov_x), ("camera_angle_y", fov_y)):
        if fov is not None and fov >= math.pi:
            raise UserError(f'{where}: "{key}" is in radians and must be below pi, got {fov:g}')
    distortion = tuple(number(key) or 0.0 for key in DISTORTION_TERMS)
    cx, cy = number("cx"), number("cy")
    return Intrinsics(fx, fy, cx, cy, fov_x, fov_y, number("w", positive=True), number("h", positive=True), distortion)


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
    side = _number(side, str(path), "aabb_scale", positive=True)
    scale = _number(document.get("scale", NGP_SCALE), str(path), "scale", positive=True)
    offset = document.get("offset", list(NGP_OFFSET))
    if not isinstance(offset, list) or len(offset) != 3:
        raise UserError(f'{path}: "offset" must be three numbers, got {offset!r:.40}')
    offset = torch.tensor([_number(value, str(path), "offset") for value in offset], dtype=torch.float64)
    return (0.5 - offset) / scale, 0.5 * side / scale


def _to_reconstruction(document: dict, path: Path) -> Tensor:
    """[4, 4] from the file's world to the reconstruction's: the inverse of nerfstudio's applied_transform and applied_scale."""
    applied = torch.eye(4, dtype=torch.float64)
    if "applied_transform" in document:
        applied = _matrix(document["applied_transform"], (3, 4), str(path), "applied_transform")
    applied[:3] *= _number(document.get("applied_scale", 1.0), str(path), "applied_scale", positive=True)
    if not MIN_DETERMINANT <= torch.linalg.det(applied).abs() < math.inf:
        raise UserError(f'{path}: "applied_transform" is not invertible; correct or remove it')
    return torch.linalg.inv(applied)
