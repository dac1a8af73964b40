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

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from extension import Arguments, on_torch
from gridencoder import reference
from gridencoder.kernels import GridKernels
from gridencoder.layout import GridLayout


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
    ):
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
        """Draw the table from U(-1e-4, 1e-4), as the paper does."""
        nn.init.uniform_(self.embeddings, -1e-4, 1e-4)

    def forward(self, positions: Tensor, bound: float = 1.0, max_level: float = 1.0) -> Tensor:
        """Encode positions [M, D] in [-bound, bound] to [M, L*F]; see :func:`encode`."""
        return encode(positions, self.embeddings, self.layout, bound, max_level)

    def value_and_pullback(
        self, positions: Tensor, bound: float = 1.0, max_level: float = 1.0
    ) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Encoding [M, L*F] and what turns a gradient in it into one in space; see :func:`encode_with_pullback`."""
        return encode_with_pullback(positions, self.embeddings, self.layout, bound, max_level)

    def total_variation(
        self,
        points: Tensor | None = None,
        bound: float = 1.0,
        max_level: float = 1.0,
        generator: torch.Generator | None = None,
        num_points: int = 2**16,
    ) -> Tensor:
        """How much the features change from corner to corner near ``points``; see :func:`total_variation`.

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
        ValueError, TypeError: shapes, dtypes or devices do not fit; max_level or bound is out of range.
    """
    active = _check("encode", positions, table, layout, bound, max_level)
    if on_torch(positions):
        return reference.encode(positions, table, layout, bound, active)
    if positions.requires_grad and torch.is_grad_enabled():
        return _encode_both(positions, table, GridKernels(layout, bound, active))[0]
    return _Encode.apply(table.contiguous(), _Hidden(positions.contiguous()), GridKernels(layout, bound, active), False)[0]


def encode_with_pullback(
    positions: Tensor, table: Tensor, layout: GridLayout, bound: float = 1.0, max_level: float = 1.0
) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """The features of :func:`encode`, and the map from a gradient in them to one in space.

    With ``h = f(values)``, ``pullback(grad(h.sum(), values, create_graph=True))`` is d h / d positions. This is the
    cheapest road to a normal that is trained: positions need not require a gradient, and then no second derivative
    along them is ever computed.

    Returns:
        values [M, L*F], and ``pullback``: [M, L*F] -> [M, D].

    Differentiable: values twice; what pullback returns once, in its argument, in table and in positions.
    Arguments and errors are those of :func:`encode`.
    """
    active = _check("encode_with_pullback", positions, table, layout, bound, max_level)
    if on_torch(positions):
        values, dense = reference.encode_with_jacobian(positions, table, layout, bound, active)
        return values, lambda grad_values: (dense * grad_values[:, None]).sum(dim=2)
    kernels = GridKernels(layout, bound, active)
    values, jacobian = _encode_both(positions, table, kernels)

    def pullback(grad_values: Tensor) -> Tensor:
        if grad_values.shape != values.shape or grad_values.dtype != values.dtype:
            raise ValueError(
                f"pullback: expected a gradient {list(values.shape)} of {values.dtype} like the values, got "
                f"{list(grad_values.shape)} of {grad_values.dtype}; cast it first"
            )
        return _Contract.apply(jacobian, grad_values, kernels, positions.dtype)

    return values, pullback


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
    if on_torch(positions):
        return reference.encode_with_jacobian(positions, table, layout, bound, active)
    values, jacobian = _encode_both(positions, table, GridKernels(layout, bound, active))
    return values, jacobian.permute(1, 2, 0, 3).flatten(start_dim=2)


def total_variation(points: Tensor, table: Tensor, layout: GridLayout, bound: float = 1.0, max_level: float = 1.0) -> Tensor:
    """Mean over the points of the variation of their cells, summed over levels: large where neighbours differ.

    In every active level, with ``c`` the lower corner of the point's cell, the term is
    ``sqrt(sum_d |T[c + e_d] - T[c]|^2 + eps) - sqrt(eps)``; points outside the box count as zero.

    Returns:
        Scalar >= 0, of the table's dtype (float32 for a float16 table).

    Differentiable once, in the table. Reference: :func:`gridencoder.reference.total_variation`. Arguments and errors
    are those of :func:`encode`.
    """
    active = _check("total_variation", points, table, layout, bound, max_level)
    if on_torch(points):
        return reference.total_variation(points, table, layout, bound, active)
    return _TotalVariation.apply(table.contiguous(), points.detach().contiguous(), GridKernels(layout, bound, active))


def weight_decay(table: Tensor, layout: GridLayout, max_level: float = 1.0) -> Tensor:
    """Sum over the active levels of the mean over their rows of ``|T|^2``.

    Returns:
        Scalar >= 0. Differentiable in the table; memory-bound, so plain torch is its kernel.
    """
    return reference.weight_decay(table, layout, layout.active_levels(max_level))


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

    def __init__(self, tensor: Tensor):
        self.tensor = tensor


class _Encode(torch.autograd.Function):
    """Values and Jacobian as functions of the table; the positions are hidden and get their gradients elsewhere."""

    @staticmethod
    def forward(ctx, table, positions, kernels, want_jacobian):
        ctx.set_materialize_grads(False)
        ctx.positions, ctx.kernels, ctx.dtype = positions.tensor, kernels, table.dtype
        values, jacobian = kernels.encode(positions.tensor, table, want_jacobian)
        return values, jacobian

    @staticmethod
    def backward(ctx, grad_values, grad_jacobian):
        if grad_values is None and grad_jacobian is None:
            return None, None, None, None
        return _Scatter.apply(grad_values, grad_jacobian, ctx.positions, ctx.kernels, ctx.dtype), None, None, None


class _Scatter(torch.autograd.Function):
    """Gradient of the table [E, F], itself once differentiable: it is linear in both gradients it spreads."""

    @staticmethod
    def forward(ctx, grad_values, grad_jacobian, positions, kernels, dtype):
        ctx.save_for_backward(grad_values, grad_jacobian, positions)
        ctx.kernels = kernels
        grads = [None if g is None else g.contiguous() for g in (grad_values, grad_jacobian)]
        return kernels.encode_backward(positions, *grads, dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_table):
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


class _LinkValues(torch.autograd.Function):
    """The values unchanged, with a link to the positions through the (hidden) Jacobian."""

    @staticmethod
    def forward(ctx, values, positions, jacobian, kernels):
        ctx.jacobian, ctx.kernels, ctx.dtype = jacobian.tensor, kernels, positions.dtype
        return values.view_as(values)

    @staticmethod
    def backward(ctx, grad_values):
        return grad_values, _Contract.apply(ctx.jacobian, grad_values, ctx.kernels, ctx.dtype), None, None


class _Contract(torch.autograd.Function):
    """Jacobian [L, M, D, F] times a gradient of the values [M, L*F]: a gradient of the positions [M, D]."""

    @staticmethod
    def forward(ctx, jacobian, grad_values, kernels, dtype):
        jacobian, grad_values = jacobian.contiguous(), grad_values.contiguous()
        ctx.save_for_backward(jacobian, grad_values)
        ctx.kernels = kernels
        return kernels.contract(jacobian, grad_values, dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        return *ctx.kernels.contract_backward(*ctx.saved_tensors, grad.contiguous()), None, None


class _LinkJacobian(torch.autograd.Function):
    """The Jacobian unchanged, with a link to the positions through the second derivatives."""

    @staticmethod
    def forward(ctx, jacobian, positions, table, kernels):
        ctx.save_for_backward(positions)
        ctx.table, ctx.kernels = table.tensor, kernels
        ctx.set_materialize_grads(False)
        return jacobian.view_as(jacobian)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_jacobian):
        if grad_jacobian is None:
            return None, None, None, None
        (positions,) = ctx.saved_tensors
        grad = ctx.kernels.second_derivatives(positions, ctx.table, grad_jacobian.contiguous())
        return grad_jacobian, grad, None, None


class _TotalVariation(torch.autograd.Function):
    """Total variation as a function of the table."""

    @staticmethod
    def forward(ctx, table, points, kernels):
        ctx.save_for_backward(table, points)
        ctx.kernels = kernels
        wide = torch.float32 if table.dtype == torch.float16 else table.dtype
        return (kernels.total_variation(points, table) / max(len(points), 1)).to(wide)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        table, points = ctx.saved_tensors
        grad_table = ctx.kernels.total_variation_backward(points, table)
        return grad_table.mul_((grad / max(len(points), 1)).to(table.dtype)), None, None


def _check(op: str, positions: Tensor, table: Tensor, layout: GridLayout, bound: float, max_level: float) -> int:
    """Refuse arguments that do not fit each other; returns the number of active levels."""
    args = Arguments(op)
    args.floats("positions", positions, "M", layout.input_dim)
    args.floats("table", table, layout.rows, layout.level_dim, half=True)
    if table.dtype == torch.float16 and table.device.type != "cuda":
        raise TypeError(f"{op}: float16 tables are for CUDA, and this one is on {table.device}; use float32")
    args.require(bound > 0, f"bound must be positive, got {bound}")
    return layout.active_levels(max_level)
