"""A gradient on images as a loss, and bounds on it. B images."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nerf.core.errors import DivergenceError


@dataclass(frozen=True)
class Distilled:
    """A distillation gradient and the quantities behind it."""

    gradient: Tensor  # [B, ...] with respect to x
    x0: Tensor  # [B, ...] guided x_0 prediction
    noisy: Tensor  # [B, ...] x_t
    t: Tensor  # [B] int64
    norm: Tensor  # [B] Euclidean norm of each image's gradient
    loss: Tensor | None = None  # scalar, of a model that is trained beside the field; added to the loss


def bounded(gradient: Tensor, bounds: tuple[float, float], fraction: float) -> Tensor:
    """Each element of a gradient within a bound that grows with the training progress: gradient debiasing of D-SDS.

    Early on, a large score is mostly the bias of the diffusion model towards front views (Hong et al. 2023, arXiv
    2303.15413, sec. 4.1).

    Args:
        gradient: [B, ...].
        bounds: at the start and at the end; (0, 0) leaves the gradient as it is.
        fraction: training progress in [0, 1].
    """
    start, end = bounds
    bound = start + fraction * (end - start)
    return gradient.clamp(-bound, bound) if end > 0 else gradient


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
