"""A field's density on a cubic lattice, coarse to fine: dense values near the surface, interpolated ones far from it.

Letters: n lattice points along an edge, M query points. Lengths are scene units; densities are extinctions per unit.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from nerf.core.errors import ExportError

Density = Callable[[Tensor], Tensor]

DEFAULT_THRESHOLD = 10.0  # extinction per scene unit that counts as surface, for every run alike
SMOOTH_CLIP = 30.0  # densities further from the threshold than this factor count as this far when they are smoothed
_WARM = 0.3  # a block beside a probe above this fraction of the threshold is looked at closely


@dataclass(frozen=True)
class Lattice:
    """Densities on the points of a cubic lattice over [-bound, bound]^3, walls included."""

    density: np.ndarray  # [n, n, n] float32, axes x, y, z
    bound: float
    threshold: float  # what counts as surface; right on its both sides wherever ``density`` crosses it
    queries: int  # how many points the field was asked about

    @property
    def cells(self) -> int:
        """Cells along an edge, n - 1."""
        return self.density.shape[0] - 1

    @property
    def spacing(self) -> float:
        """Distance of neighbouring points."""
        return 2.0 * self.bound / self.cells


def smoothed(lattice: Lattice, sigma: float) -> Lattice:
    """The lattice with its log density low-passed by a Gaussian, for fields that are noise below the size of a pixel.

    The logarithm is clipped to the same distance on both sides of the threshold first, so that a flat surface stays where
    it is however steep the field is around it.

    Args:
        lattice: densities and threshold.
        sigma: standard deviation in cells, >= 0; 0 returns the lattice itself.

    Raises:
        ValueError: sigma is negative.
    """
    if sigma < 0:
        raise ValueError(f"smoothed: expected sigma >= 0 cells, got {sigma}")
    if sigma == 0:
        return lattice
    from scipy.ndimage import gaussian_filter

    ratio = np.clip(lattice.density / lattice.threshold, 1.0 / SMOOTH_CLIP, SMOOTH_CLIP)
    level = gaussian_filter(np.log(ratio), sigma, mode="nearest")
    return replace(lattice, density=(lattice.threshold * np.exp(level)).astype(np.float32))


def query_density(density: Density, points: Tensor, device: torch.device | str = "cpu", chunk: int = 2**18) -> Tensor:
    """Ask a field about many points, a chunk at a time.

    Args:
        density: maps [M, 3] on ``device`` to [M].
        points: [M, 3].
        device: where the field lives.
        chunk: most points asked at once.

    Returns:
        float32 [M] on the CPU. Not differentiable.

    Raises:
        ExportError: a density is NaN or infinite.
        ValueError: the field answers with another shape.
    """
    answer = torch.empty(len(points))
    with torch.no_grad():
        for start in range(0, len(points), chunk):
            part = points[start : start + chunk].to(device)
            value = density(part)
            if value.shape != (len(part),):
                raise ValueError(
                    f"query_density: expected density [{len(part)}] from points [{len(part)}, 3], got "
                    f"{list(value.shape)}; squeeze its last axis"
                )
            answer[start : start + chunk] = value.float().cpu()
    broken = ~torch.isfinite(answer)
    if bool(broken.any()):
        where = [round(x, 3) for x in points[broken.nonzero()[0, 0]].tolist()]
        raise ExportError(
            f"the density is NaN or infinite at {int(broken.sum())} of {len(points)} points, first at "
            f"{where}; training has diverged: resume an earlier checkpoint with a lower --lr"
        )
    return answer


def auto_threshold(density: Tensor) -> float:
    """The density that counts as surface, from a look at the field.

    One fixed value, 10, serves every field that has become opaque: it was fixed before any shape was measured, and no
    shape chooses its own. A field whose densest part (99.9th percentile of what is above 0.1) stays below 20 is cut at
    half of that instead, so that a young run still gives a mesh.

    Args:
        density: [M] values on a lattice over the whole box.

    Returns:
        The threshold; 10 if nothing is above 0.1 (the caller then finds the field empty).
    """
    some = density[density > 0.1]
    if some.numel() == 0:
        return DEFAULT_THRESHOLD
    top = float(np.quantile(some.numpy(), 0.999))
    return min(DEFAULT_THRESHOLD, 0.5 * top)


def sample_lattice(
    density: Density,
    bound: float,
    resolution: int = 128,
    threshold: float | None = DEFAULT_THRESHOLD,
    occupied: Callable[[Tensor], Tensor] | None = None,
    device: torch.device | str = "cpu",
    chunk: int = 2**18,
    probe_cells: int = 64,
) -> Lattice:
    """Sample a density field over [-bound, bound]^3, spending the queries where its surface is.

    A coarse lattice of at least ``probe_cells`` cells an edge is asked first. Blocks (one coarse cell each) with a
    corner in their neighbourhood that is near the threshold or above it, unless all is solid there, are asked at every
    lattice point. Then every block into which the surface is seen to run on is asked too, until none is left: a part of
    the surface of which one coarse point or occupied cell was hot is found whole; a part that is thinner than a coarse
    cell *and* disjoint from all others *and* hit by no coarse point can be missed.

    Args:
        density: maps points [M, 3] to densities [M].
        bound: half the edge of the box.
        resolution: cells along an edge, 8 to 1024; rounded up to a multiple of resolution // probe_cells.
        threshold: the density that counts as surface; None chooses it by ``auto_threshold``.
        occupied: optional, maps points [M, 3] to bool [M], False where the density is known to be below the threshold.
            Coarse points with no occupied neighbour are not asked, and occupied ones are always looked at closely.
        device: where the field lives.
        chunk: most points asked at once.
        probe_cells: cells along an edge of the coarse lattice.

    Raises:
        ExportError: NaN in the density.
        ValueError: bound, resolution or threshold out of range.
    """
    _check_arguments(bound, resolution, threshold)
    stride = max(1, resolution // probe_cells)
    blocks = -(-resolution // stride)
    cells = blocks * stride

    def ask(index: np.ndarray) -> np.ndarray:
        points = torch.from_numpy((index * (2.0 * bound / cells) - bound).astype(np.float32))
        return query_density(density, points, device, chunk).numpy()

    coarse_index = np.indices((blocks + 1,) * 3).reshape(3, -1).T * stride
    hot, asked = _occupied_probes(occupied, coarse_index, bound, cells, blocks, device)
    coarse = np.zeros((blocks + 1) ** 3, dtype=np.float32)
    coarse[asked] = ask(coarse_index[asked])
    level = auto_threshold(torch.from_numpy(coarse)) if threshold is None else float(threshold)
    fine, queries = _refined(coarse.reshape((blocks + 1,) * 3), hot, stride, level, ask)
    return Lattice(fine, bound, level, int(asked.sum()) + queries)


def _check_arguments(bound: float, resolution: int, threshold: float | None) -> None:
    """Refuse what no lattice can be made of."""
    if not bound > 0 or not 8 <= resolution <= 1024:
        raise ValueError(f"sample_lattice: expected bound > 0 and resolution in [8, 1024], got {bound} and {resolution}")
    if threshold is not None and not (threshold > 0 and math.isfinite(threshold)):
        raise ValueError(f"sample_lattice: expected a threshold > 0, got {threshold}; None chooses one")


def _refined(coarse: np.ndarray, hot: np.ndarray, stride: int, level: float, ask) -> tuple[np.ndarray, int]:
    """The fine lattice: asked near the surface, interpolated elsewhere; and how many points were asked for it."""
    if stride == 1:
        return coarse, 0
    fine, queries = _upsample(coarse, stride), 0
    known = np.zeros(fine.shape, dtype=bool)
    known[::stride, ::stride, ::stride] = True
    todo = _blocks_near_surface(coarse, hot, level)
    done = np.zeros_like(todo)
    while todo.any():
        new = _points_of(todo, stride) & ~known
        fine[new] = ask(np.argwhere(new))
        queries += int(new.sum())
        known |= new
        done |= todo
        todo = _crossed_blocks(fine > level, stride) & ~done
    return fine, queries


def _occupied_probes(occupied, index: np.ndarray, bound: float, cells: int, blocks: int, device) -> tuple:
    """Which coarse points are occupied, [blocks + 1]^3, and which are worth asking, flat."""
    from scipy.ndimage import maximum_filter

    shape = (blocks + 1,) * 3
    if occupied is None:
        return np.zeros(shape, dtype=bool), np.ones(len(index), dtype=bool)
    points = torch.from_numpy((index * (2.0 * bound / cells) - bound).astype(np.float32)).to(device)
    hot = occupied(points).bool().cpu().numpy().reshape(shape)
    return hot, maximum_filter(hot, size=3).reshape(-1)


def _upsample(coarse: np.ndarray, stride: int) -> np.ndarray:
    """Trilinear interpolation of [k + 1]^3 points to [k * stride + 1]^3, exact at the coarse points."""
    size = (coarse.shape[0] - 1) * stride + 1
    volume = torch.from_numpy(coarse)[None, None]
    fine = torch.nn.functional.interpolate(volume, size=(size,) * 3, mode="trilinear", align_corners=True)
    result = fine[0, 0].numpy()
    result[::stride, ::stride, ::stride] = coarse  # the interpolation rounds
    return result


def _corners(points: np.ndarray, combine) -> np.ndarray:
    """Combine (a ufunc) the eight corners of every cell: [k + 1]^3 -> [k]^3."""
    for axis in range(3):
        low = np.take(points, range(points.shape[axis] - 1), axis)
        points = combine(low, np.take(points, range(1, points.shape[axis]), axis))
    return points


def _blocks_near_surface(coarse: np.ndarray, hot: np.ndarray, level: float) -> np.ndarray:
    """Blocks [k]^3 whose 3x3x3 neighbourhood holds something warm, unless all of it is solid."""
    from scipy.ndimage import maximum_filter, minimum_filter

    warm = maximum_filter(_corners((coarse > _WARM * level) | hot, np.logical_or), size=3)
    solid = minimum_filter(_corners(coarse > level, np.logical_and), size=3)
    return warm & ~solid


def _points_of(blocks: np.ndarray, stride: int) -> np.ndarray:
    """The lattice points of some blocks, their faces included: [k]^3 -> [k * stride + 1]^3."""
    for axis in range(3):
        cells = np.repeat(blocks, stride, axis)
        edge = [(0, 0)] * 3
        edge[axis] = (0, 1)
        below = np.pad(cells, edge)
        edge[axis] = (1, 0)
        blocks = below | np.pad(cells, edge)
    return blocks


def _crossed_blocks(inside: np.ndarray, stride: int) -> np.ndarray:
    """Blocks [k]^3 in which some lattice points are inside and some are not."""
    crossed = _corners(inside, np.logical_or) & ~_corners(inside, np.logical_and)
    k = crossed.shape[0] // stride
    return crossed.reshape(k, stride, k, stride, k, stride).any(axis=(1, 3, 5))
