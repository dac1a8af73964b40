"""What COLMAP writes: cameras, poses and points of a sparse reconstruction, as text or binary. P points.

The layout is COLMAP's own (its documentation, "Output Format"): ``sparse/0/{cameras,images,points3D}.{bin,txt}`` beside
``images/``, and masks as ``masks/NAME`` or ``masks/NAME.png``.
"""

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from nerf.core.errors import UserError
from nerf.data.frames import Frame, Lens, PhotoFiles, find_picture, from_opencv, gather, held_out, refuse_without_photographs

# Where each model's parameters go; the number of each model in binary files is its place.
MODELS: dict[str, tuple[str, ...]] = {
    "SIMPLE_PINHOLE": ("f", "cx", "cy"),
    "PINHOLE": ("fx", "fy", "cx", "cy"),
    "SIMPLE_RADIAL": ("f", "cx", "cy", "k1"),
    "RADIAL": ("f", "cx", "cy", "k1", "k2"),
    "OPENCV": ("fx", "fy", "cx", "cy", "k1", "k2", "p1", "p2"),
}
UNIT_TOLERANCE = 1e-2  # of a quaternion's length


@dataclass(frozen=True)
class Registered:
    """A photograph that the reconstruction placed."""

    name: str
    rotation: Tensor  # [3, 3] float64, world to camera, OpenCV axes
    translation: Tensor  # [3]
    camera: int


def models_of(folder: Path) -> list[Path]:
    """The folders below a data set that hold a model; there may be several, as COLMAP starts anew where it is lost."""
    sparse = folder / "sparse"
    numbered = sorted(path for path in sparse.iterdir() if path.is_dir()) if sparse.is_dir() else []
    return [path for path in (*numbered, sparse, folder) if _file(path, "images") and _file(path, "cameras")]


def read_colmap(folder: Path, holdout: int) -> PhotoFiles:
    """A folder with a sparse model; of several the one with the most photographs.

    Args:
        folder: with a model as :func:`models_of` finds it, and the pictures in ``images`` or beside it.
        holdout: every so many photographs one is held out.

    Raises:
        UserError: a file is broken, or a camera model is not read.
    """
    read = {model: _read_images(model) for model in models_of(folder)}
    model = max(read, key=lambda path: len(read[path]))
    cameras = _read_cameras(model)
    pictures = folder / "images" if (folder / "images").is_dir() else folder
    frames, missing = [], []
    for photo in read[model]:
        if photo.camera not in cameras:
            raise UserError(
                f"{model}: photograph {photo.name} is of camera {photo.camera}, which is not described there; "
                "export the whole model again"
            )
        image = find_picture(pictures, photo.name)
        if image is None:
            missing.append(photo.name)
            continue
        mask = next((p for p in (folder / "masks" / photo.name, folder / "masks" / f"{photo.name}.png") if p.is_file()), None)
        centre = -photo.rotation.T @ photo.translation
        frames.append(Frame(photo.name, image, from_opencv(photo.rotation, centre), cameras[photo.camera], mask))
    if not frames:
        refuse_without_photographs(model, pictures / missing[0] if missing else None, missing)
    return gather(folder, model, held_out(frames, holdout), missing, holdout, points=_read_points(model))


def _file(model: Path, stem: str) -> Path | None:
    """``stem``.bin or ``stem``.txt of a model, the first that exists."""
    return next((path for path in (model / f"{stem}.bin", model / f"{stem}.txt") if path.is_file()), None)


# ---- cameras ----


def _read_cameras(model: Path) -> dict[int, Lens]:
    path = _file(model, "cameras")
    return dict(_text_cameras(path) if path.suffix == ".txt" else _binary_cameras(path))


def _text_cameras(path: Path) -> Iterator[tuple[int, Lens]]:
    for where, line in _lines(path):
        words = line.split()
        if len(words) < 4:
            raise UserError(f"{where}: expected CAMERA_ID MODEL WIDTH HEIGHT PARAMS, got {line:.60}")
        number, *size = _numbers([words[0], *words[2:4]], where)
        yield int(number), _lens(words[1], size, _numbers(words[4:], where), where)


def _binary_cameras(path: Path) -> Iterator[tuple[int, Lens]]:
    data = Bytes(path)
    for _ in range(data.take("Q")[0]):
        number, model, width, height = data.take("iiQQ")
        name = list(MODELS)[model] if 0 <= model < len(MODELS) else f"number {model}"
        yield number, _lens(name, (width, height), data.take(f"{len(MODELS.get(name, ()))}d"), f"{path}, camera {number}")


def _lens(model: str, size: tuple[float, float], values: tuple[float, ...], where: str) -> Lens:
    """The lens of a camera from the parameters of its model."""
    if model not in MODELS:
        raise UserError(
            f"{where}: camera model {model} is not read, only {', '.join(MODELS)} are; undistort the "
            "photographs first (colmap image_undistorter)"
        )
    if len(values) != len(MODELS[model]):
        raise UserError(f"{where}: {model} has {len(MODELS[model])} parameters, got {len(values)}")
    named = dict(zip(MODELS[model], values, strict=True))
    fx, fy = named.get("fx", named.get("f")), named.get("fy", named.get("f"))
    numbers = (*size, fx, fy)
    if not all(math.isfinite(v) for v in values) or min(numbers) <= 0:
        raise UserError(f"{where}: size and focal length must be positive, got {', '.join(f'{v:g}' for v in numbers)}")
    distortion = tuple(named.get(term, 0.0) for term in ("k1", "k2", "k3", "k4", "p1", "p2"))
    return Lens(fx, fy, named["cx"], named["cy"], width=size[0], height=size[1], distortion=distortion)


