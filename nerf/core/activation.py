"""Density activations that stay finite for large inputs, and the initial density blob. M points."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

# exp(40) = 2e17 per scene unit is opaque at any step length, yet finite when multiplied by one in float32.
MAX_EXPONENT = 40.0
# Beyond exp(15) a step is opaque anyway; a larger slope would only make the optimiser diverge.
MAX_SLOPE_EXPONENT = 15.0


def at_least_single(x: Tensor) -> Tensor:
    """Convert half precision to float32 and leave other dtypes unchanged. Any shape; differentiable."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


class _TruncatedExp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.clamp(max=MAX_EXPONENT).exp()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        x: Tensor = ctx.saved_tensors[0]
        return grad * x.clamp(max=MAX_SLOPE_EXPONENT).exp()


def truncated_exp(x: Tensor) -> Tensor:
    """``exp(x)`` with the value clamped at e^40 and the derivative at e^15.

    Computed in at least float32, so that half precision cannot overflow. Any shape; differentiable twice (the second
    derivative is that of the clamped derivative).
    """
    result: Tensor = _TruncatedExp.apply(at_least_single(x))
    return result


def softplus(x: Tensor) -> Tensor:
    """``log(1 + exp(x))`` in at least float32. Any shape; differentiable twice."""
    return functional.softplus(at_least_single(x))


DENSITY_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"exp": truncated_exp, "softplus": softplus}


def density_activation(name: str) -> Callable[[Tensor], Tensor]:
    """The density activation of that name: increasing, non-negative, elementwise on tensors of any shape.

    Args:
        name: "exp" or "softplus".

    Raises:
        ValueError: no such activation.
    """
    if name not in DENSITY_ACTIVATIONS:
        known = ", ".join(DENSITY_ACTIVATIONS)
        raise ValueError(f"density_activation: expected one of {known}, got {name!r}; set --density_activation")
    return DENSITY_ACTIVATIONS[name]


def density_blob(positions: Tensor, activation: str, density: float, radius: float) -> Tensor:
    """Offset of the raw density that makes an untrained field a soft ball at the origin (DreamFusion, app. A.2).

    ``density * exp(-|x|^2 / (2 radius^2))`` before an exponential, ``density * (1 - |x| / radius)`` before a softplus.

    Args:
        positions: [M, 3] scene units.
        activation: "exp" or "softplus".
        density: height of the blob, in raw units.
        radius: its radius in scene units.

    Returns:
        [M]; differentiable twice in ``positions`` (the cone of "softplus" is rounded off at the origin).
    """
    squared = positions.square().sum(-1)
    if activation == "exp":
        return density * torch.exp(squared * (-0.5 / radius**2))
    return density * (1.0 - (squared + 1e-6 * radius**2).sqrt() / radius)


def unit(vector: Tensor, eps: float = 1e-12) -> Tensor:
    """Vectors [..., 3] scaled to unit length; (nearly) zero vectors become zero, with finite gradients. Differentiable."""
    return vector * vector.square().sum(-1, keepdim=True).clamp(min=eps).rsqrt()
