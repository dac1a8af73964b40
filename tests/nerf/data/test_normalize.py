"""The similarity from the photographs' own world to ours."""

import pytest
import torch

from nerf.core.cameras import look_at
from nerf.core.errors import UserError
from nerf.data.normalize import ball_of, focus_point, frame, up_direction, upright

Z_UP = (0.0, 0.0, 1.0)
AXES = [(0, 0, 1), (0, 0, -1), (0, 1, 0), (0, -1, 0), (1, 0, 0), (0.6, 0.0, 0.8)]


def circle(count=12, radius=4.0, height=2.0, centre=(0.0, 0.0, 0.0), span=360.0):
    """Cameras of a z-up world around a point that they look at, starting at -y (Blender's front)."""
    angle = torch.deg2rad(torch.arange(count, dtype=torch.float64) / count * span - span / 2 * (span < 360))
    offset = torch.stack([radius * angle.sin(), -radius * angle.cos(), torch.full_like(angle, height)], -1)
    return look_at(offset + torch.tensor(centre, dtype=torch.float64), centre, Z_UP)


def half_angles(count=12):
    return torch.full((count,), 0.3, dtype=torch.float64)


def test_focus_is_where_the_axes_meet():
    centre = (1.0, -2.0, 0.5)
    torch.testing.assert_close(focus_point(circle(centre=centre)), torch.tensor(centre, dtype=torch.float64))


@pytest.mark.parametrize("count", [1, 5])
def test_focus_of_parallel_axes_lies_ahead_of_the_cameras(count):
    position = torch.zeros(count, 3, dtype=torch.float64)
    position[:, 0] = torch.arange(count)
    pose = look_at(position, position + torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64), Z_UP)
    point = focus_point(pose)
    assert point.isfinite().all() and point[1] > 0.5


def test_focus_of_cameras_that_look_outwards_is_their_middle():
    pose = circle(height=0.0)
    pose[:, :3, [0, 2]] *= -1  # about face: the axes meet behind all cameras
    torch.testing.assert_close(focus_point(pose), torch.zeros(3, dtype=torch.float64))


def test_frame_refuses_photographs_that_were_all_taken_from_one_place():
    pose = circle(height=0.0)
    pose[:, :3, 3] = 0
    with pytest.raises(UserError, match="12 photographs were all taken from one place"):
        frame(pose, half_angles(), None, False, 1.0)


@pytest.mark.parametrize("up", AXES)
def test_upright_is_a_rotation_that_turns_up_to_plus_y(up):
    up = torch.tensor(up, dtype=torch.float64)
    rotation = upright(up)
    torch.testing.assert_close(rotation @ up, torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64))
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(3, dtype=torch.float64))
    assert torch.linalg.det(rotation) > 0.999


def test_z_up_becomes_y_up_and_blenders_front_becomes_ours():
    turned = upright(torch.tensor(Z_UP, dtype=torch.float64)) @ torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
    torch.testing.assert_close(turned, torch.tensor([1.0, 3.0, 2.0], dtype=torch.float64))


def test_up_is_the_axis_that_the_cameras_agree_on():
    torch.testing.assert_close(up_direction(circle(height=3.0)), torch.tensor(Z_UP, dtype=torch.float64))


def test_up_of_a_tilted_world_is_the_mean_of_the_cameras():
    tilt = upright(torch.tensor([0.6, 0.0, 0.8], dtype=torch.float64)).T
    pose = circle(height=0.0)
    pose[:, :3, :3] = tilt @ upright(torch.tensor(Z_UP, dtype=torch.float64)) @ pose[:, :3, :3]
    torch.testing.assert_close(up_direction(pose), torch.tensor([0.6, 0.0, 0.8], dtype=torch.float64))


