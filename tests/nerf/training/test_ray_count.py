"""The number of rays that keeps the number of samples."""

import torch

from nerf.core.structs import Samples
from nerf.training.ray_count import RayCount


def samples(count):
    nothing = torch.zeros(count)
    index = torch.zeros(count, dtype=torch.int64)
    return Samples(torch.zeros(count, 3), nothing, nothing, index, index[:1], index[:1])


def test_the_number_of_rays_settles_where_the_samples_are_those_asked_for():
    rays = RayCount(100, 3000)
    for _ in range(200):
        rays.observe(rays.next(), samples(10 * rays.next()))
    assert abs(rays.next() - 300) <= 1


def test_nothing_sampled_is_no_division_by_zero_and_stays_in_bounds():
    rays = RayCount(100, 3000)
    for _ in range(500):
        rays.observe(rays.next(), samples(0))
        assert 64 <= rays.next() <= 1600
    assert rays.next() == 1600


def test_dense_samples_leave_some_rays():
    rays = RayCount(400, 1000)
    for _ in range(300):
        rays.observe(rays.next(), samples(10_000))
    assert rays.next() == 100


def test_no_rays_at_all_change_nothing_much():
    rays = RayCount(128, 1000)
    rays.observe(0, samples(0))
    assert 64 <= rays.next() <= 128


def test_a_resumed_count_goes_on_where_it_was():
    one, two = RayCount(100, 3000), RayCount(100, 3000)
    for _ in range(7):
        one.observe(one.next(), samples(5000))
    two.load_state_dict(one.state_dict())
    assert two.next() == one.next() and torch.equal(two.state_dict()["rays"], one.state_dict()["rays"])
    two.load_state_dict({})
    assert two.next() == one.next()
