"""COLMAP's sparse models: cameras, images and points, as text or binary. P points.

The format is described in COLMAP's documentation under "Output Format": ``sparse/0/{cameras,images,points3D}.{bin,txt}``
beside ``images/``, and masks as ``masks/NAME`` or ``masks/NAME.png`` (or with another suffix in place of NAME's own).
"""

import logging
import math
import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from nerf.core.errors import UserError
from nerf.core.files import read_bytes
from nerf.core.words import counted, is_number
from nerf.data.frames import (
    DENOMINATOR_TERMS,
    DISTORTION_TERMS,
    Frame,
    Intrinsics,
    ParsedDataset,
    ReadOptions,
    downscaled_folder,
    find_image,
    find_mask,
    list_pictures,
    make_dataset,
    pose_from_opencv,
    raise_no_images,
    same_path,
    split_by_holdout,
    warn_of_unused_masks,
)
from nerf.data.values import rotation_of_quaternion

log = logging.getLogger("somnia.photographs")

# Parameters of each camera model in the order of the file. COLMAP's k4 k5 k6 of FULL_OPENCV divide: d1 d2 d3 here.
CAMERA_MODELS: dict[str, tuple[str, ...]] = {
    "SIMPLE_PINHOLE": ("f", "cx", "cy"),
    "PINHOLE": ("fx", "fy", "cx", "cy"),
    "SIMPLE_RADIAL": ("f", "cx", "cy", "k1"),
    "RADIAL": ("f", "cx", "cy", "k1", "k2"),
    "OPENCV": ("fx", "fy", "cx", "cy", "k1", "k2", "p1", "p2"),
    "OPENCV_FISHEYE": ("fx", "fy", "cx", "cy", "k1", "k2", "k3", "k4"),
    "FULL_OPENCV": ("fx", "fy", "cx", "cy", "k1", "k2", "p1", "p2", "k3", "d1", "d2", "d3"),
    "SIMPLE_RADIAL_FISHEYE": ("f", "cx", "cy", "k1"),
    "RADIAL_FISHEYE": ("f", "cx", "cy", "k1", "k2"),
}
# A model's number in binary files; those of other numbers are not supported.
MODEL_NUMBERS = dict(zip((0, 1, 2, 3, 4, 5, 6, 8, 9), CAMERA_MODELS, strict=True))
QUATERNION_TOLERANCE = 1e-2  # deviation of a quaternion's length from 1; rounding in text files stays far below it
FEATURE_BYTES = 24  # of a feature of an image: x, y (float64) and the id of its 3-D point (int64)
LARGEST_FILE = 1 << 34  # bytes; images.bin of thirty thousand photographs is a tenth of it
TRACK_BYTES = 8  # of an element of a point's track: image and feature (int32 each)


@dataclass(frozen=True)
class ModelFiles:
    """The files of one sparse model."""

    folder: Path
    cameras: Path
    images: Path
    points: Path | None


@dataclass(frozen=True)
class RegisteredImage:
    """A photograph for which the reconstruction found a pose."""

    name: str
    rotation: Tensor  # [3, 3] float64, world to camera, OpenCV axes
    translation: Tensor  # [3]
    camera: int  # id


def find_models(folder: Path) -> list[ModelFiles]:
    """The sparse models of a dataset; there may be several, as COLMAP starts a new one where images do not connect."""
    sparse = folder / "sparse"
    numbered = sorted(path for path in sparse.iterdir() if path.is_dir()) if sparse.is_dir() else []
    models = []
    for path in (*numbered, sparse, folder):
        cameras, images = _find_file(path, "cameras"), _find_file(path, "images")
        if cameras is not None and images is not None:
            models.append(ModelFiles(path, cameras, images, _find_file(path, "points3D")))
    return models


def read_colmap(folder: Path, models: Sequence[ModelFiles], options: ReadOptions) -> ParsedDataset:
    """Read the sparse model with the most registered images, and hold out some of them.

    Args:
        folder: of the dataset, with the photographs in ``images`` or in the folder itself.
        models: at least one, see :func:`find_models`.
        options: how many photographs are held out, and whether reduced ones are read.

    Raises:
        UserError: a file is broken, or a camera model is not supported.
    """
    model = read_model(folder, models, options)
    splits = split_by_holdout(model.frames, options.holdout)
    return make_dataset(folder, model.folder, splits, model.missing, points=model.points, downscaled=model.downscaled)


