"""Marching cubes on a grid of values, with vertices refined along their edges. V vertices, T triangles."""

from dataclasses import replace

import numpy as np
import torch

from nerf.core.errors import ExportError
from nerf.core.structs import LevelSet
from nerf.mesh.hidden import Cameras, fill_hidden
from nerf.mesh.level_set_grid import LevelSetGrid, Values, quantity, query_values, sample_level_set, smoothed, why_empty
from nerf.mesh.mesh import Mesh

_RATIO_CLIP = 1e3  # densities further than this factor from the threshold look alike to marching cubes
_ON_LEVEL = 1e-5  # of the implicit function: a value this close to the level makes triangles without area
# The implicit function in the layer outside the box: so low that vertices on the way there land on the wall.
_OUTSIDE = np.float32(-1e4 * np.log(_RATIO_CLIP))
_SOLID = 0.99  # a field of which more than this fraction is inside is not an object


def extract_surface(
    level_set: LevelSet,
    bound: float,
    resolution: int,
    smooth: float = 0.0,
    device: torch.device | str = "cpu",
    cameras: Cameras | None = None,
) -> tuple[Mesh, LevelSetGrid]:
    """The surface of a level set in the box [-bound, bound]^3, with its floaters, and the grid it was extracted from.

    In two passes: a coarse grid finds the part of the box that holds a surface, and the fine grid covers that part.

    Args:
        level_set: a density or a signed distance.
        bound: half the edge of the box, scene units.
        resolution: grid cells along the longest edge of what is found.
        smooth: standard deviation, in cells of a grid of that resolution over the whole box, of the Gaussian that smooths the
            grid first; 0 for none.
        device: of the field.
        cameras: hollows that none of them sees are filled; None: they are not.

    Raises:
        ExportError: the field is empty, solid or NaN.
        ValueError: an argument out of range.
    """
    grid = sample_level_set(level_set, bound, resolution, device, around_surface=True)
    filled = grid if cameras is None else fill_hidden(grid, cameras)
    exact = smooth == 0 and filled is grid  # the field crosses the level where the surface is
    grid = smoothed(filled, smooth * 2.0 * bound / (resolution * grid.spacing))
    return marching_cubes(grid, level_set.value if exact else None, device), grid


def marching_cubes(
    grid: LevelSetGrid, value: Values | None = None, device: torch.device | str = "cpu", refine_steps: int = 5
) -> Mesh:
    """The surface where the values cross the grid's level, closed at the walls of the grid.

    Lewiner's marching cubes (2003) on the implicit function, with one layer outside the grid that is empty. A density that
    rises steeply is anything but linear between two grid points, so each vertex is then moved along its grid edge to where
    the field itself crosses the level, by bisection.

    Args:
        grid: values and level.
        value: the field, for the bisection; None leaves the vertices where interpolation put them.
        device: of the field.
        refine_steps: bisections; each halves the error and evaluates the field once at every vertex.

    Returns:
        A watertight, welded mesh inside the grid's box, vertices [V, 3] and faces [T, 3], normals outwards.

    Raises:
        ExportError: nothing is inside, or everything is.
    """
    from skimage import measure

    _check_grid(grid)
    implicit = _padded(grid)
    vertices, faces, _, _ = measure.marching_cubes(implicit, 0.0, gradient_direction="ascent")
    index = vertices.astype(np.float64)
    if value is not None and refine_steps > 0:
        index = _bisect(index, implicit, grid, value, device, refine_steps)
    points = np.clip((index - 1.0) * grid.spacing + grid.low, grid.low, grid.high)
    return Mesh(points, faces.astype(np.int64))


def _padded(grid: LevelSetGrid) -> np.ndarray:
    """The implicit function with a layer around it that is empty, [n + 2, ...] float32; a plane at a time, to save memory."""
    padded = np.full(tuple(n + 2 for n in grid.values.shape), _OUTSIDE, dtype=np.float32)
    for plane, inner in zip(grid.values, padded[1:-1, 1:-1, 1:-1], strict=True):
        implicit = replace(grid, values=plane, part=(tuple(grid.low.tolist()), grid.spacing)).implicit(_RATIO_CLIP)
        implicit[np.abs(implicit) < _ON_LEVEL] = -_ON_LEVEL
        inner[:] = implicit
    return padded


def _check_grid(grid: LevelSetGrid) -> None:
    """Refuse a field without a surface, with the values that explain why."""
    inside, level = grid.is_inside(grid.values), f"{grid.level:.4g}"
    if not inside.any():
        raise ExportError(why_empty(grid, "field"))
    fraction = float(inside.mean())
    if fraction > _SOLID and grid.logarithmic:
        raise ExportError(
            f"the field is solid: {100 * fraction:.1f} % of the box is denser than {level}, half of it than "
            f"{grid.span[1]:.3g}: it is fog and not an object; give a higher --mesh_threshold, or train again "
            "with a larger --lambda_opacity"
        )
    if fraction > _SOLID:
        low, _, high = grid.span
        raise ExportError(
            f"the field is solid: {100 * fraction:.1f} % of the box has a {quantity(grid)} on the inner side of {level} (it "
            f"lies between {low:.3g} and {high:.3g}), so there is no outside; train again with a larger --bound"
        )


def _bisect(index: np.ndarray, implicit: np.ndarray, grid: LevelSetGrid, value: Values, device, steps: int) -> np.ndarray:
    """Move vertices [V, 3] (in padded grid coordinates) along their grid edges to the field's own crossing."""
    low = np.floor(index + 1e-4)
    part = index - low
    axis = part.argmax(axis=1)
    rows, size = np.arange(len(index)), np.array(grid.values.shape)
    inner = (low >= 1).all(axis=1) & (low[rows, axis] + 1 <= size[axis]) & (part[rows, axis] > 1e-4)
    rows, axis, low = rows[inner], axis[inner], np.round(low[inner]).astype(np.int64)
    high = low.copy()
    high[np.arange(len(low)), axis] += 1
    inside_low = implicit[tuple(low.T)] > 0
    a, b = low.astype(np.float64), high.astype(np.float64)
    for _ in range(steps):
        middle = 0.5 * (a + b)
        points = torch.from_numpy(((middle - 1.0) * grid.spacing + grid.low).astype(np.float32))
        same = grid.is_inside(query_values(value, points, device, quantity(grid)).numpy()) == inside_low
        a, b = np.where(same[:, None], middle, a), np.where(same[:, None], b, middle)
    moved = index.copy()
    moved[rows] = 0.5 * (a + b)
    return moved
