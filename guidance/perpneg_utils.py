"""Perp-Neg: negative view words, applied only perpendicular to the direction of the prompt. B images, K negative words.

Armandpour et al. 2023, "Re-imagine the Negative Prompt Algorithm" (arXiv 2304.04968, sec. 4 and 5). The weights here
are continuous in the azimuth: every decay starts at exactly zero and ends at exactly its full strength.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from guidance.distillation import Mixer
from guidance.prompts import DEFAULT_ANGLES, ViewAngles

NEGATIVE_WORDS = ("front", "side")


@dataclass(frozen=True)
class PerpNeg:
    """Weight of the negative view words and how fast it decays."""

    negative_w: float = -2.0  # full weight, <= 0
    front_decay: float = 2.0  # decay of "front" on the way from the side to the front
    side_decay: float = 10.0  # decay of "side" on the way from the front, or from the back, to the side

    def __post_init__(self) -> None:
        if self.negative_w > 0:
            raise ValueError(f"--negative_w must be 0 or less, got {self.negative_w}")
        for flag, value in (("--front_decay_factor", self.front_decay), ("--side_decay_factor", self.side_decay)):
            if value < 0:
                raise ValueError(f"{flag} must not be negative, got {value}")


def decay(x: Tensor, rate: float) -> Tensor:
    """1 at x = 0, exactly 0 at x = 1, exponential of this rate between (linear for rate 0); [B] from x [B] in [0, 1]."""
    if rate == 0:
        return 1 - x
    floor = math.exp(-rate)
    return (torch.exp(-rate * x) - floor) / (1 - floor)


def negative_weights(azimuth: Tensor, polar: Tensor, settings: PerpNeg, angles: ViewAngles = DEFAULT_ANGLES) -> Tensor:
    """Weights of the negative words "front" and "side" for each view.

    "front": zero at the front, full weight from the side to the back. "side": full weight at the front, zero at the side,
    half weight at the back. Overhead and bottom views have no negative words.

    Args:
        azimuth: [B] degrees, any turn.
        polar: [B] degrees.
        settings: weight and decays.
        angles: where the view words change, as for the prompt itself.

    Returns:
        [B, 2] in the order of :data:`NEGATIVE_WORDS`, in [negative_w, 0], continuous in both angles.
    """
    turn = angles.turn(azimuth)
    to_side, to_back = turn.clamp(max=1), (turn - 1).clamp(min=0)
    front = decay(1 - to_side, settings.front_decay)
    side = decay(to_side, settings.side_decay) + 0.5 * decay(1 - to_back, settings.side_decay)
    strength = torch.stack([front, side], -1) * angles.horizontal(polar)[:, None]
    return settings.negative_w * strength


def perpendicular(direction: Tensor, axis: Tensor) -> Tensor:
    """The component of ``direction`` [B, ...] perpendicular to ``axis`` [B, ...], per image; all of it where the axis is 0."""
    d, a = direction.flatten(1), axis.flatten(1)
    along = (d * a).sum(1) / a.square().sum(1).clamp(min=torch.finfo(a.dtype).tiny)
    return direction - along.reshape(-1, *(1,) * (axis.ndim - 1)) * axis


def perpneg_mixer(scale: float, weights: Tensor) -> Mixer:
    """Guidance with negative words: ``u + scale (p - u + sum_k w_k perp_k)``, eq. 9 of the paper.

    perp_k is the component of ``n_k - u`` perpendicular to ``p - u``, so a negative word cannot cancel the prompt.

    Args:
        scale: of classifier-free guidance.
        weights: [B, K] from :func:`negative_weights`.

    Returns:
        A mixer of 2 + K predictions: unconditional, positive, and the K negative words.
    """

    def mix(predictions: Tensor) -> Tensor:
        if len(predictions) != 2 + weights.shape[1]:
            raise ValueError(f"perpneg_mixer: expected {2 + weights.shape[1]} predictions, got {len(predictions)}")
        unconditional, positive, *negatives = predictions
        main: Tensor = positive - unconditional
        total = main
        for k, negative in enumerate(negatives):
            w = weights[:, k].to(main).reshape(-1, *(1,) * (main.ndim - 1))
            total = total + w * perpendicular(negative - unconditional, main)
        guided: Tensor = unconditional + scale * total
        return guided

    return mix
