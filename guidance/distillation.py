"""Score distillation without a model: from any denoiser to a gradient on images. B images, K conditions, T timesteps.

A clean image x_0 is noised to ``x_t = alpha x_0 + sigma noise`` with ``alpha^2 = alphas_cumprod[t]`` and ``sigma^2 = 1 -
alpha^2``. A denoiser predicts noise, v or x_0 from x_t under K conditions (unconditional, conditional, ...). The
predictions are converted to x_0 and mixed there (classifier-free guidance); the noise residual ``noise_hat - noise =
alpha / sigma * (x - x0_hat)`` is, up to the weight w(t), the gradient of DreamFusion (Poole et al. 2022, arXiv 2209.14988,
eq. 3).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nerf.core.errors import DivergenceError

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
WEIGHTINGS = ("sds", "uniform", "fantasia", "x0")

Denoiser = Callable[[Tensor, Tensor], Tensor]
"""(x_t [B, ...], t [B] int64) -> [K, B, ...]: the raw prediction under each of K conditions, in the dtype of x_t."""
Mixer = Callable[[Tensor], Tensor]
"""x_0 predictions [K, B, ...] under K conditions -> the guided x_0 prediction [B, ...]."""


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
    low, high = t_range
    if not 0 <= low <= high <= 1:
        raise ValueError(f"sample_timesteps: expected t_range with 0 <= low <= high <= 1, got {tuple(t_range)} (--t_range)")
    first = min(int(low * num_timesteps), num_timesteps - 1)
    last = min(int(high * num_timesteps), num_timesteps - 1)
    return torch.randint(first, last + 1, (count,), generator=generator)


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


def classifier_free(scale: float) -> Mixer:
    """Classifier-free guidance: ``u + scale (c - u)`` (Ho and Salimans 2022, arXiv 2207.12598, eq. 6).

    The combination is affine, so combining x_0, noise or v predictions is the same.

    Args:
        scale: 1 is the conditional prediction, 0 the unconditional one.

    Returns:
        A mixer of the predictions [2, B, ...] (unconditional, conditional). For scale 1 the first may be left out.
    """

    def mix(predictions: Tensor) -> Tensor:
        if scale == 1:
            return predictions[-1]
        unconditional, conditional = predictions
        guided: Tensor = unconditional + scale * (conditional - unconditional)
        return guided

    return mix


def rescale_cfg(mix: Mixer, rescale: float) -> Mixer:
    """``mix``, followed by :func:`rescale_std` towards the conditional prediction, against over-exposed colours.

    Args:
        mix: of two or more predictions, of which the second is the conditional one.
        rescale: in [0, 1]; Lin et al. recommend 0.7.
    """
    return mix if rescale == 0 else lambda predictions: rescale_std(mix(predictions), predictions[1], rescale)


def rescale_std(guided: Tensor, conditional: Tensor, rescale: float) -> Tensor:
    """Move the standard deviation of each image towards that of the conditional prediction.

    Lin et al. 2023, arXiv 2305.08891, eq. 15-16, applied to x_0.

    Args:
        guided: [B, ...] prediction after classifier-free guidance.
        conditional: [B, ...] prediction under the prompt alone.
        rescale: 0 changes nothing, 1 takes the standard deviation of ``conditional``.

    Returns:
        [B, ...]. Differentiable.
    """
    axes = tuple(range(1, guided.ndim))
    ratio = conditional.std(axes, keepdim=True) / guided.std(axes, keepdim=True).clamp(min=1e-8)
    return guided * (rescale * ratio + 1 - rescale)


def timestep_weight(weighting: str, alpha: Tensor, sigma: Tensor) -> Tensor:
    """w(t), the factor of the noise residual; shaped like ``alpha`` and ``sigma`` [B, 1, ...].

    ``sds``: ``sigma^2`` (DreamFusion), so that the gradient is ``alpha sigma (x - x0_hat)``; ``uniform``: 1;
    ``fantasia``: ``alpha sigma^2`` (Fantasia3D, arXiv 2303.13873, sec. 3.2), smaller at the noisiest timesteps; ``x0``:
    ``sigma / alpha``, so that the gradient is ``x - x0_hat`` (MVDream, arXiv 2308.16512, sec. 3.2: the x0-reconstruction loss).

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

    def levels(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """alpha and sigma at timesteps t [B], each [B, 1, ...] of the rank, dtype and device of ``like``."""
        abar = self.alphas_cumprod[t.to(self.alphas_cumprod.device)].to(like)
        abar = abar.reshape(-1, *(1,) * (like.ndim - 1))
        return abar.sqrt(), (1 - abar).sqrt()

    def denoise(self, noisy: Tensor, t: Tensor, predict: Denoiser, mix: Mixer) -> Tensor:
        """Guided x_0 prediction [B, ...] from x_t ``noisy`` [B, ...] at timesteps t [B], clamped; without gradient."""
        with torch.no_grad():
            alpha, sigma = self.levels(t, noisy)
            x0 = mix(predict_x0(predict(noisy, t), noisy, alpha, sigma, self.prediction_type))
            return x0 if self.clamp is None else x0.clamp(-self.clamp, self.clamp)


@dataclass(frozen=True)
class Distilled:
    """A distillation gradient and the quantities behind it."""

    gradient: Tensor  # [B, ...] with respect to x
    x0: Tensor  # [B, ...] guided x_0 prediction
    noisy: Tensor  # [B, ...] x_t
    t: Tensor  # [B] int64
    norm: Tensor  # [B] Euclidean norm of each image's gradient


def sds_gradient(
    schedule: NoiseSchedule, weighting: str, x: Tensor, predict: Denoiser, mix: Mixer, t: Tensor, noise: Tensor
) -> Distilled:
    """Score distillation sampling: ``w(t) (noise_hat - noise)``, computed as ``w(t) alpha / sigma (x - x0_hat)``.

    Args:
        schedule: of the denoiser.
        weighting: one of :data:`WEIGHTINGS`.
        x: [B, ...] images or latents; no gradient flows through this function.
        predict: the denoiser.
        mix: how its predictions are combined.
        t: [B] int64 timesteps.
        noise: like x, standard normal.

    Raises:
        ValueError: shapes that do not match.
    """
    if noise.shape != x.shape or t.shape != x.shape[:1]:
        raise ValueError(
            f"sds_gradient: expected noise {list(x.shape)} and t [{x.shape[0]}], got {list(noise.shape)} and {list(t.shape)}"
        )
    x = x.detach()
    alpha, sigma = schedule.levels(t, x)
    noisy = alpha * x + sigma * noise
    x0 = schedule.denoise(noisy, t, predict, mix)
    gradient = timestep_weight(weighting, alpha, sigma) * (alpha / sigma) * (x - x0)
    return Distilled(gradient, x0, noisy, t, gradient.flatten(1).norm(dim=1))


class _Inject(torch.autograd.Function):
    """A scalar whose gradient with respect to x is given."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gradient: Tensor) -> Tensor:
        """``sum(gradient^2) / (2 B)`` in float32 or wider."""
        ctx.save_for_backward(gradient)
        ctx.dtype = x.dtype
        wide = gradient if gradient.dtype == torch.float64 else gradient.float()
        return wide.square().sum() / (2 * len(x))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        """``upstream * gradient / B``, exactly."""
        (gradient,) = ctx.saved_tensors
        return (upstream * gradient / len(gradient)).to(ctx.dtype), None


def inject(x: Tensor, gradient: Tensor, images: Tensor | None = None) -> Tensor:
    """A loss whose gradient with respect to x is ``gradient / B``.

    Its value is ``1/2 |gradient|^2`` of an image, averaged over the B images. Unlike a squared distance to a shifted copy of
    x, nothing is lost to rounding when the gradient is far smaller than x. Differentiable once, in x.

    Args:
        x: [B, ...] what the denoiser saw.
        gradient: like x, in its dtype or a wider one.
        images: [B, ...] the rendering that x was encoded from, if it is not x itself; named in the error message.

    Raises:
        ValueError: the shapes differ.
        DivergenceError: the gradient is not finite; on a CPU alone, as looking would wait for a GPU: there the loss is not
            finite, and whoever reads it explains it by :func:`finite_images` and :func:`diagnosis`.
    """
    if x.shape != gradient.shape:
        raise ValueError(f"inject: expected a gradient {list(x.shape)}, got {list(gradient.shape)}")
    loss: Tensor = _Inject.apply(x, gradient.detach())
    if loss.device.type == "cpu" and not torch.isfinite(loss):
        raise DivergenceError(diagnosis(finite_images(x if images is None else images, gradient).tolist()))
    return loss


def finite_images(images: Tensor, gradient: Tensor) -> Tensor:
    """Which of the images [B, ...] and which of the gradients [B, ...] are finite in all their elements, bool [2, B]."""
    return torch.stack([each.detach().flatten(1).isfinite().all(1) for each in (images, gradient)])


def diagnosis(finite: list[list[bool]], on_gpu: bool = False) -> str:
    """Why a loss of score distillation is not finite: which images, and whether the rendering or the denoiser is the cause.

    Args:
        finite: [2, B] of :func:`finite_images`.
        on_gpu: the model ran on a GPU, where it may compute in float16.
    """
    images, gradients = finite
    bad = [i for i, good in enumerate(gradients) if not good]
    broken_input = [i for i in bad if not images[i]]
    if broken_input:
        return (
            f"score distillation: the rendered images {broken_input} of {len(images)} hold NaN or infinity "
            "before the diffusion model sees them; run again with a smaller --lr, or with --grad_clip 1"
        )
    half = ", or where it computes in float16, give --bf16 or --no_fp16" if on_gpu else ""
    return (
        f"score distillation: the gradient of images {bad or 'all'} of {len(images)} is not finite though the "
        f"images are; the diffusion model overflowed: lower --guidance_scale{half}"
    )
