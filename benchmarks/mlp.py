"""The network of the default grid field, 32-64-64-4 with ReLU, forward and backward: python -m benchmarks.mlp

Ours is the blocked kernel for the two hidden layers and torch's linear layer for the head. The contenders are what
torch offers: nn.Sequential; the same on pieces of 8192 rows, which stay in the cache; oneDNN's fused linear and ReLU
(a private operation) with the backward written out; and torch.compile. All get an allocator that keeps its memory; run
with --allocator default to see what page faults cost. The bar is 1 times the best torch, the aim 1.5 times.

On CUDA ours is torch's products. Rows in half precision (autocast, as --fp16 runs them) and, where it is installed,
tiny-cuda-nn's fused network without biases say what a fused kernel in half precision could win there.
"""

import argparse
import sys
from collections.abc import Callable
from importlib.util import find_spec

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

import mlp
from benchmarks import timing
from nerf.core.script import POINTS, Parser, run

PIECE = 8192
SINGLE, HALF = 1e-3, 2e-2  # greatest difference from nn.Sequential, as a share of the greatest value


class _LinearReLU(torch.autograd.Function):
    """oneDNN's fused linear layer and ReLU with its backward in plain products."""

    @staticmethod
    def forward(ctx, x, weight, bias):
        out = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "relu", [], "")
        ctx.save_for_backward(x, weight, out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, weight, out = ctx.saved_tensors
        grad = torch.ops.aten.threshold_backward(grad, out, 0)
        return grad @ weight, grad.t() @ x, grad.sum(dim=0)


def contenders(arguments: argparse.Namespace) -> dict[str, Callable[[], tuple[Tensor, ...]]]:
    """Each contender's forward and backward to inputs and parameters, checked against ours."""
    device = arguments.device
    network = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4)).to(device)
    first, second, head = network[0], network[2], network[4]
    x = torch.randn(arguments.points, 32, device=device, requires_grad=True)
    grad = torch.randn(arguments.points, 4, device=device)
    leaves = [x, *network.parameters()]

    def ours() -> Tensor:
        return head(mlp.features(x, [first.weight, second.weight], [first.bias, second.bias]))

    def fused() -> Tensor:
        hidden = _LinearReLU.apply(x, first.weight, first.bias)
        return functional.linear(_LinearReLU.apply(hidden, second.weight, second.bias), head.weight, head.bias)

    def pieces() -> Tensor:
        return torch.cat([network(piece) for piece in x.split(PIECE)])

    forwards = {"ours": ours, "nn.Sequential": lambda: network(x), "nn.Sequential in pieces": pieces}
    if torch.device(device).type == "cpu" and hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        forwards["oneDNN linear and ReLU"] = fused
    if not arguments.no_compile:
        compiled = torch.compile(network)
        forwards["torch.compile"] = lambda: compiled(x)

    if torch.device(device).type == "cuda":
        forwards |= {f"{name}, half": in_half(forwards[name]) for name in ("ours", "nn.Sequential")}

    def step(forward: Callable[[], Tensor]) -> Callable[[], tuple[Tensor, ...]]:
        return lambda: torch.autograd.grad(forward(), leaves, grad)

    chosen = {name: step(forward) for name, forward in forwards.items()}
    expected = chosen["nn.Sequential"]()
    for name, work in chosen.items():
        for got, reference in zip(work(), expected, strict=True):
            scale = float(reference.abs().max())
            share = HALF if name.endswith("half") else SINGLE
            torch.testing.assert_close(got, reference, rtol=0, atol=share * scale, msg=lambda m, n=name: f"{n}: {m}")
    if torch.device(device).type == "cuda" and find_spec("tinycudann") is not None:
        chosen["tiny-cuda-nn, fused, half, no biases"] = fused_by_tcnn(x, grad)
    return chosen


def in_half(forward: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """The same in half precision where autocast chooses it, with a result in single precision."""

    def cast() -> Tensor:
        with torch.autocast("cuda", torch.float16, cache_enabled=False):
            return forward().float()

    return cast


def fused_by_tcnn(x: Tensor, grad: Tensor) -> Callable[[], tuple[Tensor, ...]]:
    """Forward and backward of tiny-cuda-nn's network of the same widths, which has no biases, so nothing to compare it with."""
    import tinycudann

    config = {
        "otype": "FullyFusedMLP",
        "activation": "ReLU",
        "output_activation": "None",
        "n_neurons": 64,
        "n_hidden_layers": 2,
    }
    network = tinycudann.Network(x.shape[1], grad.shape[1], config)
    return lambda: torch.autograd.grad(network(x), [x, network.params], grad.half())


def main() -> None:
    """Run the comparison and print it."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.number("--points", int, 2**17, POINTS, "points in a batch")
    parser.add_argument("--no_compile", action="store_true", help="leave torch.compile out; it builds for a minute")
    timing.add_arguments(parser)
    arguments = parser.parse_args()
    timing.prepare(arguments)
    torch.manual_seed(0)
    timings = timing.compare(contenders(arguments), arguments.rounds, arguments.device)
    title = f"network 32-64-64-4, forward and backward, {arguments.points} points"
    print(timing.table(title, timings, "ours"))
    best = min(t.median for name, t in timings.items() if name != "ours" and "half" not in name) / timings["ours"].median
    work = 2 * arguments.points * 3 * (32 * 64 + 64 * 64 + 64 * 4)
    print(f"  ours: {1e-9 * work / timings['ours'].median:.0f} GFLOP/s, {best:.2f}x the best torch (bar 1, aim 1.5)")
    timing.save(arguments.json, arguments.device, {title: timings})


if __name__ == "__main__":
    sys.exit(run(main))
