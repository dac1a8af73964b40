"""Scene normalisation: the similarity from a dataset's world to the normalised one."""

import math

import pytest
import torch

from nerf.core.cameras import look_at
from nerf.core.errors import UserError
from nerf.data.normalize import bounding_ball, focus_point, normalize_scene, rotation_to_y_up, warn_of_poses
from nerf.data.upright import estimate_up

Z_UP = (0.0, 0.0, 1.0)
AXES = [(0, 0, 1), (0, 0, -1), (0, 1, 0), (0, -1, 0), (1, 0, 0), (0.6, 0.0, 0.8)]


def circle(count=12, radius=4.0, height=2.0, centre=(0.0, 0.0, 0.0), span=360.0):
    """Cameras of a z-up world around a point that they look at, starting at -y (Blender's front)."""
    angle = torch.deg2rad(torch.arange(count, dtype=torch.float64) / count * span - span / 2 * (span < 360))
    offset = torch.stack([radius * angle.sin(), -radius * angle.cos(), torch.full_like(angle, height)], -1)
    return look_at(offset + torch.tensor(centre, dtype=torch.float64), centre, Z_UP)


def half_fovs(count=12):
    return torch.full((count,), 0.3, dtype=torch.float64)


def test_focus_is_where_the_axes_meet():
    centre = (1.0, -2.0, 0.5)
    torch.testing.assert_close(focus_point(circle(centre=centre)), torch.tensor(centre, dtype=torch.float64))


@pytest.mark.parametrize("count", [1, 5])
def test_focus_of_parallel_axes_is_in_front_of_the_cameras(count):
    position = torch.zeros(count, 3, dtype=torch.float64)
    position[:, 0] = torch.arange(count)
    pose = look_at(position, position + torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64), Z_UP)
    point = focus_point(pose)
    assert point.isfinite().all() and point[1] > 0.5


def test_focus_of_cameras_that_look_outwards_is_their_centre():
    pose = circle(height=0.0)
    pose[:, :3, [0, 2]] *= -1  # turned by 180 degrees: the axes meet behind all cameras
    torch.testing.assert_close(focus_point(pose), torch.zeros(3, dtype=torch.float64))


def test_photographs_without_baseline_are_refused():
    pose = circle(height=0.0)
    pose[:, :3, 3] = 0
    with pytest.raises(UserError, match="12 photographs were all taken from one position"):
        normalize_scene(pose, half_fovs(), None, False, 1.0)


@pytest.mark.parametrize(
    ("scale", "box", "transparent", "fov", "sentence"),
    [
        (1.0, (torch.zeros(3).double(), 1e-9), False, 0.3, "the scene box that the dataset prescribes is 2e-09 units wide"),
        (1.0, None, True, 1e-8, "the cameras have a field of view of 1.1e-06 degrees.*focal lengths"),
        (1e-9, None, False, 0.3, "the cameras are less than 4e-06 units apart.*multiply the positions"),
        (1e-9, None, True, 0.3, "the cameras are less than 4e-06 units apart"),
    ],
)
def test_a_scene_without_a_size_is_refused_with_its_own_cause(scale, box, transparent, fov, sentence):
    pose = circle()
    pose[:, :3, 3] *= scale
    with pytest.raises(UserError, match=sentence):
        normalize_scene(pose, half_fovs() * fov / 0.3, box, transparent, 1.0)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_few_points_say_nothing_of_the_size(count):
    points = torch.arange(3 * count, dtype=torch.float64).reshape(-1, 3) * 1e-3
    assert normalize_scene(circle(), half_fovs(), None, False, 1.0, points).kind == "scene"


@pytest.mark.parametrize("up", AXES)
def test_rotation_to_y_up_is_a_rotation_that_maps_up_to_plus_y(up):
    up = torch.tensor(up, dtype=torch.float64)
    rotation = rotation_to_y_up(up)
    torch.testing.assert_close(rotation @ up, torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64))
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(3, dtype=torch.float64))
    assert torch.linalg.det(rotation) > 0.999


def test_z_up_becomes_y_up_and_blenders_front_becomes_plus_z():
    turned = rotation_to_y_up(torch.tensor(Z_UP, dtype=torch.float64)) @ torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
    torch.testing.assert_close(turned, torch.tensor([1.0, 3.0, 2.0], dtype=torch.float64))


