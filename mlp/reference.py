"""The narrow network in plain torch: any dtype, any device, any width, any derivative.

The kernel is tested against it, and it is what backends torch and cuda run.
Letters: N rows, I inputs, H hidden width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional


def features(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], beta: float | None = None) -> Tensor:
    """[N, H] output of the last layer; twin of :func:`mlp.features`."""
    for weight, bias in zip(weights, biases, strict=True):
        x = functional.linear(x, weight, bias)
        if beta is None:
            x = functional.relu(x, inplace=not torch.is_grad_enabled())
        else:
            x = functional.softplus(x, beta=beta)
    return x


def features_and_slope(
    x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], readout: Tensor, beta: float | None = None
) -> tuple[Tensor, Tensor]:
    """Output of the last layer [N, H], and d (output . readout) / d x [N, I]; twin of :func:`mlp.features_and_slope`."""
    derivatives = []
    for weight, bias in zip(weights, biases, strict=True):
        linear = functional.linear(x, weight, bias)
        x = functional.relu(linear) if beta is None else functional.softplus(linear, beta=beta)
        derivatives.append((x > 0).to(x.dtype) if beta is None else torch.sigmoid(beta * linear))
    slope = readout.expand_as(x)
    for weight, derivative in zip(reversed(weights), reversed(derivatives), strict=True):
        slope = (slope * derivative) @ weight
    return x, slope
