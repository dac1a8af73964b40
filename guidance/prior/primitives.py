"""Signed distances of simple solids. Points come as three flat tensors x, y, z [M]; sizes are numbers or [M]; +Y is up.

Every function returns [M], negative inside. Sharp solids are intersections of half-spaces, so their value is a lower
bound of the distance outside: sphere tracing with it never steps through a surface.
"""

import math

import torch
from torch import Tensor

Size = float | Tensor


def length(*xs: Tensor) -> Tensor:
    """Euclidean length of a vector given by its components."""
    total = xs[0] * xs[0]
    for x in xs[1:]:
        total = total + x * x
    return total.clamp(min=1e-12).sqrt()


def intersect(*distances: Tensor) -> Tensor:
    """Intersection of solids."""
    result = distances[0]
    for distance in distances[1:]:
        result = torch.maximum(result, distance)
    return result


def union(*distances: Tensor) -> Tensor:
    """Union of solids."""
    result = distances[0]
    for distance in distances[1:]:
        result = torch.minimum(result, distance)
    return result


def sphere(x: Tensor, y: Tensor, z: Tensor, r: Size) -> Tensor:
    """Ball of radius r at the origin."""
    return length(x, y, z) - r


def ellipsoid(x: Tensor, y: Tensor, z: Tensor, a: Size, b: Size, c: Size) -> Tensor:
    """Ellipsoid with half-axes a, b, c: a first-order estimate of the distance, ``k (k - 1) / |grad|``."""
    k = length(x / a, y / b, z / c)
    slope = length(x / (a * a), y / (b * b), z / (c * c))
    return k * (k - 1) / slope.clamp(min=1e-6)


def box(x: Tensor, y: Tensor, z: Tensor, hx: Size, hy: Size, hz: Size, rounding: float = 0.0) -> Tensor:
    """Box with half-sides hx, hy, hz and rounded edges (the rounding lies within the given sides)."""
    qx, qy, qz = x.abs() - hx + rounding, y.abs() - hy + rounding, z.abs() - hz + rounding
    outside = length(qx.clamp(min=0), qy.clamp(min=0), qz.clamp(min=0))
    return outside + torch.maximum(qx, torch.maximum(qy, qz)).clamp(max=0) - rounding


def cylinder(x: Tensor, y: Tensor, z: Tensor, r: Size, h: Size, rounding: float = 0.0) -> Tensor:
    """Cylinder about the y axis: radius r, half-height h."""
    radial, axial = length(x, z) - r + rounding, y.abs() - h + rounding
    return length(radial.clamp(min=0), axial.clamp(min=0)) + torch.maximum(radial, axial).clamp(max=0) - rounding


def frustum(x: Tensor, y: Tensor, z: Tensor, bottom: Size, top: Size, h: Size) -> Tensor:
    """Cone stump about the y axis: radius ``bottom`` at y = -h and ``top`` at y = h; top = 0 is a cone."""
    slope = (bottom - top) / (2 * h)
    side = (length(x, z) - (bottom + top) / 2 + slope * y) / (1 + slope * slope) ** 0.5
    return torch.maximum(side, y.abs() - h)


def torus(x: Tensor, y: Tensor, z: Tensor, big: Size, small: Size) -> Tensor:
    """Ring about the y axis: radius of the ring, radius of its tube."""
    return length(length(x, z) - big, y) - small


def capsule(x: Tensor, y: Tensor, z: Tensor, a: tuple[Size, Size, Size], b: tuple[Size, Size, Size], r: Size) -> Tensor:
    """All points within r of the segment from a to b."""
    dx, dy, dz = b[0] - a[0], b[1] - a[1], b[2] - a[2]
    px, py, pz = x - a[0], y - a[1], z - a[2]
    t = ((px * dx + py * dy + pz * dz) / (dx * dx + dy * dy + dz * dz)).clamp(0, 1)
    return length(px - t * dx, py - t * dy, pz - t * dz) - r


def pyramid(x: Tensor, y: Tensor, z: Tensor, half: Size, h: Size) -> Tensor:
    """Square pyramid: base of half-side ``half`` at y = -h, apex at y = h."""
    slope = half / (2 * h)
    side = (torch.maximum(x.abs(), z.abs()) - half / 2 + slope * y) / (1 + slope * slope) ** 0.5
    return torch.maximum(side, -h - y)


def gable(x: Tensor, y: Tensor, z: Tensor, hx: Size, hz: Size, h: Size) -> Tensor:
    """Gable roof: base 2hx by 2hz at y = 0, ridge along z at y = h."""
    slope = hx / h
    side = (x.abs() - hx + slope * y) / (1 + slope * slope) ** 0.5
    return intersect(side, -y, z.abs() - hz)


def sector(x: Tensor, z: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Fold the plane into one of ``count`` equal sectors about the +x axis, for repeated parts."""
    step = 2 * math.pi / count
    angle = torch.atan2(z, x)
    angle = angle - step * torch.round(angle / step)
    radius = length(x, z)
    return radius * torch.cos(angle), radius * torch.sin(angle)
