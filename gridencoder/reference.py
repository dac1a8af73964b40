"""Plain torch twins of the grid kernels: any float dtype, any device, differentiable as often as torch can.

The kernels are tested against them, and they are what backend torch runs. Letters: M points, D dimensions,
L levels, F features a level, E rows of the table.
"""

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from gridencoder.layout import GridLayout

PRIMES = (1, 2654435761, 805459861, 3674653429)  # of the spatial hash (Mueller et al. 2022, eq. 4); the last for D = 4
VARIATION_EPSILON = 1e-9  # under the root, so that the gradient is finite where neighbours are equal


def encode(positions: Tensor, table: Tensor, layout: GridLayout, bound: float, active: int) -> Tensor:
    """Interpolated features of all levels; twin of :func:`gridencoder.encode`.

    Args:
        positions: [M, D]; outside [-bound, bound] the features and all gradients are zero, at NaN they are NaN.
        table: [E, F]
        active: how many levels count; the others are zero.

    Returns:
        [M, L*F]
    """
    return _levels(positions, table, layout, bound, active, parts=1)[:, 0]


def encode_with_jacobian(
    positions: Tensor, table: Tensor, layout: GridLayout, bound: float, active: int
) -> tuple[Tensor, Tensor]:
    """Features and their derivatives; twin of :func:`gridencoder.encode_with_jacobian`.

    Returns:
        values [M, L*F], and jacobian [M, D, L*F] with ``jacobian[m, d] = d values[m] / d positions[m, d]``.
    """
    both = _levels(positions, table, layout, bound, active, parts=1 + layout.input_dim)
    return both[:, 0], both[:, 1:] / (2 * bound)


def encode_with_pullback(
    positions: Tensor, table: Tensor, layout: GridLayout, bound: float, active: int
) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Features and their vector-Jacobian product; twin of :func:`gridencoder.encode_with_pullback`.

    Returns:
        values [M, L*F], and ``pullback``: [M, L*F] -> [M, D].
    """
    values, jacobian = encode_with_jacobian(positions, table, layout, bound, active)
    return values, lambda grad_values: (jacobian * grad_values[:, None]).sum(dim=2)


def total_variation(points: Tensor, table: Tensor, layout: GridLayout, bound: float, active: int) -> Tensor:
    """Mean over points of their cells' variation, summed over levels; twin of :func:`gridencoder.total_variation`.

    The variation of a cell is ``sqrt(sum_d |T[c + e_d] - T[c]|^2 + eps) - sqrt(eps)`` with ``c`` its lower corner.

    Returns:
        Scalar >= 0.
    """
    unit, inside = _enter_box(points, bound)
    total = table.new_zeros(())
    for level in range(active):
        rows = _corner_rows(_place(unit, layout, level)[0], layout, level)
        features = _level(table, layout, level)
        steps = torch.stack([features[rows[1 << d]] - features[rows[0]] for d in range(layout.input_dim)], dim=1)
        term = (steps.square().sum(dim=(1, 2)) + VARIATION_EPSILON).sqrt() - VARIATION_EPSILON**0.5
        total = total + (term * inside).sum()
    return total / max(len(points), 1)


def weight_decay(table: Tensor, layout: GridLayout, active: int) -> Tensor:
    """Sum over the active levels of the mean over rows of ``|T|^2``; twin of ``gridencoder.weight_decay``.

    Returns:
        Scalar >= 0.
    """
    levels = [_level(table, layout, level) for level in range(active)]
    return torch.stack([features.square().sum() / len(features) for features in levels]).sum()


def _enter_box(positions: Tensor, bound: float) -> tuple[Tensor, Tensor]:
    """[M, D] fractions of the box's edge (zero where the point is outside), and [M] which points are inside."""
    unit = (positions + bound) / (2 * bound)
    inside = ((unit >= 0) & (unit <= 1)).all(dim=1)
    return torch.where(inside[:, None], unit, torch.zeros_like(unit)), inside


def _levels(positions: Tensor, table: Tensor, layout: GridLayout, bound: float, active: int, parts: int) -> Tensor:
    """[M, parts, L*F] features of all levels and, if parts is 1 + D, their derivatives in the unit box."""
    unit, inside = _enter_box(positions, bound)
    levels = torch.cat([_encode_level(unit, table, layout, level, parts) for level in range(active)], dim=2)
    levels = torch.where(inside[:, None, None], levels, 0.0)
    levels = torch.where(positions.isnan().any(dim=1)[:, None, None], torch.nan, levels)
    return torch.nn.functional.pad(levels, (0, (layout.num_levels - active) * layout.level_dim))


def _place(unit: Tensor, layout: GridLayout, level: int) -> tuple[Tensor, Tensor, Tensor]:
    """[M, D] int64 lower corners, [M, D] interpolation weights of the upper ones, and the weights' derivatives."""
    resolution = layout.resolutions[level]
    scale = resolution - 1 if layout.align_corners else resolution
    raw = unit * (resolution - 1) if layout.align_corners else unit * resolution - 0.5
    position = raw.clamp(0, resolution - 1)
    cell = position.detach().long().clamp(max=resolution - 2)
    weight, slope = position - cell, torch.where((raw < 0) | (raw > resolution - 1), 0.0, float(scale)).to(unit.dtype)
    if layout.interpolation == "smoothstep":
        weight, slope = weight * weight * (3 - 2 * weight), slope * 6 * weight * (1 - weight)
    return cell, weight, slope


def _corner_rows(cell: Tensor, layout: GridLayout, level: int) -> list[Tensor]:
    """[M] int64 row within the level of each of the 2^D corners; bit d of the list's index: upper end of axis d."""
    size = layout.first[level + 1] - layout.first[level]
    resolution, dims = layout.resolutions[level], layout.input_dim
    rows = []
    for corner in range(2**dims):
        at = [cell[:, d] + (corner >> d & 1) for d in range(dims)]
        if resolution**dims <= size or layout.gridtype == "tiled":
            row = sum(at[d] * (resolution**d % 2**32) for d in range(dims))
        else:
            row = torch.zeros_like(at[0])
            for d in range(dims):
                row = row ^ (at[d] * PRIMES[d])
        rows.append(row % size)
    return rows


def _level(table: Tensor, layout: GridLayout, level: int) -> Tensor:
    """[rows, F] the features of one level."""
    return table[layout.first[level] : layout.first[level + 1]]


def _encode_level(unit: Tensor, table: Tensor, layout: GridLayout, level: int, parts: int) -> Tensor:
    """[M, parts, F] features at one level, then their derivatives along the first ``parts - 1`` axes."""
    cell, weight, slope = _place(unit, layout, level)
    features, axes = _level(table, layout, level), range(layout.input_dim)
    terms = []
    for corner, rows in enumerate(_corner_rows(cell, layout, level)):
        sides = [weight[:, d] if corner >> d & 1 else 1 - weight[:, d] for d in axes]
        changes = [slope[:, d] if corner >> d & 1 else -slope[:, d] for d in axes]
        factors = [torch.stack([changes[d] if d == part - 1 else sides[d] for d in axes]).prod(dim=0) for part in range(parts)]
        terms.append(torch.stack(factors, dim=1).to(table.dtype)[:, :, None] * features[rows][:, None])
    return functools.reduce(torch.add, terms)
