"""Cameras: conventions checked with numbers computed by hand, inverses, and refused input."""

import math
from dataclasses import replace

import pytest
import torch

from nerf.core.cameras import angles_of, look_at, orbit, pixel_rays, project, view_rays, wrap_degrees
from nerf.core.lens import distort, undistort

# The letter F in the plane z = 0: stem on the left, both arms to the right (+X), open at the bottom.
STEM_TOP, STEM_BOTTOM = (-1.0, 2.0, 0.0), (-1.0, -2.0, 0.0)
LONG_ARM, SHORT_ARM = (1.0, 2.0, 0.0), (0.5, 0.0, 0.0)
LETTER_F = torch.tensor([STEM_TOP, STEM_BOTTOM, LONG_ARM, SHORT_ARM])
LENS = torch.tensor([0.058, -0.081, 0.01, -0.002, -0.00098, 0.00016])


def random_orbit(device, count=64):
    """Cameras distributed over the sphere, both poles included, in float64."""
    polar = torch.cat([torch.tensor([0.0, 180.0]), torch.rand(count - 2) * 180]).double()
    azimuth = torch.rand(count).double() * 720 - 360
    return orbit(polar.to(device), azimuth.to(device), 1 + torch.rand(count).double().to(device), 40.0, 12, 20)


def test_poses_are_proper_rotations(device):
    rotation = random_orbit(device).pose[:, :3, :3]
    identity = torch.eye(3, dtype=torch.float64, device=device).expand_as(rotation)
    torch.testing.assert_close(rotation @ rotation.mT, identity)
    determinant = torch.linalg.det(rotation)
    torch.testing.assert_close(determinant, torch.ones_like(determinant))


def test_letter_is_upright_and_not_mirrored_from_the_front():
    xy, depth = project(orbit(90.0, 0.0, 4.0, 90.0, 100, 200), LETTER_F)
    # focal length 50 px, 4 units away: a unit is 12.5 px; the middle of the image is (100, 50).
    expected = torch.tensor([[87.5, 25.0], [87.5, 75.0], [112.5, 25.0], [106.25, 50.0]])
    torch.testing.assert_close(xy[0], expected)
    assert (depth > 0).all()


def test_letter_is_mirrored_only_from_behind():
    xy, _ = project(orbit(90.0, 180.0, 4.0, 90.0, 100, 200), LETTER_F)
    torch.testing.assert_close(xy[0], torch.tensor([[112.5, 25.0], [112.5, 75.0], [87.5, 25.0], [93.75, 50.0]]))


def test_camera_at_azimuth_90_is_on_plus_x_and_sees_plus_z_on_the_left():
    view = orbit(90.0, 90.0, 4.0, 90.0, 100, 100)
    torch.testing.assert_close(view.pose[0, :3, 3], torch.tensor([4.0, 0.0, 0.0]))
    xy, depth = project(view, torch.tensor([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]]))
    torch.testing.assert_close(xy[0], torch.tensor([[37.5, 50.0], [50.0, 37.5], [50.0, 50.0], [50.0, 50.0]]))
    assert depth[0, 2] == 3 and depth[0, 3] == 5


def test_camera_above_sees_the_front_at_the_bottom_and_plus_x_on_the_right():
    xy, _ = project(orbit(0.0, 0.0, 4.0, 90.0, 100, 100), torch.tensor([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]))
    torch.testing.assert_close(xy[0], torch.tensor([[50.0, 62.5], [62.5, 50.0]]))


def test_camera_below_sees_the_front_at_the_top_and_plus_x_on_the_right():
    xy, _ = project(orbit(180.0, 0.0, 4.0, 90.0, 100, 100), torch.tensor([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]))
    torch.testing.assert_close(xy[0], torch.tensor([[50.0, 37.5], [62.5, 50.0]]))


@pytest.mark.parametrize("pole", [0.0, 180.0])
def test_orbit_is_continuous_at_the_poles(pole):
    near = abs(pole - 1e-4)
    views = orbit(torch.tensor([pole, near]).double(), 70.0, 2.0, 40.0, 8, 8)
    torch.testing.assert_close(views.pose[0], views.pose[1], atol=1e-5, rtol=0)  # 1e-4 degrees turn an axis by 2e-6


@pytest.mark.parametrize("height, width", [(10, 10), (8, 14), (15, 6)])
def test_rays_through_the_principal_point_of_a_non_square_image_follow_the_optical_axis(device, height, width):
    views = orbit(torch.tensor([60.0, 110.0]), torch.tensor([10.0, 200.0]), 3.0, 35.0, height, width).to(device)
    index = torch.arange(2, device=device)
    middle = torch.tensor([[width / 2, height / 2]], device=device).expand(2, 2)
    rays = pixel_rays(views, index, middle)
    torch.testing.assert_close(rays.directions, -views.pose[:, :3, 2])


