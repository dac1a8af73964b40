"""The camera of the viewer: the trainer's conventions, and the hand that moves it."""

import math

import pytest
import torch

from nerf.core import cameras
from nerf.core.cameras import orbit
from nerf.viewer.camera import MAX_RADIUS, MIN_RADIUS, ORBIT_RATE, OrbitCamera


@pytest.mark.parametrize("polar", [0.0, 20.0, 90.0, 180.0])
@pytest.mark.parametrize("azimuth", [-170.0, 0.0, 45.0])
def test_it_is_the_camera_that_the_trainer_samples(polar, azimuth):
    own = OrbitCamera(polar, azimuth, 2.5, 30.0).views(48, 64)
    trainers = orbit(polar, azimuth, 2.5, 30.0, 48, 64)
    torch.testing.assert_close(own.pose, trainers.pose, rtol=0, atol=1e-6)
    assert (own.fx, own.cx, own.cy, own.height, own.width) == (trainers.fx, trainers.cx, trainers.cy, 48, 64)
    assert torch.linalg.det(own.pose[0, :3, :3]) == pytest.approx(1.0, abs=1e-5)


def test_the_target_is_in_the_middle_of_the_picture():
    camera = OrbitCamera(70.0, 30.0, 3.0, 40.0, (0.3, -0.2, 0.5))
    xy, depth = cameras.project(camera.views(40, 60), torch.tensor([camera.target]))
    torch.testing.assert_close(xy[0, 0], torch.tensor([30.0, 20.0]), rtol=0, atol=1e-3)
    assert depth[0, 0] == pytest.approx(3.0, abs=1e-5)


def projected(camera, point):
    """Pixel of a world point in a picture of 100 x 100."""
    return cameras.project(camera.views(100, 100), torch.tensor([point]))[0][0, 0].tolist()


def test_the_object_turns_with_the_hand():
    near = (0.0, 0.0, 0.5)  # on the side of the object that faces the camera
    camera = OrbitCamera()
    x, y = projected(camera, near)
    assert projected(camera.orbit(10.0, 0.0), near)[0] > x + 0.1  # a drag to the right
    assert projected(camera.orbit(0.0, 10.0), near)[1] > y + 0.1  # and downwards
    assert camera.orbit(10.0, 0.0).azimuth == pytest.approx(-10.0 * ORBIT_RATE)


def test_a_pan_moves_the_target_as_far_as_the_hand():
    camera = OrbitCamera(65.0, 130.0, 3.0, 35.0, (0.1, 0.2, -0.3))
    x, y = projected(camera.pan(7.0, -4.0, 100), camera.target)
    assert (x, y) == (pytest.approx(57.0, abs=1e-3), pytest.approx(46.0, abs=1e-3))


def test_zooming_in_and_out_again_changes_nothing():
    camera = OrbitCamera(radius=2.0).zoom(3.0)
    assert camera.radius == pytest.approx(2.0 / 1.1**3) and camera.zoom(-3.0).radius == pytest.approx(2.0)
    assert (camera.zoom(1e9).radius, camera.zoom(-1e9).radius) == (MIN_RADIUS, pytest.approx(MAX_RADIUS))


def test_a_long_drag_stops_at_the_poles_and_wraps_around_the_axis():
    camera = OrbitCamera().orbit(1e5, -1e6)
    assert camera.polar == 180.0 and -180.0 < camera.azimuth <= 180.0
    assert torch.isfinite(camera.pose()).all()


@pytest.mark.parametrize(
    "words", [{"radius": 0.0}, {"fovy": 0.5}, {"polar": 181.0}, {"azimuth": math.nan}, {"radius": math.inf}]
)
def test_numbers_that_no_camera_has_are_refused(words):
    with pytest.raises(ValueError, match="OrbitCamera"):
        OrbitCamera(**words)


def test_it_starts_where_a_photograph_was_taken():
    taken = OrbitCamera(60.0, -75.0, 2.5, 33.0, (0.2, 0.1, 0.0))
    views = taken.views(40, 60)
    seen = OrbitCamera.seen_by(views)
    torch.testing.assert_close(seen.views(40, 60).pose, views.pose, rtol=0, atol=1e-5)
    nearest = torch.tensor(seen.target) @ views.pose[0, :3, 2]
    assert nearest == pytest.approx(0.0, abs=1e-5)  # the target is the point of the line that is nearest to the origin
