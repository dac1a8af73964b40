"""Sampling rays in the occupied cells of a bit field in Taichi: the formulas of raymarching/src/march_math.h.

A 64-bit word of the bit field, 4^3 cells, is read as two 32-bit ones, which every architecture has.

Letters: N rays, M samples, C cascades, H cells along an axis.
"""

import math

import torch
from torch import Tensor

from taichi_modules.rays import Fields, gather_bits, is_finite, is_nan, load3, morton_code
from taichi_modules.runtime import Array, Int, Static, launch, ti

_RUNS = 8  # kRuns of march_math.h: runs that the counting pass records per ray
_MARGIN = 0.01  # kMargin: cells by which the occupied extent is enlarged
_HUGE_INVERSE = 1e30  # kHugeInverse of a direction that is 0


@ti.func
def scene_of(reals: Static, dtype: Static):
    """The scene: half the box, the growth of the steps, their shortest and longest, and stepping space."""
    return ti.Struct(
        bound=ti.cast(reals[0], dtype),
        gamma=ti.cast(reals[1], dtype),
        dt_min=ti.cast(reals[2], dtype),
        dt_max=ti.cast(reals[3], dtype),
        per_dt_min=ti.cast(reals[4], dtype),
        t_grow=ti.cast(reals[5], dtype),
        t_cap=ti.cast(reals[6], dtype),
        log_growth=ti.cast(reals[7], dtype),
        s_cap=ti.cast(reals[8], dtype),
    )


# ---- The lattice of steps; ``start`` is t of step 0, or its place in stepping space where steps grow ----


@ti.func
def to_steps(scene, t):
    """Place in stepping space of a distance."""
    s = (t - scene.t_grow) * scene.per_dt_min
    if t >= scene.t_cap:
        s = scene.s_cap + (t - scene.t_cap) / scene.dt_max
    elif t >= scene.t_grow:
        s = ti.log(t / scene.t_grow) / scene.log_growth
    return s


@ti.func
def from_steps(scene, s):
    """Distance of a place in stepping space."""
    t = scene.t_grow + s * scene.dt_min
    if s >= scene.s_cap:
        t = scene.t_cap + (s - scene.s_cap) * scene.dt_max
    elif s >= 0.0:
        t = scene.t_grow * ti.exp(s * scene.log_growth)
    return t


@ti.func
def step_of(scene, start, k, dtype: Static):
    """Middle and length of step k."""
    at = ti.cast(k, dtype)
    t, dt = start + (at + 0.5) * scene.dt_min, scene.dt_min
    if scene.gamma > 0.0:
        begin, end = from_steps(scene, start + at), from_steps(scene, start + at + 1.0)
        t, dt = 0.5 * (begin + end), end - begin
    return t, dt


@ti.func
def first_from(scene, start, k, t, dtype: Static):
    """The first step, not before k, whose middle is not before t."""
    result = k
    if scene.gamma == 0.0:
        place = (t - start) * scene.per_dt_min - 0.5
        whole = ti.cast(place, ti.i64)
        whole += ti.select(ti.cast(whole, dtype) < place, 1, 0)
        result = ti.max(k, whole)
    else:
        place = to_steps(scene, t) - start
        whole = ti.cast(place, ti.i64)
        whole -= ti.select(ti.cast(whole, dtype) > place, 1, 0)
        result = ti.max(k, whole - 1)
        while step_of(scene, start, result, dtype)[0] < t:
            result += 1
    return result


# ---- One ray ----


@ti.func
def ray_of(
    origins: Static, directions: Static, near: Static, far: Static, noise: Static, extent: Static, index, scene, grid_size,
    cascades, noisy: Static, dtype: Static,
):  # fmt: skip
    """A ray, and the part of it that lies between near and far, inside the box and where anything is occupied."""
    o, d = load3(origins, index), load3(directions, index)
    begin, end = near[index], far[index]
    shift = ti.cast(0.5, dtype)
    if ti.static(noisy):
        shift = noise[index]
    finite = is_finite(o.dot(o) + d.dot(d) + shift) and begin > -ti.math.inf and not is_nan(end)
    inverse = ti.Vector.zero(dtype, 3)
    for axis in ti.static(range(3)):
        low, high = scene.bound, -scene.bound
        for level in range(cascades):
            half = ti.min(ti.cast(1 << level, dtype), scene.bound)
            cell = 2.0 * half / ti.cast(grid_size, dtype)
            low = ti.min(low, (ti.cast(4 * extent[6 * level + axis], dtype) - _MARGIN) * cell - half)
            high = ti.max(high, (ti.cast(4 * extent[6 * level + 3 + axis], dtype) + (4 + _MARGIN)) * cell - half)
        low, high = ti.max(low, -scene.bound), ti.min(high, scene.bound)
        if not low < high:
            end = -ti.math.inf
        if d[axis] == 0.0:
            inverse[axis] = _HUGE_INVERSE
            if not (o[axis] >= low and o[axis] <= high):
                end = -ti.math.inf
        else:
            inverse[axis] = 1.0 / d[axis]
            a, b = (low - o[axis]) * inverse[axis], (high - o[axis]) * inverse[axis]
            begin, end = ti.max(begin, ti.min(a, b)), ti.min(end, ti.max(a, b))
    start = near[index] + (shift - 0.5) * scene.dt_min
    if scene.gamma > 0.0:
        start = to_steps(scene, near[index]) + (shift - 0.5)
    return ti.Struct(origin=o, direction=d, inverse=inverse, begin=begin, end=end, start=start, finite=finite)


