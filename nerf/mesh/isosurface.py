"""Marching cubes on a grid of densities, with vertices refined along their edges. V vertices, T triangles."""

import numpy as np
import torch

from nerf.core.errors import ExportError
from nerf.mesh.density_grid import Density, Lattice, query_density
from nerf.mesh.mesh import Mesh

_LEVEL_CLIP = 1e3  # densities further than this factor from the threshold look alike to marching cubes


_SOLID = 0.99  # a field of which more than this fraction is inside is fog, not an object


def marching_cubes(
    lattice: Lattice, density: Density | None = None, device: torch.device | str = "cpu", refine_steps: int = 5
) -> Mesh:
    """The surface where the density crosses the lattice's threshold, closed at the walls of the box.

    Lewiner's marching cubes (2003) on the logarithm of the density, with one layer outside the box that is empty. A
    field that rises steeply is anything but linear between two lattice points, so each vertex is then moved along its
    lattice edge to where the field itself crosses the threshold, by bisection.

    Args:
        lattice: densities and threshold.
        density: the field, for the bisection; None leaves the vertices where interpolation put them.
        device: where the field lives.
        refine_steps: bisections; each halves the error and asks about every vertex once.

    Returns:
        A watertight, welded mesh inside [-bound, bound]^3, normals outwards.

    Raises:
        ExportError: nothing is above the threshold, or everything is.
    """
    from skimage import measure

    _check_lattice(lattice)
    ratio = np.clip(lattice.density / lattice.threshold, 1.0 / _LEVEL_CLIP, _LEVEL_CLIP)
    level = np.log(ratio)
    level[np.abs(level) < 1e-5] = -1e-5  # a value on the threshold itself makes triangles without area
    level = np.pad(level, 1, constant_values=-1e4 * np.log(_LEVEL_CLIP))
    vertices, faces, _, _ = measure.marching_cubes(level, 0.0, gradient_direction="ascent")
    index = vertices.astype(np.float64)
    if density is not None and refine_steps > 0:
        index = _bisect(index, level, lattice, density, device, refine_steps)
    points = np.clip((index - 1.0) * lattice.spacing - lattice.bound, -lattice.bound, lattice.bound)
    return Mesh(points, faces.astype(np.int64))


def _check_lattice(lattice: Lattice) -> None:
    """Refuse a field without a surface, with the figures that say why."""
    highest = float(lattice.density.max())
    if highest <= lattice.threshold:
        raise ExportError(
            f"the field is empty: its highest density is {highest:.3g}, and the surface is where it is "
            f"{lattice.threshold:.3g}; train longer, or export with a threshold below {highest:.3g}"
        )
    inside = float((lattice.density > lattice.threshold).mean())
    if inside > _SOLID:
        raise ExportError(
            f"the field is solid: {100 * inside:.1f} % of the box is denser than {lattice.threshold:.3g} (the mean is "
            f"{float(lattice.density.mean()):.3g}); it is fog and not an object: raise --lambda_opacity, or train "
            "again"
        )


def _bisect(index: np.ndarray, level: np.ndarray, lattice: Lattice, density: Density, device, steps: int) -> np.ndarray:
    """Move vertices (in padded lattice coordinates) along their lattice edges to the field's own crossing."""
    low = np.floor(index + 1e-4)
    part = index - low
    axis = part.argmax(axis=1)
    rows = np.arange(len(index))
    inner = (low >= 1).all(axis=1) & (low[rows, axis] + 1 <= lattice.cells + 1) & (part[rows, axis] > 1e-4)
    rows, axis, low = rows[inner], axis[inner], np.round(low[inner]).astype(np.int64)
    high = low.copy()
    high[np.arange(len(low)), axis] += 1
    inside_low = level[tuple(low.T)] > 0
    a, b = low.astype(np.float64), high.astype(np.float64)
    for _ in range(steps):
        middle = 0.5 * (a + b)
        points = torch.from_numpy(((middle - 1.0) * lattice.spacing - lattice.bound).astype(np.float32))
        same = (query_density(density, points, device).numpy() > lattice.threshold) == inside_low
        a, b = np.where(same[:, None], middle, a), np.where(same[:, None], b, middle)
    moved = index.copy()
    moved[rows] = 0.5 * (a + b)
    return moved
