"""The camera condition: conventions, symmetries and bad input."""

import pytest
import torch

from guidance.prior import camera
from guidance.prior.camera import CONDITION_DIM, RAY_CHANNELS, condition, look_at, random_cameras, ray_map, rays
from nerf.config.presets import PRESETS
from nerf.core.cameras import orbit


def cameras(count=5):
    return random_cameras(count, torch.Generator().manual_seed(0))


def test_condition_has_a_row_for_each_view_and_marks_the_camera_as_known():
    vector = condition(**cameras())
    assert vector.shape == (5, CONDITION_DIM)
    assert (vector[:, -1] == 1).all()


def test_condition_repeats_after_a_full_turn():
    c = cameras()
    torch.testing.assert_close(condition(**c), condition(**{**c, "azimuth": c["azimuth"] + 360}), atol=1e-4, rtol=0)


def test_condition_separates_front_and_back_most():
    c = cameras()
    turns = [(condition(**c) - condition(**{**c, "azimuth": c["azimuth"] + turn})).norm(dim=-1).min() for turn in (180, 20)]
    assert turns[0] > 3.9 and turns[0] > turns[1]


def test_look_at_is_a_rotation_that_mirrors_nothing():
    rotation = look_at(*(cameras()[k] for k in ("polar", "azimuth", "radius")))[:, :, :3]
    torch.testing.assert_close(torch.linalg.det(rotation), torch.ones(5))


def test_look_at_agrees_with_the_cameras_of_the_trainer():
    c = cameras()
    ours = look_at(c["polar"], c["azimuth"], c["radius"])
    theirs = orbit(c["polar"], c["azimuth"], c["radius"], c["fovy"], 8, 8).pose
    torch.testing.assert_close(ours, theirs[:, :3].float(), atol=1e-5, rtol=0)


def test_azimuth_ninety_is_on_the_positive_x_axis():
    pose = look_at(torch.tensor([90.0]), torch.tensor([90.0]), torch.tensor([3.0]))
    torch.testing.assert_close(pose[0, :, 3], torch.tensor([3.0, 0, 0]), atol=1e-5, rtol=0)


def test_rays_have_unit_length_and_surround_the_view_axis():
    pose = look_at(torch.tensor([70.0]), torch.tensor([20.0]), torch.tensor([3.2]))
    _, direction = rays(pose, torch.tensor([20.0]), 6)
    torch.testing.assert_close(direction.norm(dim=-1), torch.ones(1, 6, 6))
    torch.testing.assert_close(torch.nn.functional.normalize(direction.mean((1, 2)), dim=-1), -pose[:, :, 2])


def test_ray_map_of_a_mirrored_camera_is_the_mirrored_ray_map():
    c = cameras()
    ray = ray_map(look_at(c["polar"], c["azimuth"], c["radius"]), c["fovy"], 8)
    mirror = ray_map(look_at(c["polar"], -c["azimuth"], c["radius"]), c["fovy"], 8).flip(-1)
    assert ray.shape == (5, RAY_CHANNELS, 8, 8)
    sign = torch.tensor([-1, 1, 1, 1, 1, 1, -1, 1, -1, -1, 1, 1, 1.0])[None, :, None, None]
    torch.testing.assert_close(ray, sign * mirror, atol=1e-4, rtol=0)


def test_the_preset_draws_views_from_the_ranges_of_the_training_set():
    ranges = {"radius_range": camera.RADIUS_RANGE, "fovy_range": camera.FOVY_RANGE, "theta_range": camera.GEOMETRY_POLAR_RANGE}
    assert {flag: PRESETS["embedded"][flag] for flag in ranges} == ranges


def test_ray_map_refuses_a_pose_of_the_wrong_shape():
    with pytest.raises(ValueError, match=r"expected pose \[B, 3, 4\] or \[B, 4, 4\], got \[2, 3\]"):
        ray_map(torch.zeros(2, 3), torch.zeros(2))
