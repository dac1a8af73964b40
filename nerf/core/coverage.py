"""What a set of photographs sees: near planes of their cameras, and the parts of space that too few of them look at.

I photographs, P points, K places.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from nerf.core.cameras import project
from nerf.core.structs import Views, join_records

# The near plane of a camera, as a share of the distance to the nearest points that it sees, or where no points are known to the
# point that the cameras look at: nothing was there when the photographs were taken, and haze there explains one of them alone.
NEAR_OF_POINTS, NEAR_OF_FOCUS = 0.5, 0.1
NEAREST = 0.01  # quantile of the distances of a camera's points that counts as the nearest; below it are mismatches
MIN_POINTS = 20  # in front of a camera, below which they say nothing of its near plane
# A place that one camera alone sees is empty up to so many times its near plane: without parallax, what is learned there is a
# copy of the photograph in front of its lens.
ALONE = 5.0
CHUNK = 1 << 14  # places that are projected at once


@dataclass(frozen=True)
class Coverage:
    """The cameras of training photographs, to ask what they see."""

    cameras: Views  # [I], with near planes
    width: Tensor  # [I] pixels
    height: Tensor  # [I]

    def empty(self, positions: Tensor, reach: Tensor) -> Tensor:
        """Places that no camera sees, or one alone that is very near.

        Args:
            positions: [K, 3] scene units.
            reach: [K] radius of the ball around each; a camera sees all of it or nothing.

        Returns:
            [K] bool.
        """
        there = join_records([self], lambda values: values[0].to(positions.device))  # models are made on the CPU
        return torch.cat([there._empty(*chunk) for chunk in zip(positions.split(CHUNK), reach.split(CHUNK), strict=True)])

    def _empty(self, positions: Tensor, reach: Tensor) -> Tensor:
        near = self._near()[:, None]
        xy, distance = project(self.cameras, positions)  # [I, K, 2], [I, K]
        margin = torch.maximum(self.cameras.fx, self.cameras.fy)[:, None] * reach / distance.clamp(min=1e-6)  # pixels
        x, y = xy.unbind(-1)
        inside = (x > -margin) & (x < self.width[:, None] + margin) & (y > -margin) & (y < self.height[:, None] + margin)
        sees = (inside & (distance > 0)) | (distance.abs() < reach)
        sees &= distance.abs() + reach > near
        count = sees.sum(0)
        empty: Tensor = (count == 0) | ((count == 1) & (sees & (distance < ALONE * near - reach)).any(0))
        return empty

    def _near(self) -> Tensor:
        """Near planes [I], 0 where there are none."""
        return torch.zeros_like(self.cameras.fx) if self.cameras.near is None else self.cameras.near


def near_planes(cameras: Views, width: Tensor, height: Tensor, focus: Tensor, points: Tensor | None = None) -> Tensor:
    """The smallest distance of a sample from each camera.

    Args:
        cameras: I views.
        width, height: [I] sizes of the photographs, pixels.
        focus: [3] the point that the cameras look at.
        points: [P, 3] of a sparse reconstruction in the same world, or None.

    Returns:
        [I] scene units.
    """
    near: Tensor = NEAR_OF_FOCUS * (cameras.pose[:, :3, 3] - focus.to(cameras.pose)).norm(dim=-1)
    if points is None or len(points) < MIN_POINTS:
        return near
    for i in range(len(cameras)):
        xy, distance = project(cameras[i], points.to(cameras.pose))
        inside = ((xy >= 0) & (xy <= torch.stack([width[i], height[i]]))).all(-1)[0] & (distance[0] > 0)
        if int(inside.sum()) >= MIN_POINTS:
            near[i] = NEAR_OF_POINTS * torch.quantile(distance[0, inside], NEAREST)
    return near
