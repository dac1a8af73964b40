"""Score distillation without a model: from any denoiser to a gradient on images. B images, K branches, T times.

A picture x is noised to ``x_t = alpha x + sigma noise`` with ``alpha^2 = abar_t`` and ``sigma^2 = 1 - abar_t``. A
denoiser looks at x_t under K conditions (nothing, the prompt, ...). Its answers are turned into estimates of x_0 and
mixed there; the residual ``noise_hat - noise = alpha / sigma * (x - x0_hat)`` is, up to the weight w(t), the gradient
of DreamFusion (Poole et al. 2022, arXiv 2209.14988, eq. 3).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nerf.core.errors import DivergenceError

PARAMETERISATIONS = ("epsilon", "v_prediction", "sample")
WEIGHTINGS = ("sds", "uniform", "fantasia")

Denoiser = Callable[[Tensor, Tensor], Tensor]
"""(x_t [B, ...], t [B] int64) -> [K, B, ...]: what the model predicts under each of K conditions, x_t's dtype."""
Mixer = Callable[[Tensor], Tensor]
"""[K, B, ...] estimates of x_0 -> [B, ...] the one that guides."""


def draw_times(count: int, t_range: tuple[float, float], num_times: int, generator: torch.Generator) -> Tensor:
    """Uniform diffusion times, one per image.

    Args:
        count: B.
        t_range: share of the ``num_times`` times, both ends included.
        num_times: T.
        generator: a generator on the CPU.

    Returns:
        [B] int64 on the CPU, in ``[floor(T low), floor(T high)]`` and below T.

    Raises:
        ValueError: the range is reversed or leaves [0, 1].
    """
    low, high = t_range
    if not 0 <= low <= high <= 1:
        raise ValueError(f"draw_times: expected t_range with 0 <= low <= high <= 1, got {tuple(t_range)} (--t_range)")
    first = min(int(low * num_times), num_times - 1)
    last = min(int(high * num_times), num_times - 1)
    return torch.randint(first, last + 1, (count,), generator=generator)


def estimate(prediction: Tensor, noisy: Tensor, alpha: Tensor, sigma: Tensor, parameterisation: str) -> Tensor:
    """The clean picture that a prediction stands for.

    ``epsilon``: ``(x_t - sigma eps) / alpha``; ``v_prediction`` (Salimans and Ho 2022, arXiv 2202.00512, app. D):
    ``alpha x_t - sigma v``; ``sample``: the prediction itself. The shapes broadcast.

    Raises:
        ValueError: an unknown parameterisation.
    """
    if parameterisation == "epsilon":
        return (noisy - sigma * prediction) / alpha
    if parameterisation == "v_prediction":
        return alpha * noisy - sigma * prediction
    if parameterisation == "sample":
        return prediction
    raise ValueError(f"estimate: expected a parameterisation among {PARAMETERISATIONS}, got {parameterisation!r}")


def classifier_free(scale: float) -> Mixer:
    """Classifier-free guidance: ``u + scale (c - u)`` (Ho and Salimans 2022, arXiv 2207.12598, eq. 6).

    It is an affine mixture, so mixing in x_0, in the noise or in v is the same.

    Args:
        scale: 1 follows the prompt plainly, 0 ignores it.

    Returns:
        A function of the two branches [2, B, ...] (unconditional, conditional). For scale 1 the first may be left out.
    """

    def mix(branches: Tensor) -> Tensor:
        if scale == 1:
            return branches[-1]
        unconditional, conditional = branches
        return unconditional + scale * (conditional - unconditional)

    return mix


def keeping_spread(mix: Mixer, share: float) -> Mixer:
    """``mix``, whose result's spread is pulled back to that of the conditional branch, against washed-out colours.

    Lin et al. 2023, arXiv 2305.08891, eq. 15-16, applied to the estimates of x_0.

    Args:
        mix: of two or more branches, of which the second is the plainly conditional one.
        share: how far it is pulled, in [0, 1]; they advise 0.7.
    """
    return mix if share == 0 else lambda branches: rescaled(mix(branches), branches[1], share)


def rescaled(guided: Tensor, conditional: Tensor, share: float) -> Tensor:
    """``guided`` [B, ...] with its per-image spread moved by ``share`` towards that of ``conditional`` [B, ...]."""
    axes = tuple(range(1, guided.ndim))
    ratio = conditional.std(axes, keepdim=True) / guided.std(axes, keepdim=True).clamp(min=1e-8)
    return guided * (share * ratio + 1 - share)


def weight(weighting: str, alpha: Tensor, sigma: Tensor) -> Tensor:
    """w(t), the factor of the noise residual.

    ``sds``: ``sigma^2`` (DreamFusion), so that the gradient is ``alpha sigma (x - x0_hat)``; ``uniform``: 1;
    ``fantasia``: ``alpha sigma^2`` (Fantasia3D, arXiv 2303.13873, sec. 3.2), which quiets the noisiest times.

    Raises:
        ValueError: an unknown weighting.
    """
    if weighting == "sds":
        return sigma**2
    if weighting == "uniform":
        return torch.ones_like(sigma)
    if weighting == "fantasia":
        return alpha * sigma**2
    raise ValueError(f"weight: expected a weighting among {WEIGHTINGS}, got {weighting!r}")


@dataclass(frozen=True)
class Distilled:
    """What one look of the denoiser gave."""

    gradient: Tensor  # [B, ...] of x
    x0: Tensor  # [B, ...] guided estimate of the clean picture
    noisy: Tensor  # [B, ...] x_t
    t: Tensor  # [B] int64
    norm: Tensor  # [B] Euclidean norm of each picture's gradient, before clipping


