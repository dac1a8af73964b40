"""Calls of the grid kernels: the parameter struct of src/grid_math.h, its outputs, and nothing about gradients.

Letters: M points, D dimensions, L levels, F features a level, E rows of the table.
"""

import ctypes
from dataclasses import dataclass

import torch
from torch import Tensor

from extension import Kernels, aligned
from gridencoder.layout import MAX_LEVELS, GridLayout

_TENSORS = (
    "positions table grad_values grad_jacobian known_jacobian grad_contraction values jacobian grad_table grad_positions sums"
).split()
_READ = ("positions", "table", "grad_values", "grad_jacobian", "known_jacobian", "grad_contraction")
_INTEGERS = "num_points dims features levels active hashed smooth align_corners".split()


class _Params(ctypes.Structure):
    """GridParams of src/grid_math.h."""

    _fields_ = [
        *[(name, ctypes.c_void_p) for name in _TENSORS],
        ("bound", ctypes.c_double),
        *[(name, ctypes.c_int64) for name in _INTEGERS],
        ("first", ctypes.c_int64 * (MAX_LEVELS + 1)),
        ("resolution", ctypes.c_int64 * MAX_LEVELS),
    ]


@dataclass(frozen=True)
class GridKernels:
    """The kernels for one layout, box and number of active levels. Tensors must be contiguous and on one device."""

    layout: GridLayout
    bound: float
    active: int
    kernels: Kernels  # of the backend

    def encode(self, positions: Tensor, table: Tensor, jacobian: bool) -> tuple[Tensor, Tensor | None]:
        """values [M, L*F], and with ``jacobian`` the Jacobian [L, M, D, F]."""
        layout, count = self.layout, len(positions)
        values = table.new_empty(count, layout.output_dim)
        shape = (layout.num_levels, count, layout.input_dim, layout.level_dim)
        derivatives = table.new_empty(shape) if jacobian else None
        self._run("grid_encode", table.dtype, positions=positions, table=table, values=values, jacobian=derivatives)
        return values, derivatives

    def encode_backward(
        self, positions: Tensor, grad_values: Tensor | None, grad_jacobian: Tensor | None, dtype: torch.dtype
    ) -> Tensor:
        """grad_table [E, F]; sums of half precision gradients are kept in float32 and rounded once."""
        grad_table = self._new_table(positions, dtype)
        self._run(
            "grid_encode_backward",
            dtype,
            positions=positions,
            grad_values=grad_values,
            grad_jacobian=grad_jacobian,
            grad_table=grad_table,
        )
        return grad_table.to(dtype)

    def second_derivatives(self, positions: Tensor, table: Tensor, grad_jacobian: Tensor) -> Tensor:
        """Gradient of the positions [M, D] from that of the Jacobian [L, M, D, F]."""
        grad = torch.empty_like(positions)
        self._run(
            "grid_second_derivatives",
            table.dtype,
            positions=positions,
            table=table,
            grad_jacobian=grad_jacobian,
            grad_positions=grad,
        )
        return grad

    def contract(self, jacobian: Tensor, grad_values: Tensor, dtype: torch.dtype) -> Tensor:
        """[M, D] sum over levels and features of the Jacobian [L, M, D, F] times grad_values [M, L*F]."""
        result = torch.empty(len(grad_values), self.layout.input_dim, dtype=dtype, device=jacobian.device)
        self._run(
            "grid_contract",
            jacobian.dtype,
            grad_values=grad_values,
            known_jacobian=jacobian,
            grad_positions=result,
        )
        return result

    def contract_backward(self, jacobian: Tensor, grad_values: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of both arguments of :meth:`contract` from that of its result [M, D]."""
        grad_of_jacobian, grad_of_values = torch.empty_like(jacobian), torch.empty_like(grad_values)
        self._run(
            "grid_contract_backward",
            jacobian.dtype,
            grad_values=grad_values,
            known_jacobian=jacobian,
            grad_contraction=grad,
            jacobian=grad_of_jacobian,
            values=grad_of_values,
        )
        return grad_of_jacobian, grad_of_values

    def total_variation(self, points: Tensor, table: Tensor) -> Tensor:
        """Variation summed over points and active levels, a float64 scalar."""
        sums = torch.empty(self.layout.num_levels, dtype=torch.float64, device=table.device)
        self._run("grid_total_variation", table.dtype, positions=points, table=table, sums=sums)
        return sums.sum()

    def total_variation_backward(self, points: Tensor, table: Tensor) -> Tensor:
        """Gradient [E, F] of :meth:`total_variation`."""
        grad_table = self._new_table(points, table.dtype)
        self._run("grid_total_variation_backward", table.dtype, positions=points, table=table, grad_table=grad_table)
        return grad_table.to(table.dtype)

    def _new_table(self, positions: Tensor, dtype: torch.dtype) -> Tensor:
        """An uninitialised gradient of the table."""
        wide = torch.float32 if dtype == torch.float16 else dtype
        return torch.empty(self.layout.rows, self.layout.level_dim, dtype=wide, device=positions.device)

    def _run(self, name: str, table_dtype: torch.dtype, **tensors: Tensor | None) -> None:
        """Fill the parameter struct and call the kernel."""
        layout = self.layout
        tensors = {k: aligned(v) if k in _READ and v is not None else v for k, v in tensors.items()}
        points = tensors["positions"] if "positions" in tensors else tensors["grad_values"]
        assert points is not None, "every kernel is given positions or the gradient of the values"
        self.kernels.run(
            name,
            points,
            _Params,
            table_dtype.itemsize,
            **tensors,
            bound=self.bound,
            num_points=len(points),
            dims=layout.input_dim,
            features=layout.level_dim,
            levels=layout.num_levels,
            active=self.active,
            hashed=layout.gridtype == "hash",
            smooth=layout.interpolation == "smoothstep",
            align_corners=layout.align_corners,
            first=(ctypes.c_int64 * (MAX_LEVELS + 1))(*layout.first),
            resolution=(ctypes.c_int64 * MAX_LEVELS)(*layout.resolutions),
        )