@pytest.mark.parametrize("clear, box", [(True, None), (False, None), (False, (torch.ones(3).double(), 5.0))])
@pytest.mark.parametrize("bound", [1.0, 4.0])
def test_framed_poses_are_the_same_cameras_seen_through_the_similarity(clear, box, bound):
    pose = circle(centre=(1.0, 2.0, 3.0))
    framing = frame(pose, half_angles(), box, clear, bound)
    ours = framing.poses(pose)
    torch.testing.assert_close(torch.linalg.det(ours[:, :3, :3]), torch.ones(12, dtype=torch.float64))
    back = ours[:, :3, 3] @ framing.to_source[:3, :3].T + framing.to_source[:3, 3]
    torch.testing.assert_close(back, pose[:, :3, 3])
    torch.testing.assert_close(framing.to_source[:3, :3] @ ours[:, :3, :3] * framing.scale, pose[:, :3, :3])


def test_scene_framing_keeps_all_cameras_within_the_box():
    ours = frame(circle(centre=(5.0, 5.0, 5.0)), half_angles(), None, False, 2.0).poses(circle(centre=(5.0, 5.0, 5.0)))
    assert ours[:, :3, 3].abs().max() <= 2.0 and ours[:, :3, 3].norm(dim=-1).max() > 1.7


def test_object_framing_makes_the_box_as_large_as_what_cameras_see_at_the_focus():
    ours = frame(circle(radius=4.0, height=0.0), half_angles(), None, True, 1.0).poses(circle(radius=4.0, height=0.0))
    distance = ours[:, :3, 3].norm(dim=-1)
    torch.testing.assert_close(distance * torch.tan(half_angles()), torch.ones(12, dtype=torch.float64))


def test_prescribed_box_becomes_ours():
    centre, half = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64), 6.0
    framing = frame(circle(), half_angles(), (centre, half), False, 2.0)
    corner = framing.to_source @ torch.tensor([2.0, 0.0, 0.0, 1.0], dtype=torch.float64)
    assert abs((corner[:3] - centre).norm().item() - 6.0) < 1e-9


def test_cameras_of_a_scene_that_stand_on_one_side_are_turned_to_the_front():
    pose = circle(span=60.0)
    pose = torch.cat([upright(torch.tensor(Z_UP, dtype=torch.float64)) @ pose[:, :3], pose[:, 3:]], 1)  # y-up, front +Z
    turn = torch.tensor([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [-1.0, 0.0, 0.0]], dtype=torch.float64)  # now they are at +X
    pose = torch.cat([turn @ pose[:, :3], pose[:, 3:]], 1)
    ours = frame(pose, half_angles(), None, False, 1.0).poses(pose)[:, :3, 3]
    azimuth = torch.rad2deg(torch.atan2(ours[:, 0], ours[:, 2]))
    assert azimuth.abs().max() < 35


def test_cameras_of_an_object_keep_their_azimuth():
    ours = frame(circle(), half_angles(), None, True, 1.0).poses(circle())[:, :3, 3]
    assert abs(ours[0, 0]) < 1e-9 and ours[0, 2] > 0  # Blender's front camera, at -y, is our front camera


def cloud(radius, count=500):
    """Points in a ball at (1, 0, 0), and a few that are far off."""
    points = torch.nn.functional.normalize(torch.randn(count, 3, dtype=torch.float64), dim=-1)
    points *= radius * torch.rand(count, 1, dtype=torch.float64) ** (1 / 3)
    points[:5] *= 1000
    return points + torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)


def test_ball_of_points_is_not_led_astray_by_a_few_far_ones():
    middle, radius = ball_of(cloud(2.0))
    assert (middle - torch.tensor([1.0, 0.0, 0.0])).norm() < 0.3 and 1.7 < radius < 2.2


def test_a_scene_whose_points_lie_close_together_is_framed_around_them():
    framing = frame(circle(), half_angles(), None, False, 1.0, cloud(1.0))
    assert framing.kind == "points" and 0.7 < framing.scale < 1.2
    assert (framing.to_source[:3, 3] - torch.tensor([1.0, 0.0, 0.0])).norm() < 0.3


def test_a_scene_whose_points_lie_beyond_the_cameras_is_framed_around_the_cameras():
    framing = frame(circle(), half_angles(), None, False, 1.0, cloud(50.0))
    assert framing.kind == "scene"
    torch.testing.assert_close(framing.to_source, frame(circle(), half_angles(), None, False, 1.0).to_source)
