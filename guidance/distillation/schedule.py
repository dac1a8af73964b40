"""The noise levels of a denoiser, and what its predictions mean. B images, K conditions, T timesteps.

A clean image x_0 is noised to ``x_t = alpha x_0 + sigma noise`` with ``alpha^2 = alphas_cumprod[t]`` and ``sigma^2 = 1 -
alpha^2``. A denoiser predicts noise, v or x_0 from x_t under K conditions (unconditional, conditional, ...); everything here
works with its predictions of x_0.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
WEIGHTINGS = ("sds", "uniform", "fantasia", "x0")

Denoiser = Callable[[Tensor, Tensor], Tensor]
"""(x_t [B, ...], t [B] int64) -> [K, B, ...]: the raw prediction under each of K conditions, in the dtype of x_t."""
Mixer = Callable[[Tensor], Tensor]
"""x_0 predictions [K, B, ...] under K conditions -> the guided x_0 prediction [B, ...]."""


def predict_x0(prediction: Tensor, noisy: Tensor, alpha: Tensor, sigma: Tensor, prediction_type: str) -> Tensor:
    """Convert a prediction to x_0.

    ``epsilon``: ``(x_t - sigma eps) / alpha``; ``v_prediction`` (Salimans and Ho 2022, arXiv 2202.00512, app. D):
    ``alpha x_t - sigma v``; ``sample``: the prediction itself.

    Args:
        prediction: [K, B, ...] or [B, ...] output of the denoiser.
        noisy: [B, ...] x_t.
        alpha, sigma: [B, 1, ...] from :meth:`NoiseSchedule.levels`.
        prediction_type: one of :data:`PREDICTION_TYPES`.

    Returns:
        Like the prediction. Differentiable.

    Raises:
        ValueError: an unknown prediction type.
    """
    if prediction_type == "epsilon":
        return (noisy - sigma * prediction) / alpha
    if prediction_type == "v_prediction":
        return alpha * noisy - sigma * prediction
    if prediction_type == "sample":
        return prediction
    raise ValueError(f"predict_x0: expected a prediction_type among {PREDICTION_TYPES}, got {prediction_type!r}")


def timestep_weight(weighting: str, alpha: Tensor, sigma: Tensor) -> Tensor:
    """w(t), the factor of the noise residual; shaped like ``alpha`` and ``sigma`` [B, 1, ...].

    ``sds``: ``sigma^2`` (DreamFusion), so that the gradient is ``alpha sigma (x - x0_hat)``; ``uniform``: 1;
    ``fantasia``: ``alpha sigma^2`` (Fantasia3D, arXiv 2303.13873, sec. 3.2), smaller at the noisiest timesteps; ``x0``:
    ``sigma / alpha``, which makes the gradient ``x - x0_hat`` (ISM, SDI).

    Raises:
        ValueError: an unknown weighting.
    """
    if weighting == "sds":
        return sigma**2
    if weighting == "uniform":
        return torch.ones_like(sigma)
    if weighting == "fantasia":
        return alpha * sigma**2
    if weighting == "x0":
        return sigma / alpha
    raise ValueError(f"timestep_weight: expected a weighting among {WEIGHTINGS}, got {weighting!r}")


@dataclass(frozen=True)
class NoiseSchedule:
    """The noise levels of a denoiser and what it predicts. Works in any dtype; float32 or wider is advised."""

    alphas_cumprod: Tensor  # [T], decreasing, in [0, 1)
    prediction_type: str = "epsilon"  # one of PREDICTION_TYPES
    clamp: float | None = None  # bound on |x0_hat|: 1 for pixels in [-1, 1], none for latents

    def __post_init__(self) -> None:
        if self.alphas_cumprod.ndim != 1 or not ((self.alphas_cumprod >= 0) & (self.alphas_cumprod < 1)).all():
            raise ValueError(
                f"NoiseSchedule: expected alphas_cumprod [T] with values in [0, 1), got shape {list(self.alphas_cumprod.shape)}"
            )
        if self.prediction_type not in PREDICTION_TYPES:
            raise ValueError(
                f"NoiseSchedule: expected a prediction_type among {PREDICTION_TYPES}, got {self.prediction_type!r}"
            )

    @property
    def num_timesteps(self) -> int:
        """T."""
        return len(self.alphas_cumprod)

    @cached_property
    def sigmas(self) -> list[float]:
        """sigma of every timestep, on the host; reads the schedule back from its device once."""
        sigmas: list[float] = (1 - self.alphas_cumprod.double()).sqrt().tolist()
        return sigmas

    def levels(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """alpha and sigma at timesteps t [B], each [B, 1, ...] of the rank, dtype and device of ``like``."""
        abar = self.alphas_cumprod[t.to(self.alphas_cumprod.device)].to(like)
        abar = abar.reshape(-1, *(1,) * (like.ndim - 1))
        return abar.sqrt(), (1 - abar).sqrt()

    def denoise(self, noisy: Tensor, t: Tensor, predict: Denoiser, mix: Mixer) -> Tensor:
        """Guided x_0 prediction [B, ...] from x_t ``noisy`` [B, ...] at timesteps t [B], clamped; without gradient."""
        with torch.no_grad():
            alpha, sigma = self.levels(t, noisy)
            return self.clamped(mix(predict_x0(predict(noisy, t), noisy, alpha, sigma, self.prediction_type)))

    def clamped(self, x0: Tensor) -> Tensor:
        """An x_0 prediction within the bound of the data, where there is one."""
        return x0 if self.clamp is None else x0.clamp(-self.clamp, self.clamp)

    def add_noise(self, x: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t [B, ...] of clean images x [B, ...] with standard normal noise [B, ...] at timesteps t [B]."""
        alpha, sigma = self.levels(t, x)
        return alpha * x + sigma * noise

    def noise_in(self, noisy: Tensor, x0: Tensor, t: Tensor) -> Tensor:
        """The noise [B, ...] that x_t ``noisy`` [B, ...] holds if its clean image is x0 [B, ...] (or [K, B, ...])."""
        alpha, sigma = self.levels(t, noisy)
        return (noisy - alpha * x0) / sigma

    def target(self, x: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What a perfect denoiser of this kind of prediction gives for x_t of clean images x [B, ...] with this noise."""
        alpha, sigma = self.levels(t, x)
        return {"epsilon": noise, "v_prediction": alpha * noise - sigma * x, "sample": x}[self.prediction_type]
