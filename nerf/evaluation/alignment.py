"""How well pictures agree with a text: R-precision, and T3Bench's score of the best region. B views, K captions, V viewpoints.

A similarity is larger where a picture and a caption agree better; what its numbers mean is up to the scorer (``scorers.py``).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

ROUNDS = 3  # of neighbour averaging in T3Bench (He et al. 2023, arXiv 2310.02977)


def r_precision(similarity: Tensor, true: int) -> Tensor:
    """Which views are nearer to the true caption than to any other (Park et al. 2021; Jain et al. 2022, arXiv 2112.01455).

    A caption that ties with another is not the nearest: a scorer that cannot tell captions apart gets 0.

    Args:
        similarity: [B, K].
        true: index of the true caption.

    Returns:
        [B] float, 1 or 0; the mean over views is the R-precision. Not differentiable.
    """
    if similarity.ndim != 2 or not 0 <= true < similarity.shape[1]:
        raise ValueError(f"r_precision: expected similarity [B, K] and 0 <= true < K, got {list(similarity.shape)} and {true}")
    if similarity.shape[1] < 2:
        raise ValueError("r_precision: expected at least 2 captions, of which one is the true one")
    others = torch.cat([similarity[:, :true], similarity[:, true + 1 :]], 1)
    return (similarity[:, true] > others.max(1).values).double()


def chosen(similarity: Tensor) -> list[int]:
    """Index of the nearest caption for each row of similarity [B, K]."""
    found: list[int] = similarity.argmax(1).tolist()
    return found


@dataclass(frozen=True)
class Region:
    """The best region of viewpoints."""

    score: float  # of the viewpoint whose neighbourhood is best, after averaging
    viewpoint: int  # its index
    single: float  # the best score of a single viewpoint, without averaging
    mean: float  # over all viewpoints


def best_region(scores: Tensor, neighbours: Sequence[Sequence[int]], rounds: int = ROUNDS) -> Region:
    """T3Bench's score of an object (He et al. 2023, arXiv 2310.02977): its best side, and not one lucky view.

    At each viewpoint the best field of view counts. Then every viewpoint takes the mean of itself and its neighbours, a few
    times, and the highest value is the score.

    Args:
        scores: [V, Z] of V viewpoints at Z fields of view.
        neighbours: for each viewpoint, the indices of those beside it.
        rounds: of averaging.
    """
    if scores.ndim != 2 or len(neighbours) != len(scores):
        raise ValueError(
            f"best_region: expected scores [V, Z] and V neighbourhoods, got {list(scores.shape)}, {len(neighbours)}"
        )
    best = scores.double().max(1).values
    spread = best
    for _ in range(rounds):
        spread = torch.stack([spread[[i, *beside]].mean() for i, beside in enumerate(neighbours)])
    viewpoint = int(spread.argmax())
    return Region(float(spread[viewpoint]), viewpoint, float(best.max()), float(best.mean()))