@dataclass(frozen=True)
class SparseModel:
    """What a sparse model holds."""

    folder: Path
    frames: list[Frame]  # the photographs that exist
    missing: list[str]  # names of those that do not
    points: Tensor | None  # [P, 3] float64
    downscaled: int  # the factor by which the photographs are reduced already


def read_model(folder: Path, models: Sequence[ModelFiles], options: ReadOptions) -> SparseModel:
    """The sparse model with the most registered images; arguments and errors as of :func:`read_colmap`."""
    registered = {model: _read_images(model.images) for model in models}
    model = max(registered, key=lambda key: len(registered[key]))
    cameras = _read_cameras(model.cameras)
    names = [entry.name for entry in registered[model]]
    image_folder, downscaled = _image_folder(folder, names, options.downscale)
    frames, missing = [], []
    for entry in registered[model]:
        if entry.camera not in cameras:
            raise UserError(
                f"{model.folder}: photograph {entry.name} has camera {entry.camera}, which is not described there; "
                "export the whole model again"
            )
        image = find_image(image_folder, entry.name)
        if image is None:
            missing.append(entry.name)
            continue
        mask, depth = find_mask(folder / "masks", entry.name), find_mask(folder / "depths", entry.name, (".npy",))
        pose = pose_from_opencv(entry.rotation, -entry.rotation.T @ entry.translation)
        frames.append(Frame(entry.name, image, pose, cameras[entry.camera], mask, depth=depth))
    if not frames:
        raise_no_images(model.folder, folder / "images" / missing[0] if missing else None, missing)
    warn_of_unused_masks(folder / "masks", frames, "the mask of a.jpg is a.jpg, a.jpg.png or a.png")
    _warn_of_no_pose(image_folder, frames)
    return SparseModel(model.folder, frames, missing, _read_points(model.points), downscaled)


def _warn_of_no_pose(folder: Path, frames: Sequence[Frame]) -> None:
    """Log a warning if pictures lie beside the registered ones for which the reconstruction found no pose."""
    known = {same_path(frame.image) for frame in frames}
    without = [path for path in list_pictures(folder) if same_path(path) not in known]
    if without:
        log.warning(
            "%s: %s no pose and %s left out, first %s; pictures that overlap them would connect them",
            folder,
            counted(len(without), "picture has", "pictures have"),
            "is" if len(without) == 1 else "are",
            without[0].name,
        )


def _image_folder(folder: Path, names: Sequence[str], factor: int) -> tuple[Path, int]:
    """The folder of the photographs, and by how much they are reduced already; a reduced one only if it has all of them."""
    images = folder / "images"
    reduced, downscaled = downscaled_folder(images, factor)
    if reduced != images and all(find_image(reduced, name) for name in names):
        return reduced, downscaled
    return (images if images.is_dir() else folder), 1


def _find_file(model: Path, stem: str) -> Path | None:
    """``stem``.bin or ``stem``.txt of a model, the first that exists."""
    return next((path for path in (model / f"{stem}.bin", model / f"{stem}.txt") if path.is_file()), None)


# ---- cameras ----


def _read_cameras(path: Path) -> dict[int, Intrinsics]:
    """Intrinsics by camera id."""
    found: dict[int, Intrinsics] = {}
    for number, camera in _text_cameras(path) if path.suffix == ".txt" else _binary_cameras(path):
        if found.setdefault(number, camera) != camera:
            raise UserError(f"{path} describes camera {number} twice, with other values; export the model again")
    return found


def _text_cameras(path: Path) -> Iterator[tuple[int, Intrinsics]]:
    """Id and intrinsics of each camera of a text file."""
    for where, line in _lines(path):
        words = line.split()
        if len(words) < 4:
            raise UserError(f"{where}: expected CAMERA_ID MODEL WIDTH HEIGHT PARAMS, got {line:.60}")
        width, height = _numbers(words[2:4], where)
        yield _id(words[0], where), _intrinsics(words[1], (width, height), _numbers(words[4:], where), where)


