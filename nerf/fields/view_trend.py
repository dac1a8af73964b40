"""What the vectors of photographs follow from the direction that each photograph looks in. I photographs, vectors of A numbers.

A surface that reflects is brighter from some sides than from others, and a photograph that shows one side explains this as its
light. Lights that differ from photograph to photograph do not follow the directions; what does is no light.
"""

import torch
from torch import Tensor

EACH = 5  # photographs for each coefficient of a fit, at least
RANK_TOLERANCE = 1e-3  # of a fit, relative to its largest singular value: photographs may all look the same way


def view_trend(vectors: Tensor, axes: Tensor) -> Tensor:
    """How far each vector is from their mean because of its direction: a fit of spherical harmonics, shrunk by its doubt.

    The fit has degree 2 or, of few photographs, 1. Vectors without a trend are fitted a little, too: with F the ratio of the
    mean squares of fit and residual, which is 1 by chance, the fit is multiplied by ``max(0, 1 - 1/F)`` (the positive part of
    the estimator of James and Stein).

    Args:
        vectors: [I, A].
        axes: [I, 3] unit optical axes.

    Returns:
        [I, A]; zeros where there are fewer than ``EACH`` photographs for each coefficient. Not differentiable.
    """
    with torch.no_grad():
        away = (vectors - vectors.mean(0)).double()
        basis = _harmonics(axes.double(), len(vectors))
        left, scale, _ = torch.linalg.svd(basis - basis.mean(0), full_matrices=False)
        left = left[:, scale > RANK_TOLERANCE * scale.amax().clamp(min=1.0)] if scale.numel() else left
        fit = left @ (left.T @ away)
        rank = left.shape[1]
        residual = (away - fit).square().sum() / max(len(vectors) - 1 - rank, 1)
        explained = fit.square().sum() / max(rank, 1)
        share = (1.0 - residual / explained).clamp(min=0.0) if explained > 0 else explained
        return (share * fit).to(vectors)


def _harmonics(axes: Tensor, count: int) -> Tensor:
    """Real spherical harmonics [I, 8], [I, 3] or [I, 0] of directions [I, 3], up to scales and without the constant one."""
    x, y, z = axes.unbind(-1)
    first = [x, y, z]
    second = [x * y, y * z, x * z, x * x - y * y, 3.0 * z * z - 1.0]
    chosen = first + second if count >= EACH * 8 else first if count >= EACH * 3 else []
    return torch.stack(chosen, -1) if chosen else axes.new_zeros(len(axes), 0)
