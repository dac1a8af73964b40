"""Render a field of one's own: a ball of fog, seen from the front.

Run from the project's folder: ``python -m examples.render_field``. It writes ``ball.png``.
"""

import torch
from torch import Tensor

from nerf.core.cameras import orbit, view_rays
from nerf.core.images import write_png
from nerf.core.structs import FieldOutput, Points, RenderSettings
from nerf.fields.base import DensityField
from nerf.render.background import ConstantBackground
from nerf.render.plain import PlainPath
from nerf.renderer import NeRFRenderer


class Ball(DensityField):
    """A ball of radius 0.5, coloured by its position."""

    bound = 1.0

    def density(self, positions: Tensor, max_level: float = 1.0) -> Tensor:
        """Density [M] at positions [M, 3]."""
        return 20.0 * (positions.norm(dim=-1) < 0.5)

    def query(self, points: Points, settings: RenderSettings) -> FieldOutput:
        """Density and colour at M points."""
        return FieldOutput(density=self.density(points.positions), albedo=(points.positions + 0.5).clamp(0, 1))


def main(path: str = "ball.png") -> None:
    """Render the ball and write the picture."""
    model = NeRFRenderer(Ball(), ConstantBackground(), PlainPath(num_steps=64, upsample_steps=64, min_near=0.01))
    views = orbit(polar=70.0, azimuth=torch.tensor([30.0]), radius=3.0, fovy=25.0, height=128, width=128)
    out = model.render(view_rays(views), RenderSettings(training=False))
    write_png(path, out.as_images(out.image)[0].permute(1, 2, 0))


if __name__ == "__main__":
    main()