@ti.func
def cascade_of(scene, grid_size, cascades, level, dtype: Static):
    """The geometry of one cascade; ``coarser``: where along a ray steps become too long for it."""
    size, half = ti.cast(grid_size, dtype), ti.min(ti.cast(1 << level, dtype), scene.bound)
    coarser = ti.cast(ti.math.inf, dtype)
    if scene.gamma > 0.0 and level < cascades - 1:
        coarser = ti.cast(2 << level, dtype) / (size * scene.gamma)
    return ti.Struct(level=level, half=half, cell_size=2.0 * half / size, per_unit=size / (2.0 * half), coarser=coarser)


@ti.func
def choose_cascade(scene, grid_size, cascades, position, t, dtype: Static):
    """The level of the cascade for a position, and whether the step's length, and not the position, decides it."""
    reach = ti.max(ti.abs(position[0]), ti.max(ti.abs(position[1]), ti.abs(position[2])))
    length = ti.min(ti.max(t * scene.gamma, scene.dt_min), scene.dt_max)
    step = length * ti.cast(grid_size, dtype) * 0.5
    level, by_step, edge = 0, True, ti.cast(1.0, dtype)
    while level < cascades - 1 and (reach >= edge or step >= edge):
        by_step = step >= edge
        level += 1
        edge *= 2.0
    return level, by_step


