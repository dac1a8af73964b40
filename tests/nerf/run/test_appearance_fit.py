"""Fitting the appearance of pixels: it is found, and nothing of the model changes."""

from dataclasses import replace

import pytest
import torch

from nerf.core.structs import RenderSettings
from nerf.run.appearance_fit import fit_appearance
from tests.nerf import wild


@pytest.mark.parametrize("cuda_ray", [False, True])
@pytest.mark.parametrize("background", ["constant", "contracted"])
def test_the_light_of_a_render_is_found_again(background, cuda_ray):
    model = wild.model(appearance="embedding", background=background, cuda_ray=cuda_ray, density_bias=1.0)[0]
    model.update_occupancy(torch.Generator().manual_seed(0))
    rays, settings = wild.rays(), RenderSettings(training=False, view_dependent=True)
    true = torch.tensor([1.0, -0.5, 0.3, 0.8, -1.0, 0.2])
    target = model.render(rays, replace(settings, appearance=true)).image
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        found = fit_appearance(model, rays, target, settings)

    def error(vector):
        return float((model.render(rays, replace(settings, appearance=vector)).image - target).square().mean())

    assert found.shape == (6,) and error(found) < 0.05 * error(model.appearance.first_guess())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_model_without_appearance_is_refused():
    model = wild.model(appearance="none")[0]
    with pytest.raises(ValueError, match="with an appearance"):
        fit_appearance(model, wild.rays(), torch.zeros(36, 3), RenderSettings(training=False))
