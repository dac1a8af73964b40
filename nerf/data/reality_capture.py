"""RealityCapture's "Internal/External camera parameters": a CSV file of poses and intrinsics beside the photographs."""

from pathlib import Path

import torch
from torch import Tensor

from nerf.core.errors import UserError
from nerf.core.files import is_file, read_text
from nerf.data.frames import Frame, Intrinsics, ParsedDataset, ReadOptions, make_dataset, raise_no_images, split_by_holdout
from nerf.data.image_store import read_header
from nerf.data.photo_index import PhotoIndex, beginning
from nerf.data.values import word_number

REQUIRED = ("name", "x", "y", "alt", "heading", "pitch", "roll", "f")  # columns; the others may be left out of the template
DISTORTION = ("k1", "k2", "k3", "k4", "t1", "t2")
FILM = 36.0  # millimetres: the longer side of the film that focal lengths refer to
UP = (0.0, 0.0, 1.0)  # altitude
_WAY_OUT = "export the cameras again"


def find_reality_capture(folder: Path) -> Path | None:
    """The CSV file of cameras of a folder in this format, or None."""
    files = (path for path in sorted(folder.glob("*.csv")) if is_file(path))
    return next(
        (path for path in files if _columns(beginning(path).decode("utf-8-sig", errors="replace"))[0] is not None), None
    )


def _columns(text: str) -> tuple[list[str] | None, list[list[str]]]:
    """The names of the columns, None if they are not those of this format, and the rows below them."""
    rows = [line.split(",") for line in text.splitlines() if line.strip()]
    for at, row in enumerate(rows[:2]):  # a line with the number of cameras may come first
        names = [name.strip().lstrip("#").strip().lower() for name in row]
        if set(REQUIRED) <= set(names):
            return names, rows[at + 1 :]
    return None, []


def read_reality_capture(folder: Path, path: Path, options: ReadOptions) -> ParsedDataset:
    """Read the cameras: position x, y, alt; heading clockwise from north (+y), pitch 0 looking down and 90 to the horizon.

    The focal length is that of a film of 36 mm along the longer side of the picture, px and py are the offset of the principal
    point from the centre as shares of that side. Distortion is Brown's, with k1 to k4 and t1, t2 (p1, p2 of OpenCV).

    Args:
        folder: of the dataset; photographs are found in it and in the folders in it by name.
        path: of the CSV file.
        options: how many photographs are held out.

    Raises:
        UserError: the file is broken, or no photograph exists.
    """
    names, rows = _columns(read_text(path, _WAY_OUT))
    if names is None:
        raise UserError(f"{path}: its columns must be {', '.join(REQUIRED)} and more; {_WAY_OUT}")
    index, frames, missing = PhotoIndex(folder), [], []
    for at, row in enumerate(rows, 1):
        if len(row) != len(names):
            raise UserError(f"{path}, camera {at}: expected {len(names)} values, got {len(row)}; {_WAY_OUT}")
        entry = dict(zip(names, row, strict=True))
        name, where = entry["name"].strip(), f"{path}, camera {at} ({entry['name'].strip()})"
        image = index.find(name, where)
        if image is None:
            missing.append(name)
            continue
        value = {key: word_number(entry[key], where, key) for key in (*REQUIRED[1:], "px", "py", *DISTORTION) if key in entry}
        frames.append(Frame(name, image, _pose(value), _intrinsics(value, image, where)))
    if not frames:
        raise_no_images(path, folder / missing[0] if missing else None, missing)
    up = torch.tensor(UP, dtype=torch.float64)
    return make_dataset(folder, path, split_by_holdout(frames, options.holdout), missing, up=up)


def _turn(degrees: float, axis: int) -> Tensor:
    """The rotation [3, 3] about a coordinate axis."""
    angle = torch.deg2rad(torch.tensor(degrees, dtype=torch.float64))
    first, second = [(1, 2), (2, 0), (0, 1)][axis]
    turn = torch.eye(3, dtype=torch.float64)
    turn[first, first] = turn[second, second] = angle.cos()
    turn[first, second], turn[second, first] = -angle.sin(), angle.sin()
    return turn


def _pose(value: dict[str, float]) -> Tensor:
    """Camera-to-world pose [4, 4] with OpenGL axes: roll about y, then pitch about x, then heading about z."""
    pose = torch.eye(4, dtype=torch.float64)
    pose[:3, :3] = _turn(-value["heading"], 2) @ _turn(value["pitch"], 0) @ _turn(value["roll"], 1)
    pose[:3, 3] = torch.tensor([value[key] for key in ("x", "y", "alt")], dtype=torch.float64)
    return pose


def _intrinsics(value: dict[str, float], image: Path, where: str) -> Intrinsics:
    """Intrinsics for the size of the photograph's file."""
    if not value["f"] > 0:
        raise UserError(f"{where}: the focal length f must be positive, got {value['f']:g}; {_WAY_OUT}")
    width, height, _ = read_header(image)
    longer = max(width, height)
    focal = value["f"] * longer / FILM
    cx, cy = width / 2 + value.get("px", 0.0) * longer, height / 2 + value.get("py", 0.0) * longer
    distortion = tuple(value.get(key, 0.0) for key in DISTORTION)
    return Intrinsics(focal, focal, cx, cy, width=width, height=height, distortion=distortion)
