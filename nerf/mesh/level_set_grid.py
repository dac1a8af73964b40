"""Values of a level set on a regular grid of points: evaluated near the surface, interpolated far from it.

A coarse grid over the whole box finds where the surface is; the fine grid covers the box, or the part of it with a surface.

A level set (:class:`nerf.core.structs.LevelSet`) is a density, which is above its level inside and compared by its
logarithm, or a signed distance, which is below its level inside and compared as it is.
Letters: n grid points along an edge (x, y, z of different numbers where the grid covers a part of the box), k blocks along an
edge, M query points. Lengths are scene units.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from nerf.config.groups import SURFACE_DENSITY
from nerf.core.errors import ExportError
from nerf.core.progress import track
from nerf.core.structs import LevelSet

Values = Callable[[Tensor], Tensor]  # positions [M, 3] -> values [M], without gradients

# Points at which a field is evaluated in one call outside training: a hidden layer of 64 floats then takes 64 MiB.
QUERY_CHUNK = 2**18
PROBE_CELLS = 64  # cells along an edge of the coarse grid that is evaluated everywhere
SMOOTH_CLIP = 30.0  # densities further from the threshold than this factor count as this far when they are smoothed
_NEAR_DENSITY = 0.3  # fraction of the threshold above which a coarse density may belong to a surface nearby
_FOG = 0.1  # densities below this belong to empty space, and are no evidence of how dense the object is
_ROUNDED = 1e-9  # of the bound, by which a sum of spacings may miss a wall
_MEDIAN_POINTS = 1 << 22  # values of a grid whose median is taken
_FOG_QUANTILE = 0.999  # of the densities above it; the densest few points may be outliers


@dataclass(frozen=True)
class LevelSetGrid:
    """Values on the points of a regular grid over [-bound, bound]^3 or a box inside it, its walls included."""

    values: np.ndarray  # [n, n, n] float32, axes x, y, z
    bound: float
    level: float  # the value at the surface; ``values`` are on its right side at every point next to the surface
    queries: int = 0  # points at which the field was evaluated
    inside: Literal["above", "below"] = "above"
    logarithmic: bool = True
    unsmoothed: tuple[float, float, float] | None = None  # lowest, median and highest value before :func:`smoothed` clips them
    part: tuple[tuple[float, float, float], float] | None = None  # lowest corner and spacing; None: the grid covers the box

    @property
    def span(self) -> tuple[float, float, float]:
        """Lowest, median and highest value of the field itself; the median of a large grid is that of evenly chosen points."""
        if self.unsmoothed is not None:
            return self.unsmoothed
        some = self.values.reshape(-1)[:: max(1, self.values.size // _MEDIAN_POINTS)]
        return float(self.values.min()), float(np.median(some)), float(self.values.max())

    @property
    def cells(self) -> int:
        """Cells along the longest edge, n - 1."""
        return max(self.values.shape) - 1

    @property
    def spacing(self) -> float:
        """Distance of neighbouring points, scene units."""
        return 2.0 * self.bound / self.cells if self.part is None else self.part[1]

    @property
    def low(self) -> np.ndarray:
        """The first point, float64 [3]."""
        return np.full(3, -self.bound) if self.part is None else np.array(self.part[0])

    @property
    def high(self) -> np.ndarray:
        """The last point, float64 [3]; exactly on the wall of the box where it is there but for rounding."""
        last = self.low + self.spacing * (np.array(self.values.shape) - 1)
        return np.where(self.bound - last < _ROUNDED * self.bound, self.bound, last)

    def is_inside(self, values: np.ndarray) -> np.ndarray:
        """Whether values [...] belong to points inside the surface, bool [...]."""
        return values > self.level if self.inside == "above" else values < self.level

    def implicit(self, clip: float) -> np.ndarray:
        """The implicit function [n, n, n]: 0 on the surface, positive inside, comparable between neighbouring points.

        Args:
            clip: densities further than this factor from the level count as this far.

        Returns:
            Of a density the natural logarithm of its ratio to the level; of a signed distance its depth below the surface
            in cells.
        """
        if self.logarithmic:
            ratio = self.values / np.float32(self.level)
            np.clip(ratio, 1.0 / clip, clip, out=ratio)
            return np.log(ratio, out=ratio)
        depth = self.values - np.float32(self.level)
        depth *= (1.0 if self.inside == "above" else -1.0) / self.spacing
        return depth


def quantity(source: LevelSet | LevelSetGrid) -> str:
    """What the values are, for messages."""
    return "density" if source.logarithmic else "signed distance"


def why_empty(grid: LevelSetGrid, what: str, flagged: bool = True) -> str:
    """Why nothing of a field is inside, and what may help; the message of the error.

    Args:
        grid: where nothing is inside.
        what: the field, in words.
        flagged: its level is that of ``--mesh_threshold``.
    """
    (low, _, high), level = grid.span, f"{grid.level:.4g}"
    if not grid.logarithmic:
        return (
            f"the {what} is empty: its {quantity(grid)} is nowhere on the inner side of {level} (it lies between {low:.3g} and "
            f"{high:.3g}); train longer, or start from an initial shape inside the box"
        )
    lower = " or a lower --mesh_threshold" if flagged else ""
    if high > grid.level:
        return (
            f"the {what} has densities up to {high:.3g}, above the surface at {level}, in parts that are too thin for the "
            f"smoothing before marching cubes: give a smaller --mesh_smooth, a larger --mcubes_resolution{lower}"
        )
    again = " (the same command with --test --save_mesh exports again)" if what == "field" else ""
    threshold = (
        f"give a --mesh_threshold below {high:.3g}{again}, or train longer" if flagged and high > _FOG else "train longer"
    )
    return f"the {what} is empty: its highest density is {high:.3g}, and the surface is where it is {level}; {threshold}"


def smoothed(grid: LevelSetGrid, sigma: float) -> LevelSetGrid:
    """The grid low-passed by a Gaussian, for fields that are noise at the scale of a cell.

    Of a density the logarithm is smoothed, clipped at the same distance on both sides of the threshold so that a flat
    surface stays where it is however steep the field is around it.

    Args:
        grid: values and level.
        sigma: standard deviation in cells, >= 0; 0 returns the grid itself.

    Raises:
        ValueError: sigma is negative.
    """
    if sigma < 0:
        raise ValueError(f"smoothed: expected sigma >= 0 cells, got {sigma}")
    if sigma == 0:
        return grid
    from scipy.ndimage import gaussian_filter

    values = grid.implicit(SMOOTH_CLIP) if grid.logarithmic else grid.values.copy()
    gaussian_filter(values, sigma, mode="nearest", output=values)  # an axis at a time, so in place
    if grid.logarithmic:
        np.exp(values, out=values)
        values *= np.float32(grid.level)
    return replace(grid, values=values, unsmoothed=grid.span)


def query_values(
    function: Values, points: Tensor, device: torch.device | str = "cpu", name: str = "density", chunk: int = QUERY_CHUNK
) -> Tensor:
    """Evaluate a scalar field at many points, a chunk at a time.

    Args:
        function: maps positions [M, 3] on ``device`` to values [M].
        points: [M, 3].
        device: of the field.
        name: what the values are, for messages.
        chunk: largest number of points in one call.

    Returns:
        float32 [M] on the CPU. Not differentiable.

    Raises:
        ExportError: a value is NaN or infinite.
        ValueError: the field returns another shape.
    """
    values = torch.empty(len(points))
    with torch.no_grad():
        for start in track(range(0, len(points), chunk), f"evaluating the {name}"):
            part = points[start : start + chunk].to(device)
            value = function(part)
            if value.shape != (len(part),):
                raise ValueError(
                    f"query_values: expected {name} [{len(part)}] from points [{len(part)}, 3], got "
                    f"{list(value.shape)}; squeeze its last axis"
                )
            values[start : start + chunk] = value.float().cpu()
    broken = ~torch.isfinite(values)
    if bool(broken.any()):
        where = [round(x, 3) for x in points[int(broken.nonzero()[0, 0])].tolist()]
        raise ExportError(
            f"the {name} is NaN or infinite at {int(broken.sum())} of {len(points)} points, first at "
            f"{where}; training has diverged: resume an earlier checkpoint with a lower --lr"
        )
    return values


def auto_threshold(density: np.ndarray) -> float:
    """The density at the surface, chosen from the values of a field.

    ``SURFACE_DENSITY`` serves every field that has become opaque: it was fixed before any shape was measured, and does
    not adapt to the shape. For a field whose densest part (99.9th percentile of what is above 0.1) stays below twice that,
    half of the densest part is taken, so that a young run still gives a mesh.

    Args:
        density: [...] values all over the box.

    Returns:
        The threshold; ``SURFACE_DENSITY`` if nothing is above 0.1 (the caller then finds the field empty).
    """
    some = density[density > _FOG]
    if some.size == 0:
        return SURFACE_DENSITY
    return min(SURFACE_DENSITY, 0.5 * float(np.quantile(some, _FOG_QUANTILE)))


def sample_level_set(
    level_set: LevelSet,
    bound: float,
    resolution: int,
    device: torch.device | str = "cpu",
    probe_cells: int = PROBE_CELLS,
    around_surface: bool = False,
) -> LevelSetGrid:
    """Sample a level set over [-bound, bound]^3, spending the evaluations where its surface is.

    A coarse grid of at least ``probe_cells`` cells along an edge is evaluated first. Blocks (one coarse cell each) with a
    coarse value in their 3x3x3 neighbourhood that may belong to a surface nearby are evaluated at every grid point, and so
    is every further block into which the surface is found to continue, until none is left. A part of the surface that is
    thinner than a coarse cell, disjoint from all others *and* far from every coarse point can be missed.

    Args:
        level_set: a density, or a signed distance that changes by no more than about the distance between two points.
        bound: half the edge of the box.
        resolution: cells along an edge, 8 to 1024; rounded up to a multiple of resolution // probe_cells.
        device: of the field.
        probe_cells: cells along an edge of the coarse grid.
        around_surface: the fine grid covers the box of the blocks near the surface alone, with ``resolution`` cells along its
            longest edge, rounded up to whole cells in a block; the coarse grid then has ``probe_cells`` at most.

    Raises:
        ExportError: a value is NaN or infinite.
        ValueError: bound, resolution or level out of range.
    """
    _check_arguments(level_set, bound, resolution)
    stride = max(1, resolution // probe_cells)
    blocks = min(resolution, probe_cells) if around_surface else -(-resolution // stride)
    coarse_spacing = 2.0 * bound / blocks

    def evaluate(first: np.ndarray, place: np.ndarray, spacing: float) -> np.ndarray:
        """Values at grid points [M, 3] counted from one [3] that is itself counted from the corner of the box."""
        points = torch.from_numpy(((place + first) * spacing - bound).astype(np.float32))
        return query_values(level_set.value, points, device, quantity(level_set)).numpy()

    everywhere = np.ascontiguousarray(np.indices((blocks + 1,) * 3).reshape(3, -1).T)
    origin = np.zeros(3, dtype=np.int64)
    coarse = evaluate(origin, everywhere, coarse_spacing).reshape((blocks + 1,) * 3)
    level = auto_threshold(coarse) if level_set.level is None else float(level_set.level)
    grid = LevelSetGrid(coarse, bound, level, coarse.size, level_set.inside, level_set.logarithmic)
    if not around_surface:
        return grid if stride == 1 else _refined(grid, stride, partial(evaluate, origin))[0]
    return _around_surface(grid, resolution, evaluate)


def _around_surface(grid: LevelSetGrid, resolution: int, evaluate: Callable[..., np.ndarray]) -> LevelSetGrid:
    """The fine grid over the blocks of a coarse one that are near the surface; see :func:`sample_level_set`."""
    coarse, bound, blocks = grid.values, grid.bound, len(grid.values) - 1
    coarse_spacing = 2.0 * bound / blocks
    near = _blocks_near_surface(grid)
    if not near.any():
        return grid
    low, high = (end(np.argwhere(near), axis=0) for end in (np.min, np.max))
    while True:
        stride = -(-resolution // int((high + 1 - low).max()))
        window = tuple(slice(a, b + 2) for a, b in zip(low, high, strict=True))
        corner = tuple((low * coarse_spacing - bound).tolist())
        part = replace(grid, values=coarse[window], part=(corner, coarse_spacing))
        fine, crossed = _refined(part, stride, partial(evaluate, low * stride))
        below, above = _faces_crossed(crossed)
        below, above = below & (low > 0), above & (high < blocks - 1)
        grid = replace(grid, queries=fine.queries)
        if not (below.any() or above.any()):
            return fine
        more = np.maximum(2, (high + 1 - low) // 2)  # it continues outside
        low, high = np.maximum(low - more * below, 0), np.minimum(high + more * above, blocks - 1)


def _faces_crossed(crossed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Whether the surface crosses a block [k, k, k] at the low and at the high end of each axis, bool [3] each."""
    ends = [[np.take(crossed, end, axis).any() for axis in range(3)] for end in (0, -1)]
    return np.array(ends[0]), np.array(ends[1])


