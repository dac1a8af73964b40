"""View-dependent prompts: which words describe a view, by how much, continuously in its angles. B views, V words.

A single view word per view jumps at the borders between words and teaches a wrong view on either side of them; blending
the text embeddings with weights that sum to one and never jump does not. Angles are degrees: azimuth 0 = front,
polar 0 = straight above.
"""

import torch
from torch import Tensor

from nerf.core.cameras import wrap_degrees

VIEW_WORDS = ("front", "side", "back", "overhead", "bottom")
VIEW_ENDINGS = tuple(f", {word} view" for word in VIEW_WORDS)  # what is added to the prompt
OVERHEAD = 30.0  # polar angle at which a view is half from above (DreamFusion switches at 60 degrees of elevation)
BOTTOM = 150.0  # polar angle at which a view is half from below
RAMP = 20.0  # degrees over which the polar words fade in


def _ramp(x: Tensor, middle: float) -> Tensor:
    """0 before ``middle - RAMP / 2``, 1 after ``middle + RAMP / 2``, linear between."""
    return ((x - middle) / RAMP + 0.5).clamp(0, 1)


def horizontal_share(polar: Tensor) -> Tensor:
    """How much of a view is neither from above nor from below, in [0, 1]; [B] from polar [B] in degrees."""
    return _ramp(polar, OVERHEAD) * (1 - _ramp(polar, BOTTOM))


def view_weights(azimuth: Tensor, polar: Tensor) -> Tensor:
    """Weight of each view word: a partition of unity, continuous in both angles.

    Around the horizon front, side and back are blended linearly in the azimuth (0, +-90, 180 degrees are pure);
    overhead and bottom fade in with the polar angle, so that at the poles, where the azimuth means nothing, it counts
    for nothing.

    Args:
        azimuth: [B] degrees, any turn.
        polar: [B] degrees in [0, 180].

    Returns:
        [B, V], >= 0, rows sum to 1.

    Raises:
        ValueError: shapes differ.
    """
    if azimuth.shape != polar.shape or azimuth.ndim != 1:
        raise ValueError(f"view_weights: expected azimuth [B] and polar [B], got {list(azimuth.shape)} and {list(polar.shape)}")
    turn = wrap_degrees(azimuth).abs() / 90
    front, back = (1 - turn).clamp(min=0), (turn - 1).clamp(min=0)
    around = torch.stack([front, 1 - front - back, back], -1) * horizontal_share(polar)[:, None]
    return torch.cat([around, 1 - _ramp(polar, OVERHEAD)[:, None], _ramp(polar, BOTTOM)[:, None]], -1)


def blend(embeddings: Tensor, weights: Tensor) -> Tensor:
    """Text embeddings of the views: [B, L, D] from the words' embeddings [V, L, D] and weights [B, V]."""
    return torch.einsum("bv,vld->bld", weights.to(embeddings), embeddings)
