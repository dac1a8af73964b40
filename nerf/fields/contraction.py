"""The contraction of unbounded space into a ball, and back. M points."""

import torch
from torch import Tensor

OUTER = 2.0  # radius of the ball into which all of space is contracted


def contract(points: Tensor) -> Tensor:
    """Map space into the ball of radius 2: ``x`` inside the unit ball, ``(2 - 1/|x|) x/|x|`` outside (mip-NeRF 360, eq. 10).

    Args:
        points: [M, 3].

    Returns:
        [M, 3], |y| < 2. Distances beyond the unit ball become disparities: |y| = 2 - 1/|x|. Differentiable.
    """
    norm = points.norm(dim=-1, keepdim=True).clamp(min=1.0)
    return points * ((2.0 - 1.0 / norm) / norm)


def uncontract(points: Tensor) -> Tensor:
    """The inverse of :func:`contract` for points [M, 3] in the ball of radius 2; on it and beyond it is infinity."""
    norm = points.norm(dim=-1, keepdim=True)
    outside = points / norm.clamp(min=1.0) / (OUTER - norm).clamp(min=0.0)
    return torch.where(norm > 1.0, outside, points)


def disparity_steps(start: Tensor, scale: float, place: Tensor) -> Tensor:
    """Distances along rays at which steps of equal disparity end: ``start + scale s / (1 - s)``.

    A ray that leaves the unit ball (of radius ``scale``) radially has |y| = 1 + s there, so that its steps are equally long
    in contracted space.

    Args:
        start: [N] distance at which a ray enters the background.
        scale: scene units in the unit of the contraction.
        place: [N, K] or [K] s in [0, 1).

    Returns:
        [N, K] scene units.
    """
    return start[:, None] + scale * place / (1.0 - place)