def _check_arguments(level_set: LevelSet, bound: float, resolution: int) -> None:
    """Refuse what cannot be sampled."""
    level = level_set.level
    if not bound > 0 or not 8 <= resolution <= 1024:
        raise ValueError(f"sample_level_set: expected bound > 0 and resolution in [8, 1024], got {bound} and {resolution}")
    if not level_set.logarithmic:
        if level is None or not math.isfinite(level):
            raise ValueError(f"sample_level_set: expected a finite level of a signed distance, got {level}; 0 is its surface")
        return
    if level_set.inside == "below":
        raise ValueError("sample_level_set: expected a logarithmic level set to be above its level inside, got 'below'")
    if level is not None and not (level > 0 and math.isfinite(level)):
        raise ValueError(f"sample_level_set: expected a threshold > 0 of a density, got {level}; None chooses one")


def _refined(
    coarse: LevelSetGrid, stride: int, evaluate: Callable[[np.ndarray, float], np.ndarray]
) -> tuple[LevelSetGrid, np.ndarray]:
    """The grid with ``stride`` times the cells along an edge: evaluated near the surface, interpolated elsewhere.

    Args:
        coarse: a value for each corner of the blocks.
        stride: cells along the edge of a block.
        evaluate: the field at points [M, 3], counted from the first one of the grid, and the spacing of these.

    Returns:
        The grid, and the blocks [k, k, k] that the surface crosses. A layer of blocks at a time is worked on, so that a large
        grid takes little more memory than its values and a byte for each of them.
    """
    spacing = coarse.spacing / stride
    part = None if coarse.part is None else (coarse.part[0], spacing)
    fine, queries = _upsample(coarse.values, stride), coarse.queries
    known = np.zeros(fine.shape, dtype=bool)
    known[::stride, ::stride, ::stride] = True
    todo = _blocks_near_surface(coarse)
    done, crossed = np.zeros_like(todo), np.zeros_like(todo)
    while todo.any():
        for layer in range(len(todo)):
            if todo[layer].any():
                first, layers = layer * stride, slice(layer * stride, (layer + 1) * stride + 1)
                new = _points_of(todo[layer : layer + 1], stride) & ~known[layers]
                fine[layers][new] = evaluate(np.argwhere(new) + np.array([first, 0, 0]), spacing)
                queries += int(new.sum())
                known[layers] |= new
        done |= todo
        for layer in range(len(todo)):
            layers = slice(layer * stride, (layer + 1) * stride + 1)
            crossed[layer] = _crossed_blocks(coarse.is_inside(fine[layers]), stride)[0]
        todo = crossed & ~done
    return replace(coarse, values=fine, queries=queries, part=part), crossed