def _binary_cameras(path: Path) -> Iterator[tuple[int, Intrinsics]]:
    """Id and intrinsics of each camera of a binary file."""
    reader = BinaryReader(path)
    for _ in range(reader.read("Q")[0]):
        number, model, width, height = reader.read("iiQQ")
        name = MODEL_NUMBERS.get(model, f"number {model}")
        values = reader.read(f"{len(CAMERA_MODELS.get(name, ()))}d")
        yield number, _intrinsics(name, (width, height), values, f"{path}, camera {number}")
    reader.end()


def _intrinsics(model: str, size: tuple[float, float], values: tuple[float, ...], where: str) -> Intrinsics:
    """Intrinsics from the image size (width, height) and the parameters of a camera model."""
    if model not in CAMERA_MODELS:
        raise UserError(
            f"{where}: camera model {model} is not supported, only {', '.join(CAMERA_MODELS)} are; undistort the "
            "photographs first (colmap image_undistorter)"
        )
    if len(values) != len(CAMERA_MODELS[model]):
        raise UserError(
            f"{where}: {model} has {len(CAMERA_MODELS[model])} parameters, got {len(values)}; export the model again"
        )
    named = dict(zip(CAMERA_MODELS[model], values, strict=True))
    fx, fy = (named[term] if term in named else named["f"] for term in ("fx", "fy"))
    numbers = (*size, fx, fy)
    if not all(math.isfinite(v) for v in values) or min(numbers) <= 0:
        raise UserError(
            f"{where}: width, height and focal lengths must be positive, got {', '.join(f'{v:g}' for v in numbers)}; "
            "export the model again"
        )
    terms = DISTORTION_TERMS + (DENOMINATOR_TERMS if "d1" in named else ())
    distortion = tuple(named.get(term, 0.0) for term in terms)
    width, height = size
    fisheye = model.endswith("FISHEYE")
    return Intrinsics(fx, fy, named["cx"], named["cy"], None, None, width, height, distortion, fisheye)


# ---- images ----


def _read_images(path: Path) -> list[RegisteredImage]:
    """All registered images of a model."""
    return list(_text_images(path) if path.suffix == ".txt" else _binary_images(path))


def _text_images(path: Path) -> Iterator[RegisteredImage]:
    """Two lines per image: pose, camera and name; then its 2-D features, a line that may be empty."""
    is_features = False
    for where, line in _lines(path, blank=True):
        if is_features:
            _check_features(line, where)
            is_features = False
        elif line.strip():
            words = line.split(maxsplit=9)
            if len(words) < 10:
                raise UserError(f"{where}: expected IMAGE_ID QW QX QY QZ TX TY TZ CAMERA_ID NAME, got {line:.60}")
            yield _registered_image(words[9].strip(), _numbers(words[1:8], where), _id(words[8], where), where)
            is_features = True


def _check_features(line: str, where: str) -> None:
    """Refuse a line of 2-D features, x y POINT3D_ID each, that is none: where it was left out, it is the next photograph."""
    words = line.split()
    if len(words) % 3 or (words and not is_number(words[-1])):
        raise UserError(
            f"{where}: expected the features of the photograph in the line before, X Y POINT3D_ID each or an empty line, got "
            f"{line:.60}; every photograph has two lines: export the model again, or add the empty ones"
        )


def _binary_images(path: Path) -> Iterator[RegisteredImage]:
    """Pose, camera and name of each image of a binary file; its features are skipped."""
    reader = BinaryReader(path)
    for _ in range(reader.read("Q")[0]):
        number, *values, camera = reader.read("i7di")
        name = reader.read_string()
        reader.skip(FEATURE_BYTES * reader.read("Q")[0])
        yield _registered_image(name, values, camera, f"{path}, photograph {number} ({name})")
    reader.end()