@dataclass(frozen=True)
class Distillation:
    """Score distillation sampling with one noise schedule. Works in any dtype; float32 or wider is advised."""

    alphas_cumprod: Tensor  # [T] abar, falling, in [0, 1)
    parameterisation: str = "epsilon"  # what the denoiser predicts, one of PARAMETERISATIONS
    weighting: str = "sds"  # one of WEIGHTINGS
    clamp: float | None = None  # bound on |x0_hat|; for pictures in [-1, 1]
    max_norm: float | None = None  # longest gradient of one picture; longer ones keep their direction

    def __post_init__(self):
        if self.alphas_cumprod.ndim != 1 or not ((self.alphas_cumprod >= 0) & (self.alphas_cumprod < 1)).all():
            raise ValueError(
                f"Distillation: expected alphas_cumprod [T] with values in [0, 1), got shape {list(self.alphas_cumprod.shape)}"
            )
        if self.parameterisation not in PARAMETERISATIONS:
            raise ValueError(
                f"Distillation: expected a parameterisation among {PARAMETERISATIONS}, got {self.parameterisation!r}"
            )
        if self.weighting not in WEIGHTINGS:
            raise ValueError(f"Distillation: expected a weighting among {WEIGHTINGS}, got {self.weighting!r}")

    @property
    def num_times(self) -> int:
        """T."""
        return len(self.alphas_cumprod)

    def levels(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """alpha and sigma at times t [B], each [B, 1, ...] of the rank, dtype and device of ``like``."""
        abar = self.alphas_cumprod[t.to(self.alphas_cumprod.device)].to(like)
        abar = abar.reshape(-1, *(1,) * (like.ndim - 1))
        return abar.sqrt(), (1 - abar).sqrt()

    def denoise(self, noisy: Tensor, t: Tensor, predict: Denoiser, mix: Mixer) -> Tensor:
        """Guided estimate of the clean picture behind ``noisy`` [B, ...] at times t [B], clamped; no gradient."""
        with torch.no_grad():
            alpha, sigma = self.levels(t, noisy)
            x0 = mix(estimate(predict(noisy, t), noisy, alpha, sigma, self.parameterisation))
            return x0 if self.clamp is None else x0.clamp(-self.clamp, self.clamp)

    def gradient(self, x: Tensor, predict: Denoiser, mix: Mixer, t: Tensor, noise: Tensor) -> Distilled:
        """``w(t) (noise_hat - noise)``, written as ``w(t) alpha / sigma (x - x0_hat)``.

        Args:
            x: [B, ...] pictures or latents; no gradient flows through this function.
            predict: the denoiser, see :data:`Denoiser`.
            mix: how its branches are combined, see :data:`Mixer`.
            t: [B] int64 diffusion times.
            noise: like x, standard normal.

        Raises:
            ValueError: shapes that do not fit.
        """
        if noise.shape != x.shape or t.shape != x.shape[:1]:
            raise ValueError(
                f"gradient: expected noise {list(x.shape)} and t [{x.shape[0]}], got {list(noise.shape)} and {list(t.shape)}"
            )
        x = x.detach()
        alpha, sigma = self.levels(t, x)
        noisy = alpha * x + sigma * noise
        x0 = self.denoise(noisy, t, predict, mix)
        gradient = weight(self.weighting, alpha, sigma) * (alpha / sigma) * (x - x0)
        norm = gradient.flatten(1).norm(dim=1)
        if self.max_norm is not None:
            shrink = (self.max_norm / norm.clamp(min=1e-12)).clamp(max=1)
            gradient = gradient * shrink.reshape(alpha.shape)
        return Distilled(gradient, x0, noisy, t, norm)


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


def inject(x: Tensor, gradient: Tensor, pictures: Tensor | None = None) -> Tensor:
    """A loss whose gradient with respect to x is ``gradient / B``.

    Its value is ``1/2 |gradient|^2`` of a picture, averaged over the B pictures: zero exactly where the denoiser is
    content. Unlike a squared distance to a shifted copy of x, nothing is lost when the gradient is far smaller than x.
    Differentiable once, in x. Reads one number back from the device.

    Args:
        x: [B, ...] what the denoiser judged.
        gradient: like x, in its dtype or a wider one.
        pictures: [B, ...] the rendering that x was made from, if it was not x itself; named in the error message.

    Raises:
        ValueError: the shapes differ.
        DivergenceError: the gradient is not finite.
    """
    if x.shape != gradient.shape:
        raise ValueError(f"inject: expected a gradient {list(x.shape)}, got {list(gradient.shape)}")
    loss = _Inject.apply(x, gradient.detach())
    if not torch.isfinite(loss):
        raise DivergenceError(_diagnosis(x if pictures is None else pictures, gradient))
    return loss


def _diagnosis(pictures: Tensor, gradient: Tensor) -> str:
    """Which pictures went wrong, and on which side of the denoiser."""
    bad = [i for i in range(len(pictures)) if not torch.isfinite(gradient[i]).all()]
    broken_input = [i for i in bad if not torch.isfinite(pictures[i]).all()]
    if broken_input:
        return (
            f"score distillation: the rendered pictures {broken_input} of {len(pictures)} hold NaN or infinity "
            "before the diffusion model sees them; lower --lr, set --grad_clip, or resume an earlier checkpoint"
        )
    return (
        f"score distillation: the gradient of pictures {bad or 'all'} of {len(pictures)} is not finite though the "
        "pictures are; the diffusion model overflowed: leave out --fp16 or use --bf16, or lower --guidance_scale"
    )
