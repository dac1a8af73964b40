"""A network of a few narrow layers, ReLU or softplus, fused into one kernel, and the slope of one linear read-out.

Layer by layer, the tensors between narrow layers do not fit a cache and their traffic costs as much as the arithmetic;
here a block of rows goes from the first layer to the last before the next block starts. The gradient of the read-out
in the inputs is called its slope.

Letters: N rows, I inputs, H hidden width.
"""

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from extension import Function, implementation, kernel, pointer, register
from mlp import reference

MAX_LAYERS = 4  # kMaxLayers of src/mlp_math.h
WIDTH_STEP, MAX_WIDTH = 16, 128  # widths are whole register tiles, up to kWidest of src/mlp_cpu.cpp


def features(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], beta: float | None = None) -> Tensor:
    """Output of the last of a chain of layers ``a_k = f(a_(k-1) W_k^T + b_k)``.

    Args:
        x: [N, I]
        weights: [H, I], then [H, H] for each further layer.
        biases: [H] for each layer.
        beta: None: f is ReLU; above zero: the softplus ``log(1 + exp(beta z)) / beta``.

    Returns:
        [N, H]

    On the CPU in float32, with I and H multiples of 16 up to 128 and up to four layers, a kernel computes it, once
    differentiable in all tensors; elsewhere it is :func:`mlp.reference.features`, differentiable any number of times.

    Raises:
        ValueError: shapes do not chain.
    """
    _check("features", x, weights, biases, beta)
    outputs: Tensor = implementation("mlp.features", x)(x, weights, biases, beta)
    return outputs


def features_and_slope(
    x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], readout: Tensor, beta: float | None = None
) -> tuple[Tensor, Tensor]:
    """The features, and the derivative of their product with ``readout`` along the inputs.

    Args:
        x: [N, I]
        weights, biases, beta: as in :func:`features`.
        readout: [H]

    Returns:
        features [N, H], and slope [N, I] = d (features . readout) / d x.

    Differentiability as in :func:`features`: the slope is once differentiable in weights and readout, with a softplus in x and
    the biases too (in them, that of a ReLU network is constant). Reference: :func:`mlp.reference.features_and_slope`.

    Raises:
        ValueError: shapes do not chain.
    """
    _check("features_and_slope", x, weights, biases, beta)
    if readout.shape != biases[-1].shape:
        raise ValueError(f"features_and_slope: expected readout {list(biases[-1].shape)}, got {list(readout.shape)}")
    outputs: tuple[Tensor, Tensor] = implementation("mlp.features_and_slope", x)(x, weights, biases, readout, beta)
    return outputs


def _features_cpu(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], beta: float | None) -> Tensor:
    """[N, H] by the kernel where it can."""
    if not _fits(x, weights):
        return reference.features(x, weights, biases, beta)
    outputs: tuple[Tensor, None] = _Network.apply(x.contiguous(), None, len(weights), beta, *weights, *biases)
    return outputs[0]


def _features_and_slope_cpu(
    x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], readout: Tensor, beta: float | None
) -> tuple[Tensor, Tensor]:
    """[N, H] and [N, I] by the kernel where it can."""
    if not _fits(x, weights):
        return reference.features_and_slope(x, weights, biases, readout, beta)
    parameters = (*weights, *biases)
    outputs: tuple[Tensor, Tensor] = _Network.apply(x.contiguous(), readout.contiguous(), len(weights), beta, *parameters)
    return outputs


class _Params(ctypes.Structure):
    """MlpParams of src/mlp_math.h."""

    _fields_ = [
        ("x", ctypes.c_void_p),
        ("weight", ctypes.c_void_p * MAX_LAYERS),
        ("bias", ctypes.c_void_p * MAX_LAYERS),
        ("readout", ctypes.c_void_p),
        ("hidden", ctypes.c_void_p * MAX_LAYERS),
        *[(name, ctypes.c_void_p) for name in "slope grad_features grad_slope grad_x grad_parameters".split()],
        *[(name, ctypes.c_int64) for name in "rows inputs width layers".split()],
        ("beta", ctypes.c_float),
    ]


