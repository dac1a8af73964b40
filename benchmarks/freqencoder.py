"""Frequency encoding, forward and with the gradient of the positions, against plain torch: python -m benchmarks.freqencoder

Setting: 2^17 points in three dimensions, 12 octaves, float32. The contenders are what torch offers: one sine and one
cosine per octave, concatenated; the same on all octaves at once, sines and cosines as one tensor; and each of them under
torch.compile. The bar is 1 times the best torch, the aim 2 times.
"""

import argparse
import sys
from collections.abc import Callable

import torch
from torch import Tensor

import extension
from benchmarks import timing
from freqencoder import encode, reference
from nerf.core.ranges import between
from nerf.core.script import POINTS, Parser, run

BAR, AIM = 1, 2


def all_octaves(x: Tensor, degree: int) -> Tensor:
    """The encoding [M, D + 2 D K] of x [M, D] with all octaves in one tensor."""
    octaves = 2.0 ** torch.arange(degree, dtype=x.dtype, device=x.device)
    angles = x[:, None] * octaves[:, None]
    return torch.cat([x, torch.stack([angles.sin(), angles.cos()], dim=2).flatten(start_dim=1)], dim=1)


def contenders(arguments: argparse.Namespace) -> tuple[dict[str, Callable[[], object]], dict[str, Callable[[], object]]]:
    """Each contender's forward, and its forward and backward, checked against ours."""
    degree = arguments.degree
    x = (2 * torch.rand(arguments.points, 3, device=arguments.device) - 1).requires_grad_()
    grad = torch.randn(arguments.points, 3 * (1 + 2 * degree), device=arguments.device)
    encodings: dict[str, Callable[[Tensor], Tensor]] = {
        "ours": lambda p: encode(p, degree),
        "torch": lambda p: reference.encode(p, degree, degree),
        "torch, all octaves": lambda p: all_octaves(p, degree),
    }
    if not arguments.no_compile:
        for name in ("torch", "torch, all octaves"):
            encodings[f"{name}, compiled"] = torch.compile(encodings[name])

    def both(encoding: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        values = encoding(x)
        return values.detach(), torch.autograd.grad(values, x, grad)[0]

    expected = both(encodings["ours"])
    for name, encoding in encodings.items():
        values, grad_x = both(encoding)
        torch.testing.assert_close(values, expected[0], atol=2e-6, rtol=0, msg=lambda m, n=name: f"{n}: {m}")
        scale = 1e-5 * float(expected[1].abs().max())
        torch.testing.assert_close(grad_x, expected[1], atol=scale, rtol=0, msg=lambda m, n=name: f"{n}: {m}")
    detached = x.detach()
    forward = {name: lambda e=encoding: e(detached) for name, encoding in encodings.items()}
    return forward, {name: lambda e=encoding: both(e) for name, encoding in encodings.items()}


def main() -> None:
    """Run the comparison and print it."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.number("--points", int, 2**17, POINTS, "points in a batch")
    parser.number("--degree", int, 12, between(1, 32), "octaves")
    parser.add_argument("--no_compile", action="store_true", help="leave torch.compile out; it builds for a minute")
    timing.add_arguments(parser)
    arguments = parser.parse_args()
    timing.prepare(arguments)
    print(f"backend {extension.backend(arguments.device)}")
    torch.manual_seed(0)
    groups = {}
    for kind, works in zip(("forward", "forward and backward"), contenders(arguments), strict=True):
        title = f"frequency encoding, {arguments.degree} octaves, {arguments.points} points, {kind}"
        timings = groups[title] = timing.compare(works, arguments.rounds, arguments.device)
        print(timing.table(title, timings, "ours"))
        best = min(t.median for name, t in timings.items() if name != "ours") / timings["ours"].median
        print(f"  ours against the best torch: {best:.2f}x (bar {BAR}, aim {AIM})", flush=True)
    timing.save(arguments.json, arguments.device, groups)


if __name__ == "__main__":
    sys.exit(run(main))
