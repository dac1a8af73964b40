"""How predictions under several conditions become one: classifier-free guidance and its rescaling. B images, K conditions."""

from torch import Tensor

from guidance.distillation.schedule import Mixer


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