class _Network(Function):
    """Features, and with a read-out the slope, as functions of all tensors."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, readout: Tensor | None, layers: int, beta: float | None, *parameters: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        ctx.set_materialize_grads(False)
        parameters = tuple(p.contiguous() for p in parameters)
        hidden = [x.new_empty(len(x), parameters[0].shape[0]) for _ in range(layers)]
        slope = None if readout is None else torch.empty_like(x)
        _run("mlp", x, readout, parameters, hidden, beta, slope=slope)
        ctx.save_for_backward(x, readout, *parameters, *hidden)
        ctx.layers, ctx.beta = layers, beta
        return hidden[-1], slope

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_features: Tensor | None, grad_slope: Tensor | None) -> tuple[Tensor | None, ...]:
        x, readout, *rest = ctx.saved_tensors
        parameters, hidden = rest[: 2 * ctx.layers], rest[2 * ctx.layers :]
        shapes = [s for pair in zip(parameters[: ctx.layers], parameters[ctx.layers :], strict=True) for s in pair]
        sizes = [p.numel() for p in shapes] + [hidden[0].shape[1]]
        grads = x.new_empty(sum(sizes))
        _run(
            "mlp_backward",
            x,
            readout,
            parameters,
            hidden,
            ctx.beta,
            grad_features=None if grad_features is None else grad_features.contiguous(),
            grad_slope=None if grad_slope is None else grad_slope.contiguous(),
            grad_x=(grad_x := torch.empty_like(x) if ctx.needs_input_grad[0] else None),
            grad_parameters=grads,
        )
        *pairs, grad_readout = grads.split(sizes)
        pairs = [g.view(p.shape) for g, p in zip(pairs, shapes, strict=True)]
        return grad_x, None if readout is None else grad_readout, None, None, *pairs[0::2], *pairs[1::2]


def _run(
    name: str,
    x: Tensor,
    readout: Tensor | None,
    parameters: Sequence[Tensor],
    hidden: Sequence[Tensor],
    beta: float | None,
    **tensors: Tensor | None,
) -> None:
    """Fill the parameter struct and call the kernel."""
    layers = len(hidden)
    addresses = ctypes.c_void_p * MAX_LAYERS
    params = _Params(
        x=pointer(x),
        weight=addresses(*map(pointer, parameters[:layers])),
        bias=addresses(*map(pointer, parameters[layers:])),
        readout=pointer(readout),
        hidden=addresses(*map(pointer, hidden)),
        rows=len(x),
        inputs=x.shape[1],
        width=hidden[0].shape[1],
        layers=layers,
        beta=beta or 0.0,
        **{n: pointer(t) for n, t in tensors.items()},
    )
    kernel("mlp", name, x.device)(ctypes.byref(params))


def _fits(x: Tensor, weights: Sequence[Tensor]) -> bool:
    """Whether the kernel has these widths, this depth and this dtype."""
    widths = (x.shape[1], weights[0].shape[0])
    shapes = len(weights) <= MAX_LAYERS and all(w % WIDTH_STEP == 0 and w <= MAX_WIDTH for w in widths)
    floats = all(t.dtype == torch.float32 for t in (x, *weights))
    return shapes and floats


def _check(op: str, x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], beta: float | None) -> None:
    """Raise unless the shapes chain and the activation exists."""
    if beta is not None and not beta > 0:
        raise ValueError(f"{op}: expected beta above 0, or None for ReLU, got {beta}")
    if x.ndim != 2 or not weights or len(weights) != len(biases):
        raise ValueError(
            f"{op}: expected x [N, I] and as many weights as biases, got {list(x.shape)}, {len(weights)}, {len(biases)}"
        )
    inputs, width = x.shape[1], weights[0].shape[0]
    for weight, bias in zip(weights, biases, strict=True):
        if weight.shape != (width, inputs) or bias.shape != (width,):
            raise ValueError(
                f"{op}: expected a weight [{width}, {inputs}] and a bias [{width}], "
                f"got {list(weight.shape)} and {list(bias.shape)}"
            )
        inputs = width


# On CUDA torch's matrix products already run at the speed of the hardware, so there is no kernel for it; what Taichi
# compiles is slower than they are on any device.
register("mlp.features", cpu=_features_cpu, cuda=reference.features, taichi=reference.features, torch=reference.features)
register(
    "mlp.features_and_slope",
    cpu=_features_and_slope_cpu,
    cuda=reference.features_and_slope,
    taichi=reference.features_and_slope,
    torch=reference.features_and_slope,
)
