"""Time of a training step of a signed distance against the peer's algorithm in torch: python -m benchmarks.sdf_step

Both have the same size: a hash grid with position beside it, one softplus layer, 13 features, and a colour network of two
layers on features, spherical harmonics of the direction and unit normal; a loss on distance, colour and the length of the
gradient; the backward pass to every parameter. The peer (instant-nsr-pl with its Vanilla networks) is written in torch as one
would: the corners of every level gathered and weighed, and the gradient in space by automatic differentiation, twice. Required
is a factor of 6, intended one of 10. Beside it: the same step with finite differences of four and of six points, whose
gradient is compared with the analytic one, and twice and half the samples, as the cost should be linear in them.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks import timing
from nerf.config.config import Config, with_preset
from nerf.config.groups import FieldConfig
from nerf.core.script import POINTS, Parser, run
from nerf.core.structs import Points, RenderSettings, SceneInfo
from nerf.network_sdf import SdfField

PEER = "the peer's algorithm"
PRIMES = (1, 2654435761, 805459861)


class PeerGrid(nn.Module):
    """The hash grid in torch: per level eight gathered corners and their trilinear weights. M points, L levels."""

    def __init__(self, twin: SdfField):
        super().__init__()
        layout = twin.encoder.layout
        self.layout, self.first = layout, layout.first
        self.table = nn.Parameter(twin.encoder.embeddings.detach().clone())
        corner = torch.arange(8)
        self.register_buffer("corners", torch.stack([corner & 1, (corner >> 1) & 1, (corner >> 2) & 1], -1))

    def forward(self, unit: Tensor) -> Tensor:
        """Features [M, L * F] at positions [M, 3] of the unit cube; differentiable twice."""
        outputs = []
        for level, resolution in enumerate(self.layout.resolutions):
            rows = self.first[level + 1] - self.first[level]
            scaled = unit * (resolution - 1)
            low = scaled.detach().floor()
            inside = scaled - low
            inside = inside * inside * (3 - 2 * inside)  # smoothstep
            at = low.long()[:, None] + self.corners
            if resolution**3 <= rows:
                index = at[..., 0] + resolution * (at[..., 1] + resolution * at[..., 2])
            else:
                index = (at[..., 0] * PRIMES[0]) ^ (at[..., 1] * PRIMES[1]) ^ (at[..., 2] * PRIMES[2])
            features = self.table[self.first[level] + index.remainder(rows)]
            weight = torch.where(self.corners.bool(), inside[:, None], 1 - inside[:, None]).prod(-1)
            outputs.append((features * weight[..., None]).sum(1))
        return torch.cat(outputs, -1)


class PeerField(nn.Module):
    """Its networks, with the weights of our field."""

    def __init__(self, twin: SdfField):
        super().__init__()
        self.grid, self.bound = PeerGrid(twin), twin.bound
        first, self.out = nn.Linear(twin.layers[0].in_features, twin.layers[0].out_features), nn.Linear(64, 13)
        self.first, self.colour = (
            first,
            nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 3)),
        )
        self.directions = twin.colour.directions

    def step(self, positions: Tensor, directions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Distance [M], gradient [M, 3] and colour [M, 3]."""
        at = positions.detach().requires_grad_(True)
        x = at / self.bound
        encoded = self.grid(0.5 * (x + 1))
        out = self.out(functional.softplus(self.first(torch.cat([x, encoded], -1)), beta=100.0))
        (gradient,) = torch.autograd.grad(out[:, 0].sum(), at, create_graph=True)
        normal = functional.normalize(gradient, dim=-1)
        return out[:, 0], gradient, torch.sigmoid(self.colour(torch.cat([out, self.directions(directions), normal], -1)))


def options(gradient: str = "analytic") -> FieldConfig:
    """The field of the preset for photographs with masks."""
    return replace(with_preset(with_preset(Config(), "sdf"), "neus").field, sdf_gradient=gradient)


def loss_of(sdf: Tensor, gradient: Tensor, colour: Tensor) -> Tensor:
    """A loss on everything."""
    return sdf.square().mean() + (gradient.norm(dim=-1) - 1).square().mean() + colour.square().mean()


def our_step(field: SdfField, positions: Tensor, directions: Tensor) -> Callable[[], None]:
    """One evaluation of our field, and the backward pass."""
    points, settings = Points(positions, directions), RenderSettings(view_dependent=True)

    def run() -> None:
        field.zero_grad(set_to_none=True)
        output = field.query(points, settings)
        loss_of(output.require("sdf"), output.require("gradient"), output.require("rgb")).backward()

    return run


def peer_step(peer: PeerField, positions: Tensor, directions: Tensor) -> Callable[[], None]:
    """The same by the peer's algorithm."""

    def run() -> None:
        peer.zero_grad(set_to_none=True)
        loss_of(*peer.step(positions, directions)).backward()

    return run


def fields(device: str) -> dict[str, SdfField]:
    """Our field with each kind of gradient, with table entries of a typical size."""
    made = {}
    for kind in ("analytic", "taps4", "taps6"):
        torch.manual_seed(0)
        field = SdfField(options(kind), SceneInfo()).to(device)
        with torch.no_grad():
            field.encoder.embeddings.normal_(std=1e-2)
            field.layers[0].weight[:, 3:].normal_(std=0.1)
        made[kind] = field
    return made


def main() -> None:
    """Run the comparison and print it."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.number("--points", int, 2**14, POINTS, "samples of a step")
    timing.add_arguments(parser)
    arguments = parser.parse_args()
    timing.prepare(arguments)
    device, m = arguments.device, arguments.points
    ours = fields(device)
    positions = 1.8 * torch.rand(2 * m, 3, device=device) - 0.9
    directions = functional.normalize(torch.randn(2 * m, 3, device=device), dim=-1)
    steps = {f"{kind} gradient": our_step(field, positions[:m], directions[:m]) for kind, field in ours.items()}
    steps["half the samples"] = our_step(ours["analytic"], positions[: m // 2], directions[: m // 2])
    steps["twice the samples"] = our_step(ours["analytic"], positions, directions)
    steps[PEER] = peer_step(PeerField(ours["analytic"]).to(device), positions[:m], directions[:m])
    timings = timing.compare(steps, arguments.rounds, device)
    title = f"step of a signed distance at {m} samples"
    print(timing.table(title, timings, "analytic gradient"))
    gain = timings[PEER].median / timings["analytic gradient"].median
    print(f"  against the peer's algorithm in torch: {gain:.2f}x (bar 6, aim 10)")
    truth = ours["analytic"].geometry(Points(positions[:m]), RenderSettings(training=False)).require("gradient").detach()
    for kind in ("taps4", "taps6"):
        taps = ours[kind].geometry(Points(positions[:m]), RenderSettings(training=False)).require("gradient").detach()
        cosine = functional.cosine_similarity(truth, taps, dim=-1).clamp(-1, 1)
        print(f"  {kind}: normals {float(torch.rad2deg(cosine.acos()).mean()):.2f} degrees from the analytic ones on average")
    timing.save(arguments.json, device, {title: timings})


if __name__ == "__main__":
    sys.exit(run(main))
