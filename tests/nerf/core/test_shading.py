"""Shading against its closed forms."""

import pytest
import torch

from nerf.core.shading import shade
from nerf.core.structs import SHADINGS

ALBEDO = torch.tensor([[0.2, 0.4, 0.8]])
UP = torch.tensor([[0.0, 1.0, 0.0]])


def test_albedo_shading_is_the_albedo_and_needs_no_normals():
    assert shade("albedo", ALBEDO) is ALBEDO


def test_lambertian_with_full_ambient_light_is_the_albedo():
    torch.testing.assert_close(shade("lambertian", ALBEDO, UP, -UP, ambient=1.0), ALBEDO)


def test_lambertian_is_darkened_by_the_cosine():
    light = torch.tensor([[0.0, 0.6, 0.8]])
    torch.testing.assert_close(shade("lambertian", ALBEDO, UP, light, ambient=0.1), ALBEDO * (0.1 + 0.9 * 0.6))


def test_a_surface_turned_away_from_the_light_has_the_ambient_share_only():
    torch.testing.assert_close(shade("textureless", ALBEDO, UP, -UP, ambient=0.3), torch.full((1, 3), 0.3))


def test_textureless_does_not_depend_on_the_albedo():
    light = torch.tensor([0.0, 0.6, 0.8])
    one, other = shade("textureless", ALBEDO, UP, light, 0.2), shade("textureless", 0 * ALBEDO, UP, light, 0.2)
    assert torch.equal(one, other) and one.shape == (1, 3)


def test_normal_shading_maps_minus_one_to_black_and_one_to_white():
    colour = shade("normal", ALBEDO, torch.tensor([[-1.0, 0.0, 1.0]]))
    torch.testing.assert_close(colour, torch.tensor([[0.0, 0.5, 1.0]]))


@pytest.mark.parametrize("shading", [s for s in SHADINGS if s != "albedo"])
def test_a_missing_normal_is_told(shading):
    with pytest.raises(ValueError, match="needs normals"):
        shade(shading, ALBEDO)


def test_an_unknown_shading_is_refused():
    with pytest.raises(ValueError, match="lambertian"):
        shade("phong", ALBEDO)