def _registered_image(name: str, values: Sequence[float], camera: int, where: str) -> RegisteredImage:
    """An image from its seven pose parameters: quaternion (w, x, y, z) and translation, world to camera."""
    numbers = torch.tensor(values, dtype=torch.float64)
    length = numbers[:4].norm()
    if not numbers.isfinite().all() or (length - 1).abs() > QUATERNION_TOLERANCE:
        raise UserError(
            f"{where}: the pose must be a unit quaternion and a translation, got {', '.join(f'{v:g}' for v in values)}; "
            "export the model again"
        )
    rotation = rotation_of_quaternion(*(numbers[:4] / length).tolist())
    return RegisteredImage(name, rotation, numbers[4:], camera)


# ---- points ----


def _read_points(path: Path | None) -> Tensor | None:
    """The sparse point cloud [P, 3] float64 of a model, None if the file is missing or empty."""
    if path is None:
        return None
    found = list(_text_points(path) if path.suffix == ".txt" else _binary_points(path))
    points = torch.tensor(found, dtype=torch.float64)
    if not points.isfinite().all():
        raise UserError(f"{path} holds points that are not finite; export the model again")
    return points if found else None


def _text_points(path: Path) -> Iterator[tuple[float, ...]]:
    """x, y, z of each point of a text file."""
    for where, line in _lines(path):
        words = line.split(maxsplit=4)
        if len(words) < 4:
            raise UserError(f"{where}: expected POINT3D_ID X Y Z and more, got {line:.60}")
        yield _numbers(words[1:4], where)


def _binary_points(path: Path) -> Iterator[tuple[float, ...]]:
    """x, y, z of each point of a binary file; colour, error and track are skipped."""
    reader = BinaryReader(path)
    for _ in range(reader.read("Q")[0]):
        _, x, y, z, *_, track_length = reader.read("Q3d3BdQ")
        reader.skip(TRACK_BYTES * track_length)
        yield x, y, z
    reader.end()


# ---- parsing ----


def _lines(path: Path, blank: bool = False) -> Iterator[tuple[str, str]]:
    """(location for error messages, line) of a text file, without comments, and without blank lines unless ``blank``."""
    try:
        with path.open(encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, 1):
                if not line.startswith("#") and (blank or line.strip()):
                    yield f"{path}, line {number}", line.rstrip("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not a text file (byte {error.start}: {error.reason}); export the model again") from error


def _id(word: str, where: str) -> int:
    """A word as the number of a camera."""
    if not re.fullmatch(r"-?\d{1,18}", word):
        raise UserError(f"{where}: the number of a camera must be a whole number, got {word:.40}; export the model again")
    return int(word)


def _numbers(words: list[str], where: str) -> tuple[float, ...]:
    """Words as finite numbers."""
    try:
        numbers = tuple(float(word) for word in words)
    except ValueError:
        numbers = (math.nan,)
    if not all(math.isfinite(number) for number in numbers):
        raise UserError(f"{where}: expected finite numbers, got {' '.join(words):.120}; export the model again")
    return numbers


class BinaryReader:
    """Sequential reader of a little-endian binary file.

    Every method raises ``UserError`` if the file ends too early, or for :meth:`end` too late.
    """

    def __init__(self, path: Path):
        self.path, self.data, self.position = path, read_bytes(path, "export the model again", LARGEST_FILE), 0

    def read(self, layout: str) -> tuple:
        """The next values in the format of ``struct``, without padding."""
        begin = self.position
        self.skip(struct.calcsize("<" + layout))
        return struct.unpack_from("<" + layout, self.data, begin)

    def read_string(self) -> str:
        """The next zero-terminated string."""
        end = self.data.find(b"\0", self.position)
        begin = self.position
        self.skip((end if end >= 0 else len(self.data)) + 1 - begin)
        return self.data[begin:end].decode(errors="replace")

    def end(self) -> None:
        """Check that nothing is left: a damaged count would lose entries silently."""
        if self.position < len(self.data):
            raise UserError(
                f"{self.path} has {len(self.data) - self.position} bytes behind the last of the entries that it counts, so its "
                "count is damaged, or it is not a file of COLMAP; export the model again"
            )

    def skip(self, count: int) -> None:
        """Skip ``count`` bytes."""
        self.position += count
        if self.position > len(self.data):
            raise UserError(
                f"{self.path} ends after {len(self.data)} bytes, in the middle of an entry; it was truncated, "
                "or is not a file of COLMAP; export the model again"
            )
