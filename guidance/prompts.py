"""View-dependent prompts: the weight of each view word, continuous in the camera angles. B views, V view words.

A single view word per view jumps at the borders between words and is wrong on either side of them; a blend of text
embeddings whose weights are continuous and sum to one is not. Angles are degrees: azimuth 0 = front, polar 0 = straight
above.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from nerf.core.cameras import wrap_degrees

VIEW_WORDS = ("front", "side", "back", "overhead", "bottom")
VIEW_SUFFIXES = tuple(f", {word} view" for word in VIEW_WORDS)  # appended to the prompt
# What images should not be, for methods that need a negative prompt where none is given (Katzir et al. 2023, arXiv 2310.17590).
DEFAULT_NEGATIVE = "unrealistic, blurry, low quality, out of focus, ugly, low contrast, dull, dark, low-resolution, gloomy"
RAMP = 20.0  # degrees over which overhead and bottom fade in, and the steepest blend of front, side and back


@dataclass(frozen=True)
class ViewAngles:
    """Where two view words have equal weight. Front is |azimuth| < front / 2, overhead is polar < overhead.

    The back mirrors the front and the bottom mirrors the overhead view. The limits leave at least :data:`RAMP` degrees for
    every transition, so that each principal view has its word alone.
    """

    front: float = 90.0  # degrees of azimuth that count as front, in [RAMP, 180 - RAMP]
    overhead: float = 30.0  # degrees of polar angle that count as overhead, in [RAMP / 2, 90 - RAMP / 2]

    def __post_init__(self) -> None:
        limits = (("front", self.front, RAMP, 180 - RAMP), ("overhead", self.overhead, RAMP / 2, 90 - RAMP / 2))
        for word, value, low, high in limits:
            if not low <= value <= high:
                raise ValueError(f"--angle_{word} must be between {low:g} and {high:g} degrees, got {value:g}")

    def turn(self, azimuth: Tensor) -> Tensor:
        """Position of views between front (0), side (1) and back (2); [B] from azimuth [B] in degrees.

        Piecewise linear: 0.5 at front / 2 and 1.5 at 180 - front / 2. The transitions are as wide as the angles allow.
        """
        angle = wrap_degrees(azimuth).abs()
        half = min(self.front, 180 - self.front) / 2  # of the width of a transition
        to_side = ((angle - (self.front / 2 - half)) * (45 / half)).clamp(0, 90)
        to_back = ((angle - (180 - self.front / 2 - half)) * (45 / half)).clamp(0, 90)
        return (to_side + to_back) / 90

    def not_overhead(self, polar: Tensor) -> Tensor:
        """1 minus the weight of "overhead"; [B] in [0, 1] from polar [B] in degrees."""
        return _ramp(polar, self.overhead)

    def bottom(self, polar: Tensor) -> Tensor:
        """The weight of "bottom"; [B] in [0, 1] from polar [B] in degrees."""
        return _ramp(polar, 180 - self.overhead)

    def horizontal(self, polar: Tensor) -> Tensor:
        """The weight left to front, side and back; [B] in [0, 1] from polar [B] in degrees."""
        return self.not_overhead(polar) * (1 - self.bottom(polar))


DEFAULT_ANGLES = ViewAngles()


def _ramp(x: Tensor, middle: float) -> Tensor:
    """0 before ``middle - RAMP / 2``, 1 after ``middle + RAMP / 2``, linear between."""
    return ((x - middle) / RAMP + 0.5).clamp(0, 1)


def view_weights(azimuth: Tensor, polar: Tensor, angles: ViewAngles = DEFAULT_ANGLES) -> Tensor:
    """Weight of each view word: a partition of unity, continuous in both angles.

    Front, side and back are blended linearly in the azimuth; overhead and bottom fade in with the polar angle, so that at
    the poles, where the azimuth is undefined, it has no effect.

    Args:
        azimuth: [B] degrees, any turn.
        polar: [B] degrees in [0, 180].
        angles: where the words change.

    Returns:
        [B, V], >= 0, rows sum to 1.

    Raises:
        ValueError: shapes differ.
    """
    if azimuth.shape != polar.shape or azimuth.ndim != 1:
        raise ValueError(f"view_weights: expected azimuth [B] and polar [B], got {list(azimuth.shape)} and {list(polar.shape)}")
    turn = angles.turn(azimuth)
    front, back = (1 - turn).clamp(min=0), (turn - 1).clamp(min=0)
    around = torch.stack([front, 1 - front - back, back], -1) * angles.horizontal(polar)[:, None]
    return torch.cat([around, 1 - angles.not_overhead(polar)[:, None], angles.bottom(polar)[:, None]], -1)


def blend(embeddings: Tensor, weights: Tensor) -> Tensor:
    """Text embeddings of the views: [B, ...] from the view words' embeddings [V, ...] and weights [B, V]."""
    return torch.tensordot(weights.to(embeddings), embeddings, 1)
