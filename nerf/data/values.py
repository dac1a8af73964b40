"""Numbers and poses as the files of cameras give them: checked, or refused with the place in the file."""

import math
from typing import Any

import msgspec
import torch
from torch import Tensor

from nerf.core.errors import UserError

ROTATION_TOLERANCE = 1e-2  # of |R^T R - 1|: rounding to a few digits stays below it, a scale or shear far exceeds it
LAST_ROW_TOLERANCE = 1e-6  # of the last row of a matrix, which is 0 0 0 1
LAST_ROW = (0.0, 0.0, 0.0, 1.0)


def number(value: Any, where: str, key: str, positive: bool = False) -> float:
    """A JSON value as a finite number.

    Raises:
        UserError: it is none.
    """
    try:
        found = math.nan if isinstance(value, (bool, str)) else float(value)
    except (TypeError, OverflowError):
        found = math.nan
    if not math.isfinite(found) or (positive and found <= 0):
        raise UserError(f'{where}: "{key}" must be a {"positive " * positive}number, got {value!r:.40}')
    return found


def word_number(word: str | None, where: str, key: str) -> float:
    """A word of a text file as a finite number.

    Raises:
        UserError: it is none.
    """
    try:
        found = float(word or "")
    except ValueError:
        found = math.nan
    if not math.isfinite(found):
        raise UserError(f"{where}: {key} must be a finite number, got {word!r:.40}; export the cameras again")
    return found


def matrix(value: Any, rows: tuple[int, ...], where: str, key: str) -> Tensor:
    """A JSON value as a matrix [4, 4] float64; ``rows`` are the allowed numbers of rows.

    Raises:
        UserError: it is none, or its last row is not 0 0 0 1.
    """
    try:
        found = torch.tensor(msgspec.convert(value, list[list[float]]), dtype=torch.float64)
    except (msgspec.ValidationError, ValueError) as error:
        raise UserError(f'{where}: "{key}" must be 4x4 numbers, got {value!r:.60}') from error
    if found.ndim != 2 or found.shape[0] not in rows or found.shape[1] != 4:
        raise UserError(f'{where}: "{key}" must be 4x4 numbers, got {"x".join(map(str, found.shape)) or value}')
    if not found.isfinite().all():
        raise UserError(f'{where}: "{key}" holds numbers that are not finite; export the cameras again')
    last = torch.tensor(LAST_ROW, dtype=torch.float64)
    if len(found) == 4 and not (found[3] - last).abs().max() <= LAST_ROW_TOLERANCE:
        hint = "; exchange its rows and columns" if (found[:, 3] - last).abs().max() <= LAST_ROW_TOLERANCE else ""
        row = ", ".join(f"{value:g}" for value in found[3].tolist())
        raise UserError(f'{where}: the last row of "{key}" must be 0, 0, 0, 1, got {row}{hint or "; correct it"}')
    return torch.cat([found[:3], last[None]])


def rigid(pose: Tensor, where: str, key: str) -> Tensor:
    """A pose [4, 4] whose rotation is replaced by the nearest orthonormal one.

    Raises:
        UserError: its left 3x3 is far from a rotation.
    """
    rotation = pose[:3, :3]
    error = (rotation.T @ rotation - torch.eye(3, dtype=torch.float64)).abs().max().item()
    if not error <= ROTATION_TOLERANCE:
        raise UserError(
            f'{where}: the left 3x3 of "{key}" must be a rotation, but its columns are not '
            f"orthonormal (error {error:.2g}); remove scale and shear"
        )
    if torch.linalg.det(rotation) < 0:
        raise UserError(
            f'{where}: the left 3x3 of "{key}" is a reflection (determinant -1); negate one axis to make it a rotation'
        )
    left, _, right = torch.linalg.svd(rotation)
    pose = pose.clone()
    pose[:3, :3] = left @ right
    return pose


def rotation_of_quaternion(w: float, x: float, y: float, z: float) -> Tensor:
    """The rotation [3, 3] float64 of a unit quaternion."""
    return torch.tensor([
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ], dtype=torch.float64)  # fmt: skip