@ti.func
def block_of(cells: Static, blocks: Static, grid_size, level, cell):
    """log2 of the side of the largest block of cells that is uniform round a cell, and whether it is occupied."""
    code = ti.cast(morton_code(cell[0], cell[1], cell[2]), ti.i32)
    words = grid_size * grid_size * grid_size // 64
    word = 2 * (level * words + (code >> 6))
    low, high = cells[word], cells[word + 1]
    byte = (ti.select((code & 32) != 0, high, low) >> (code & 24)) & 255
    log2_size = ti.select(byte == 0 or byte == 255, 1, 0)
    log2_size += ti.select((low == 0 and high == 0) or (low == -1 and high == -1), 1, 0)
    block = 2 * (level * ti.max(words // 64, 1) + (code >> 12))
    widest = ti.select(grid_size >= 16, 4, ti.select(grid_size >= 8, 3, 2))
    log2_size += ti.select(blocks[block] == 0 and blocks[block + 1] == 0, widest - 2, 0)
    return log2_size, (byte >> (code & 7)) & 1


@ti.func
def reaches_finer(cascade, cell, log2_size, dtype: Static):
    """Whether a block reaches into the region that the next finer cascade describes."""
    inner, width = 0.5 * ti.cast(1 << cascade.level, dtype), ti.cast(1 << log2_size, dtype) * cascade.cell_size
    reaches = True
    for axis in ti.static(range(3)):
        low = ti.cast((cell[axis] >> log2_size) << log2_size, dtype) * cascade.cell_size - cascade.half
        reaches = reaches and low < inner and low + width > -inner
    return reaches


@ti.func
def next_run(cells: Static, blocks: Static, scene, ray, cascade, grid_size, cascades, k, t, dtype: Static):
    """The run of steps from k on that lies inside one block: the step behind it, whether it is occupied, and its cascade."""
    x = ray.origin + t * ray.direction
    level, by_step = 0, True
    if cascades > 1:
        level, by_step = choose_cascade(scene, grid_size, cascades, x, t, dtype)
        if level != cascade.level:
            cascade = cascade_of(scene, grid_size, cascades, level, dtype)
    cell = ti.Vector.zero(ti.i32, 3)
    for axis in ti.static(range(3)):
        cell[axis] = ti.cast((x[axis] + cascade.half) * cascade.per_unit, ti.i32)
        cell[axis] = ti.min(ti.max(cell[axis], 0), grid_size - 1)
    log2_size, occupied = block_of(cells, blocks, grid_size, level, cell)
    if not by_step:
        while log2_size >= 0 and reaches_finer(cascade, cell, ti.max(log2_size, 0), dtype):
            log2_size -= 1
    end = k + 1
    if log2_size >= 0:
        leave = ray.end
        for axis in ti.static(range(3)):
            side = ((cell[axis] >> log2_size) << log2_size) + (ti.select(ray.direction[axis] >= 0.0, 1, 0) << log2_size)
            face = ti.cast(side, dtype) * cascade.cell_size - cascade.half
            leave = ti.min(leave, (face - ray.origin[axis]) * ray.inverse[axis])
        if cascade.coarser > t:
            leave = ti.min(leave, cascade.coarser)
        end = first_from(scene, ray.start, k + 1, leave, dtype)
    return end, occupied, cascade


@ti.kernel
def _count(
    origins: Array, directions: Array, near: Array, far: Array, noise: Array, alive: Array, cursor: Array, cells: Array,
    blocks: Array, extent: Array, reals: Array, count: Array, runs: Array,
    rays: Int, cascades: Int, grid_size: Int, limit: ti.i64, noisy: Static, queued: Static, dtype: Static,
):  # fmt: skip
    """How many samples each ray has, -1 where it is not finite, and its first runs."""
    for n in range(rays):
        scene = scene_of(reals, dtype)
        index, k = n, ti.cast(0, ti.i64)
        if ti.static(queued):
            index = ti.cast(alive[n], ti.i32)
            k = ti.cast(cursor[index], ti.i64)
        ray = ray_of(
            origins, directions, near, far, noise, extent, index, scene, grid_size, cascades, noisy, dtype
        )  # fmt: skip
        cascade = cascade_of(scene, grid_size, cascades, 0, dtype)
        t, total = ti.cast(ti.math.inf, dtype), ti.cast(0, ti.i64)
        if ray.finite and k >= 0 and ray.begin < ray.end:
            k = first_from(scene, ray.start, k, ray.begin, dtype)
            t = step_of(scene, ray.start, k, dtype)[0]
        used, last = 0, ti.cast(-1, ti.i64)
        while t < ray.end and total != limit:
            end, occupied, cascade_here = next_run(
                cells, blocks, scene, ray, cascade, grid_size, cascades, k, t, dtype
            )  # fmt: skip
            cascade = cascade_here
            if occupied == 1:
                end = ti.min(end, k + limit - total)
                total += end - k
                used += ti.select(last != k, 1, 0)
                if used <= _RUNS:
                    place = 2 * (n * _RUNS + used - 1)
                    if last != k:
                        runs[place] = ti.cast(k, ti.i32)
                    runs[place + 1] = ti.cast(end, ti.i32) - runs[place]
                last = end
            k = end
            t = step_of(scene, ray.start, k, dtype)[0]
        if used < _RUNS:
            runs[2 * (n * _RUNS + used) + 1] = 0
        if used > _RUNS:
            runs[2 * n * _RUNS] = -1
        count[n] = ti.select(ray.finite, total, ti.cast(-1, ti.i64))


@ti.func
def emit(
    positions: Static, ts: Static, dts: Static, ray_index: Static, scene, ray, index, place, k, steps, dtype: Static
):  # fmt: skip
    """Write the samples of a run from ``place`` on."""
    for i in range(steps):
        t, dt = step_of(scene, ray.start, k + i, dtype)
        at = place + i
        ts[at] = t
        dts[at] = dt
        ray_index[at] = index
        for axis in ti.static(range(3)):
            positions[3 * at + axis] = ray.origin[axis] + t * ray.direction[axis]


@ti.kernel
def _write(
    origins: Array, directions: Array, near: Array, far: Array, noise: Array, alive: Array, cursor: Array, cells: Array,
    blocks: Array, extent: Array, reals: Array, count: Array, runs: Array, first: Array, positions: Array, ts: Array,
    dts: Array, ray_index: Array,
    rays: Int, cascades: Int, grid_size: Int, limit: ti.i64, noisy: Static, queued: Static, dtype: Static,
):  # fmt: skip
    """The samples that were counted, and where each ray that is alive goes on."""
    for n in range(rays):
        scene = scene_of(reals, dtype)
        index, k = n, ti.cast(0, ti.i64)
        if ti.static(queued):
            index = ti.cast(alive[n], ti.i32)
            k = ti.cast(cursor[index], ti.i64)
        place = ti.cast(first[n], ti.i32)
        end = place + ti.cast(count[n], ti.i32)
        goes_on = k
        if place < end:
            ray = ray_of(
                origins, directions, near, far, noise, extent, index, scene, grid_size, cascades, noisy, dtype
            )  # fmt: skip
            if runs[2 * n * _RUNS] < 0:
                cascade = cascade_of(scene, grid_size, cascades, 0, dtype)
                k = first_from(scene, ray.start, k, ray.begin, dtype)
                t = step_of(scene, ray.start, k, dtype)[0]
                while place < end and t < ray.end:
                    after, occupied, cascade_here = next_run(
                        cells, blocks, scene, ray, cascade, grid_size, cascades, k, t, dtype
                    )  # fmt: skip
                    cascade = cascade_here
                    if occupied == 1:
                        steps = ti.cast(ti.min(after - k, ti.cast(end - place, ti.i64)), ti.i32)
                        emit(positions, ts, dts, ray_index, scene, ray, index, place, k, steps, dtype)
                        place += steps
                        after = k + steps
                        goes_on = after
                    k = after
                    t = step_of(scene, ray.start, k, dtype)[0]
            else:
                r = 0
                while r < _RUNS and place < end and runs[2 * (n * _RUNS + r) + 1] > 0:
                    k = ti.cast(runs[2 * (n * _RUNS + r)], ti.i64)
                    steps = ti.min(runs[2 * (n * _RUNS + r) + 1], end - place)
                    emit(positions, ts, dts, ray_index, scene, ray, index, place, k, steps, dtype)
                    place += steps
                    goes_on = k + steps
                    r += 1
            while place < end:  # two compilations of the passes may differ by a step: one without length
                ts[place] = ti.cast(0.0, dtype)
                dts[place] = ti.cast(0.0, dtype)
                ray_index[place] = index
                for axis in ti.static(range(3)):
                    positions[3 * place + axis] = ray.origin[axis]
                place += 1
        if ti.static(queued):
            cursor[index] = ti.select(count[n] < limit, ti.cast(-1, ti.i64), goes_on)


@ti.kernel
def _coarsen(cells: Array, blocks: Array, extent: Array, words: Int, under: Int, of_cascade: Int):
    """One bit for each word of the bit field, and the extent of the occupied ones in each cascade."""
    for w in range(words):
        corner, base = w % of_cascade * 64, 6 * (w // of_cascade)
        lowest, highest = ti.Vector([1 << 20, 1 << 20, 1 << 20]), ti.Vector([-1, -1, -1])
        for part in ti.static(range(2)):
            bits = 0
            for i in range(32):
                word = part * 32 + i
                if word < under and (cells[2 * (w * under + word)] | cells[2 * (w * under + word) + 1]) != 0:
                    bits |= 1 << i
                    for axis in ti.static(range(3)):
                        at = ti.cast(gather_bits((corner + word) >> axis), ti.i32)
                        lowest[axis], highest[axis] = ti.min(lowest[axis], at), ti.max(highest[axis], at)
            blocks[2 * w + part] = bits
        if highest[0] >= 0:
            for axis in ti.static(range(3)):
                ti.atomic_min(extent[base + axis], lowest[axis])
                ti.atomic_max(extent[base + 3 + axis], highest[axis])


def march_coarsen(like: Tensor, p: Fields) -> None:
    """MarchParams: the coarse bit field and the extent of the occupied cells."""
    words, per_cascade = p["num_rays"], p["grid_size"] ** 3 // 64
    arrays = (p["cells"].view(torch.int32), p["blocks"].view(torch.int32), p["extent"])
    launch(_coarsen, like, *arrays, words, min(per_cascade, 64), max(per_cascade // 64, 1))


def _scene(p: Fields, like: Tensor) -> Tensor:
    """The numbers of :func:`scene_of`, float64 [9], on the device of ``like``."""
    bound, gamma, dt_min, dt_max = (p[name] for name in ("bound", "dt_gamma", "dt_min", "dt_max"))
    growth = [0.0, 0.0, 0.0, 0.0]
    if gamma > 0:
        log_growth = math.log1p(gamma)
        growth = [dt_min / gamma, dt_max / gamma, log_growth, math.log(dt_max / dt_min) / log_growth]
    return torch.tensor([bound, gamma, dt_min, dt_max, 1 / dt_min, *growth], dtype=torch.float64, device=like.device)


def _march(kernel, like: Tensor, p: Fields, *more: Tensor) -> None:
    """Launch a pass of the march with what both are given."""
    queued, noise = p.get("alive") is not None, p.get("noise")
    rays = (p["origins"], p["directions"], p["near"], p["far"], noise, p.get("alive"), p.get("cursor"))
    grid = (p["cells"].view(torch.int32), p["blocks"].view(torch.int32), p["extent"], _scene(p, like))
    sizes = (p["num_rays"], p["cascades"], p["grid_size"], p["limit"])
    launch(kernel, like, *rays, *grid, p["count"], p["runs"], *more, *sizes, noise is not None, queued, like.dtype)


def march_count(like: Tensor, p: Fields) -> None:
    """MarchParams: the number of samples of each ray, and its first runs."""
    _march(_count, like, p)


def march_write(like: Tensor, p: Fields) -> None:
    """MarchParams: the samples that were counted."""
    _march(_write, like, p, *(p[name] for name in ("first", "positions", "t", "dt", "ray_index")))
