"""The settings of a view as render settings."""

import pytest
import torch

from nerf.core.structs import RenderSettings
from nerf.viewer.settings import ViewSettings

OWN = RenderSettings(training=False, background=torch.tensor([0.0, 1.0, 0.0]), view_dependent=True)


def test_what_the_scene_has_of_its_own_is_kept():
    made = ViewSettings().render_settings(OWN)
    assert torch.equal(made.background, OWN.background) and made.view_dependent and not made.training and made.crop is None


@pytest.mark.parametrize("shading", ["lambertian", "textureless", "normal"])
def test_lit_photographs_show_their_diffuse_colour(shading):
    made = ViewSettings(shading=shading, ambient=0.3).render_settings(OWN)
    assert (made.shading, made.ambient, made.view_dependent) == (shading, 0.3, False)


@pytest.mark.parametrize("mode", ["depth", "opacity"])
def test_modes_without_colour_compute_no_normals(mode):
    assert not ViewSettings(mode=mode, shading="normal").render_settings(OWN).computes_normals


def test_the_light_comes_from_its_angles():
    light = ViewSettings(light_polar=90.0, light_azimuth=90.0).render_settings(OWN).light
    torch.testing.assert_close(light, torch.tensor([[1.0, 0.0, 0.0]]), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "words",
    [
        {"mode": "wire"},
        {"shading": "phong"},
        {"ambient": 1.5},
        {"background": (0.0, 2.0, 0.0)},
        {"max_spp": 0},
        {"crop": (0.0, 0.0, 0.0, 1.0, 0.0, 1.0)},
        {"crop": (float("nan"), 0.0, 0.0, 1.0, 1.0, 1.0)},
    ],
)
def test_values_that_mean_nothing_are_refused(words):
    with pytest.raises(ValueError, match="ViewSettings"):
        ViewSettings(**words)
