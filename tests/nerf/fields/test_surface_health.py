"""What goes wrong with a surface is noticed, and said with what to try."""

import re

import pytest
import torch
from torch import nn

from nerf.config.groups import FieldConfig
from nerf.core.structs import SceneInfo
from nerf.fields.shapes import first_shape
from nerf.fields.surface_health import surface_troubles


class Known(nn.Module):
    """A signed distance that is known, with what the check looks at."""

    def __init__(self, distance, sharpness=100.0, **options):
        super().__init__()
        self.config, self.bound, self.scheduled = FieldConfig(**options), 1.0, False
        self.shape = first_shape(self.config, SceneInfo())
        self.distance, self.sharpness = distance, nn.Parameter(torch.tensor(sharpness))


def cube(x):
    return x.abs().amax(-1) - 0.45


def test_a_surface_that_moved_is_well():
    assert surface_troubles(Known(cube), 0.5) == []


@pytest.mark.parametrize(
    ("field", "sentence"),
    [
        (Known(lambda x: x.norm(dim=-1) - 0.5), "still is a sphere of radius 0.5, with which it began; try a larger --lr"),
        (Known(lambda x: x.norm(dim=-1) + 0.1), "the surface is empty.*larger --sdf_radius"),
        (Known(lambda x: -cube(x)), "inside out: 100 % of the walls.*--sdf_init inside_out, for a room"),
        (Known(cube, sdf_init="inside_out"), "inside out: 100 % of the walls.*--sdf_init sphere"),
        (Known(cube, sharpness=12.0), "the sharpness is 12, below its start of 20.*poses and masks.*--scene_scale seen"),
    ],
)
def test_a_trouble_is_said_with_what_to_try(field, sentence):
    (line,) = surface_troubles(field, 0.5)
    assert re.search(sentence, line)
    assert surface_troubles(field, 0.1) == []  # a young run is given time


def test_a_sharpness_about_its_start_is_well():
    assert surface_troubles(Known(cube, sharpness=19.99), 0.5) == []


def test_a_scheduled_sharpness_is_as_it_is():
    field = Known(cube, sharpness=12.0)
    field.scheduled = True
    assert surface_troubles(field, 0.5) == []
