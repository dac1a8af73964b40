"""Image prompts: which pictures the options name, and the cameras they were taken with. Imports no torch, decodes nothing.

Angles are degrees and lengths scene units, as in every flag: polar 0 is above, azimuth 0 the front (+Z), 90 on +X.
"""

import csv
import hashlib
import io
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nerf.config.config import Config
from nerf.config.limits import AZIMUTH, FOV, POLAR, POSITIVE_LENGTH, WEIGHT
from nerf.core.errors import UserError
from nerf.core.files import MAX_BYTES, is_file, read_bytes, read_text
from nerf.core.ranges import Check
from nerf.core.words import did_you_mean

RGBA, DEPTH, NORMAL = "_rgba", "_depth", "_normal"  # what the names of a picture, its depth and its normals end in
MAX_CSV_BYTES = 1 << 20
MAX_REFERENCES = 1000
# Columns of --image_config beside the picture -> what their numbers must be.
COLUMNS: dict[str, Check] = {
    "zero123_weight": WEIGHT,
    "radius": POSITIVE_LENGTH,
    "polar": POLAR,
    "azimuth": AZIMUTH,
    "fovy": FOV,
}
PICTURE = "image"  # the column with the path


@dataclass(frozen=True)
class Reference:
    """A picture of the object and the camera it was taken with, which looks at the origin."""

    path: Path  # of the picture with alpha
    polar: float
    azimuth: float
    radius: float
    fovy: float  # vertical field of view of the picture, padded to a square
    weight: float  # relative to the other pictures, in guidance by pictures
    source: str  # the flag that names it, for messages

    def beside(self, suffix: str) -> Path:
        """The file of the same name with another suffix: ``NAME_depth.png`` for ``NAME_rgba.png``."""
        return self.path.with_name(self.path.stem.removesuffix(RGBA) + suffix + ".png")

    @property
    def depth(self) -> Path | None:
        """Its depth map, if there is one."""
        return _if_file(self.beside(DEPTH))

    @property
    def normal(self) -> Path | None:
        """Its normal map, if there is one."""
        return _if_file(self.beside(NORMAL))


def references(config: Config) -> tuple[Reference, ...]:
    """The image prompts of a run: those of ``--image``, then those of ``--image_config``.

    Raises:
        UserError: a file that does not exist, a camera that is missing or given twice, a line of the CSV that is wrong.
    """
    return _of_flags(config) + _of_csv(config)


def digest_of(found: tuple[Reference, ...]) -> str | None:
    """A fingerprint of what image prompts hold: the content of their files and their cameras, not their names.

    Args:
        found: by :func:`references`; none has no fingerprint.

    Raises:
        UserError: a file cannot be read.
    """
    if not found:
        return None
    digest = hashlib.sha256()
    for one in found:
        digest.update(repr((one.polar, one.azimuth, one.radius, one.fovy, one.weight)).encode())
        for path in (one.path, one.depth, one.normal):
            content = b"" if path is None else read_bytes(path, "replace the file", MAX_BYTES, what=f"{one.source} {path}")
            digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest()


def _if_file(path: Path) -> Path | None:
    return path if is_file(path) else None


def _existing(path: Path, source: str) -> Path:
    """A path that leads to a file."""
    if not is_file(path):
        what = "is not a file" if os.path.exists(path) else "does not exist"
        raise UserError(f"{source}: {str(path):.200} {what}; give the picture that preprocess_image.py wrote, NAME_rgba.png")
    return path


def _of_flags(config: Config) -> tuple[Reference, ...]:
    """The pictures of ``--image`` with the cameras of ``--ref_radii`` and the flags like it."""
    prompt, camera = config.prompt, config.camera
    count = len(prompt.image)
    given = {
        "ref_radii": (prompt.ref_radii, camera.default_radius),
        "ref_polars": (prompt.ref_polars, camera.default_polar),
        "ref_azimuths": (prompt.ref_azimuths, camera.default_azimuth),
        "zero123_ws": (prompt.zero123_ws, 1.0),
    }
    for flag, (values, _) in given.items():
        if values and len(values) not in (1, count):
            raise UserError(f"--{flag} must have one value for each --image, of which there are {count}, got {len(values)}")
    if count > 1 and len(prompt.ref_azimuths) != count:
        raise UserError(
            f"--image names {count} pictures, and where they were taken from is not known; give as many --ref_azimuths "
            "(degrees; 0 is the front, 90 is on +X)"
        )
    columns = {
        flag: values * count if len(values) == 1 else values or (default,) * count for flag, (values, default) in given.items()
    }
    rows = zip(prompt.image, *columns.values(), strict=True)
    found = tuple(
        Reference(_existing(Path(name), "--image"), polar, azimuth, radius, camera.default_fovy, weight, "--image")
        for name, radius, polar, azimuth, weight in rows
    )
    if found and not any(one.weight for one in found):
        raise UserError("--zero123_ws are all 0, so no picture would count; give at least one that is positive")
    return found


