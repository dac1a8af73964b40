"""Losses of signed distances and of weights along rays: pure functions to unweighted scalars. N rays, M samples or points."""

import math

import torch
from torch import Tensor


def eikonal(gradient: Tensor) -> Tensor:
    """Mean of ``(|grad f| - 1)^2`` over points (Gropp et al. 2020, eq. 5): the gradient of a distance has length one.

    Args:
        gradient: [M, 3] of the signed distance, not normalised.

    Returns:
        Scalar >= 0; 0 without points. Differentiable, also where the gradient is zero.
    """
    length = (gradient.square().sum(-1) + 1e-12).sqrt()
    return _mean((length - 1.0).square())


def near_surface(sdf: Tensor, scale: float) -> Tensor:
    """Mean of ``exp(-scale |f|)`` over points: at samples, sparsity (Long et al. 2022, eq. 8); at random points of the box,
    the off-surface loss, which keeps empty space from growing surfaces that nothing shows (Sitzmann et al. 2020, eq. 6).

    Args:
        sdf: [M] signed distance, scene units.
        scale: per scene unit.

    Returns:
        Scalar in [0, 1]; 0 without points. Differentiable.
    """
    return _mean(torch.exp(-scale * sdf.abs()))


def curvature_laplacian(laplacian: Tensor) -> Tensor:
    """Mean of ``|laplacian f|`` over points, twice the mean curvature of a distance (Li et al. 2023, Neuralangelo, eq. 8).

    Args:
        laplacian: [M] per scene unit.

    Returns:
        Scalar >= 0: ``2 / r`` on a sphere of radius r. Differentiable.
    """
    return _mean(laplacian.abs())


def curvature_angle(normal: Tensor, neighbour: Tensor) -> Tensor:
    """Mean angle between normals of points and of points beside them in their tangent planes, as a share of half a turn.

    ``angle(n(x), n(x + e t)) / pi`` for a random tangent t (Rosu and Behnke 2023, PermutoSDF, eq. 9). The angle is
    ``2 atan2(|n - n'|, |n + n'|)``, which keeps its digits for small ones.

    Args:
        normal: [M, 3] unit normals.
        neighbour: [M, 3] unit normals of the points beside them.

    Returns:
        Scalar in [0, 1]; ``atan(e / r) / pi`` on a sphere of radius r. Differentiable in both.
    """
    apart = ((normal - neighbour).square().sum(-1) + 1e-12).sqrt()
    together = ((normal + neighbour).square().sum(-1) + 1e-12).sqrt()
    return _mean(2.0 * torch.atan2(apart, together)) / math.pi


def surface_points(sdf: Tensor) -> Tensor:
    """Mean of ``|f|`` at points that lie on the surface (Fu et al. 2022, Geo-NeuS, eq. 11).

    Args:
        sdf: [P] signed distance at the points, scene units.

    Returns:
        Scalar >= 0. Differentiable.
    """
    return _mean(sdf.abs())


def distortion(weights: Tensor, t: Tensor, dt: Tensor, first: Tensor, count: Tensor) -> Tensor:
    """Distortion of the weights along each ray: how far apart they lie (Barron et al. 2022, Mip-NeRF 360, eq. 15).

    ``1/N sum_rays [sum_ij w_i w_j |t_i - t_j| + 1/3 sum_i w_i^2 dt_i]``, with the double sum over pairs in linear time: the
    samples are in order, so ``sum_ij w_i w_j |t_i - t_j| = 2 sum_i w_i (t_i W_i - S_i)`` with the sums ``W_i`` of weights and
    ``S_i`` of weights times distance before sample i (Sun et al. 2022).

    Args:
        weights: [M] compositing weights.
        t: [M] middle of each step, along the ray, ascending on each ray; scene units.
        dt: [M] length of each step.
        first, count: [N] int64, ray n owns samples ``first[n]`` to ``first[n] + count[n]``, in order of the rays.

    Returns:
        Scalar >= 0, scene units; 0 without rays. Differentiable in ``weights``.
    """
    total = weights.sum() * 0.0
    if len(count) == 0 or len(weights) == 0:
        return total
    owned = torch.arange(len(weights), device=weights.device) < count.sum()
    w = torch.where(owned, weights, 0.0).double()  # sums run over all rays, and differences of them must keep their digits
    place = t.double()
    ray = torch.repeat_interleave(torch.arange(len(count), device=count.device), count, output_size=None)
    ray = torch.nn.functional.pad(ray, (0, len(weights) - len(ray)))
    start = first[ray].clamp(max=len(weights) - 1)

    def before(values: Tensor) -> Tensor:
        exclusive = values.cumsum(0) - values
        return exclusive - exclusive[start]

    pairs = 2.0 * w * (place * before(w) - before(w * place))
    own = w.square() * dt.double() / 3.0
    return ((pairs + own).sum() / len(count)).to(weights.dtype)


def _mean(values: Tensor) -> Tensor:
    """The mean, 0 of no values."""
    return values.mean() if len(values) else values.sum()