def test_field_of_view_spans_the_height_of_the_image():
    view = orbit(90.0, 0.0, 3.0, 30.0, 40, 80)
    edges = torch.tensor([[40.0, 0.0], [40.0, 40.0]])
    top, bottom = pixel_rays(view, torch.zeros(2, dtype=torch.long), edges).directions
    assert math.isclose(math.degrees(torch.acos(top @ bottom).item()), 30.0, abs_tol=1e-3)


def test_first_pixel_has_its_centre_at_one_half():
    view = orbit(90.0, 0.0, 4.0, 90.0, 2, 4)  # focal length 1 px, principal point (2, 1)
    expected = torch.tensor([-1.5, 0.5, -1.0])
    torch.testing.assert_close(view_rays(view).directions[0], expected / expected.norm())


def test_view_rays_equal_pixel_rays(device):
    views = random_orbit(device, 3)
    views = replace(views, distortion=LENS.double().to(device).expand(3, 6))
    rays = view_rays(views)
    assert rays.shape == (3, 12, 20)
    row, column, view = 7, 13, 2
    pixel = torch.tensor([[column + 0.5, row + 0.5]], device=device)
    one = pixel_rays(views, torch.tensor([view], device=device), pixel)
    n = (view * 12 + row) * 20 + column
    torch.testing.assert_close(rays.directions[n], one.directions[0])
    torch.testing.assert_close(rays.origins[n], one.origins[0])
    torch.testing.assert_close(rays.uv[n], one.uv[0])
    assert rays.view_index[n] == view


def test_ray_directions_have_unit_length(device):
    directions = view_rays(random_orbit(device, 5)).directions
    torch.testing.assert_close(directions.norm(dim=-1), torch.ones_like(directions[:, 0]))


@pytest.mark.parametrize("lens", [None, LENS])
def test_project_inverts_the_rays(device, lens):
    views = random_orbit(device, 4)
    if lens is not None:
        views = replace(views, distortion=lens.double().to(device).expand(4, 6))
    index = torch.randint(0, 4, (50,), device=device)
    pixel = torch.rand(50, 2, dtype=torch.float64, device=device) * torch.tensor([20.0, 12.0], device=device)
    rays = pixel_rays(views, index, pixel)
    distance = 0.5 + torch.rand(50, 1, dtype=torch.float64, device=device)
    xy, depth = project(views, rays.origins + distance * rays.directions)
    n = torch.arange(50, device=device)
    torch.testing.assert_close(xy[index, n], pixel, atol=1e-9, rtol=0)
    torch.testing.assert_close(depth[index, n], distance[:, 0])


def test_points_behind_the_camera_have_negative_depth():
    _, depth = project(orbit(90.0, 0.0, 4.0, 40.0, 8, 8), torch.tensor([0.0, 0.0, 5.0]))
    assert depth.shape == (1,) and depth.item() == -1


def test_look_at_puts_the_target_at_the_principal_point(device):
    position, target = torch.randn(20, 3, device=device).double() * 3, torch.randn(20, 3, device=device).double()
    views = orbit(90.0, torch.zeros(20, device=device).double(), 1.0, 50.0, 9, 13)
    views = replace(views, pose=look_at(position, target))
    n = torch.arange(20, device=device)
    middle = torch.tensor([6.5, 4.5], dtype=torch.float64, device=device).expand(20, 2)
    torch.testing.assert_close(project(views, target)[0][n, n], middle)


@pytest.mark.parametrize("position", [(0, 3, 0), (0, -3, 0), (3, 0, 0), (0, 0, -3)])
def test_look_at_is_a_rotation_when_up_is_parallel_to_the_viewing_direction(position):
    position = torch.tensor([position], dtype=torch.float64)
    rotation = look_at(position, up=tuple(position[0].tolist()))[0, :3, :3]
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(3, dtype=torch.float64))
    assert torch.linalg.det(rotation) > 0.999


@pytest.mark.parametrize("polar, height", [(0.0, 3.0), (180.0, -3.0)])
def test_look_at_from_a_pole_equals_the_orbit_at_azimuth_0(polar, height):
    torch.testing.assert_close(look_at(torch.tensor([[0.0, height, 0.0]])), orbit(polar, 0.0, 3.0, 40.0, 4, 4).pose)


def test_angles_of_inverts_the_orbit(device):
    views = random_orbit(device)
    polar, azimuth, radius = angles_of(views.pose)
    torch.testing.assert_close(polar, views.polar, atol=1e-6, rtol=0)
    torch.testing.assert_close(wrap_degrees(azimuth - views.azimuth), torch.zeros_like(azimuth), atol=1e-6, rtol=0)
    torch.testing.assert_close(radius, views.radius)