def _of_csv(config: Config) -> tuple[Reference, ...]:
    """The pictures of ``--image_config``."""
    name = config.prompt.image_config
    if name is None:
        return ()
    path, what = Path(name), f"--image_config {name}"
    hint = f"expected a CSV with the columns {PICTURE}, {', '.join(COLUMNS)}"
    try:
        lines = list(
            csv.reader(io.StringIO(read_text(path, hint, MAX_CSV_BYTES), newline=None), skipinitialspace=True, strict=True)
        )
    except csv.Error as error:
        raise UserError(f"{what} is not a CSV: {error}; {hint}") from None
    numbered = [(i, line) for i, line in enumerate(lines, 1) if any(cell.strip() for cell in line)]
    if not numbered:
        raise UserError(f"{what} is empty; {hint}")
    header = [cell.strip() for cell in numbered[0][1]]
    _check_header(header, what, hint)
    rows = numbered[1:]
    if not 1 <= len(rows) <= MAX_REFERENCES:
        raise UserError(f"{what} must have between 1 and {MAX_REFERENCES} lines below its header, got {len(rows)}")
    found = tuple(_of_row(header, line, path, f"{what} line {i}", config, len(rows)) for i, line in rows)
    if not any(one.weight for one in found):
        raise UserError(f"{what}: the column zero123_weight is 0 everywhere, so no picture would count; give a positive one")
    return found


def _check_header(header: list[str], what: str, hint: str) -> None:
    """The first line of the CSV names known columns, each once, the picture among them."""
    known = [PICTURE, *COLUMNS]
    for column in header:
        if column not in known:
            raise UserError(f"{what}: the column {column!r:.60} is not known{did_you_mean(column, known) or '; ' + hint}")
        if header.count(column) > 1:
            raise UserError(f"{what} has the column {column!r} twice; leave one out")
    if PICTURE not in header:
        raise UserError(f"{what} has no column {PICTURE!r}; {hint}")


def _of_row(header: list[str], line: list[str], path: Path, what: str, config: Config, count: int) -> Reference:
    """One line of the CSV; what it leaves empty is as in the default view."""
    if len(line) != len(header):
        raise UserError(f"{what} has {len(line)} values for {len(header)} columns; give one for each, which may be empty")
    cells = {column: cell.strip() for column, cell in zip(header, line, strict=True)}
    if not cells[PICTURE]:
        raise UserError(f"{what} names no picture; fill in the column {PICTURE!r}")
    if count > 1 and not cells.get("azimuth"):
        raise UserError(f"{what} gives no azimuth; with several pictures each needs one (degrees; 0 is the front, 90 is on +X)")
    camera = config.camera
    number: dict[str, Any] = {
        "zero123_weight": 1.0,
        "radius": camera.default_radius,
        "polar": camera.default_polar,
        "azimuth": camera.default_azimuth,
        "fovy": camera.default_fovy,
    }
    number |= {column: _number(cells[column], column, what) for column in COLUMNS if cells.get(column)}
    beside = path.parent / Path(cells[PICTURE]).expanduser()  # relative to the CSV, or to where the program runs
    picture = beside if is_file(beside) else Path(cells[PICTURE]).expanduser()
    return Reference(
        _existing(picture, what),
        number["polar"],
        number["azimuth"],
        number["radius"],
        number["fovy"],
        number["zero123_weight"],
        what,
    )


def _number(cell: str, column: str, what: str) -> float:
    """The number in a cell, in the range of its column."""
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    check = COLUMNS[column]
    if not math.isfinite(value):
        raise UserError(f"{what}: {column} must be a number {check.expected}, got {cell!r:.60}")
    if not check.holds(value):
        raise UserError(f"{what}: {column} must be {check.expected}, got {cell:.60}")
    return value
