"""What photographs leave open and training finds beside the scene: corrections of their poses, and their exposure.

I training photographs, N rays.
"""

import math
from dataclasses import replace

import torch
from torch import Tensor, nn

from nerf.core.structs import Rays
from nerf.core.twist import exponential

# Learning rates as shares of --lr, which falls during training: a pose error of a pixel or two is a few milliradians,
# and a twist that moves faster than the scene forms takes it along.
POSE_RATE, EXPOSURE_RATE = 0.05, 0.3
# Share of the training before which poses stay as they are: a haze pulls them nowhere in particular.
POSE_START = 0.05


class PoseRefinement(nn.Module):
    """A small twist for each photograph, of its camera about its centre, in the axes of the world (BARF, sec. 3).

    Args:
        count: I.

    Parameters: ``twist`` [I, 6], 0 at first.
    """

    def __init__(self, count: int):
        super().__init__()
        self.twist = nn.Parameter(torch.zeros(count, 6))

    def forward(self, rays: Rays, fraction: float) -> Rays:
        """The rays as their cameras stand by now; differentiable in the twists once their training has begun.

        Args:
            rays: N rays with an image index below I.
            fraction: training progress in [0, 1].
        """
        if rays.image_index is None:
            return rays
        twist = self.twist if fraction >= POSE_START else self.twist.detach()
        rotation, shift = exponential(twist)
        directions = (rotation[rays.image_index] @ rays.directions[..., None])[..., 0]
        return replace(rays, origins=rays.origins + shift[rays.image_index], directions=directions)

    @torch.no_grad()
    def corrected(self, pose: Tensor, i: int) -> Tensor:
        """The pose [..., 4, 4] of photograph ``i`` as it stands by now."""
        rotation, shift = exponential(self.twist[i : i + 1])
        pose = pose.clone()
        pose[..., :3, :3] = rotation[0] @ pose[..., :3, :3]
        pose[..., :3, 3] += shift[0]
        return pose

    @torch.no_grad()
    def size(self) -> dict[str, float]:
        """Mean angle in degrees and mean shift in scene units of the corrections."""
        _, shift = exponential(self.twist)
        angle = self.twist[:, :3].norm(dim=-1).mean()
        return {"degrees": math.degrees(float(angle)), "shift": float(shift.norm(dim=-1).mean())}


class Exposure(nn.Module):
    """An affine colour for each photograph: what the scene looks like, scaled and shifted as that camera recorded it.

    Colours are ``gain * rendered + offset`` of each channel, relative to the mean over all photographs, which is what views
    without a photograph show. (Rematas et al. 2022, sec. 4.2, use an affine colour for the same purpose.)

    Args:
        count: I.

    Parameters: ``log_gain`` [I, 3] and ``offset`` [I, 3], 0 at first.
    """

    def __init__(self, count: int):
        super().__init__()
        self.log_gain = nn.Parameter(torch.zeros(count, 3))
        self.offset = nn.Parameter(torch.zeros(count, 3))

    def forward(self, colors: Tensor, image_index: Tensor) -> Tensor:
        """Colours [N, 3] as the photographs [N] of the rays recorded them; differentiable in everything but the index."""
        gain = (self.log_gain - self.log_gain.mean(0)).exp()
        return colors * gain[image_index] + (self.offset - self.offset.mean(0))[image_index]
