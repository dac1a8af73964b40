"""Detection of divergence: runs whose scene became empty, full or foggy, or whose losses are not finite."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nerf.config.stages import NERF, Failure, StageKind
from nerf.core.errors import DivergenceError

if TYPE_CHECKING:
    from nerf.config.config import Config

# Limits on moving averages over whole images that frame the object, checked after the first part of training. They are set
# far outside what a successful run shows, because a false alarm ends a run.
EMPTY_OPACITY = 0.004  # 16 pixels of a 64x64 image: less than the thinnest object that a view frames
FULL_OPACITY = 0.985  # less than a pixel's width of background around a 64x64 image, which no framed object leaves
FOG_SHARE = 0.60  # share of pixels with an opacity between FOG_LOW and FOG_HIGH; an object has them along its outline only
FOG_LOW, FOG_HIGH = 0.1, 0.9
SMOOTHING = 0.05  # weight of the newest step, so that about the last 20 count
START_FRACTION, START_STEPS = 0.3, 100  # objects form from fog, so young runs are not judged


@dataclass
class DivergenceMonitor:
    """Moving averages of what the renders look like, updated at every step that is read back.

    Attributes:
        opacity: mean opacity of the images.
        fog: share of their pixels that are half transparent.
        updates: number of images in the averages.
        steps: number of training steps that they stand for; on CUDA not every step is read back.
    """

    opacity: float = math.nan
    fog: float = math.nan
    updates: int = 0
    steps: int = 0

    def update(self, opacity: Tensor, steps: int = 1) -> None:
        """Add the opacity [N] of one render that frames the object and stands for so many steps."""
        mean, fog = mean_and_fog(opacity).tolist()
        self.add(mean, fog, steps)

    def add(self, mean: float, fog: float, steps: int = 1) -> None:
        """Add what :func:`mean_and_fog` found in one render that stands for so many steps."""
        self.updates += 1
        self.steps += steps
        rate = max(SMOOTHING if steps == 1 else 1.0 - (1.0 - SMOOTHING) ** steps, 1.0 / self.updates)
        self.opacity = mean if self.updates == 1 else self.opacity + rate * (mean - self.opacity)
        self.fog = fog if self.updates == 1 else self.fog + rate * (fog - self.fog)

    def diagnose(self, fraction: float, stage: StageKind = NERF, config: "Config | None" = None) -> str | None:
        """What is wrong at this point of a stage, as a sentence with remedies, or None.

        Args:
            fraction: training progress in [0, 1].
            stage: which.
            config: its options; remedies that they leave no room for are left out.
        """
        if fraction < START_FRACTION or self.steps < START_STEPS:
            return None
        if self.opacity < EMPTY_OPACITY:
            return _sentence(stage, config, Failure.EMPTY, f"went empty (mean opacity {self.opacity:.4f})")
        if self.opacity > FULL_OPACITY:
            return _sentence(stage, config, Failure.FULL, f"filled the whole view (mean opacity {self.opacity:.3f})")
        if self.fog > FOG_SHARE:
            return _sentence(
                stage, config, Failure.FOG, f"{stage.fog} ({100 * self.fog:.0f} % of the pixels are half transparent)"
            )
        return None


def mean_and_fog(opacity: Tensor) -> Tensor:
    """The mean of opacities [N], and the share of them that is half transparent: [2], on their device."""
    return torch.stack([opacity.mean(), ((opacity > FOG_LOW) & (opacity < FOG_HIGH)).to(opacity.dtype).mean()])


def _sentence(stage: StageKind, config: "Config | None", failure: Failure, seen: str) -> str:
    """What was observed and what to try; from the start, because the newest checkpoint already has the problem."""
    return f"the {stage.noun} {seen}; start over with {stage.restart} and {stage.advice(failure, config)}"


def check_finite(terms: dict[str, Tensor], step: int, advice: Callable[[], str]) -> None:
    """Refuse a loss that is not a number.

    Args:
        terms: scalars by name.
        step: of the terms.
        advice: gives the end of the message: what is left, and what to try.

    Raises:
        DivergenceError: names the terms and the step.
    """
    bad = [name for name, value in terms.items() if not math.isfinite(float(value.detach()))]
    if bad:
        raise DivergenceError(f"{not_finite(bad, step)}, and the step was not taken; {advice()}")


def not_finite(terms: list[str], step: int) -> str:
    """The beginning of the sentence about loss terms that are not finite."""
    return f"step {step}: the loss term {', '.join(terms)} is not finite"
