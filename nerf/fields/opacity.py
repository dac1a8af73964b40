"""Opacity of a step along a ray. M samples."""

import torch
from torch import Tensor


def density_to_alpha(density: Tensor, dt: Tensor | float) -> Tensor:
    """Opacity of steps through a density, ``1 - exp(-density dt)`` (NeRF, eq. 3).

    Args:
        density: [M] extinction per scene unit, not negative.
        dt: [M] or one number, length of the steps in scene units.

    Returns:
        [M] in [0, 1]; differentiable in both.
    """
    return -torch.expm1(-density * dt)
