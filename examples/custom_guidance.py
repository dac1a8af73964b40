"""Write a guidance of one's own: it wants every view green at the top and brown at the bottom.

Run from the project's folder: ``python -m examples.custom_guidance --text "a hill" --workspace trial``. Any flag of main.py
goes; the workspace is that of any other run.
"""

import sys

import torch
from torch import Tensor

import guidance
import main
from guidance.base import Conditions, Guidance, GuidanceOutput
from nerf.core.structs import Control, Part, Views


class Hill(Guidance):
    """Mean squared distance to a picture that no diffusion model is needed for."""

    name = "hill"

    def prepare(self, conditions: Conditions) -> None:
        """There is nothing to embed."""

    def loss(self, image: Tensor, views: Views, part: Part, control: Control, *, debug: bool = False) -> GuidanceOutput:
        """Loss of B images [B, 3, H, W]."""
        top, bottom = torch.tensor([[0.2, 0.6, 0.2], [0.4, 0.3, 0.1]], device=image.device)
        height = torch.linspace(1, 0, image.shape[2], device=image.device)[:, None]
        target = (height * top + (1 - height) * bottom).T[None, :, :, None]
        return GuidanceOutput((image - target).square().mean(), debug={"target": target.expand_as(image)} if debug else None)


guidance.FAMILIES["hill"] = guidance.Family(lambda config, device, resolved: Hill())

if __name__ == "__main__":
    sys.exit(main.main(["--guidance", "hill", *sys.argv[1:]]))