def test_wrapped_angles_are_in_the_half_open_interval_up_to_180():
    angles = torch.tensor([-540.0, -180.0, -179.0, 0.0, 180.0, 181.0, 360.0, 540.0])
    expected = torch.tensor([180.0, 180.0, -179.0, 0.0, 180.0, -179.0, 0.0, 180.0])
    torch.testing.assert_close(wrap_degrees(angles), expected)


def test_target_changes_the_viewing_direction_and_not_the_position():
    views = orbit(90.0, 0.0, 4.0, 40.0, 10, 10, target=(1.0, 0.0, 0.0))
    torch.testing.assert_close(views.pose[0, :3, 3], torch.tensor([0.0, 0.0, 4.0]))
    torch.testing.assert_close(project(views, torch.tensor([1.0, 0.0, 0.0]))[0][0], torch.tensor([5.0, 5.0]))


def test_distort_inverts_undistort():
    xy = (torch.rand(500, 2).double() - 0.5) * 1.6
    torch.testing.assert_close(distort(undistort(xy, LENS.double()), LENS.double()), xy, atol=1e-12, rtol=0)


def test_zero_distortion_is_the_identity():
    xy = torch.randn(10, 2)
    assert torch.equal(distort(xy, torch.zeros(6)), xy) and torch.equal(undistort(xy, torch.zeros(6)), xy)


def test_barrel_distortion_equals_the_closed_form():
    k1 = torch.tensor([-0.1, 0.0, 0.0, 0.0, 0.0, 0.0])
    torch.testing.assert_close(distort(torch.tensor([0.6, 0.8]), k1), torch.tensor([0.54, 0.72]))


def test_tangential_distortion_follows_opencv():
    lens = torch.tensor([0.0, 0.0, 0.0, 0.0, 0.01, 0.02])
    # x' = x + 2 p1 x y + p2 (r2 + 2 x x), y' = y + p1 (r2 + 2 y y) + 2 p2 x y at (0.5, 0.2), r2 = 0.29
    expected = torch.tensor([0.5 + 0.002 + 0.02 * 0.79, 0.2 + 0.01 * 0.37 + 0.004])
    torch.testing.assert_close(distort(torch.tensor([0.5, 0.2]), lens), expected)


def test_undistort_is_finite_where_the_distortion_is_not_invertible():
    xy = torch.tensor([[3.0, 3.0], [0.0, 0.0], [-5.0, 1.0]])
    assert undistort(xy, torch.tensor([-0.4, 0.1, 0.0, 0.0, 0.0, 0.0])).isfinite().all()


def test_rays_are_differentiable_in_the_pose():
    views = orbit(torch.tensor(70.0).double(), 30.0, 3.0, 40.0, 3, 4)
    pose = views.pose.requires_grad_()
    assert torch.autograd.gradcheck(lambda p: view_rays(replace(views, pose=p)).directions[:3], (pose,))


@pytest.mark.parametrize(
    "arguments, words",
    [
        ((181.0, 0.0, 3.0, 40.0, 8, 8), "polar must lie in"),
        ((-1.0, 0.0, 3.0, 40.0, 8, 8), "polar must lie in"),
        ((90.0, 0.0, 0.0, 40.0, 8, 8), "radius must be positive"),
        ((90.0, 0.0, 3.0, 180.0, 8, 8), "fovy must lie in"),
        ((math.nan, 0.0, 3.0, 40.0, 8, 8), "polar must lie in"),
        ((90.0, 0.0, 3.0, 40.0, 0, 8), "at least 1, got 0 and 8"),
        ((torch.zeros(2, 2), 0.0, 3.0, 40.0, 8, 8), r"expected polar as a number or \[B\], got \[2, 2\]"),
    ],
)
def test_orbit_refuses(arguments, words):
    with pytest.raises(ValueError, match=words):
        orbit(*arguments)


def test_look_at_refuses_wrong_shapes():
    with pytest.raises(ValueError, match=r"expected position \[B, 3\], got \[3\]"):
        look_at(torch.zeros(3))
    with pytest.raises(ValueError, match=r"expected target as \[3\] or \[2, 3\] on cpu, got \[5, 3\]"):
        look_at(torch.ones(2, 3), torch.zeros(5, 3))


def test_pixel_rays_and_project_refuse_wrong_shapes():
    view = orbit(90.0, 0.0, 3.0, 40.0, 8, 8)
    with pytest.raises(ValueError, match=r"expected view_index \[N\] and xy \[N, 2\]"):
        pixel_rays(view, torch.zeros(3, dtype=torch.long), torch.zeros(2, 2))
    with pytest.raises(ValueError, match=r"expected points \[..., 3\], got \[4, 2\]"):
        project(view, torch.zeros(4, 2))
