"""The grid encoder: a module that holds the table, and the differentiable operations it is made of.

How the derivatives are laid out. The kernel gives the values and, where positions need a gradient, their Jacobian. Both
are outputs of one node that leads to the table; the links to the positions are separate nodes, so that asking for
``d output / d positions`` (a normal) does not also scatter a table gradient, and the later backward of a loss on that
normal scatters the gradients of values and Jacobian together, once. The positions' gradient is the contraction of the
Jacobian with the values' gradient, an operation that is differentiable in both. The Jacobian lies level by level, as it
is made and consumed, and is never transposed.

Letters: M points, D dimensions, L levels, F features a level, E rows of the table.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from extension import Arguments, Function, implementation, kernels, register
from gridencoder import reference
from gridencoder.kernels import GridKernels
from gridencoder.layout import GridLayout

_INITIAL_RANGE = 1e-4  # features start in U(-1e-4, 1e-4) (Mueller et al. 2022, section 4)


class GridEncoder(nn.Module):
    """Features of positions, interpolated in a table of grids from coarse to fine (Mueller et al. 2022, section 3)."""

    def __init__(
        self,
        input_dim: int = 3,
        num_levels: int = 16,
        level_dim: int = 2,
        base_resolution: int = 16,
        desired_resolution: int = 2048,
        log2_hashmap_size: int = 19,
        gridtype: str = "hash",
        interpolation: str = "smoothstep",
        align_corners: bool = False,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Make a table with small random features.

        Args:
            input_dim: D, 2 to 4.
            num_levels: L.
            level_dim: F, 1, 2, 4 or 8.
            base_resolution, desired_resolution: corners along an edge of the coarsest and the finest level.
            log2_hashmap_size: a level has at most ``2**log2_hashmap_size`` rows.
            gridtype: "hash" or "tiled", how levels with more corners than rows are indexed.
            interpolation: "smoothstep" (continuous first derivatives) or "linear".
            align_corners: whether the outer corners lie on the faces of the box, or half a cell inside it.
            dtype: of the table and the output: float32, float64, or on CUDA float16.

        Raises:
            ValueError: a number is out of range.
        """
        super().__init__()
        self.layout = GridLayout(
            input_dim,
            num_levels,
            level_dim,
            base_resolution,
            desired_resolution,
            log2_hashmap_size,
            gridtype,
            interpolation,
            align_corners,
        )
        self.output_dim = self.layout.output_dim
        self.embeddings = nn.Parameter(torch.empty(self.layout.rows, level_dim, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the table from a narrow uniform distribution."""
        nn.init.uniform_(self.embeddings, -_INITIAL_RANGE, _INITIAL_RANGE)

    def forward(self, positions: Tensor, bound: float = 1.0, max_level: float = 1.0) -> Tensor:
        """Encode positions [M, D] in [-bound, bound] to [M, L*F]; see :func:`encode`."""
        return encode(positions, self.embeddings, self.layout, bound, max_level)

    def value_and_pullback(
        self, positions: Tensor, bound: float = 1.0, max_level: float = 1.0
    ) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Encoding [M, L*F], and its vector-Jacobian product with positions; see :func:`encode_with_pullback`."""
        return encode_with_pullback(positions, self.embeddings, self.layout, bound, max_level)

    def total_variation(
        self,
        points: Tensor | None = None,
        bound: float = 1.0,
        max_level: float = 1.0,
        generator: torch.Generator | None = None,
        num_points: int = 2**16,
    ) -> Tensor:
        """Mean variation of the features between neighbouring corners at ``points``; see :func:`total_variation`.

        Args:
            points: [P, D] in [-bound, bound]; None draws ``num_points`` uniformly, with ``generator``.

        Returns:
            Scalar >= 0.
        """
        if points is None:
            table = self.embeddings
            dtype = torch.float32 if table.dtype == torch.float16 else table.dtype
            shape = (num_points, self.layout.input_dim)
            device = table.device if generator is None else generator.device
            points = torch.rand(shape, generator=generator, dtype=dtype, device=device).to(table.device)
            points = (2 * points - 1) * bound
        return total_variation(points, self.embeddings, self.layout, bound, max_level)

    def weight_decay(self, max_level: float = 1.0) -> Tensor:
        """Sum over levels of the mean over rows of the squared features; see :func:`weight_decay`."""
        return weight_decay(self.embeddings, self.layout, max_level)

    def extra_repr(self) -> str:
        """The layout, for printing the module."""
        return f"{self.layout}, rows={self.layout.rows}"


def encode(positions: Tensor, table: Tensor, layout: GridLayout, bound: float = 1.0, max_level: float = 1.0) -> Tensor:
    """Interpolate the features of all levels at each position.

    Args:
        positions: [M, D]; outside [-bound, bound] values and gradients are zero, and at NaN the values are NaN.
        table: [E, F] as ``layout`` says.
        bound: half the edge of the box, in scene units.
        max_level: fraction of the levels that count, coarse ones first; the others are zero.

    Returns:
        [M, L*F], of the table's dtype.

    Differentiable twice, in positions and table (linear interpolation: its second derivatives along one axis are zero,
    the mixed ones are not). Reference: :func:`gridencoder.reference.encode`.

    Raises:
        ValueError, TypeError: shapes, dtypes or devices do not match; max_level or bound is out of range.
    """
    active = _check("encode", positions, table, layout, bound, max_level)
    values: Tensor = implementation("gridencoder.encode", positions)(positions, table, layout, bound, active)
    return values


def encode_with_pullback(
    positions: Tensor, table: Tensor, layout: GridLayout, bound: float = 1.0, max_level: float = 1.0
) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """The features of :func:`encode`, and their vector-Jacobian product with the positions.

    With ``h = f(values)``, ``pullback(grad(h.sum(), values, create_graph=True))`` is d h / d positions. This is the
    cheapest way to a normal that is trained: positions need not require a gradient, and then no second derivative
    along them is ever computed.

    Returns:
        values [M, L*F], and ``pullback``: [M, L*F] -> [M, D].

    Differentiable: values twice; what pullback returns once, in its argument, in table and in positions.
    Arguments and errors are those of :func:`encode`.
    """
    active = _check("encode_with_pullback", positions, table, layout, bound, max_level)
    run = implementation("gridencoder.encode_with_pullback", positions)
    result: tuple[Tensor, Callable[[Tensor], Tensor]] = run(positions, table, layout, bound, active)
    return result


def encode_with_jacobian(
    positions: Tensor, table: Tensor, layout: GridLayout, bound: float = 1.0, max_level: float = 1.0
) -> tuple[Tensor, Tensor]:
    """The features of :func:`encode` and their derivatives along each axis.

    For a gradient in space, :func:`encode_with_pullback` does the same with less copying.

    Returns:
        values [M, L*F], and jacobian [M, D, L*F] with ``jacobian[m, d] = d values[m] / d positions[m, d]``.

    Differentiable: values twice; the jacobian once, in positions and table.
    Reference: :func:`gridencoder.reference.encode_with_jacobian`. Arguments and errors are those of :func:`encode`.
    """
    active = _check("encode_with_jacobian", positions, table, layout, bound, max_level)
    run = implementation("gridencoder.encode_with_jacobian", positions)
    result: tuple[Tensor, Tensor] = run(positions, table, layout, bound, active)
    return result


def total_variation(points: Tensor, table: Tensor, layout: GridLayout, bound: float = 1.0, max_level: float = 1.0) -> Tensor:
    """Mean over the points of the variation of their cells, summed over levels: large where neighbours differ.

    In every active level, with ``c`` the lower corner of the point's cell, the term is
    ``sqrt(sum_d |T[c + e_d] - T[c]|^2 + eps) - sqrt(eps)``; points outside the box count as zero.

    Args:
        points: [P, D]
        table: [E, F]
        layout, bound, max_level: as for :func:`encode`.

    Returns:
        Scalar >= 0, of the table's dtype (float32 for a float16 table).

    Differentiable once, in the table. Reference: :func:`gridencoder.reference.total_variation`. Errors are those of
    :func:`encode`.
    """
    active = _check("total_variation", points, table, layout, bound, max_level)
    mean: Tensor = implementation("gridencoder.total_variation", points)(points, table, layout, bound, active)
    return mean


def weight_decay(table: Tensor, layout: GridLayout, max_level: float = 1.0) -> Tensor:
    """Sum over the active levels of the mean over their rows of ``|T|^2``.

    Args:
        table: [E, F]
        layout, max_level: as for :func:`encode`.

    Returns:
        Scalar >= 0. Differentiable in the table; memory-bound, so plain torch runs it on every backend.
    """
    return reference.weight_decay(table, layout, layout.active_levels(max_level))


# ---- the implementations by kernels, native or Taichi's ----


def _kernels(positions: Tensor, layout: GridLayout, bound: float, active: int) -> GridKernels:
    """The kernels of the backend for these positions."""
    return GridKernels(layout, bound, active, kernels("gridencoder", positions.device))


def _kernel_encode(positions: Tensor, table: Tensor, layout: GridLayout, bound: float, active: int) -> Tensor:
    """Values [M, L*F] by the kernels; the Jacobian is computed only where the positions require a gradient."""
    kernels = _kernels(positions, layout, bound, active)
    if positions.requires_grad and torch.is_grad_enabled():
        return _encode_both(positions, table, kernels)[0]
    outputs: tuple[Tensor, None] = _Encode.apply(table.contiguous(), _Hidden(positions.contiguous()), kernels, False)
    return outputs[0]


def _kernel_encode_with_pullback(
    positions: Tensor, table: Tensor, layout: GridLayout, bound: float, active: int
) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Values [M, L*F] and pullback by the kernels."""
    kernels = _kernels(positions, layout, bound, active)
    values, jacobian = _encode_both(positions, table, kernels)

    def pullback(grad_values: Tensor) -> Tensor:
        if grad_values.shape != values.shape or grad_values.dtype != values.dtype:
            raise ValueError(
                f"pullback: expected a gradient {list(values.shape)} of {values.dtype} like the values, got "
                f"{list(grad_values.shape)} of {grad_values.dtype}; cast it first"
            )
        gradient: Tensor = _Contract.apply(jacobian, grad_values, kernels, positions.dtype)
        return gradient

    return values, pullback


def _kernel_encode_with_jacobian(
    positions: Tensor, table: Tensor, layout: GridLayout, bound: float, active: int
) -> tuple[Tensor, Tensor]:
    """Values [M, L*F] and Jacobian [M, D, L*F] by the kernels."""
    values, jacobian = _encode_both(positions, table, _kernels(positions, layout, bound, active))
    return values, jacobian.permute(1, 2, 0, 3).flatten(start_dim=2)


def _kernel_total_variation(points: Tensor, table: Tensor, layout: GridLayout, bound: float, active: int) -> Tensor:
    """The total variation, a scalar, by the kernels."""
    kernels = _kernels(points, layout, bound, active)
    mean: Tensor = _TotalVariation.apply(table.contiguous(), points.detach().contiguous(), kernels)
    return mean


def _encode_both(positions: Tensor, table: Tensor, kernels: GridKernels) -> tuple[Tensor, Tensor]:
    """values [M, L*F] and jacobian [L, M, D, F], linked to the positions where they require a gradient."""
    positions, table = positions.contiguous(), table.contiguous()
    values, jacobian = _Encode.apply(table, _Hidden(positions), kernels, True)
    if positions.requires_grad and torch.is_grad_enabled():
        jacobian = _LinkJacobian.apply(jacobian, positions, _Hidden(table), kernels)
        values = _LinkValues.apply(values, positions, _Hidden(jacobian), kernels)
    return values, jacobian


class _Hidden:
    """A tensor that autograd must not see as an input of the node it is given to."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


class _Encode(Function):
    """Values and Jacobian as functions of the table; the positions are hidden and get their gradients elsewhere."""

    @staticmethod
    def forward(
        ctx: Any, table: Tensor, positions: _Hidden, kernels: GridKernels, with_jacobian: bool
    ) -> tuple[Tensor, Tensor | None]:
        ctx.set_materialize_grads(False)
        ctx.positions, ctx.kernels, ctx.dtype = positions.tensor, kernels, table.dtype
        values, jacobian = kernels.encode(positions.tensor, table, with_jacobian)
        return values, jacobian

    @staticmethod
    def backward(ctx: Any, grad_values: Tensor | None, grad_jacobian: Tensor | None) -> tuple[Tensor | None, None, None, None]:
        if grad_values is None and grad_jacobian is None:
            return None, None, None, None
        return _Scatter.apply(grad_values, grad_jacobian, ctx.positions, ctx.kernels, ctx.dtype), None, None, None


class _Scatter(Function):
    """Gradient of the table [E, F], itself once differentiable: it is linear in both gradients it spreads."""

    @staticmethod
    def forward(
        ctx: Any,
        grad_values: Tensor | None,
        grad_jacobian: Tensor | None,
        positions: Tensor,
        kernels: GridKernels,
        dtype: torch.dtype,
    ) -> Tensor:
        ctx.save_for_backward(grad_values, grad_jacobian, positions)
        ctx.kernels = kernels
        values, jacobian = (None if g is None else g.contiguous() for g in (grad_values, grad_jacobian))
        return kernels.encode_backward(positions, values, jacobian, dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_table: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        grad_values, grad_jacobian, positions = ctx.saved_tensors
        table = grad_table.contiguous()
        values, jacobian = ctx.kernels.encode(positions, table, True)
        grad_positions = None
        if ctx.needs_input_grad[2]:
            grad_positions = torch.zeros_like(positions)
            if grad_values is not None:
                grad_positions += ctx.kernels.contract(jacobian, grad_values.contiguous(), positions.dtype)
            if grad_jacobian is not None:
                grad_positions += ctx.kernels.second_derivatives(positions, table, grad_jacobian.contiguous())
        return (
            None if grad_values is None else values,
            None if grad_jacobian is None else jacobian,
            grad_positions,
            None,
            None,
        )


class _LinkValues(Function):
    """The values unchanged, with a link to the positions through the (hidden) Jacobian."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, positions: Tensor, jacobian: _Hidden, kernels: GridKernels) -> Tensor:
        ctx.jacobian, ctx.kernels, ctx.dtype = jacobian.tensor, kernels, positions.dtype
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, grad_values: Tensor) -> tuple[Tensor, Tensor, None, None]:
        return grad_values, _Contract.apply(ctx.jacobian, grad_values, ctx.kernels, ctx.dtype), None, None


class _Contract(Function):
    """Jacobian [L, M, D, F] times a gradient of the values [M, L*F]: a gradient of the positions [M, D]."""

    @staticmethod
    def forward(ctx: Any, jacobian: Tensor, grad_values: Tensor, kernels: GridKernels, dtype: torch.dtype) -> Tensor:
        jacobian, grad_values = jacobian.contiguous(), grad_values.contiguous()
        ctx.save_for_backward(jacobian, grad_values)
        ctx.kernels = kernels
        return kernels.contract(jacobian, grad_values, dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        return *ctx.kernels.contract_backward(*ctx.saved_tensors, grad.contiguous()), None, None


class _LinkJacobian(Function):
    """The Jacobian unchanged, with a link to the positions through the second derivatives."""

    @staticmethod
    def forward(ctx: Any, jacobian: Tensor, positions: Tensor, table: _Hidden, kernels: GridKernels) -> Tensor:
        ctx.save_for_backward(positions)
        ctx.table, ctx.kernels = table.tensor, kernels
        ctx.set_materialize_grads(False)
        return jacobian.view_as(jacobian)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_jacobian: Tensor | None) -> tuple[Tensor | None, Tensor | None, None, None]:
        if grad_jacobian is None:
            return None, None, None, None
        (positions,) = ctx.saved_tensors
        grad = ctx.kernels.second_derivatives(positions, ctx.table, grad_jacobian.contiguous())
        return grad_jacobian, grad, None, None


class _TotalVariation(Function):
    """Total variation as a function of the table."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, points: Tensor, kernels: GridKernels) -> Tensor:
        ctx.save_for_backward(table, points)
        ctx.kernels = kernels
        wide = torch.float32 if table.dtype == torch.float16 else table.dtype
        return (kernels.total_variation(points, table) / max(len(points), 1)).to(wide)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        table, points = ctx.saved_tensors
        grad_table = ctx.kernels.total_variation_backward(points, table)
        return grad_table.mul_((grad / max(len(points), 1)).to(table.dtype)), None, None


def _check(op: str, positions: Tensor, table: Tensor, layout: GridLayout, bound: float, max_level: float) -> int:
    """Raise unless the arguments match each other; returns the number of active levels."""
    args = Arguments(op)
    args.floats("positions", positions, "M", layout.input_dim)
    args.floats("table", table, layout.rows, layout.level_dim, half=True)
    if table.dtype == torch.float16 and table.device.type != "cuda":
        raise TypeError(f"{op}: float16 tables are supported on CUDA only, and this one is on {table.device}; use float32")
    args.require(bound > 0, f"bound must be positive, got {bound}")
    return layout.active_levels(max_level)


register("gridencoder.encode", kernels=_kernel_encode, torch=reference.encode)
register("gridencoder.encode_with_pullback", kernels=_kernel_encode_with_pullback, torch=reference.encode_with_pullback)
register("gridencoder.encode_with_jacobian", kernels=_kernel_encode_with_jacobian, torch=reference.encode_with_jacobian)
register("gridencoder.total_variation", kernels=_kernel_total_variation, torch=reference.total_variation)
