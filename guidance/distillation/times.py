"""Which timestep each step of training looks at: at random, or falling as training proceeds. B images, T timesteps."""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


def _ends(t_range: tuple[float, float], num_timesteps: int) -> tuple[int, int]:
    """The first and the last timestep of a range that is given as fractions."""
    low, high = t_range
    if not 0 <= low <= high <= 1:
        raise ValueError(f"timesteps: expected t_range with 0 <= low <= high <= 1, got {tuple(t_range)} (--t_range)")
    return min(int(low * num_timesteps), num_timesteps - 1), min(int(high * num_timesteps), num_timesteps - 1)


def sample_timesteps(count: int, t_range: tuple[float, float], num_timesteps: int, generator: torch.Generator) -> Tensor:
    """Uniform timesteps, one per image.

    Args:
        count: B.
        t_range: fractions of ``num_timesteps``, both ends included.
        num_timesteps: T.
        generator: on the CPU.

    Returns:
        [B] int64 on the CPU, in ``[floor(T low), floor(T high)]`` and below T.

    Raises:
        ValueError: the range is reversed or leaves [0, 1].
    """
    first, last = _ends(t_range, num_timesteps)
    return torch.randint(first, last + 1, (count,), generator=generator)


T_SCHEDULES = ("uniform", "linear", "sqrt", "dreamtime")
# DreamTime's time prior: timesteps of 1000 between which nothing is preferred, and how fast the preference falls outside.
DREAMTIME_HIGH, DREAMTIME_LOW, DREAMTIME_ABOVE, DREAMTIME_BELOW = 0.8, 0.5, 0.3, 0.1


def dreamtime_weights(alphas_cumprod: Tensor) -> Tensor:
    """How long DreamTime stays at each timestep: W(t) of Huang et al. 2023, arXiv 2306.12422, sec. 3.2, not normalised.

    ``sqrt((1 - abar) / abar)`` times a prior that is 1 between t = 500 and 800 of 1000 and falls as a Gaussian outside, with
    standard deviations of 100 below and 300 above.

    Args:
        alphas_cumprod: [T].

    Returns:
        [T] float64 on the CPU, positive.
    """
    abar = alphas_cumprod.double().cpu()
    at = torch.arange(len(abar), dtype=torch.float64) / len(abar)
    above = (at - DREAMTIME_HIGH).clamp(min=0) / DREAMTIME_ABOVE
    below = (DREAMTIME_LOW - at).clamp(min=0) / DREAMTIME_BELOW
    return ((1 - abar) / abar).sqrt() * torch.exp(-(above**2 + below**2) / 2)


@dataclass(frozen=True)
class TimestepSchedule:
    """Draws the timesteps of a step.

    ``uniform``: at random in the range. The others give every image of a step the same t, which falls from the upper end of
    the range to the lower one: ``linear`` in the training progress, ``sqrt`` fast at first (HiFA, Zhu and Zhuang 2023, arXiv
    2305.18766, sec. 3.3), ``dreamtime`` so that each t lasts as long as :func:`dreamtime_weights` says.
    """

    alphas_cumprod: Tensor  # [T]

    @cached_property
    def _lasting(self) -> Tensor:
        """Read back from the device once in a run."""
        return dreamtime_weights(self.alphas_cumprod)

    def falling(self, name: str, fraction: float, t_range: tuple[float, float]) -> int:
        """The timestep of a schedule that falls with the training progress.

        Args:
            name: one of :data:`T_SCHEDULES` other than uniform.
            fraction: training progress in [0, 1].
            t_range: fractions of T, both ends included.

        Raises:
            ValueError: an unknown name, or a range that is reversed or leaves [0, 1].
        """
        first, last = _ends(t_range, len(self.alphas_cumprod))
        if name == "linear":
            return round(last - fraction * (last - first))
        if name == "sqrt":
            return round(last - math.sqrt(fraction) * (last - first))
        if name == "dreamtime":
            passed = self._lasting[first : last + 1].flip(0).cumsum(0)  # share of the run after which t has been left
            index = int(torch.searchsorted(passed, fraction * passed[-1]))
            return last - min(index, last - first)
        raise ValueError(f"TimestepSchedule: expected a schedule among {T_SCHEDULES}, got {name!r}")

    def draw(
        self, count: int, name: str, fraction: float, t_range: tuple[float, float], generator: torch.Generator, shared: bool
    ) -> Tensor:
        """The timesteps of a step, [B] int64 on the CPU.

        Args:
            count: B.
            name: one of :data:`T_SCHEDULES`.
            fraction: training progress in [0, 1].
            t_range: fractions of T, both ends included.
            generator: on the CPU; for ``uniform``.
            shared: one timestep for all images, also under ``uniform``.
        """
        if name != "uniform":
            return torch.full((count,), self.falling(name, fraction, t_range))
        drawn = sample_timesteps(1 if shared else count, t_range, len(self.alphas_cumprod), generator)
        return drawn.expand(count)
