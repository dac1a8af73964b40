"""Where posed photographs stand in our world: the similarity that brings their scene into the box. I photographs.

The photographs' own world may have any up axis, origin and scale. Ours has +Y up and its scene in [-bound, bound]^3.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from nerf.core.errors import UserError

UNDECIDED = 0.3  # length of the mean up direction below which cameras are all around and say nothing; +Z is up then
SNAP_DEGREES = 25.0  # the cameras' mean up this close to an axis of the file means that axis
FACING = 0.3  # length of the mean direction to the cameras above which they count as standing on one side
SMALLEST_BOX = 1e-6
SCENE_MARGIN = 1.1  # of what decides half the side of a captured scene's box
MOST_POINTS = 0.98  # of a reconstruction; the rest is taken for errors


@dataclass(frozen=True)
class Framing:
    """A similarity between a file's world and ours, and what it was made for."""

    kind: str  # "box" as the data prescribes, "object" on clear ground, "points" that were found, "scene" around the cameras
    to_source: Tensor  # [4, 4] from our world to the file's
    scale: float  # our units per unit of the file

    def poses(self, pose: Tensor) -> Tensor:
        """Poses [I, 4, 4] of the file's world as poses in ours; rotations stay rotations."""
        moved = torch.linalg.inv(self.to_source) @ pose
        moved[:, :3, :3] /= self.scale
        return moved


def focus_point(pose: Tensor) -> Tensor:
    """The point [3] nearest to all optical axes, in the least-squares sense, and in front of most cameras.

    Axes that are parallel, or one alone, have no such point; then it lies ahead of the cameras' middle, as far as they
    spread (1 if they do not). For cameras that look outwards from a room's middle it is that middle.

    Args:
        pose: [I, 4, 4].
    """
    origin, forward = pose[:, :3, 3], -pose[:, :3, 2]
    across = torch.eye(3, dtype=pose.dtype) - forward[:, :, None] * forward[:, None, :]  # removes all along the axis
    normal = across.mean(0)
    middle = origin.mean(0)
    spread = (origin - middle).norm(dim=-1).max()
    if torch.linalg.eigvalsh(normal)[0] > 1e-3:  # mean squared sine of the axes' angle to their common direction
        point = torch.linalg.solve(normal, (across @ origin[:, :, None]).mean(0)[:, 0])
        if (((point - origin) * forward).sum(-1) > 0).double().mean() > 0.5:
            return point
    return middle + forward.mean(0) * (spread if spread > 1e-6 else 1.0)


def up_direction(pose: Tensor) -> Tensor:
    """The unit direction [3] that is up for cameras ``pose`` [I, 4, 4]: their mean, or the axis it is close to."""
    mean = pose[:, :3, 1].mean(0)
    if mean.norm() < UNDECIDED:
        return torch.tensor([0.0, 0.0, 1.0], dtype=pose.dtype)
    mean = mean / mean.norm()
    largest = mean.abs().argmax()
    axis = torch.zeros_like(mean)
    axis[largest] = mean[largest].sign()
    return axis if torch.rad2deg(torch.acos((mean @ axis).clamp(-1, 1))) < SNAP_DEGREES else mean


def upright(up: Tensor) -> Tensor:
    """The smallest rotation [3, 3] that turns the unit direction ``up`` [3] to +Y; z-up becomes (x, z, -y)."""
    y = torch.tensor([0.0, 1.0, 0.0], dtype=up.dtype)
    if up @ y < -1 + 1e-9:
        return torch.diag(torch.tensor([1.0, -1.0, -1.0], dtype=up.dtype))
    v = torch.linalg.cross(up, y)
    skew = torch.zeros(3, 3, dtype=up.dtype)
    skew[0, 1], skew[0, 2], skew[1, 2] = -v[2], v[1], -v[0]
    skew = skew - skew.T
    return torch.eye(3, dtype=up.dtype) + skew + skew @ skew / (1 + up @ y)


def _turned_to_front(offset: Tensor) -> Tensor:
    """The rotation [3, 3] about +Y that brings cameras on one side (offsets [I, 3] from the focus) to the front."""
    level = torch.nn.functional.normalize(offset[:, [0, 2]], dim=-1).mean(0)  # x, z
    if level.norm() < FACING:
        return torch.eye(3, dtype=offset.dtype)
    s, c = (level / level.norm()).unbind(0)
    zero, one = torch.zeros_like(s), torch.ones_like(s)
    return torch.stack([torch.stack([c, zero, -s]), torch.stack([zero, one, zero]), torch.stack([s, zero, c])])


def ball_of(points: Tensor) -> tuple[Tensor, float]:
    """The middle [3] of points [P, 3], and the radius about it that holds all but a few."""
    middle = points.median(0).values
    distance = (points - middle).norm(dim=-1)
    return middle, distance.kthvalue(max(1, round(MOST_POINTS * len(points)))).values.item()


def frame(
    pose: Tensor,
    half_angle: Tensor,
    box: tuple[Tensor, float] | None,
    clear: bool,
    bound: float,
    points: Tensor | None = None,
) -> Framing:
    """Choose the box of the scene and bring it to [-bound, bound]^3 with +Y up.

    * Data that prescribes its box (instant-ngp's ``aabb_scale``, NeuS's ``scale_mat``) gets it.
    * An object on clear ground (photographs with alpha): the cameras look at it and see it whole, so the box is centred
      where their axes meet and as large as what they see there. Blender's front, -y, becomes our +Z.
    * Any other scene: centred where the axes meet and a little larger than the cameras' distance, cameras within; or
      around the points that its reconstruction found, where that box is smaller.

    Except for an object, cameras that all stand on one side are turned to stand in front (+Z).

    Args:
        pose: [I, 4, 4] float64 of the training photographs.
        half_angle: [I] radians, half the larger field of view.
        box: centre [3] and half side in the file's world, or None.
        clear: the photographs have alpha.
        bound: half the side of our box.
        points: [P, 3] float64 in the file's world, on the surfaces of the scene, or None.

    Raises:
        UserError: the cameras all stand in one place and look apart.
    """
    focus = focus_point(pose)
    distance = (pose[:, :3, 3] - focus).norm(dim=-1)
    if box is not None:
        kind, (centre, half) = "box", box
    elif clear:
        kind, centre, half = "object", focus, (distance * torch.tan(half_angle)).median().item()
    else:
        kind, centre, half = "scene", focus, SCENE_MARGIN * distance.max().item()
        if points is not None:
            middle, radius = ball_of(points)
            if SCENE_MARGIN * radius < half:
                kind, centre, half = "points", middle, SCENE_MARGIN * radius
    if not half > SMALLEST_BOX:
        raise UserError(
            f"the {len(pose)} photographs were all taken from one place and look apart, so nothing shows "
            "depth; give photographs from several places"
        )
    rotation = upright(up_direction(pose))
    if kind != "object":
        rotation = _turned_to_front((pose[:, :3, 3] - focus) @ rotation.T) @ rotation
    scale = bound / half
    to_source = torch.eye(4, dtype=pose.dtype)
    to_source[:3, :3] = rotation.T / scale
    to_source[:3, 3] = centre
    return Framing(kind, to_source, scale)
