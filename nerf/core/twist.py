"""Rigid motions as exponentials of twists, for small corrections of camera poses. B motions."""

import torch
from torch import Tensor

SMALL = 1e-6  # squared angle below which the series is used


def _sines(squared: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``sin a / a``, ``(1 - cos a) / a^2`` and ``(a - sin a) / a^3`` of angles given squared [B]; smooth at 0."""
    small = squared < SMALL
    safe = torch.where(small, torch.ones_like(squared), squared)
    angle = safe.sqrt()
    one = torch.where(small, 1.0 - squared / 6.0, angle.sin() / angle)
    two = torch.where(small, 0.5 - squared / 24.0, (1.0 - angle.cos()) / safe)
    three = torch.where(small, 1.0 / 6.0 - squared / 120.0, (angle - angle.sin()) / (safe * angle))
    return one, two, three


def skew(vector: Tensor) -> Tensor:
    """The matrices [B, 3, 3] of the cross products with vectors [B, 3]."""
    x, y, z = vector.unbind(-1)
    zero = torch.zeros_like(x)
    return torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).reshape(*vector.shape[:-1], 3, 3)


def exponential(twist: Tensor) -> tuple[Tensor, Tensor]:
    """The exponential map of se(3) (Murray, Li and Sastry 1994, eq. 2.36).

    ``R = I + a W + b W^2`` and ``t = (I + b W + c W^2) v`` with ``W`` the cross product with the rotation ``w``, and ``a``,
    ``b``, ``c`` those of :func:`_sines` at its angle |w|.

    Args:
        twist: [B, 6] rotation vector w in radians, then v in scene units.

    Returns:
        Rotations [B, 3, 3] and translations [B, 3]. Differentiable, at 0 too.
    """
    rotation, along = twist.split(3, dim=-1)
    w = skew(rotation)
    squared = w @ w
    a, b, c = (x[:, None, None] for x in _sines(rotation.square().sum(-1)))
    identity = torch.eye(3, dtype=twist.dtype, device=twist.device)
    mean = identity + b * w + c * squared
    return identity + a * w + b * squared, (mean @ along[..., None])[..., 0]
