"""The state of rays that are rendered without gradients, a few samples at a time.

Letters: N rays, A rays alive, C channels.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from extension import Arguments
from raymarching import checks


@dataclass
class RayQueue:
    """N rays in progress: what each has accumulated, and which are still alive."""

    origins: Tensor  # [N, 3]
    directions: Tensor  # [N, 3] unit
    near: Tensor  # [N]
    far: Tensor  # [N]
    alive: Tensor  # [A] int64, rays that may still get samples, ascending
    cursor: Tensor  # [N] int64, the step of its lattice at which a ray continues; -1: it has left the scene
    transmittance: Tensor  # [N] behind the samples so far
    opacity: Tensor  # [N]
    depth: Tensor  # [N] sum of weight * t
    image: Tensor  # [N, C] sum of weight * values

    def __len__(self) -> int:
        return len(self.alive)

    @classmethod
    def start(cls, origins: Tensor, directions: Tensor, near: Tensor, far: Tensor, channels: int = 3) -> "RayQueue":
        """All rays at their beginning; those that miss (near >= far) are not alive.

        Args:
            origins, directions: [N, 3] float32 or float64; directions unit.
            near, far: [N] distances, as from ``near_far_from_aabb``.
            channels: C, how many values a sample has, 1 to 16.

        Raises:
            ValueError: also for a ray that is not finite.
        """
        args = Arguments("RayQueue.start")
        origins, directions, near, far = checks.rays(args, origins, directions, near, far)
        finite = (origins.isfinite() & directions.isfinite()).all() & ~(near.isnan() | far.isnan()).any()
        args.require(bool(finite), "rays must be finite, and at least one is not")
        sums = torch.zeros(2, len(near), dtype=near.dtype, device=near.device)
        return cls(
            origins,
            directions,
            near,
            far,
            alive=(near < far).nonzero()[:, 0],
            cursor=torch.zeros(len(near), dtype=torch.int64, device=near.device),
            transmittance=torch.ones_like(near),
            opacity=sums[0],
            depth=sums[1],
            image=near.new_zeros(len(near), channels),
        )
