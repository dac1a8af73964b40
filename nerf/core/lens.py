"""Lens models: how a direction in camera axes becomes a point of the image plane, and back. Any leading dimensions.

The plane is in units of the focal length relative to the principal point, y downwards. Two projections, perspective and
equidistant (fisheye), are followed by the same distortion: radial and tangential, a polynomial or a ratio of two.
"""

import torch
from torch import Tensor

UNDISTORT_ITERATIONS = 5  # Newton steps; enough for an error below 1e-12 with the lenses of photographs
MIN_JACOBIAN_DETERMINANT = 1e-3  # of the distortion; below it the mapping is not invertible and a Newton step is meaningless
POLYNOMIAL, RATIONAL = 6, 9  # numbers of coefficients: k1 k2 k3 k4 p1 p2, and with the denominator d1 d2 d3
SMALLEST = 1e-12  # lower limit of a divisor: a radius in the plane, or the sine of an angle


def _radial(r2: Tensor, distortion: Tensor) -> tuple[Tensor, Tensor]:
    """The radial factor s at squared radius ``r2`` [...], and ds / d r2."""
    k1, k2, k3, k4 = distortion[..., :4].unbind(-1)
    factor = 1 + r2 * (k1 + r2 * (k2 + r2 * (k3 + r2 * k4)))
    slope = k1 + r2 * (2 * k2 + r2 * (3 * k3 + r2 * 4 * k4))
    if distortion.shape[-1] == POLYNOMIAL:
        return factor, slope
    d1, d2, d3 = distortion[..., POLYNOMIAL:].unbind(-1)
    below = 1 + r2 * (d1 + r2 * (d2 + r2 * d3))
    below = torch.where(below.abs() < SMALLEST, SMALLEST, below)
    return factor / below, (slope - factor / below * (d1 + r2 * (2 * d2 + r2 * 3 * d3))) / below


def distort(xy: Tensor, distortion: Tensor) -> Tensor:
    """Apply OpenCV's radial-tangential lens distortion to points of the normalised image plane.

    ``x' = x s + 2 p1 x y + p2 (r2 + 2 x x)`` and ``y' = y s + p1 (r2 + 2 y y) + 2 p2 x y`` with ``r2 = x x + y y`` and
    ``s = 1 + k1 r2 + k2 r2^2 + k3 r2^3 + k4 r2^4`` (Brown 1966; the k4 term as in the nerfstudio format), divided by
    ``1 + d1 r2 + d2 r2^2 + d3 r2^3`` in the rational model (COLMAP's FULL_OPENCV, where d is k4 k5 k6).

    Args:
        xy: [..., 2] undistorted coordinates relative to the principal point in units of the focal length, y downwards.
        distortion: [..., 6] k1 k2 k3 k4 p1 p2 or [..., 9] with d1 d2 d3, broadcast against ``xy``.

    Returns:
        [..., 2] distorted coordinates in the same units. Differentiable any number of times.
    """
    p1, p2 = distortion[..., 4:6].unbind(-1)
    x, y = xy.unbind(-1)
    r2 = x * x + y * y
    radial, _ = _radial(r2, distortion)
    return torch.stack(
        [x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x), y * radial + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y], -1
    )


def undistort(xy: Tensor, distortion: Tensor, iterations: int = UNDISTORT_ITERATIONS) -> Tensor:
    """Invert :func:`distort` by Newton's method, where the distortion model is invertible.

    Args:
        xy: [..., 2] distorted coordinates relative to the principal point in units of the focal length, y downwards.
        distortion: [..., 6] or [..., 9] as of :func:`distort`, broadcast against ``xy``.
        iterations: Newton steps; convergence is quadratic.

    Returns:
        [..., 2] undistorted coordinates, finite everywhere; meaningless where the model is not invertible. Differentiable.
    """
    p1, p2 = distortion[..., 4:6].unbind(-1)
    guess = xy
    for _ in range(iterations):
        x, y = guess.unbind(-1)
        radial, slope = _radial(x * x + y * y, distortion)
        slope = 2 * slope  # d radial / d x = slope * x
        xx = radial + slope * x * x + 2 * p1 * y + 6 * p2 * x
        yy = radial + slope * y * y + 6 * p1 * y + 2 * p2 * x
        cross = slope * x * y + 2 * p1 * x + 2 * p2 * y
        determinant = xx * yy - cross * cross
        residual_x, residual_y = (distort(guess, distortion) - xy).unbind(-1)
        step = torch.stack([yy * residual_x - cross * residual_y, xx * residual_y - cross * residual_x], -1)
        invertible = determinant > MIN_JACOBIAN_DETERMINANT
        guess = guess - torch.where(invertible[..., None], step / torch.where(invertible, determinant, 1)[..., None], 0)
    return guess


def equidistant(xy: Tensor) -> Tensor:
    """Points [..., 2] of the perspective plane in the equidistant one: the same bearing, the angle to the axis as radius.

    The projection of OpenCV's fisheye model before its polynomial. Differentiable, at the centre too.
    """
    radius = torch.linalg.vector_norm(xy, dim=-1, keepdim=True)
    safe = radius.clamp(min=SMALLEST)
    return xy * torch.where(radius < SMALLEST, 1.0, torch.atan(safe) / safe)


def plane_of(local: Tensor, distortion: Tensor | None, fisheye: Tensor | None = None) -> Tensor:
    """The point of the image plane where a direction in camera axes (x right, y up, looking along -z) is seen.

    Args:
        local: [..., 3] directions or points, of any length. In the perspective model only those with z < 0 are seen; in the
            fisheye model all but the direction straight back.
        distortion: [..., 6] or [..., 9] as of :func:`distort`, broadcast; None: none.
        fisheye: [...] bool, broadcast: which cameras are equidistant; None: no camera.

    Returns:
        [..., 2] in units of the focal length, y downwards. Differentiable.
    """
    depth = -local[..., 2:]
    tiny = torch.finfo(local.dtype).tiny
    plane = local[..., :2] / torch.where(depth.abs() < tiny, tiny, depth)
    plane = torch.stack([plane[..., 0], -plane[..., 1]], -1)
    if fisheye is not None:
        across = torch.linalg.vector_norm(local[..., :2], dim=-1, keepdim=True)
        angle = torch.atan2(across, depth)
        bearing = torch.stack([local[..., 0], -local[..., 1]], -1) / across.clamp(min=SMALLEST)
        plane = torch.where(fisheye[..., None], angle * bearing, plane)
    return plane if distortion is None else distort(plane, distortion)


def direction_through(plane: Tensor, distortion: Tensor | None, fisheye: Tensor | None = None) -> Tensor:
    """The direction in camera axes that is seen at a point of the image plane; the inverse of :func:`plane_of`.

    Args:
        plane: [..., 2] in units of the focal length, y downwards.
        distortion, fisheye: as of :func:`plane_of`.

    Returns:
        [..., 3], with z = -1 for perspective cameras and of unit length for fisheye ones. Differentiable.
    """
    if distortion is not None:
        plane = undistort(plane, distortion)
    local = torch.stack([plane[..., 0], -plane[..., 1], -torch.ones_like(plane[..., 0])], -1)
    if fisheye is None:
        return local
    angle = torch.linalg.vector_norm(plane, dim=-1, keepdim=True)
    sinc = torch.sinc(angle / torch.pi)  # sin(angle) / angle, 1 at the centre
    seen = torch.cat([local[..., :2] * sinc, -torch.cos(angle)], -1)
    return torch.where(fisheye[..., None], seen, local)
