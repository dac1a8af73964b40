"""Compositing the samples of a ray, and its derivative, in Taichi: the formulas of raymarching/src/composite_math.h.

Letters: N rays, M samples, C channels.
"""

from torch import Tensor

from taichi_modules.rays import Fields, is_nan
from taichi_modules.runtime import Array, Int, Real, Static, launch, ti


@ti.kernel
def _composite(
    alpha: Array, values: Array, t: Array, first: Array, count: Array, alive: Array, weights: Array,
    transmittances: Array, opacity: Array, depth: Array, image: Array,
    rays: Int, least64: Real, C: Static, accumulates: Static, dtype: Static,
):  # fmt: skip
    """The sums of each ray; with ``accumulates`` added to those of ray alive[n], else from nothing, with the weights."""
    least = ti.cast(least64, dtype)
    for n in range(rays):
        ray = ti.cast(n, ti.i32)
        transmittance, total, distance = ti.cast(1.0, dtype), ti.cast(0.0, dtype), ti.cast(0.0, dtype)
        colour = ti.Vector.zero(dtype, C)
        if ti.static(accumulates):
            ray = ti.cast(alive[n], ti.i32)
            transmittance, total, distance = transmittances[ray], opacity[ray], depth[ray]
            for c in ti.static(range(C)):
                colour[c] = image[ray * C + c]
        i = ti.cast(first[n], ti.i32)
        end = i + ti.cast(count[n], ti.i32)
        while i < end and not transmittance < least:
            a = alpha[i]
            weight = a * transmittance
            if ti.static(not accumulates):
                weights[i] = weight
            total += weight
            distance += weight * t[i]
            for c in ti.static(range(C)):
                colour[c] += weight * values[i * C + c]
            transmittance *= 1.0 - a
            i += 1
        broken = ti.cast(0.0, dtype)  # NaN if an alpha behind the early stop is
        while i < end:
            a = alpha[i]
            weight = ti.select(is_nan(a), a, ti.cast(0.0, dtype))
            if ti.static(not accumulates):
                weights[i] = weight
            broken += weight
            i += 1
        if is_nan(broken):
            transmittance, total, distance = broken, broken, broken
            for c in ti.static(range(C)):
                colour[c] = broken
        if ti.static(accumulates):
            transmittances[ray] = transmittance
        opacity[ray] = total
        depth[ray] = distance
        for c in ti.static(range(C)):
            image[ray * C + c] = colour[c]


@ti.kernel
def _backward(
    alpha: Array, values: Array, t: Array, first: Array, count: Array,
    grad_weights: Array, grad_opacity: Array, grad_depth: Array, grad_image: Array, grad_alpha: Array, grad_values: Array,
    rays: Int, least64: Real, C: Static, dtype: Static,
):  # fmt: skip
    """Gradients of alpha and values, from the last sample of each ray to the first; composite_math.h has the recurrence."""
    least = ti.cast(least64, dtype)
    for n in range(rays):
        begin = ti.cast(first[n], ti.i32)
        end = begin + ti.cast(count[n], ti.i32)
        of_image = ti.Vector.zero(dtype, C)
        for c in ti.static(range(C)):
            of_image[c] = grad_image[n * C + c]
        of_opacity, of_depth = grad_opacity[n], grad_depth[n]
        remaining, behind = ti.cast(1.0, dtype), ti.cast(0.0, dtype)
        used = begin
        while used < end and not remaining < least:
            grad_alpha[used] = remaining  # read again below
            remaining *= 1.0 - alpha[used]
            used += 1
        for i in range(used, end):
            behind = ti.select(is_nan(alpha[i]), alpha[i], behind)
            grad_alpha[i] = behind
            for c in ti.static(range(C)):
                grad_values[i * C + c] = ti.cast(0.0, dtype)
        i = used - 1
        while i >= begin:
            a, transmittance = alpha[i], grad_alpha[i]
            weight = a * transmittance
            g = grad_weights[i] + of_opacity + of_depth * t[i]
            for c in ti.static(range(C)):
                g += of_image[c] * values[i * C + c]
                grad_values[i * C + c] = weight * of_image[c]
            grad_alpha[i] = transmittance * (g - behind)
            behind = a * g + (1.0 - a) * behind
            i -= 1


def composite_forward(like: Tensor, p: Fields) -> None:
    """CompositeParams: weights [M] and the sums of N rays."""
    arrays = (p["alpha"], p["values"], p["t"], p["first"], p["count"], None, p["weights"], None)
    sums = (p["opacity"], p["depth"], p["image"])
    launch(_composite, like, *arrays, *sums, p["num_rays"], p["min_transmittance"], p["channels"], False, like.dtype)


def composite_accumulate(like: Tensor, p: Fields) -> None:
    """CompositeParams: samples added to the sums of the rays that are alive."""
    arrays = (p["alpha"], p["values"], p["t"], p["first"], p["count"], p["alive"], None, p["transmittance"])
    sums = (p["opacity"], p["depth"], p["image"])
    launch(_composite, like, *arrays, *sums, p["num_rays"], p["min_transmittance"], p["channels"], True, like.dtype)


def composite_backward(like: Tensor, p: Fields) -> None:
    """CompositeParams: gradients of alpha [M] and values [M, C]."""
    arrays = (p["alpha"], p["values"], p["t"], p["first"], p["count"])
    given = (p["grad_weights"], p["grad_opacity"], p["grad_depth"], p["grad_image"])
    wanted = (p["grad_alpha"], p["grad_values"])
    sizes = (p["num_rays"], p["min_transmittance"], p["channels"])
    launch(_backward, like, *arrays, *given, *wanted, *sizes, like.dtype)