def test_up_is_the_axis_that_the_cameras_agree_on():
    torch.testing.assert_close(estimate_up(circle(height=3.0)), torch.tensor(Z_UP, dtype=torch.float64))


def test_up_of_a_tilted_world_is_the_mean_of_the_cameras():
    tilt = rotation_to_y_up(torch.tensor([0.6, 0.0, 0.8], dtype=torch.float64)).T
    pose = circle(height=0.0)
    pose[:, :3, :3] = tilt @ rotation_to_y_up(torch.tensor(Z_UP, dtype=torch.float64)) @ pose[:, :3, :3]
    torch.testing.assert_close(estimate_up(pose), torch.tensor([0.6, 0.0, 0.8], dtype=torch.float64))


@pytest.mark.parametrize("transparent, box", [(True, None), (False, None), (False, (torch.ones(3).double(), 5.0))])
@pytest.mark.parametrize("bound", [1.0, 4.0])
def test_normalised_poses_map_back_to_the_original_ones(transparent, box, bound):
    pose = circle(centre=(1.0, 2.0, 3.0))
    normalization = normalize_scene(pose, half_fovs(), box, transparent, bound)
    ours = normalization.apply(pose)
    torch.testing.assert_close(torch.linalg.det(ours[:, :3, :3]), torch.ones(12, dtype=torch.float64))
    back = ours[:, :3, 3] @ normalization.to_source[:3, :3].T + normalization.to_source[:3, 3]
    torch.testing.assert_close(back, pose[:, :3, 3])
    torch.testing.assert_close(normalization.to_source[:3, :3] @ ours[:, :3, :3] * normalization.scale, pose[:, :3, :3])


def test_scene_box_contains_all_cameras():
    ours = normalize_scene(circle(centre=(5.0, 5.0, 5.0)), half_fovs(), None, False, 2.0).apply(circle(centre=(5.0, 5.0, 5.0)))
    assert ours[:, :3, 3].abs().max() <= 2.0 and ours[:, :3, 3].norm(dim=-1).max() > 1.7


def test_object_box_is_as_large_as_what_the_cameras_see_at_the_focus():
    ours = normalize_scene(circle(radius=4.0, height=0.0), half_fovs(), None, True, 1.0).apply(circle(radius=4.0, height=0.0))
    distance = ours[:, :3, 3].norm(dim=-1)
    torch.testing.assert_close(distance * torch.tan(half_fovs()), torch.ones(12, dtype=torch.float64))


def test_prescribed_box_is_used():
    centre, half = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64), 6.0
    normalization = normalize_scene(circle(), half_fovs(), (centre, half), False, 2.0)
    corner = normalization.to_source @ torch.tensor([2.0, 0.0, 0.0, 1.0], dtype=torch.float64)
    assert abs((corner[:3] - centre).norm().item() - 6.0) < 1e-9


def test_one_sided_cameras_of_a_scene_are_rotated_to_the_front():
    pose = circle(span=60.0)
    pose = torch.cat(
        [rotation_to_y_up(torch.tensor(Z_UP, dtype=torch.float64)) @ pose[:, :3], pose[:, 3:]], 1
    )  # y-up, front +Z
    turn = torch.tensor([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [-1.0, 0.0, 0.0]], dtype=torch.float64)  # now they are at +X
    pose = torch.cat([turn @ pose[:, :3], pose[:, 3:]], 1)
    ours = normalize_scene(pose, half_fovs(), None, False, 1.0).apply(pose)[:, :3, 3]
    azimuth = torch.rad2deg(torch.atan2(ours[:, 0], ours[:, 2]))
    assert azimuth.abs().max() < 35


def test_cameras_of_an_object_keep_their_azimuth():
    ours = normalize_scene(circle(), half_fovs(), None, True, 1.0).apply(circle())[:, :3, 3]
    assert abs(ours[0, 0]) < 1e-9 and ours[0, 2] > 0  # Blender's front camera, at -y, is our front camera


def cloud(radius, count=500):
    """Points in a ball at (1, 0, 0), and a few outliers."""
    points = torch.nn.functional.normalize(torch.randn(count, 3, dtype=torch.float64), dim=-1)
    points *= radius * torch.rand(count, 1, dtype=torch.float64) ** (1 / 3)
    points[:5] *= 1000
    return points + torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)


def test_bounding_ball_ignores_outliers():
    middle, radius = bounding_ball(cloud(2.0))
    assert (middle - torch.tensor([1.0, 0.0, 0.0])).norm() < 0.3 and 1.7 < radius < 2.2


