"""The kernels of the grid encoder in Taichi: the formulas of gridencoder/src/grid_math.h, and the loops over them.

Levels are the outer loop, so that one level's rows stay in the cache while all points visit it. On a CPU a level's rows
of the gradient belong to one task, so nothing is atomic and any number of threads gives the same bits; on a GPU the rows
are added to atomically.

Letters: M points, D dimensions, L levels, F features a level, E rows of the table. A vector of a row is W = min(F, 2) features.
"""

import functools

import torch
from torch import Tensor

from taichi_modules.rays import Fields, is_nan
from taichi_modules.runtime import Array, Int, Real, Static, launch, ti

_PRIMES = (1, 2654435761, 805459861, 3674653429)  # of the hash (Teschner et al. 2003, as extended by instant-ngp)
_WORDS = 10  # int32 numbers that describe a level, in the order of :func:`_levels`
_TASK = 1 << 12  # points of one task on a CPU
_VARIATION_EPSILON = 1e-9  # kVariationEpsilon of grid_math.h: under the root, so that its gradient is finite


@ti.func
def enter_box(x: Static, m, bound, D: Static, dtype: Static):
    """The point in the unit box [D], and 1 if it is inside, 0 outside, -1 where it is not a number."""
    u = ti.Vector.zero(dtype, D)
    within, number = 1, 1
    for d in ti.static(range(D)):
        fraction = (x[m * D + d] + bound) / (ti.cast(2.0, dtype) * bound)
        here = 1 if fraction >= 0.0 and fraction <= 1.0 else 0
        u[d] = fraction if here == 1 else ti.cast(0.0, dtype)
        within &= here
        number &= 0 if is_nan(fraction) else 1
    return u, within if number == 1 else -1


@ti.func
def level_of(meta: Static, level, D: Static, dtype: Static):
    """What a level is like: where its rows begin, its cells, its interpolation and how corners become rows."""
    at = level * _WORDS
    resolution, cells = meta[at + 1], ti.cast(meta[at + 2], dtype)
    last = ti.cast(resolution - 1, dtype)
    # The weight is a w + b w^2 + c w^3: the identity for linear interpolation, 3 w^2 - 2 w^3 for smoothstep.
    smooth = ti.cast(meta[at + 3], dtype)
    steps = ti.Vector.zero(ti.u32, D)
    for d in ti.static(range(D)):
        steps[d] = ti.cast(meta[at + 6 + d], ti.u32)
    return ti.Struct(
        base=meta[at],
        highest=resolution - 2,
        cells=cells,
        last=last,
        shift=0.5 * (cells - last),  # half a cell, unless the outer corners lie on the faces
        a=1.0 - smooth,
        b=3.0 * smooth,
        c=-2.0 * smooth,
        mask=ti.cast(meta[at + 4], ti.u32),
        added=meta[at + 5],
        steps=steps,
    )


@ti.func
def place(u, level, D: Static, dtype: Static):
    """Where a point of the unit box lies in a level.

    Returns:
        Lower corner [D] int32, weight of the upper corners [D], and its first and second derivative by u [D].
    """
    cell = ti.Vector.zero(ti.i32, D)
    weight, slope, curve = ti.Vector.zero(dtype, D), ti.Vector.zero(dtype, D), ti.Vector.zero(dtype, D)
    for d in ti.static(range(D)):
        raw = u[d] * level.cells - level.shift
        gain = ti.select(raw < 0.0 or raw > level.last, ti.cast(0.0, dtype), level.cells)
        position = ti.min(ti.max(raw, ti.cast(0.0, dtype)), level.last)
        cell[d] = ti.min(ti.cast(position, ti.i32), level.highest)
        w = position - ti.cast(cell[d], dtype)
        weight[d] = w * (level.a + w * (level.b + w * level.c))
        slope[d] = gain * (level.a + w * (2.0 * level.b + w * 3.0 * level.c))
        curve[d] = gain * gain * (2.0 * level.b + w * 6.0 * level.c)
    return cell, weight, slope, curve


