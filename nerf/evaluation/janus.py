"""The Janus problem, a front on every side, as a number, and the drift of content from view to view. B views on a circle."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from nerf.run.metrics import ssim

# Mean difference of two images below which they count as equal: a hamburger's lettuce is 0.007, a house's door 0.009.
SAME_SIDES = 8e-3
BACK = 60.0  # degrees on either side of the middle of the back that count as the back


def front_likeness(seen: np.ndarray, truth: np.ndarray) -> float | None:
    """How much the back resembles the true front: the Janus problem where the true shape is known.

    Args:
        seen, truth: [K, S, S, 3] images of the result and of the true shape by the same K cameras on a circle, the front first.

    Returns:
        0 for a back that is the true back, 1 for one that is the true front, 0.5 where it resembles both as much; None if the
        true front and back look the same.
    """
    back = len(truth) // 2
    if np.abs(truth[0] - truth[back]).mean() < SAME_SIDES:
        return None
    to_front, to_back = (float(np.abs(seen[back] - truth[side]).mean()) for side in (0, back))
    return to_back / max(to_front + to_back, 1e-12)


def side_mean(values: Tensor, azimuth: Tensor, middle: float) -> float:
    """The mean of values [B] over the views within :data:`BACK` degrees of an azimuth.

    Args:
        values: [B].
        azimuth: [B] degrees.
        middle: 0 the front, 180 the back.

    Raises:
        ValueError: there is no such view.
    """
    apart = torch.remainder(azimuth.double() - middle + 180, 360) - 180
    near = apart.abs() <= BACK + 1e-3
    if not bool(near.any()):
        raise ValueError(f"side_mean: expected a view within {BACK:g} degrees of azimuth {middle:g}, got {azimuth.tolist()}")
    return float(values[near.to(values.device)].double().mean())


def drift(pictures: Tensor, distance: Callable[[Tensor, Tensor], Tensor]) -> float:
    """Mean distance of neighbouring views of a whole circle: what A-LPIPS is with LPIPS (Hong et al. 2023, arXiv 2303.15413).

    It depends on the step between the views, so it is compared at one number of views alone.

    Args:
        pictures: [B, 3, S, S], or whatever ``distance`` takes, a row a view, in the order of azimuth.
        distance: of two rows.
    """
    if len(pictures) < 2:
        raise ValueError("drift: expected two views or more of a circle")
    following = [(i + 1) % len(pictures) for i in range(len(pictures))]
    return float(np.mean([float(distance(pictures[i], pictures[j])) for i, j in enumerate(following)]))


def dissimilarity(a: Tensor, b: Tensor) -> Tensor:
    """One minus the structural similarity of two pictures [3, S, S], which needs no weights; scalar in [0, 2]."""
    return 1 - ssim(a.permute(1, 2, 0), b.permute(1, 2, 0))


def total_variation(p: Tensor, q: Tensor) -> Tensor:
    """Half the sum of differences of two distributions [K]: the share of belief that moved to other captions; in [0, 1]."""
    return 0.5 * (p - q).abs().sum()