def test_a_compact_point_cloud_decides_the_box():
    normalization = normalize_scene(circle(), half_fovs(), None, False, 1.0, cloud(1.0))
    assert normalization.kind == "points" and 0.7 < normalization.scale < 1.2
    assert (normalization.to_source[:3, 3] - torch.tensor([1.0, 0.0, 0.0])).norm() < 0.3


def test_points_beyond_the_cameras_do_not_decide_the_box():
    normalization = normalize_scene(circle(), half_fovs(), None, False, 1.0, cloud(50.0))
    assert normalization.kind == "scene"
    torch.testing.assert_close(normalization.to_source, normalize_scene(circle(), half_fovs(), None, False, 1.0).to_source)


# ---- poses that cannot be meant ----


def around(count=8, flip=1.0):
    angle = torch.arange(count).double() * 2 * math.pi / count
    pose = look_at(torch.stack([4 * angle.sin(), torch.ones_like(angle), 4 * angle.cos()], -1), (0.0, 0.0, 0.0))
    pose[:, :3, 1:3] *= flip
    return pose


def test_cameras_with_opencv_axes_are_a_warning(caplog):
    warn_of_poses(around())
    assert caplog.text == ""
    warn_of_poses(around(flip=-1.0))
    assert "the cameras look away from the point where their axes meet" in caplog.text and "OpenCV" in caplog.text


def test_poses_that_are_all_equal_are_a_warning(caplog):
    warn_of_poses(around(1))
    assert caplog.text == ""
    warn_of_poses(around(1).expand(5, -1, -1))
    assert "all 5 photographs have the same pose" in caplog.text


@pytest.mark.parametrize("half_side", [math.inf, 1e20])
def test_a_box_without_end_is_refused(half_side):
    box = torch.zeros(3).double(), half_side
    with pytest.raises(UserError, match="the scene would be .* units wide"):
        normalize_scene(around(), torch.full((8,), 0.5).double(), box, False, 1.0)


def test_a_single_point_does_not_size_the_box():
    point = torch.zeros(1, 3).double()
    assert normalize_scene(around(), torch.full((8,), 0.5).double(), None, False, 1.0, point).kind == "scene"


def in_limit(limit, bound=1.0, transparent=False):
    """A scene with a limit around the origin; the cameras are sqrt(17) away from it."""
    box = None if limit is None else (torch.zeros(3).double(), limit)
    half_fov = torch.full((8,), 0.5).double()
    return normalize_scene(around(), half_fov, None, transparent, bound, limit=box)


WITH_MARGIN = 1.1 * 17**0.5


@pytest.mark.parametrize(
    ("limit", "half_side"),
    [(32.0, WITH_MARGIN), (1e9, WITH_MARGIN), (4.4, 4.4), (1.5, WITH_MARGIN)],  # far too wide, about right, no camera inside
)
def test_the_box_of_a_scene_holds_the_cameras_at_most_whatever_its_limit(limit, half_side):
    assert in_limit(limit).scale == pytest.approx(1 / half_side) and in_limit(limit).kind == "limit"


def test_a_bound_widens_the_box_up_to_the_limit():
    assert in_limit(32.0, 4.0).scale == pytest.approx(1 / WITH_MARGIN)  # the cameras' box is [-1, 1]^3 of [-4, 4]^3
    assert in_limit(10.0, 4.0).scale == pytest.approx(4 / 10.0)


def test_an_object_is_framed_as_without_a_limit_unless_that_is_smaller():
    free = in_limit(None, transparent=True)
    assert in_limit(32.0, transparent=True).scale == free.scale and free.kind == "object"
    assert in_limit(0.5, transparent=True).scale == pytest.approx(2.0)


def test_the_log_says_that_a_wider_box_is_left_aside(caplog):
    caplog.set_level("INFO")
    in_limit(12.0 * WITH_MARGIN)
    assert "12.0 times as wide as the one that holds the cameras; --bound N" in caplog.text


def test_a_camera_far_from_all_others_is_a_warning(caplog):
    poses = around()
    warn_of_poses(poses)
    assert "as far away" not in caplog.text
    poses = poses.clone()
    poses[0, :3, 3] *= 1000.0
    warn_of_poses(poses)
    assert f"1 of {len(poses)} cameras are more than 100 times as far away as the others" in caplog.text
