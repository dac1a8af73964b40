"""Losses of photographs in the wild, as Ha-NeRF has them (Chen et al. 2022, sec. 4): pure functions, unweighted scalars.

N rays, K vectors of A numbers, P patches.
"""

import torch
from torch import Tensor

DIGITAL_WIDTH = 0.02  # of the peak of the digital loss between 0 and 1
MODE_FLOOR = 1e-5  # of a change of colours divided by a change of vectors


def masked(error: Tensor, keep: Tensor | None) -> Tensor:
    """Mean over rays of an error [N] or [N, C], weighted by ``keep`` [N] in [0, 1] (eq. 9 of the paper, whose keep is 1 - M).

    A mean over all rays, not over the weights: what is left out counts as no error. Differentiable in both.
    """
    each = error if error.ndim == 1 else error.mean(-1)
    return each.mean() if keep is None else (keep * each).mean()


def mask_size(mask: Tensor) -> Tensor:
    """Mean square of masks [N] in [0, 1], which are small where nothing occludes. Differentiable."""
    return mask.square().mean()


def mask_digital(mask: Tensor) -> Tensor:
    """Mean of ``1 / ((M - 1/2)^2 + 0.02)``: masks [N] are 0 or 1. Between 3.7 and 50. Differentiable."""
    return (1.0 / ((mask - 0.5).square() + DIGITAL_WIDTH)).mean()


def vector_norm(vectors: Tensor) -> Tensor:
    """Mean square of appearance vectors [K, A]. Differentiable."""
    return vectors.square().mean()


def vector_match(vectors: Tensor, rendered: Tensor) -> Tensor:
    """View-consistent appearance (eq. 6): mean absolute difference of vectors and those of what was rendered in their light.

    Args:
        vectors: [P, A]; they do not move.
        rendered: [P, A] of the rendered patches. Differentiable.
    """
    return (vectors.detach() - rendered).abs().mean()


def mode_seeking(image: Tensor, other: Tensor, vectors: Tensor, others: Tensor) -> Tensor:
    """How little colours change with the vector: the mean over patches of ``1 / (|C - C'| / |a - a'| + 1e-5)``.

    A patch whose two vectors are the same has no such ratio and does not count.

    Args:
        image: [P, R, 3] patches of R rays in the light of their photographs; they do not move.
        other: [P, R, 3] in another light. Differentiable.
        vectors, others: [P, A] of the two lights; they do not move.

    Returns:
        Scalar between 0 and 1e5; 0 if no patch counts.
    """
    apart = (vectors - others).detach().abs().mean(-1)
    counts = apart > 0
    change = (image.detach() - other).abs().mean((-2, -1)) / torch.where(counts, apart, 1.0)
    return torch.where(counts, 1.0 / (change + MODE_FLOOR), 0.0).sum() / counts.sum().clamp(min=1)
