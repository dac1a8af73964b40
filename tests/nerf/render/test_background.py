"""Backgrounds: shapes, sources and messages."""

import pytest
import torch

from nerf.core.structs import RenderSettings
from nerf.render.background import ConstantBackground, NetworkBackground, chosen_color
from tests.nerf.analytic import image_rays

SETTINGS = RenderSettings(source="eval", training=False)
NEAR = torch.ones(12)


def test_the_constant_background_is_white_by_default():
    rays = image_rays(3, 4)
    assert torch.equal(ConstantBackground().render(rays, NEAR, SETTINGS), torch.ones(12, 3))
    assert torch.equal(ConstantBackground((0.0, 0.5, 1.0)).render(rays, NEAR, SETTINGS)[7], torch.tensor([0.0, 0.5, 1.0]))
    assert ConstantBackground().param_groups(1.0) == []


def test_the_network_background_depends_on_the_direction_and_learns():
    background, rays = NetworkBackground(), image_rays(3, 4)
    colours = background.render(rays, NEAR, SETTINGS)
    assert colours.shape == (12, 3) and colours.std(0).min() > 0 and 0 < colours.min() and colours.max() < 1
    colours.sum().backward()
    assert all(p.grad is not None for g in background.param_groups(1e-3) for p in g["params"])


def test_a_colour_may_be_given_for_all_for_each_view_or_for_each_ray():
    rays = image_rays(2, 3, views=2)
    per_view, per_ray = torch.rand(2, 3), torch.rand(12, 3)
    assert torch.equal(chosen_color(per_view[0], rays), per_view[:1].expand(12, 3))
    assert torch.equal(chosen_color(per_view, rays)[[0, 5, 6, 11]], per_view[[0, 0, 1, 1]])
    assert torch.equal(chosen_color(per_ray, rays), per_ray)


@pytest.mark.parametrize("shape", [(4,), (1, 3), (5, 4)])
def test_another_shape_is_refused(shape):
    with pytest.raises(ValueError, match=r"\[N, 3\]|\[12, 3\]"):
        chosen_color(torch.rand(shape), image_rays(2, 3, views=2))
