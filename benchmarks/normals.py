"""Time of a shaded step with analytic normals against six finite differences: python -m benchmarks.normals

The step is that of training at its samples: density, albedo and unit normal from the default grid field, a loss on
all three, and the backward pass to every parameter. The finite differences are the field's own (``normals="finite"``: six
more densities, batched in pairs), on the same kernels. Required is a factor of 2.5, intended one of 4. The step without
normals and the fused Adam step are printed for comparison.
"""

import argparse
import sys
from collections.abc import Callable

import torch

from benchmarks import timing
from nerf.config.groups import FieldConfig
from nerf.core.script import POINTS, Parser, run
from nerf.core.structs import Points, RenderSettings, SceneInfo
from nerf.network_grid import GridField


def field(normals: str, device: str) -> GridField:
    """The default grid field with table entries of a typical size, so that normals are not noise of 1e-4."""
    torch.manual_seed(0)
    made = GridField(FieldConfig(normals=normals), SceneInfo()).to(device)
    with torch.no_grad():
        made.encoder.embeddings.normal_(std=1e-2)
    return made


def step(model: GridField, positions: torch.Tensor, shading: str) -> Callable[[], None]:
    """One evaluation at positions [M, 3] and the backward pass of a loss on all outputs."""
    settings, points = RenderSettings(source="guided", shading=shading), Points(positions)
    direction = torch.randn_like(positions)

    def run() -> None:
        model.zero_grad(set_to_none=True)
        out = model.query(points, settings)
        loss = (out.density * 1e-3).sum() + (out.albedo * direction).sum()
        if out.normal is not None:
            loss = loss + (out.normal * direction).sum()
        loss.backward()

    return run


def main() -> None:
    """Run the comparison and print it."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.number("--points", int, 2**16, POINTS, "points in a batch")
    timing.add_arguments(parser)
    arguments = parser.parse_args()
    timing.prepare(arguments)
    models = {kind: field(kind, arguments.device) for kind in ("analytic", "finite")}
    positions = 2 * torch.rand(arguments.points, 3, device=arguments.device) - 1
    adam = torch.optim.Adam(models["analytic"].param_groups(1e-3), fused=True)
    step(models["analytic"], positions, "lambertian")()
    chosen = {f"{kind} normals": step(model, positions, "lambertian") for kind, model in models.items()}
    chosen["no normals"] = step(models["analytic"], positions, "albedo")

    def with_adam() -> None:
        chosen["analytic normals"]()
        adam.step()

    timings = timing.compare(chosen | {"analytic normals and Adam": with_adam}, arguments.rounds, arguments.device)
    title = f"field step at {arguments.points} points"
    print(timing.table(title, timings, "analytic normals"))
    gain = timings["finite normals"].median / timings["analytic normals"].median
    print(f"  analytic normals against six finite differences: {gain:.2f}x (bar 2.5, aim 4)")
    timing.save(arguments.json, arguments.device, {title: timings})


if __name__ == "__main__":
    sys.exit(run(main))
