"""Near planes, and the places that no photograph or one alone sees."""

import pytest
import torch

from nerf.core.cameras import centred_views, look_at, view_rays
from nerf.core.coverage import ALONE, Coverage, near_planes


def cameras(*positions, near=None, fov=40.0):
    """Cameras at these positions that look at the origin, 20x20 pixels."""
    views = centred_views(look_at(torch.tensor(positions)), torch.full((len(positions),), fov), 20, 20)
    return views if near is None else views.__class__(**(views.__dict__ | {"near": torch.tensor(near)}))


def coverage(views):
    size = torch.full((len(views),), 20)
    return Coverage(views, size, size)


def empty(seen, *positions, reach=0.01):
    return seen.empty(torch.tensor(positions), torch.full((len(positions),), reach)).tolist()


def test_near_planes_are_a_tenth_of_the_distance_to_the_focus_without_points():
    views = cameras((0.0, 0.0, 2.0), (3.0, 0.0, 1.0))
    size = torch.full((2,), 20)
    near = near_planes(views, size, size, torch.tensor([0.0, 0.0, 1.0]))
    torch.testing.assert_close(near, torch.tensor([0.1, 0.3]))


def test_near_planes_are_half_the_distance_to_the_nearest_points_in_view():
    views = cameras((0.0, 0.0, 2.0), (0.0, 0.0, -2.0))
    size = torch.full((2,), 20)
    depth = torch.linspace(1.0, 1.5, 200)  # z of points on the axis: 0.5 to 1 from the first camera, 3 to 3.5 from the second
    points = torch.stack([torch.zeros(200), torch.zeros(200), depth], -1)
    far_aside = torch.tensor([[50.0, 0.0, 2.1]]).expand(300, 3)  # out of view of both
    near = near_planes(views, size, size, torch.zeros(3), torch.cat([points, far_aside]))
    torch.testing.assert_close(near, torch.tensor([0.25, 1.5]), rtol=0.02, atol=0)


def test_a_few_points_say_nothing_of_the_near_plane():
    views, size = cameras((0.0, 0.0, 2.0)), torch.tensor([20])
    near = near_planes(views, size, size, torch.zeros(3), torch.tensor([[0.0, 0.0, 1.9]]).expand(19, 3))
    torch.testing.assert_close(near, torch.tensor([0.2]))


def test_what_is_behind_all_cameras_is_empty_and_what_two_see_is_not():
    seen = coverage(cameras((0.0, 0.0, 2.0), (0.5, 0.0, 2.0), near=[0.1, 0.1]))
    assert empty(seen, (0.0, 0.0, 0.0), (0.0, 0.0, 3.0), (0.0, 3.0, 0.0)) == [False, True, True]


def test_what_one_camera_alone_sees_is_empty_near_it_and_kept_farther_away():
    near = 0.1
    seen = coverage(cameras((0.0, 0.0, 2.0), (0.0, 0.0, -2.0), near=[near, near], fov=20.0))
    just_before, beyond = 2.0 - 0.9 * ALONE * near, 2.0 - 1.2 * ALONE * near
    aside = 0.9 * 0.176  # of the first camera's image at distance 1; outside that of the second, which is narrower there
    assert empty(coverage(cameras((0.0, 0.0, 2.0), near=[near])), (0.0, 0.0, just_before), (0.0, 0.0, beyond)) == [True, False]
    assert empty(seen, (0.0, 0.0, just_before)) == [False]  # the other one sees it too
    assert empty(seen, (aside * 0.4, 0.0, 1.6)) == [False]


def test_nothing_in_front_of_a_near_plane_counts_as_seen():
    seen = coverage(cameras((0.0, 0.0, 2.0), (0.1, 0.0, 2.0), near=[0.5, 0.5]))
    assert empty(seen, (0.05, 0.0, 1.6), (0.05, 0.0, 1.3)) == [True, False]


def test_a_ball_at_the_border_of_an_image_is_seen_where_it_reaches_into_it():
    seen = coverage(cameras((0.0, 0.0, 2.0), (0.0, 0.0, 2.0), near=[0.1, 0.1]))
    border = 2.0 * torch.tan(torch.deg2rad(torch.tensor(20.0))).item()
    assert empty(seen, (border + 0.05, 0.0, 0.0), reach=0.01) != empty(seen, (border + 0.05, 0.0, 0.0), reach=0.5)


@pytest.mark.parametrize("near", [None, [0.3, 0.6]])
def test_rays_carry_the_near_plane_of_their_camera(near):
    rays = view_rays(cameras((0.0, 0.0, 2.0), (0.0, 0.0, -2.0), near=near))
    if near is None:
        assert rays.near is None and rays[:5].near is None
    else:
        torch.testing.assert_close(rays.near, torch.tensor(near).repeat_interleave(400))
        torch.testing.assert_close(rays[torch.tensor([0, 799])].near, torch.tensor(near))