# ---- photographs ----


def _read_images(model: Path) -> list[Registered]:
    path = _file(model, "images")
    return list(_text_images(path) if path.suffix == ".txt" else _binary_images(path))


def _text_images(path: Path) -> Iterator[Registered]:
    """Every second line is of 2-D points, and may be empty; the others are photographs."""
    is_points = False
    for where, line in _lines(path, blank=True):
        if is_points:
            is_points = False
        elif line.strip():
            words = line.split(maxsplit=9)
            if len(words) < 10:
                raise UserError(f"{where}: expected IMAGE_ID QW QX QY QZ TX TY TZ CAMERA_ID NAME, got {line:.60}")
            values = _numbers(words[1:9], where)
            yield _registered(words[9].strip(), values[:7], int(values[7]), where)
            is_points = True


def _binary_images(path: Path) -> Iterator[Registered]:
    data = Bytes(path)
    for _ in range(data.take("Q")[0]):
        number, *values, camera = data.take("i7di")
        name = data.text()
        data.skip(24 * data.take("Q")[0])  # x, y and the point of each of its features
        yield _registered(name, values, camera, f"{path}, photograph {number} ({name})")


def _registered(name: str, values: list[float], camera: int, where: str) -> Registered:
    """A photograph from its quaternion (w, x, y, z) and translation."""
    numbers = torch.tensor(values, dtype=torch.float64)
    length = numbers[:4].norm()
    if not numbers.isfinite().all() or (length - 1).abs() > UNIT_TOLERANCE:
        raise UserError(
            f"{where}: the pose must be a unit quaternion and a translation, got {', '.join(f'{v:g}' for v in values)}"
        )
    w, x, y, z = (numbers[:4] / length).tolist()
    rotation = torch.tensor([
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ], dtype=torch.float64)  # fmt: skip
    return Registered(name, rotation, numbers[4:], camera)


# ---- points ----


def _read_points(model: Path) -> Tensor | None:
    """The points [P, 3] of the model, None if it keeps none."""
    path = _file(model, "points3D")
    if path is None:
        return None
    found = list(_text_points(path) if path.suffix == ".txt" else _binary_points(path))
    points = torch.tensor(found, dtype=torch.float64)
    if not points.isfinite().all():
        raise UserError(f"{path} holds points that are not finite; export the model again")
    return points if found else None


def _text_points(path: Path) -> Iterator[tuple[float, ...]]:
    for where, line in _lines(path):
        words = line.split(maxsplit=4)
        if len(words) < 4:
            raise UserError(f"{where}: expected POINT3D_ID X Y Z and more, got {line:.60}")
        yield _numbers(words[1:4], where)


def _binary_points(path: Path) -> Iterator[tuple[float, ...]]:
    data = Bytes(path)
    for _ in range(data.take("Q")[0]):
        _, x, y, z, *_, track = data.take("Q3d3BdQ")
        data.skip(8 * track)
        yield x, y, z


# ---- words and bytes ----


def _lines(path: Path, blank: bool = False) -> Iterator[tuple[str, str]]:
    """The lines of a text file and where each is, without comments, and without blank ones unless asked for."""
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if not line.startswith("#") and (blank or line.strip()):
                    yield f"{path}, line {number}", line.rstrip("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not a text file (byte {error.start}: {error.reason}); export the model again") from error


def _numbers(words: list[str], where: str) -> tuple[float, ...]:
    """Finite numbers."""
    try:
        numbers = tuple(float(word) for word in words)
    except ValueError:
        numbers = (math.nan,)
    if not all(math.isfinite(number) for number in numbers):
        raise UserError(f"{where}: expected numbers, got {' '.join(words):.120}")
    return numbers


class Bytes:
    """A little-endian binary file, read from front to back.

    Every method raises ``UserError`` where the file ends too early.
    """

    def __init__(self, path: Path):
        self.path, self.data, self.at = path, path.read_bytes(), 0

    def take(self, layout: str) -> tuple:
        """The next numbers, as ``struct`` names them; packed without gaps."""
        begin = self.at
        self.skip(struct.calcsize("<" + layout))
        return struct.unpack_from("<" + layout, self.data, begin)

    def text(self) -> str:
        """The next text, which ends with a zero byte."""
        end = self.data.find(b"\0", self.at)
        begin = self.at
        self.skip((end if end >= 0 else len(self.data)) + 1 - begin)
        return self.data[begin:end].decode(errors="replace")

    def skip(self, count: int) -> None:
        """Leave out so many bytes."""
        self.at += count
        if self.at > len(self.data):
            raise UserError(
                f"{self.path} ends after {len(self.data)} bytes, in the middle of an entry; it was cut short, "
                "or is not what COLMAP writes"
            )