@ti.func
def rows_of(cell, level, D: Static):
    """Row [2^D] int32 in the whole table of each corner; bit d of its number: upper end of axis d."""
    row = ti.Vector.zero(ti.i32, ti.static(1 << D))
    lower = ti.Vector.zero(ti.u32, D)
    for d in ti.static(range(D)):
        lower[d] = ti.cast(cell[d], ti.u32) * level.steps[d]
    upper = lower + level.steps
    if level.added == 1:
        for c in ti.static(range(1 << D)):
            total = upper[0] if ti.static(c & 1) else lower[0]
            for d in ti.static(range(1, D)):
                total += upper[d] if ti.static(c >> d & 1) else lower[d]
            row[c] = level.base + ti.cast(total & level.mask, ti.i32)
    else:
        for c in ti.static(range(1 << D)):
            mixed = upper[0] if ti.static(c & 1) else lower[0]
            for d in ti.static(range(1, D)):
                mixed ^= upper[d] if ti.static(c >> d & 1) else lower[d]
            row[c] = level.base + ti.cast(mixed & level.mask, ti.i32)
    return row


@ti.kernel
def _encode(
    x: Array, table: Array, meta: Array, values: Array, jacobian: Array,
    count: Int, levels: Int, active: Int, task: Int, bound64: Real,
    D: Static, F: Static, W: Static, derivatives: Static, dtype: Static,
):  # fmt: skip
    """values [M, L*F] of the active levels, and with ``derivatives`` jacobian [L, M, D, F]."""
    tasks = (count + task - 1) // task
    for i in range(tasks * active):
        bound = ti.cast(bound64, dtype)
        per_unit = ti.cast(0.5, dtype) / bound
        index, begin = i // tasks, i % tasks * task
        level = level_of(meta, index, D, dtype)
        for m in range(begin, ti.min(begin + task, count)):
            u, inside = enter_box(x, m, bound, D, dtype)
            to_value, to_jacobian = (m * levels + index) * F, (index * count + m) * D * F
            if inside == 1:
                cell, weight, slope, _ = place(u, level, D, dtype)
                row = rows_of(cell, level, D)
                for group in range(F // W):
                    for f in ti.static(range(W)):
                        feature = group * W + f
                        at, along = ti.Vector.zero(dtype, ti.static(1 << D)), ti.Matrix.zero(dtype, D, ti.static(1 << D))
                        for c in ti.static(range(1 << D)):
                            at[c] = ti.cast(table[row[c] * F + feature], dtype)
                        for d in ti.static(range(D)):  # interpolated axis by axis, in place
                            for c in ti.static(range(1 << (D - 1 - d))):
                                difference = at[2 * c + 1] - at[2 * c]
                                at[c] = at[2 * c] + difference * weight[d]
                                if ti.static(derivatives):
                                    for e in ti.static(range(d)):
                                        low = along[e, 2 * c]
                                        along[e, c] = low + (along[e, 2 * c + 1] - low) * weight[d]
                                    along[d, c] = difference * (slope[d] * per_unit)
                        values[to_value + feature] = at[0]
                        if ti.static(derivatives):
                            for d in ti.static(range(D)):
                                jacobian[to_jacobian + d * F + feature] = along[d, 0]
            else:
                empty = ti.cast(0.0, dtype)
                if inside < 0:
                    empty = ti.cast(ti.math.nan, dtype)
                for f in range(F):
                    values[to_value + f] = empty
                if ti.static(derivatives):
                    for k in range(D * F):
                        jacobian[to_jacobian + k] = empty


@ti.func
def add_to(array: Static, index, value, owned: Static):
    """Add to an element that is this task's own, or to one that several tasks add to."""
    if ti.static(owned):
        array[index] = array[index] + value
    else:
        ti.atomic_add(array[index], value)


@ti.kernel
def _scatter(
    x: Array, meta: Array, grad_values: Array, grad_jacobian: Array, grad_table: Array,
    count: Int, levels: Int, active: Int, task: Int, bound64: Real,
    D: Static, F: Static, W: Static, valued: Static, derivatives: Static, owned: Static,
    dtype: Static,
):  # fmt: skip
    """grad_table [E, F], which is zero before, from those of values and jacobian: the transpose of :func:`_encode`."""
    bound = ti.cast(bound64, dtype)
    per_unit = ti.cast(0.5, dtype) / bound
    tasks = (count + task - 1) // task
    for i in range(tasks * active):
        index, begin = i // tasks, i % tasks * task
        level = level_of(meta, index, D, dtype)
        for m in range(begin, ti.min(begin + task, count)):
            u, inside = enter_box(x, m, bound, D, dtype)
            if inside == 1:
                cell, weight, slope, _ = place(u, level, D, dtype)
                row = rows_of(cell, level, D)
                for group in range(F // W):
                    for f in ti.static(range(W)):
                        feature = group * W + f
                        at, along = ti.Vector.zero(dtype, ti.static(1 << D)), ti.Matrix.zero(dtype, D, ti.static(1 << D))
                        if ti.static(valued):
                            at[0] = ti.cast(grad_values[(m * levels + index) * F + feature], dtype)
                        if ti.static(derivatives):
                            for d in ti.static(range(D)):
                                along[d, 0] = ti.cast(grad_jacobian[((index * count + m) * D + d) * F + feature], dtype)
                        for k in ti.static(range(D)):  # handed on axis by axis, in place, the last axis first
                            d = ti.static(D - 1 - k)
                            for j in ti.static(range(1 << k)):
                                c = ti.static((1 << k) - 1 - j)
                                upper = at[c] * weight[d]
                                if ti.static(derivatives):
                                    upper += along[d, c] * (slope[d] * per_unit)
                                    for e in ti.static(range(d)):
                                        above = along[e, c] * weight[d]
                                        along[e, 2 * c + 1] = above
                                        along[e, 2 * c] = along[e, c] - above
                                at[2 * c + 1] = upper
                                at[2 * c] = at[c] - upper
                        for c in ti.static(range(1 << D)):
                            add_to(grad_table, row[c] * F + feature, at[c], owned)


@ti.kernel
def _contract(
    jacobian: Array, grad_values: Array, result: Array, count: Int, levels: Int, D: Static, F: Static, dtype: Static
):  # fmt: skip
    """result [M, D]: jacobian [L, M, D, F] times grad_values [M, L*F]."""
    for m in range(count):
        total = ti.Vector.zero(dtype, D)
        for level in range(levels):
            for d in ti.static(range(D)):
                for f in ti.static(range(F)):
                    at = ((level * count + m) * D + d) * F + f
                    total[d] += ti.cast(jacobian[at], dtype) * ti.cast(grad_values[(m * levels + level) * F + f], dtype)
        for d in ti.static(range(D)):
            result[m * D + d] = total[d]


@ti.kernel
def _contract_backward(
    jacobian: Array, grad_values: Array, grad: Array, to_jacobian: Array, to_values: Array,
    count: Int, levels: Int, D: Static, F: Static, dtype: Static,
):  # fmt: skip
    """Gradients of both arguments of :func:`_contract` from that of its result."""
    for m in range(count):
        for level in range(levels):
            for f in ti.static(range(F)):
                total, column = ti.cast(0.0, dtype), (m * levels + level) * F + f
                g = ti.cast(grad_values[column], dtype)
                for d in ti.static(range(D)):
                    at, v = ((level * count + m) * D + d) * F + f, ti.cast(grad[m * D + d], dtype)
                    total += v * ti.cast(jacobian[at], dtype)
                    to_jacobian[at] = v * g
                to_values[column] = total


@ti.kernel
def _second_derivatives(
    x: Array, table: Array, meta: Array, grad_jacobian: Array, result: Array,
    count: Int, active: Int, bound64: Real, D: Static, F: Static, dtype: Static,
):  # fmt: skip
    """result [M, D]: the gradient of the positions from that of the Jacobian [L, M, D, F]."""
    bound = ti.cast(bound64, dtype)
    for m in range(count):
        total = ti.Vector.zero(dtype, D)
        u, inside = enter_box(x, m, bound, D, dtype)
        if inside == 1:
            for index in range(active):
                level = level_of(meta, index, D, dtype)
                cell, weight, slope, curve = place(u, level, D, dtype)
                row = rows_of(cell, level, D)
                for c in range(1 << D):
                    sides = ti.Vector.zero(dtype, D)
                    slopes, curves = slope, curve
                    for axis in ti.static(range(D)):
                        upper = (c >> axis) & 1
                        sides[axis] = weight[axis] if upper == 1 else 1.0 - weight[axis]
                        if upper == 0:
                            slopes[axis], curves[axis] = -slope[axis], -curve[axis]
                    for d in ti.static(range(D)):
                        along = ti.cast(0.0, dtype)
                        for f in range(F):
                            g = ti.cast(grad_jacobian[((index * count + m) * D + d) * F + f], dtype)
                            along += ti.cast(table[row[c] * F + f], dtype) * g
                        for e in ti.static(range(D)):
                            factor = along / (4.0 * bound * bound)
                            for axis in ti.static(range(D)):
                                if ti.static(axis == d and axis == e):
                                    factor *= curves[axis]
                                elif ti.static(axis == d or axis == e):
                                    factor *= slopes[axis]
                                else:
                                    factor *= sides[axis]
                            total[e] += factor
        for d in ti.static(range(D)):
            result[m * D + d] = total[d]


@ti.kernel
def _variation(
    x: Array, table: Array, meta: Array, sums: Array, grad_table: Array,
    count: Int, active: Int, task: Int, bound64: Real, epsilon64: Real,
    D: Static, F: Static, backward: Static, owned: Static, dtype: Static,
):  # fmt: skip
    """Total variation of the points' cells, added to sums [L]; or its gradient, added to grad_table [E, F]."""
    bound, epsilon = ti.cast(bound64, dtype), ti.cast(epsilon64, dtype)
    tasks = (count + task - 1) // task
    for i in range(tasks * active):
        index, begin = i // tasks, i % tasks * task
        level = level_of(meta, index, D, dtype)
        for m in range(begin, ti.min(begin + task, count)):
            u, inside = enter_box(x, m, bound, D, dtype)
            if inside == 1:
                cell, _, _, _ = place(u, level, D, dtype)
                row = rows_of(cell, level, D)
                total = epsilon
                for d in ti.static(range(D)):
                    for f in range(F):
                        step = ti.cast(table[row[1 << d] * F + f], dtype) - ti.cast(table[row[0] * F + f], dtype)
                        total += step * step
                root = ti.sqrt(total)
                if ti.static(backward):
                    for d in ti.static(range(D)):
                        for f in range(F):
                            step = ti.cast(table[row[1 << d] * F + f], dtype) - ti.cast(table[row[0] * F + f], dtype)
                            add_to(grad_table, row[1 << d] * F + f, step / root, owned)
                            add_to(grad_table, row[0] * F + f, -step / root, owned)
                else:
                    add_to(sums, index, ti.cast(root - ti.sqrt(epsilon), ti.f64), owned)


# ---- The launches; p holds the fields of GridParams ----


@functools.lru_cache(maxsize=64)
def _levels(
    first: tuple[int, ...], resolution: tuple[int, ...], dims: int, hashed: bool, smooth: bool, align: bool, on: torch.device
) -> Tensor:  # fmt: skip
    """What the kernels know of each level, int32 [L * 10]; Scale and indexing_of of grid_math.h have the same."""
    numbers = []
    for begin, end, cells in zip(first, first[1:], resolution, strict=False):
        fits = cells**dims <= end - begin
        added = fits or not hashed
        steps = [(cells**d if added else _PRIMES[d]) if d < dims else 0 for d in range(4)]
        # First row, corners and cells along an edge, interpolation, mask of a row, how axes are combined, their steps.
        numbers += [begin, cells, cells - int(align), int(smooth), 2**32 - 1 if fits else end - begin - 1, int(added), *steps]
    signed = [(n + 2**31) % 2**32 - 2**31 for n in numbers]
    return torch.tensor(signed, dtype=torch.int32, device=on)


class _Call:
    """The fields of GridParams as the kernels take them."""

    def __init__(self, like: Tensor, p: Fields) -> None:
        self.dims, self.features, self.count = int(p["dims"]), int(p["features"]), int(p["num_points"])
        self.levels, self.active, self.bound = int(p["levels"]), int(p["active"]), float(p["bound"])
        first, resolution = tuple(p["first"][: self.levels + 1]), tuple(p["resolution"][: self.levels])
        kind = (bool(p["hashed"]), bool(p["smooth"]), bool(p["align_corners"]))
        self.meta = _levels(first, resolution, self.dims, *kind, like.device)
        self.dtype = torch.float32 if like.dtype == torch.float16 else like.dtype
        self.owned = like.device.type == "cpu"
        # One task a level where a task owns what it writes; on a GPU a point is a task.
        self.own_task = max(self.count, 1) if self.owned else 1
        self.task = _TASK if self.owned else 1
        self.width = min(self.features, 2)


def grid_encode(like: Tensor, p: Fields) -> None:
    """GridParams: values [M, L*F], and the Jacobian [L, M, D, F] where there is room for it."""
    c, jacobian = _Call(like, p), p["jacobian"]
    if c.active < c.levels:
        p["values"].zero_()
        if jacobian is not None:
            jacobian[c.active :].zero_()
    launch(
        _encode, like, p["positions"], p["table"], c.meta, p["values"], jacobian, c.count, c.levels, c.active, c.task,
        c.bound, c.dims, c.features, c.width, jacobian is not None, c.dtype,
    )  # fmt: skip


def grid_encode_backward(like: Tensor, p: Fields) -> None:
    """GridParams: grad_table [E, F] from the gradients of values and Jacobian."""
    c, values, jacobian = _Call(like, p), p["grad_values"], p["grad_jacobian"]
    p["grad_table"].zero_()
    launch(
        _scatter, like, p["positions"], c.meta, values, jacobian, p["grad_table"], c.count, c.levels, c.active, c.own_task,
        c.bound, c.dims, c.features, c.width, values is not None, jacobian is not None, c.owned, c.dtype,
    )  # fmt: skip


def grid_contract(like: Tensor, p: Fields) -> None:
    """GridParams: grad_positions [M, D], the Jacobian times a gradient of the values."""
    c = _Call(like, p)
    arrays = (p["known_jacobian"], p["grad_values"], p["grad_positions"])
    launch(_contract, like, *arrays, c.count, c.levels, c.dims, c.features, c.dtype)


def grid_contract_backward(like: Tensor, p: Fields) -> None:
    """GridParams: gradients of the Jacobian and of the values from that of their contraction."""
    c = _Call(like, p)
    arrays = (p["known_jacobian"], p["grad_values"], p["grad_contraction"], p["jacobian"], p["values"])
    launch(_contract_backward, like, *arrays, c.count, c.levels, c.dims, c.features, c.dtype)


def grid_second_derivatives(like: Tensor, p: Fields) -> None:
    """GridParams: grad_positions [M, D] from the gradient of the Jacobian."""
    c = _Call(like, p)
    launch(
        _second_derivatives, like, p["positions"], p["table"], c.meta, p["grad_jacobian"], p["grad_positions"], c.count,
        c.active, c.bound, c.dims, c.features, c.dtype,
    )  # fmt: skip


def _total_variation(like: Tensor, p: Fields, backward: bool) -> None:
    c, written = _Call(like, p), p["grad_table" if backward else "sums"].zero_()
    sums, grad_table = (None, written) if backward else (written, None)
    launch(
        _variation, like, p["positions"], p["table"], c.meta, sums, grad_table, c.count, c.active, c.own_task, c.bound,
        _VARIATION_EPSILON, c.dims, c.features, backward, c.owned, c.dtype,
    )  # fmt: skip


def grid_total_variation(like: Tensor, p: Fields) -> None:
    """GridParams: the variation of each level, summed over the points, float64 [L]."""
    _total_variation(like, p, backward=False)


def grid_total_variation_backward(like: Tensor, p: Fields) -> None:
    """GridParams: its gradient, grad_table [E, F]."""
    _total_variation(like, p, backward=True)
