"""Detection of divergence: a run that forms something, as against one that went empty, full, foggy or to NaN."""

import math
from dataclasses import dataclass

from torch import Tensor

from nerf.config.stages import NERF, StageKind, Trouble
from nerf.core.errors import DivergenceError

# Thresholds on the mean opacity of whole guided images, looked at as a moving average after the first part of training.
EMPTY_OPACITY = 0.004
FULL_OPACITY = 0.985
FOG_SHARE = 0.60  # share of pixels that are neither clear nor opaque
SMOOTHING = 0.05
START_FRACTION, START_STEPS = 0.3, 100


@dataclass
class DivergenceMonitor:
    """Moving averages of what the renders look like, updated once per step.

    Attributes:
        opacity: mean opacity of the guided images.
        fog: share of their pixels with an opacity between 0.1 and 0.9.
        updates: how many images went into the averages.
    """

    opacity: float = math.nan
    fog: float = math.nan
    updates: int = 0

    def update(self, opacity: Tensor) -> None:
        """Take in the opacity [N] of one render that frames the object."""
        mean = float(opacity.mean())
        fog = float(((opacity > 0.1) & (opacity < 0.9)).float().mean())
        self.updates += 1
        rate = max(SMOOTHING, 1.0 / self.updates)
        self.opacity = mean if self.updates == 1 else self.opacity + rate * (mean - self.opacity)
        self.fog = fog if self.updates == 1 else self.fog + rate * (fog - self.fog)

    def diagnose(self, fraction: float, stage: StageKind = NERF) -> str | None:
        """What is wrong at this point of a stage, as a sentence with a remedy; None while all is well."""
        if fraction < START_FRACTION or self.updates < START_STEPS:
            return None
        if self.opacity < EMPTY_OPACITY:
            return _sentence(stage, Trouble.EMPTY, f"went empty (mean opacity {self.opacity:.4f})")
        if self.opacity > FULL_OPACITY:
            return _sentence(stage, Trouble.FULL, f"filled the whole view (mean opacity {self.opacity:.3f})")
        if self.fog > FOG_SHARE:
            return _sentence(stage, Trouble.FOG, f"{stage.fog} ({100 * self.fog:.0f} % of the pixels are half transparent)")
        return None


def _sentence(stage: StageKind, trouble: Trouble, seen: str) -> str:
    """What was seen and what to try; from the start, as the newest checkpoint is of the run that went wrong."""
    return f"the {stage.noun} {seen}; start over with {stage.restart} and {stage.remedies[trouble]}"


def check_finite(terms: dict[str, Tensor], step: int, stage: StageKind = NERF) -> None:
    """Refuse a loss that is not a number.

    Raises:
        DivergenceError: names the terms and the step, and what the stage lets one try.
    """
    bad = [name for name, value in terms.items() if not math.isfinite(float(value.detach()))]
    if bad:
        raise DivergenceError(f"step {step}: the loss term {', '.join(bad)} is not finite; the last checkpoint is untouched. "
                              f"Try {stage.remedies[Trouble.NOT_FINITE]}")  # fmt: skip
