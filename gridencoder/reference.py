"""Plain torch twins of the grid kernels: any float dtype, any device, differentiable as often as torch can.

They are what the kernels are tested against, and the torch rung of the ladder. Letters: M points, D dimensions, L levels,
F features a level, E rows of the table.
"""

import torch
from torch import Tensor

from gridencoder.layout import GridLayout

PRIMES = (1, 2654435761, 805459861, 3674653429)
VARIATION_EPSILON = 1e-9


def encode(positions: Tensor, table: Tensor, layout: GridLayout, bound: float, active: int) -> Tensor:
    """Interpolated features of all levels; twin of :func:`gridencoder.encode`.

    Args:
        positions: [M, D]; outside [-bound, bound] the features and all gradients are zero, at NaN they are NaN.
        table: [E, F]
        active: how many levels count; the others are zero.

    Returns:
        [M, L*F]
    """
    unit, inside = _enter_box(positions, bound)
    levels = [_encode_level(unit, table, layout, level) for level in range(active)]
    off = unit.new_zeros(len(positions), (layout.num_levels - active) * layout.level_dim)
    values = torch.cat([torch.cat(levels, dim=1), off.to(table.dtype)], dim=1)
    values = torch.where(inside[:, None], values, torch.zeros_like(values))
    nan = torch.zeros_like(values).masked_fill(torch.arange(values.shape[1]) < active * layout.level_dim, torch.nan)
    return torch.where(positions.isnan().any(dim=1, keepdim=True), nan, values)


def encode_with_jacobian(
    positions: Tensor, table: Tensor, layout: GridLayout, bound: float, active: int
) -> tuple[Tensor, Tensor]:
    """Features and their derivatives; twin of :func:`gridencoder.encode_with_jacobian`.

    Returns:
        values [M, L*F], and jacobian [M, D, L*F] with ``jacobian[m, d] = d values[m] / d positions[m, d]``.
    """
    with torch.enable_grad():
        x = positions if positions.requires_grad else positions.detach().requires_grad_()
        values = encode(x, table, layout, bound, active)
        columns = [
            torch.autograd.grad(values[:, k].sum(), x, create_graph=True, allow_unused=True)[0]
            for k in range(values.shape[1])
        ]
        jacobian = torch.stack([torch.zeros_like(x) if c is None else c for c in columns], dim=2).to(table.dtype)
        missing = positions.isnan().any(dim=1)[:, None, None] & (
            torch.arange(values.shape[1]) < active * layout.level_dim
        )
        jacobian = jacobian.masked_fill(missing, torch.nan)
    return (values, jacobian) if torch.is_grad_enabled() else (values.detach(), jacobian.detach())


def total_variation(points: Tensor, table: Tensor, layout: GridLayout, bound: float, active: int) -> Tensor:
    """Mean over the points of the variation at their cells, summed over levels; twin of ``gridencoder.total_variation``.

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


def _place(unit: Tensor, layout: GridLayout, level: int) -> tuple[Tensor, Tensor]:
    """[M, D] int64 lower corners and [M, D] interpolation weights of the upper ones."""
    resolution = layout.resolutions[level]
    raw = unit * (resolution - 1) if layout.align_corners else unit * resolution - 0.5
    position = raw.clamp(0, resolution - 1)
    cell = position.detach().long().clamp(max=resolution - 2)
    weight = position - cell
    return cell, weight * weight * (3 - 2 * weight) if layout.interpolation == "smoothstep" else weight


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


def _encode_level(unit: Tensor, table: Tensor, layout: GridLayout, level: int) -> Tensor:
    """[M, F] features at one level."""
    cell, weight = _place(unit, layout, level)
    features = _level(table, layout, level)
    result = 0
    for corner, rows in enumerate(_corner_rows(cell, layout, level)):
        sides = [weight[:, d] if corner >> d & 1 else 1 - weight[:, d] for d in range(layout.input_dim)]
        result = result + torch.stack(sides).prod(dim=0).to(table.dtype)[:, None] * features[rows]
    return result
