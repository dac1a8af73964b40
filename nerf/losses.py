"""Losses: pure functions from rendered pixels and samples to unweighted scalars.

Each is a sum along a ray and a mean over rays (or pixels), so its value does not change with the image size, the number
of samples or the render path; weights live in the plan. Letters: B images, N rays, M samples.
"""

import math

import torch
from torch import Tensor


def image_mse(image: Tensor, target: Tensor) -> Tensor:
    """Mean squared difference of two images of any one shape, say [N, 3]. Differentiable."""
    if image.shape != target.shape:
        raise ValueError(f"mse: expected two images of one shape, got {list(image.shape)} and {list(target.shape)}")
    return (image - target).square().mean()


def mask_mse(opacity: Tensor, mask: Tensor) -> Tensor:
    """Mean squared difference of opacity [N] and the wanted opacity [N] in [0, 1]. Differentiable."""
    return image_mse(opacity, mask.to(opacity.dtype))


def opacity(opacity: Tensor) -> Tensor:
    """Mean squared opacity [N]: prefers a clear scene. In [0, 1]; differentiable."""
    return opacity.square().mean()


def entropy(opacity: Tensor) -> Tensor:
    """Binary entropy of each ray's opacity, in bits, a mean over rays: 0 where every ray is clear or opaque, at most 1.

    The entropy of a *ray* and not of its samples: a surface that spreads over many samples is not penalised for the
    number of steps that happened to be taken through it, and rays that met nothing count as the certainty they are.

    Args:
        opacity: [N] in [0, 1].

    Returns:
        Scalar in [0, 1]. Differentiable; the slope is bounded (17 bits at the ends), zero beyond them.
    """
    p = opacity.clamp(1e-5, 1.0 - 1e-5)
    bits = p * p.log() + (1.0 - p) * (1.0 - p).log()
    return -bits.mean() / math.log(2.0)


def orientation(weights: Tensor, normal: Tensor, direction: Tensor, num_rays: int) -> Tensor:
    """Penalise visible surface that faces away (Ref-NeRF, eq. 11): ``1/N sum_i w_i max(0, n_i . d_i)^2``.

    Args:
        weights: [M] compositing weights; detached, so that the loss turns normals and moves no density.
        normal: [M, 3] unit outward normals.
        direction: [M, 3] unit ray directions, from the camera into the scene.
        num_rays: N, all rays, those without samples included.

    Returns:
        Scalar in [0, 1]. Differentiable in ``normal``.
    """
    away = (normal * direction).sum(-1).clamp(min=0.0)
    return (weights.detach() * away.square()).sum() / num_rays


def normal_smooth_2d(normals: Tensor) -> Tensor:
    """Mean squared difference of neighbouring pixels of normal images [B, C, H, W], down plus across. Differentiable.

    An image one pixel high or wide has no neighbours that way, and that half is zero.
    """
    down = (normals[:, :, 1:] - normals[:, :, :-1]).square()
    across = (normals[:, :, :, 1:] - normals[:, :, :, :-1]).square()
    return sum((d.mean() for d in (down, across) if d.numel()), start=normals.new_zeros(()))


def normal_smooth_3d(normal: Tensor, neighbour: Tensor, weights: Tensor, num_rays: int) -> Tensor:
    """Mean absolute difference between the normals of samples and of points beside them, where there is surface to see.

    ``1/N sum_i w_i mean_c |n_i - n'_i|``: the compositing weights, detached, stand for the visible surface.

    Args:
        normal: [M, 3] normals at the samples.
        neighbour: [M, 3] normals a small random step beside them.
        weights: [M] compositing weights; detached.
        num_rays: N.

    Returns:
        Scalar in [0, 2]. Differentiable in both normals.
    """
    return (weights.detach() * (normal - neighbour).abs().mean(-1)).sum() / num_rays


def depth_pearson(depth: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """One minus the correlation of two depth maps within the mask: blind to scale and offset, as monocular depth is.

    Args:
        depth: [N] rendered depth.
        target: [N] the depth to follow, up to a positive scale and an offset.
        mask: [N] opacity of the target; pixels above 0.5 count.

    Returns:
        Scalar in [0, 2]; 0 if fewer than two pixels count or a map is flat there. Differentiable in ``depth``.
    """
    inside = mask > 0.5
    if int(inside.sum()) < 2:
        return depth.sum() * 0.0
    a, b = depth[inside], target[inside].to(depth.dtype)
    a, b = a - a.mean(), b - b.mean()
    spread = a.square().sum() * b.square().sum()
    if float(spread.detach()) < 1e-18:
        return depth.sum() * 0.0
    return 1.0 - (a * b).sum() / spread.sqrt()


def normal_cosine(normal: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """One minus the mean cosine between rendered and wanted normals within the mask.

    Args:
        normal: [N, 3] rendered normals, of length at most one (sums along rays; not normalised here, so that a half
            transparent pixel counts half).
        target: [N, 3] unit normals in the same axes.
        mask: [N] opacity of the target; pixels above 0.5 count.

    Returns:
        Scalar in [0, 2]; 0 if no pixel counts. Differentiable in ``normal``.
    """
    inside = mask > 0.5
    if not bool(inside.any()):
        return normal.sum() * 0.0
    return 1.0 - torch.sum(normal[inside] * target[inside].to(normal.dtype), -1).mean()
