"""The narrow ReLU network in plain torch: any dtype, any device, any width, any derivative.

The kernel is tested against it, and it is what backends torch and cuda run.
Letters: N rows, I inputs, H hidden width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional


def features(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> Tensor:
    """[N, H] output of the last layer; twin of :func:`mlp.features`."""
    for weight, bias in zip(weights, biases, strict=True):
        x = functional.relu(functional.linear(x, weight, bias), inplace=not torch.is_grad_enabled())
    return x


def features_and_slope(
    x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], readout: Tensor
) -> tuple[Tensor, Tensor]:
    """Output of the last layer [N, H], and d (output . readout) / d x [N, I]; twin of :func:`mlp.features_and_slope`."""
    outputs = []
    for weight, bias in zip(weights, biases, strict=True):
        x = functional.relu(functional.linear(x, weight, bias))
        outputs.append(x)
    slope = readout.expand_as(x)
    for weight, output in zip(reversed(weights), reversed(outputs), strict=True):
        slope = (slope * (output > 0)) @ weight
    return x, slope
