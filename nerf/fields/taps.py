"""Gradient and Laplacian of a signed distance by central differences of a few points around. M points, K taps."""

from collections.abc import Callable

import torch
from torch import Tensor

# Kind -> directions [K, 3] of the taps. The tetrahedron's corners are at (+-1, +-1, +-1) / sqrt(3) with an even number of
# minus signs: they sum to zero, and their outer products to 4/3 of the identity.
TAPS: dict[str, tuple[tuple[float, float, float], ...]] = {
    "taps4": ((1, 1, 1), (1, -1, -1), (-1, 1, -1), (-1, -1, 1)),
    "taps6": ((1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1)),
}


def differences(
    distance: Callable[[Tensor], Tensor], positions: Tensor, centre: Tensor, kind: str, reach: float, bound: float
) -> tuple[Tensor, Tensor]:
    """Gradient and Laplacian from the values at K points around each position.

    With unit directions ``k_i`` whose outer products sum to ``K/3`` times the identity, and ``h`` the reach:
    ``gradient = 3 / (K h) sum_i k_i f(x + h k_i)`` and ``laplacian = 6 / (K h^2) sum_i (f(x + h k_i) - f(x))``, both exact for
    polynomials of the second degree (four taps: the tetrahedron technique; six: the usual central differences).

    Args:
        distance: [N, 3] -> [N].
        positions: [M, 3]; where taps would leave the box, all of them are moved inside together, and the gradient is that of
            the moved position, the Laplacian that of the centre there by the same value.
        centre: [M] values at the positions.
        kind: of :data:`TAPS`.
        reach: distance of the taps, scene units.
        bound: half the side of the box.

    Returns:
        gradient [M, 3] and laplacian [M], differentiable as ``distance`` is in its parameters and positions.
    """
    directions = torch.tensor(TAPS[kind], device=positions.device, dtype=positions.dtype)
    directions = directions / directions.norm(dim=-1, keepdim=True)
    k, inner = len(directions), max(bound - reach, 0.0)
    middle = positions.clamp(-inner, inner)
    at = middle[None] + reach * directions[:, None]
    values = distance(at.reshape(-1, 3)).view(k, -1)
    gradient = (3.0 / (k * reach)) * (values.T @ directions)
    moved = ((middle - positions) * gradient).sum(-1)
    laplacian = (6.0 / (k * reach**2)) * (values - (centre + moved)).sum(0)
    return gradient, laplacian
