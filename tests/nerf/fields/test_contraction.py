"""The contraction of space: closed forms, the inverse, and steps that are equally long in it."""

import pytest
import torch

from nerf.fields.contraction import contract, disparity_steps, uncontract


def points(count=500, reach=50.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    direction = torch.nn.functional.normalize(torch.randn(count, 3, generator=generator, dtype=dtype), dim=-1)
    return direction * torch.linspace(0.0, reach, count, dtype=dtype)[:, None]


def test_the_unit_ball_stays_as_it_is():
    inside = points(reach=1.0)
    torch.testing.assert_close(contract(inside), inside, atol=1e-12, rtol=0)


@pytest.mark.parametrize(("distance", "contracted"), [(1.0, 1.0), (2.0, 1.5), (4.0, 1.75), (1000.0, 1.999)])
def test_distances_become_two_minus_the_disparity(distance, contracted):
    torch.testing.assert_close(contract(torch.tensor([[0.0, -distance, 0.0]])), torch.tensor([[0.0, -contracted, 0.0]]))


def test_all_of_space_fits_the_ball_of_radius_two_and_directions_stay():
    space = points(reach=1e6)[1:]
    inside = contract(space)
    assert inside.norm(dim=-1).max() < 2.0
    torch.testing.assert_close(inside / inside.norm(dim=-1, keepdim=True), space / space.norm(dim=-1, keepdim=True))


def test_uncontract_inverts_contract():
    space = points(reach=300.0)
    torch.testing.assert_close(uncontract(contract(space)), space)
    assert uncontract(torch.tensor([[2.0, 0.0, 0.0]]))[0, 0].isinf()


def test_contract_gradcheck():
    space = points(12, reach=6.0)[1:].requires_grad_(True)
    assert torch.autograd.gradcheck(contract, (space,))
    assert torch.autograd.gradcheck(uncontract, (contract(space).detach().requires_grad_(True),))


@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_radial_rays_have_equally_long_steps_in_contracted_space(scale):
    place = torch.linspace(0, 0.99, 34, dtype=torch.float64)
    start = torch.tensor([scale], dtype=torch.float64)  # a ray from the origin leaves the ball of radius ``scale`` there
    along = disparity_steps(start, scale, place)[0]
    radius = contract(along[:, None] / scale * torch.tensor([[0.6, 0.0, -0.8]], dtype=torch.float64)).norm(dim=-1)
    torch.testing.assert_close(radius, 1.0 + place)
