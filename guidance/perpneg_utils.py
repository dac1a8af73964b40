"""Perp-Neg: view words that a view must not obey, applied only across the direction of the prompt. B images, K words.

Armandpour et al. 2023, "Re-imagine the Negative Prompt Algorithm" (arXiv 2304.04968, sec. 4 and 5). The weights here
are continuous in the azimuth: every decay starts at exactly zero and ends at exactly its full strength.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from guidance.distillation import Mixer
from guidance.prompts import horizontal_share
from nerf.core.cameras import wrap_degrees

NEGATIVE_WORDS = ("front", "side")


@dataclass(frozen=True)
class PerpNeg:
    """Strength of the negative view words and how fast it fades."""

    negative_w: float = -2.0  # full strength, <= 0
    front_decay: float = 2.0  # decay of "front" on the way from the side to the front
    side_decay: float = 10.0  # decay of "side" on the way from the front, or from the back, to the side

    def __post_init__(self):
        if self.negative_w > 0:
            raise ValueError(f"--negative_w must be 0 or less, got {self.negative_w}")
        for flag, value in (("--front_decay_factor", self.front_decay), ("--side_decay_factor", self.side_decay)):
            if value < 0:
                raise ValueError(f"{flag} must not be negative, got {value}")


def fade(share: Tensor, decay: float) -> Tensor:
    """1 at share 0, exactly 0 at share 1, exponential of rate ``decay`` between (linear at decay 0)."""
    if decay == 0:
        return 1 - share
    floor = math.exp(-decay)
    return (torch.exp(-decay * share) - floor) / (1 - floor)


def negative_weights(azimuth: Tensor, polar: Tensor, settings: PerpNeg) -> Tensor:
    """How strongly each view is pushed away from "front" and "side".

    "front": nothing at the front, full strength from the side on to the back. "side": full strength at the front,
    nothing at the side, half strength at the back. Views from above or below are pushed nowhere.

    Args:
        azimuth: [B] degrees, any turn.
        polar: [B] degrees.
        settings: strength and decays.

    Returns:
        [B, 2] in the order of :data:`NEGATIVE_WORDS`, in [negative_w, 0], continuous in both angles.
    """
    turn = wrap_degrees(azimuth).abs() / 90
    to_side, to_back = turn.clamp(max=1), (turn - 1).clamp(min=0)
    front = fade(1 - to_side, settings.front_decay)
    side = fade(to_side, settings.side_decay) + 0.5 * fade(1 - to_back, settings.side_decay)
    strength = torch.stack([front, side], -1) * horizontal_share(polar)[:, None]
    return settings.negative_w * strength


def perpendicular(direction: Tensor, axis: Tensor) -> Tensor:
    """The part of ``direction`` [B, ...] across ``axis`` [B, ...], image by image; all of it where the axis is 0."""
    d, a = direction.flatten(1), axis.flatten(1)
    along = (d * a).sum(1) / a.square().sum(1).clamp(min=torch.finfo(a.dtype).tiny)
    return direction - along.reshape(-1, *(1,) * (axis.ndim - 1)) * axis


def perpneg_mixer(scale: float, weights: Tensor) -> Mixer:
    """Guidance with negative words: ``u + scale (p - u + sum_k w_k perp_k)``, eq. 9 of the paper.

    perp_k is the part of ``n_k - u`` across ``p - u``, so a negative word can bend the picture but not undo the prompt.

    Args:
        scale: of classifier-free guidance.
        weights: [B, K] from :func:`negative_weights`.

    Returns:
        A function of 2 + K branches: unconditional, positive, and the K negative words.
    """

    def mix(branches: Tensor) -> Tensor:
        if len(branches) != 2 + weights.shape[1]:
            raise ValueError(f"perpneg_mixer: expected {2 + weights.shape[1]} branches, got {len(branches)}")
        unconditional, positive, *negatives = branches
        main = positive - unconditional
        total = main
        for k, negative in enumerate(negatives):
            w = weights[:, k].to(main).reshape(-1, *(1,) * (main.ndim - 1))
            total = total + w * perpendicular(negative - unconditional, main)
        return unconditional + scale * total

    return mix
