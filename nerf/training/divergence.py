"""The watch over a run: tells apart a run that forms something from one that went empty, full, foggy or to NaN."""

import math
from dataclasses import dataclass

from torch import Tensor

from nerf.core.errors import DivergenceError

# Thresholds on the mean opacity of whole guided images, looked at as a moving average after the first part of training.
EMPTY_OPACITY = 0.004
FULL_OPACITY = 0.985
FOG_SHARE = 0.60  # share of pixels that are neither clear nor opaque
SMOOTHING = 0.05
START_FRACTION, START_STEPS = 0.3, 100

# What may be tried, by stage: each has parameters and rates of its own.
NOT_FINITE, EMPTY, FULL, FOG = "not finite", "empty", "full", "fog"
WAYS_OUT = {
    "nerf": {
        NOT_FINITE: "a smaller --lr, --grad_clip 1, or --no_fp16",
        EMPTY: "another --seed, a larger --blob_density, a smaller --lambda_opacity or a smaller --lr",
        FULL: "a larger --lambda_opacity, a smaller --blob_radius, or a larger --radius_range",
        FOG: "a smaller --guidance_scale, a larger --lambda_entropy or another --seed",
    },
    "dmtet": {
        NOT_FINITE: "smaller --lr_distance, --lr_offset and --lr_lattices, a smaller --lr, --grad_clip 1, or --no_fp16",
        EMPTY: "smaller --lr_distance and --lr_lattices, a smaller --radius_range, or a larger start (--init_with)",
        FULL: "smaller --lr_distance and --lr_lattices, a larger --radius_range, or a smaller start (--init_with)",
        FOG: "smaller --lr_distance and --lr_offset, or a larger --lambda_mesh_normal",
    },
}


@dataclass
class Watch:
    """Moving averages of what the renders look like, updated once per step.

    Attributes:
        opacity: mean opacity of the guided images.
        fog: share of their pixels with an opacity between 0.1 and 0.9.
        updates: how many images went into the averages.
    """

    opacity: float = math.nan
    fog: float = math.nan
    updates: int = 0

    def see(self, opacity: Tensor) -> None:
        """Take in the opacity [N] of one guided render."""
        mean = float(opacity.mean())
        fog = float(((opacity > 0.1) & (opacity < 0.9)).float().mean())
        self.updates += 1
        rate = max(SMOOTHING, 1.0 / self.updates)
        self.opacity = mean if self.updates == 1 else self.opacity + rate * (mean - self.opacity)
        self.fog = fog if self.updates == 1 else self.fog + rate * (fog - self.fog)

    def verdict(self, fraction: float, stage: str = "nerf") -> str | None:
        """What is wrong at this point of a stage, as a sentence with a way out that the stage has; None while all is well."""
        if fraction < START_FRACTION or self.updates < START_STEPS:
            return None
        if self.opacity < EMPTY_OPACITY:
            return _sentence(stage, EMPTY, f"went empty (mean opacity {self.opacity:.4f})")
        if self.opacity > FULL_OPACITY:
            return _sentence(stage, FULL, f"filled the whole view (mean opacity {self.opacity:.3f})")
        if self.fog > FOG_SHARE:
            became = "broke into splinters" if stage == "dmtet" else "turned into fog"  # only its edges are half transparent
            return _sentence(stage, FOG, f"{became} ({100 * self.fog:.0f} % of the pixels are half transparent)")
        return None


def _sentence(stage: str, trouble: str, seen: str) -> str:
    """What was seen and what to try; from the start, as the newest checkpoint is of the run that went wrong."""
    what, flag = ("mesh", "--dmtet ") if stage == "dmtet" else ("scene", "")
    return f"the {what} {seen}; start over with {flag}--ckpt scratch and {WAYS_OUT[stage][trouble]}"


def check_finite(terms: dict[str, Tensor], step: int, stage: str = "nerf") -> None:
    """Refuse a loss that is not a number.

    Raises:
        DivergenceError: names the terms and the step, and what the stage lets one try.
    """
    bad = [name for name, value in terms.items() if not math.isfinite(float(value.detach()))]
    if bad:
        raise DivergenceError(f"step {step}: the loss term {', '.join(bad)} is not finite; the last checkpoint is untouched. "
                              f"Try {WAYS_OUT[stage][NOT_FINITE]}")  # fmt: skip
