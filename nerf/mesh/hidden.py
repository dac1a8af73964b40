"""Fills what no training camera sees: a field learns nothing there, so hollows in it are nobody's wish.

Guidance looks at an object from above and from the side, so density gathers in a shell, and the shell is open where nobody
looks: below. What cannot be seen is taken to be inside, as in a visual hull (Laurentini 1994), but behind the surface of the
field. n grid points along an edge, k voxels along an edge.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.nn import functional

from nerf.config.groups import CameraConfig
from nerf.config.mesh import MeshConfig
from nerf.mesh.level_set_grid import SMOOTH_CLIP, LevelSetGrid
from nerf.mesh.voxels import SEALED, ball_of, directions, seen_from

_VOXELS = 64  # along the longest side of the grid, at most
_AZIMUTHS, _POLAR_STEP = 16, 7.5  # of the cameras; degrees
_HORIZON = 90.0  # degrees; cameras at a greater polar angle look up
# A point is free if this share of the cameras above the horizon sees it: the bottom of a mug is seen by 3 %.
_LEAST_ABOVE = 0.01
# Of those below it, as grazing ones see little of the underside of a canopy.
_LEAST_BELOW = 0.05
# Cameras less than this far below the horizon (degrees) graze the underside, and see into every dent of it. In dents, hollows
# of up to this share of the object's volume, cameras at the horizon stand in for them, and this share of these is enough: they
# see what lies right under a flat base or a seat, but not what lies behind the rim of a dent. Dents of distilled objects have
# up to 11 % of the volume, the canopy of an umbrella 180 %.
_GRAZING, _DENT, _LEAST_LEVEL = 15.0, 0.15, 0.1


@dataclass(frozen=True)
class Cameras:
    """Uniform in two ranges of angles (degrees; polar 0 straight above, azimuth 0 in front)."""

    polar: tuple[float, float]
    azimuth: tuple[float, float] = (-180.0, 180.0)


def hidden_from(mesh: MeshConfig, camera: CameraConfig) -> Cameras | None:
    """The cameras of a run whose hidden hollows are filled (``--fill_hidden``), else None."""
    return Cameras(camera.theta_range, camera.phi_range) if mesh.fill_hidden else None


def fill_hidden(grid: LevelSetGrid, cameras: Cameras) -> LevelSetGrid:
    """The grid with the hidden free points inside, and its surface where they begin.

    Args:
        grid: values and level of a density or a signed distance.
        cameras: of the training.
    """
    inside = grid.is_inside(grid.values)
    if not inside.any() or inside.all():
        return grid
    stride = -(-max(inside.shape) // _VOXELS)
    solid = _blocks(inside, stride) >= 0.5
    depth = _upsampled(hidden_depth(solid, cameras), stride, inside.shape)
    if not (depth > 0).any():
        return grid
    if grid.logarithmic:
        return replace(grid, values=np.maximum(grid.values, np.float32(grid.level) * np.exp(depth)))
    side = np.float32(grid.spacing) if grid.inside == "above" else -np.float32(grid.spacing)
    choose = np.maximum if grid.inside == "above" else np.minimum
    return replace(grid, values=choose(grid.values, np.float32(grid.level) + side * depth))


def hidden_depth(solid: np.ndarray, cameras: Cameras) -> np.ndarray:
    """How well voxels [k, k, k] (each k its own) are hidden, float32: positive where they are to be filled.

    The logarithm of the share of cameras that would be enough over the share that sees a free voxel. Solid voxels have the
    highest value of their free neighbours, so that what is filled joins them and other surfaces stay where they are.

    Args:
        solid: bool.
        cameras: of the training.
    """
    from scipy.ndimage import binary_closing, binary_dilation, maximum_filter

    ball, rim = ball_of(SEALED), SEALED + 1
    solid = np.pad(solid, rim)
    sealed = binary_closing(solid, ball) | solid
    depth = np.full(solid.shape, -np.inf)
    for closed in (solid, sealed) if (sealed & ~solid).any() else (solid,):
        seen, seen_in_dents = _seen(closed, cameras)
        dents = _small_parts(~closed & (seen_in_dents < 1.0), _DENT * solid.sum())
        seen = np.where(dents, seen_in_dents, seen)
        score = -np.log(seen.clip(1.0 / SMOOTH_CLIP, SMOOTH_CLIP))  # smoothing does not tell more apart
        depth = np.where(closed, depth, np.maximum(depth, score))
    opening = binary_dilation((depth > 0) & ~sealed, ball) & sealed & ~solid
    depth = np.where(opening, np.maximum(depth, 1.0), depth)  # the sealed openings belong to the hollow behind them
    depth = np.where(solid, maximum_filter(depth, size=3), depth)
    inner = (slice(rim, -rim),) * 3
    return np.maximum(depth, -math.log(SMOOTH_CLIP))[inner].astype(np.float32)


def _seen(solid: np.ndarray, cameras: Cameras) -> tuple[np.ndarray, np.ndarray]:
    """The share of the cameras that sees a voxel over the share that is enough, summed over those above and below the horizon.

    Twice: in large hollows, and in dents.
    """
    lowest, highest = cameras.polar
    sums, counts = [], []
    for low, high in ((-np.inf, _HORIZON), (_HORIZON, _HORIZON + _GRAZING), (_HORIZON + _GRAZING, np.inf)):
        low, high = max(low, lowest), min(high, highest)
        polars = np.zeros(0)
        if low < high or low == high and lowest == highest:
            polars = _middles(low, high, max(1, round((high - low) / _POLAR_STEP)))
        total, count = _views(solid, polars, cameras)
        sums.append(total)
        counts.append(count)
    above = sums[0] / max(counts[0], 1) / _LEAST_ABOVE
    below = (sums[1] + sums[2]) / max(counts[1] + counts[2], 1) / _LEAST_BELOW
    level, count = _views(solid, np.full(min(counts[1], 1), _HORIZON), cameras)
    steeply = sums[2] / max(counts[2], 1) / _LEAST_BELOW
    return above + below, above + level / max(count, 1) / _LEAST_LEVEL + steeply


def _views(solid: np.ndarray, polars: np.ndarray, cameras: Cameras) -> tuple[np.ndarray, int]:
    """How many cameras at the polar angles (degrees) see each voxel, float32, and how many cameras there are."""
    views = list(directions(polars, _middles(*cameras.azimuth, _AZIMUTHS).tolist()))
    total = np.zeros(solid.shape, dtype=np.float32)
    for view in views:
        total += seen_from(solid, view)
    return total, len(views)


def _small_parts(chosen: np.ndarray, most: float) -> np.ndarray:
    """The parts of the chosen voxels, connected by faces, edges or corners, that have at most so many, bool [k, k, k]."""
    from scipy.ndimage import label

    part, _ = label(chosen, np.ones((3, 3, 3)))
    found: np.ndarray = chosen & (np.bincount(part.reshape(-1)) <= most)[part]
    return found


def _middles(low: float, high: float, steps: int) -> np.ndarray:
    """The middles of equal steps from ``low`` to ``high``, [steps]."""
    middles: np.ndarray = low + (np.arange(steps) + 0.5) * (high - low) / steps
    return middles


def _blocks(values: np.ndarray, stride: int) -> np.ndarray:
    """Means over blocks of ``stride`` points along an edge, [k, k, k]; nothing lies outside."""
    padded = np.pad(values, [(0, -n % stride) for n in values.shape])
    x, y, z = (n // stride for n in padded.shape)
    return padded.reshape(x, stride, y, stride, z, stride).mean(axis=(1, 3, 5), dtype=np.float32)


def _upsampled(depth: np.ndarray, stride: int, shape: tuple[int, ...]) -> np.ndarray:
    """Values of blocks at the points in them, trilinear between the centres of the blocks."""
    volume = torch.from_numpy(depth)[None, None]
    fine = functional.interpolate(volume, scale_factor=stride, mode="trilinear", align_corners=False)[0, 0].numpy()
    return fine[tuple(slice(n) for n in shape)]
