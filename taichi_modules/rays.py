"""Rays against a box and a sphere, Morton codes and bit fields in Taichi: the formulas of raymarching/src/rays_math.h.

Letters: N rays, H cells along an axis.
"""

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from taichi_modules.runtime import Array, Int, Real, Static, launch, ti

Fields = Mapping[str, Any]  # the fields of a kernel's parameter struct


@ti.func
def spread_bits(value):
    """The lowest ten bits of a number, two zeros between each and the next."""
    v = ti.cast(value, ti.u32)
    v = (v | (v << 16)) & ti.u32(0x030000FF)
    v = (v | (v << 8)) & ti.u32(0x0300F00F)
    v = (v | (v << 4)) & ti.u32(0x030C30C3)
    return (v | (v << 2)) & ti.u32(0x09249249)


@ti.func
def gather_bits(value):
    """Every third bit of a number, the inverse of :func:`spread_bits`."""
    v = ti.cast(value, ti.u32) & ti.u32(0x09249249)
    v = (v | (v >> 2)) & ti.u32(0x030C30C3)
    v = (v | (v >> 4)) & ti.u32(0x0300F00F)
    v = (v | (v >> 8)) & ti.u32(0x030000FF)
    return (v | (v >> 16)) & ti.u32(0x000003FF)


@ti.func
def morton_code(x, y, z):
    """The bits of x, y and z interleaved, x lowest; uint32."""
    return spread_bits(x) | (spread_bits(y) << 1) | (spread_bits(z) << 2)


@ti.func
def load3(array: Static, n):
    """Element n of an array [N, 3] as a vector."""
    return ti.Vector([array[3 * n], array[3 * n + 1], array[3 * n + 2]])


# Taichi folds ``x != x`` to false, so these compare with infinity.


@ti.func
def is_nan(x):
    """Whether a number is not one."""
    return not x <= ti.math.inf


@ti.func
def is_finite(x):
    """Whether a number is neither infinite nor NaN."""
    return ti.abs(x) < ti.math.inf


@ti.kernel
def _near_far(
    origins: Array, directions: Array, aabb: Array, near: Array, far: Array, rays: Int, min_near: Real, dtype: Static
):  # fmt: skip
    infinity = ti.cast(ti.math.inf, dtype)
    for n in range(rays):
        o, d = load3(origins, n), load3(directions, n)
        enter, leave = ti.cast(min_near, dtype), infinity
        for axis in ti.static(range(3)):
            low, high = aabb[axis], aabb[3 + axis]
            if d[axis] == 0.0:
                if o[axis] < low or o[axis] > high:
                    leave = -infinity
            else:
                inverse = ti.cast(1.0, dtype) / d[axis]
                a, b = (low - o[axis]) * inverse, (high - o[axis]) * inverse
                enter = ti.select(enter > ti.select(a < b, a, b), enter, ti.select(a < b, a, b))
                leave = ti.select(leave < ti.select(a > b, a, b), leave, ti.select(a > b, a, b))
        if not enter < leave:
            enter = infinity
            leave = infinity
        if not is_finite(o.dot(o) + d.dot(d)):
            enter = infinity - infinity
            leave = enter
        near[n] = enter
        far[n] = leave


@ti.kernel
def _sphere(origins: Array, directions: Array, coords: Array, rays: Int, radius: Real, per_pi: Real, dtype: Static):
    r, scale = ti.cast(radius, dtype), ti.cast(per_pi, dtype)
    for n in range(rays):
        o, d = load3(origins, n), load3(directions, n)
        a, b, c = d.dot(d), o.dot(d), o.dot(o) - r * r
        x = o + ((ti.sqrt(b * b - a * c) - b) / a) * d  # the far hit
        coords[2 * n] = 2.0 * ti.atan2(ti.sqrt(x[0] * x[0] + x[2] * x[2]), x[1]) * scale - 1.0
        coords[2 * n + 1] = ti.atan2(x[2], x[0]) * scale


@ti.kernel
def _encode(coords: Array, codes: Array, count: Int):
    for n in range(count):
        codes[n] = ti.cast(morton_code(coords[3 * n], coords[3 * n + 1], coords[3 * n + 2]), ti.i32)


@ti.kernel
def _decode(codes: Array, coords: Array, count: Int):
    for n in range(count):
        code = ti.cast(codes[n], ti.u32)
        for axis in ti.static(range(3)):
            coords[3 * n + axis] = ti.cast(gather_bits(code >> axis), ti.i32)


@ti.kernel
def _pack(grid: Array, bitfield: Array, bytes: Int, threshold64: Real, dtype: Static):
    threshold = ti.cast(threshold64, dtype)
    for n in range(bytes):
        bits = 0
        for i in ti.static(range(8)):
            bits |= ti.select(grid[8 * n + i] <= threshold, 0, 1 << i)  # NaN counts as above
        bitfield[n] = ti.cast(bits, ti.u8)


def near_far_from_aabb(like: Tensor, p: Fields) -> None:
    """NearFarParams: near and far [N] of rays and a box."""
    arrays = (p["origins"], p["directions"], p["aabb"], p["near"], p["far"])
    launch(_near_far, like, *arrays, p["num_rays"], p["min_near"], like.dtype)


def sph_from_ray(like: Tensor, p: Fields) -> None:
    """SphereParams: coords [N, 2] of rays and a sphere."""
    launch(
        _sphere, like, p["origins"], p["directions"], p["coords"], p["num_rays"], p["radius"], 1 / math.pi, like.dtype
    )  # fmt: skip


def morton_encode(like: Tensor, p: Fields) -> None:
    """MortonParams: codes [N] from coords [N, 3]."""
    launch(_encode, like, p["coords"], p["codes"], p["count"])


def morton_decode(like: Tensor, p: Fields) -> None:
    """MortonParams: coords [N, 3] from codes [N]."""
    launch(_decode, like, p["codes"], p["coords"], p["count"])


def packbits(like: Tensor, p: Fields) -> None:
    """PackBitsParams: the bit field [C * H^3 / 8] of a grid [C, H^3]."""
    launch(_pack, like, p["grid"], p["bitfield"], p["bytes"], p["threshold"], p["grid"].dtype)
