"""Samples of a denoiser, where a method of distillation has estimates. B images, T timesteps."""

from collections.abc import Sequence

import torch
from torch import Tensor

from guidance.distillation.schedule import Denoiser, Mixer, NoiseSchedule


@torch.no_grad()
def ddim(schedule: NoiseSchedule, noisy: Tensor, times: Sequence[int], predict: Denoiser, mix: Mixer) -> Tensor:
    """Clean images from noisy ones by deterministic DDIM (Song et al. 2021, arXiv 2010.02502, eq. 12, eta = 0).

    Args:
        schedule: of the denoiser.
        noisy: [B, ...] x at ``times[0]``.
        times: decreasing timesteps, at least two; the denoiser is asked at all but the last.
        predict: the denoiser.
        mix: how its predictions are combined.

    Returns:
        [B, ...], the last prediction of x_0.
    """
    x0 = noisy
    for now, following in zip(times[:-1], times[1:], strict=True):
        t, later = (torch.full((len(noisy),), time, device=noisy.device) for time in (now, following))
        x0 = schedule.denoise(noisy, t, predict, mix)
        noisy = schedule.add_noise(x0, schedule.noise_in(noisy, x0, t), later)
    return x0
