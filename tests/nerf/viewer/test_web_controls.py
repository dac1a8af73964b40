"""What belongs to one browser: its camera in our conventions, the size of its picture; and the shared panel's texts."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from nerf.viewer.camera import MAX_FOVY, OrbitCamera
from nerf.viewer.frames import Request
from nerf.viewer.settings import MAX_SPP, ViewSettings
from nerf.viewer.status import Phase, Status
from nerf.viewer.web_access import Access, listen
from nerf.viewer.web_controls import SIZES, Controls, camera_of, picture_size, place
from nerf.viewer.web_panel import aligned, as_html, headline
from nerf.viewer.web_server import serving


def quaternion(rotation):
    """(w, x, y, z) of a rotation [3, 3], by the eigenvector of the largest eigenvalue (Bar-Itzhack 2000)."""
    (a, b, c), (d, e, f), (g, h, i) = rotation.tolist()
    k = np.array([[a - e - i, d + b, g + c, h - f], [d + b, e - a - i, h + f, c - g], [g + c, h + f, i - a - e, d - b],
                  [h - f, c - g, d - b, a + e + i]]) / 3  # fmt: skip
    x, y, z, w = np.linalg.eigh(k)[1][:, -1]
    return np.array([w, x, y, z])


def browser_camera(ours, roll=0.0):
    """A camera as viser tells it: OpenCV axes, position, target, vertical field of view in radians."""
    pose = ours.pose()
    rotation = pose[:3, :3] @ torch.diag(torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64))
    turn = torch.tensor([[math.cos(roll), -math.sin(roll), 0], [math.sin(roll), math.cos(roll), 0], [0, 0, 1.0]])
    wxyz = quaternion(rotation @ turn.double())
    return SimpleNamespace(position=pose[:3, 3].numpy(), look_at=np.array(ours.target), wxyz=wxyz, fov=math.radians(ours.fovy))


CAMERAS = [
    OrbitCamera(90.0, 0.0, 3.0, 20.0),
    OrbitCamera(60.0, 90.0, 2.0, 45.0, (0.1, -0.2, 0.3)),
    OrbitCamera(135.0, -120.0, 0.5, 100.0, (1.0, 0.0, 0.0)),
    OrbitCamera(0.5, 30.0, 3.0, 20.0),
    OrbitCamera(179.5, 170.0, 3.0, 20.0),
]


@pytest.mark.parametrize("ours", CAMERAS)
def test_the_camera_of_a_browser_is_the_same_one_here(ours):
    found = camera_of(browser_camera(ours))
    torch.testing.assert_close(found.pose(), ours.pose(), rtol=0, atol=1e-6)
    assert found.fovy == pytest.approx(ours.fovy) and found.target == pytest.approx(ours.target)


def test_a_camera_that_rolls_looks_from_the_same_place_at_the_same_target():
    ours = OrbitCamera(60.0, 0.0, 2.0, 45.0)
    found = camera_of(browser_camera(ours, roll=math.radians(30.0)))
    assert found.polar == pytest.approx(60.0) and found.radius == pytest.approx(2.0)


def test_what_is_placed_in_a_browser_comes_back():
    ours, camera = CAMERAS[1], SimpleNamespace()
    place(camera, ours)
    assert np.linalg.norm(np.array(camera.position) - ours.target) == pytest.approx(ours.radius)
    assert camera.look_at == ours.target and camera.fov == pytest.approx(math.radians(ours.fovy))


@pytest.mark.parametrize("position", [(0.0, 0.0, 0.0), (math.nan, 0.0, 1.0), (math.inf, 0.0, 0.0)])
def test_a_camera_that_cannot_be_is_refused(position):
    camera = browser_camera(OrbitCamera())
    camera.position = position
    with pytest.raises(ValueError, match="camera"):
        camera_of(camera)


@pytest.mark.parametrize(
    ("canvas", "size"), [((1000, 500), (512, 256)), ((300, 200), (300, 200)), ((0, 0), (1, 1)), ((10, 4000), (1, 512))]
)
def test_a_picture_has_the_shape_of_the_canvas_and_is_not_larger(canvas, size):
    assert picture_size(*canvas, 512) == size


@pytest.mark.parametrize(
    ("fovy", "light", "spp", "longest"), [(20.0, 0.0, 1, 512), (MAX_FOVY, 180.0, MAX_SPP, 8192), (1.0, -179.5, 1, 1)]
)
def test_controls_can_be_made_for_whatever_the_flags_allow(fovy, light, spp, longest):
    pytest.importorskip("viser")
    settings = ViewSettings(light_azimuth=light, max_spp=spp)
    listener = listen("127.0.0.1", 0)
    with serving(Access("127.0.0.1", listener.getsockname()[1]), listener) as server:
        request = Request(OrbitCamera(fovy=fovy), settings)
        controls = Controls(server.gui, request, 0.6, longest, lambda: None, lambda camera: None)
        assert controls.settings() == settings and SIZES[0] <= controls.longest.value <= SIZES[1]


def test_texts_of_users_are_shown_and_not_run():
    text = '<script>alert(1)</script> {danger} & "quotes"'
    assert "<script>" not in as_html(text) and "&lt;script&gt;" in as_html(text)


def test_the_headline_says_how_long_it_takes():
    status = Status(Phase.TRAINING, "nerf", 100, 500, True, "", 0, 0.5, "a ball", "", "", "trial")
    assert headline(status) == "training, stage nerf; step 100 of 500; 2 steps/s, 3 min left"
    finished = Status(Phase.SHOWING, "nerf", 500, 500, False, "", 0, 0.0, None, "", "", "trial")
    assert headline(finished) == "showing a finished run; step 500 of 500"


def test_losses_of_other_steps_share_an_axis():
    steps, first, second = aligned({"a": ((1, 3), (1.0, 3.0)), "b": ((2, 3), (20.0, 30.0))})
    np.testing.assert_array_equal(steps, [1, 2, 3])
    np.testing.assert_array_equal(first, [1, np.nan, 3])
    np.testing.assert_array_equal(second, [np.nan, 20, 30])