def _upsample(coarse: np.ndarray, stride: int) -> np.ndarray:
    """Trilinear interpolation of [k + 1, ...] points to [k * stride + 1, ...], exact at the coarse points."""
    if stride == 1:
        return coarse.copy()
    size = tuple((k - 1) * stride + 1 for k in coarse.shape)
    volume = torch.from_numpy(np.ascontiguousarray(coarse))[None, None]
    fine = torch.nn.functional.interpolate(volume, size=size, mode="trilinear", align_corners=True)
    result = fine[0, 0].numpy()
    result[::stride, ::stride, ::stride] = coarse  # the interpolation rounds
    return result


def _corners(points: np.ndarray, combine: np.ufunc) -> np.ndarray:
    """Combine the eight corners of every cell: [k + 1]^3 -> [k]^3."""
    for axis in range(3):
        low = np.take(points, range(points.shape[axis] - 1), axis)
        points = combine(low, np.take(points, range(1, points.shape[axis]), axis))
    return points


def _blocks_near_surface(coarse: LevelSetGrid) -> np.ndarray:
    """Blocks [k]^3 with a point near the surface in their 3x3x3 neighbourhood, unless all points there are inside."""
    from scipy.ndimage import maximum_filter, minimum_filter

    if coarse.logarithmic:
        near = coarse.values > _NEAR_DENSITY * coarse.level
    else:  # a distance cannot be larger at a corner of a block that the surface crosses
        near = np.abs(coarse.values - coarse.level) <= math.sqrt(3.0) * coarse.spacing
    around = maximum_filter(_corners(near, np.logical_or), size=3)
    solid = minimum_filter(_corners(coarse.is_inside(coarse.values), np.logical_and), size=3)
    return around & ~solid


def _points_of(blocks: np.ndarray, stride: int) -> np.ndarray:
    """The grid points of some blocks, their faces included: bool [k]^3 -> [k * stride + 1]^3."""
    for axis in range(3):
        cells = np.repeat(blocks, stride, axis)
        edge = [(0, 0)] * 3
        edge[axis] = (0, 1)
        below = np.pad(cells, edge)
        edge[axis] = (1, 0)
        blocks = below | np.pad(cells, edge)
    return blocks


def _crossed_blocks(inside: np.ndarray, stride: int) -> np.ndarray:
    """Blocks [k, k, k] in which some grid points are inside and some are not."""
    crossed = _corners(inside, np.logical_or) & ~_corners(inside, np.logical_and)
    x, y, z = (size // stride for size in crossed.shape)
    return crossed.reshape(x, stride, y, stride, z, stride).any(axis=(1, 3, 5))
