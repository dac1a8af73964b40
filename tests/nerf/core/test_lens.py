"""Lens models: the equidistant projection beyond 90 degrees, the rational model, inverses, gradients."""

import math
from dataclasses import replace

import pytest
import torch

from nerf.core.cameras import clip_space, orbit, pixel_rays, project
from nerf.core.lens import direction_through, distort, plane_of, undistort

RATIONAL = torch.tensor([0.1, -0.02, 0.01, 0.0, 0.002, -0.001, 0.05, -0.01, 0.002], dtype=torch.float64)
FISHEYE = torch.tensor([-0.03, 0.006, -0.001, 0.0001, 0.0005, -0.0004], dtype=torch.float64)
WIDE = torch.tensor(True)


def direction(degrees, bearing):
    """A direction at this angle from the viewing axis, to the right (bearing 0) or up (90)."""
    a, b = math.radians(degrees), math.radians(bearing)
    return torch.tensor([math.sin(a) * math.cos(b), math.sin(a) * math.sin(b), -math.cos(a)], dtype=torch.float64)


@pytest.mark.parametrize("degrees", [0.0, 30.0, 89.0, 90.0, 110.0, 170.0])
def test_an_equidistant_lens_shows_angles_as_radii(degrees):
    plane = plane_of(direction(degrees, 90.0), None, WIDE)
    torch.testing.assert_close(plane, torch.tensor([0.0, -math.radians(degrees)], dtype=torch.float64), atol=1e-12, rtol=0)


@pytest.mark.parametrize("degrees", [0.0, 1e-7, 20.0, 60.0, 100.0])
def test_directions_of_a_fisheye_lens_invert_its_projection(degrees):
    seen = direction(degrees, 33.0)
    found = direction_through(plane_of(seen, FISHEYE, WIDE), FISHEYE, WIDE)
    torch.testing.assert_close(found, seen, atol=1e-10, rtol=0)


def test_opencv_s_fisheye_polynomial_is_the_distortion_of_the_angle():
    theta = math.radians(70.0)
    k1, k2, k3, k4 = FISHEYE[:4].tolist()
    radius = theta * (1 + k1 * theta**2 + k2 * theta**4 + k3 * theta**6 + k4 * theta**8)
    only_radial = torch.cat([FISHEYE[:4], torch.zeros(2).double()])
    torch.testing.assert_close(
        plane_of(direction(70.0, 0.0), only_radial, WIDE), torch.tensor([radius, 0.0], dtype=torch.float64)
    )


def test_the_rational_model_follows_its_formula_and_is_inverted():
    xy = torch.tensor([[0.3, -0.4], [0.0, 0.0], [-0.5, 0.2]], dtype=torch.float64)
    r2 = 0.25
    ratio = (1 + 0.1 * r2 - 0.02 * r2**2 + 0.01 * r2**3) / (1 + 0.05 * r2 - 0.01 * r2**2 + 0.002 * r2**3)
    x = 0.3 * ratio + 2 * 0.002 * 0.3 * -0.4 - 0.001 * (r2 + 2 * 0.09)
    assert distort(xy, RATIONAL)[0, 0].item() == pytest.approx(x)
    torch.testing.assert_close(undistort(distort(xy, RATIONAL), RATIONAL), xy, atol=1e-12, rtol=0)


def test_a_rational_model_without_a_denominator_is_the_polynomial_one():
    xy = torch.rand(20, 2).double() - 0.5
    plain = torch.cat([RATIONAL[:6], torch.zeros(3).double()])
    assert torch.equal(distort(xy, plain), distort(xy, RATIONAL[:6]))


@pytest.mark.parametrize("fisheye", [None, WIDE])
def test_projection_and_directions_are_differentiable_in_points_and_lens(fisheye):
    points = torch.stack([direction(20.0, 10.0), direction(50.0, 200.0), 2 * direction(5.0, 80.0)]).requires_grad_()
    lens = RATIONAL.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda p, k: plane_of(p, k, fisheye), (points, lens))
    plane = (torch.rand(4, 2).double() - 0.5).requires_grad_()
    assert torch.autograd.gradcheck(lambda p, k: direction_through(p, k, fisheye), (plane, lens))


def test_the_centre_of_a_fisheye_picture_has_finite_gradients():
    plane = torch.zeros(1, 2, requires_grad=True)
    direction_through(plane, None, WIDE).sum().backward()
    assert plane.grad.isfinite().all()
    point = torch.tensor([[0.0, 0.0, -1.0]], requires_grad=True)
    plane_of(point, None, WIDE).sum().backward()
    assert point.grad.isfinite().all()


def test_views_of_both_kinds_mix_and_a_fisheye_one_sees_behind_its_plane():
    views = orbit(torch.tensor([80.0, 60.0]), torch.tensor([0.0, 90.0]), 2.0, 60.0, 40, 50)
    mixed = replace(views, fisheye=torch.tensor([False, True]), fx=torch.tensor([30.0, 15.0]), fy=torch.tensor([30.0, 15.0]))
    xy = torch.tensor([[10.0, 12.0], [49.0, 20.0]])
    rays = pixel_rays(mixed, torch.tensor([0, 1]), xy)
    for i in range(2):
        seen, depth = project(mixed[i], rays.origins[i] + 3 * rays.directions[i])
        torch.testing.assert_close(seen[0], xy[i], atol=1e-3, rtol=0)
        torch.testing.assert_close(depth, torch.tensor([3.0]))
    torch.testing.assert_close(rays.directions.norm(dim=-1), torch.ones(2))
    assert (rays.directions[1] * mixed.pose[1, :3, 2]).sum() > 0  # more than 90 degrees from the viewing direction


def test_what_rasterises_refuses_a_fisheye_view():
    views = replace(orbit(80.0, 0.0, 2.0, 60.0, 8, 8), fisheye=torch.tensor([True]))
    assert views.has_lens and not replace(views, fisheye=torch.tensor([False])).has_lens
    with pytest.raises(ValueError, match="expected views without lens distortion"):
        clip_space(views, torch.zeros(1, 3), 0.01, 1.0)
