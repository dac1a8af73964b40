"""The perfect prior: its estimates are true pictures, in the light and over the background of the rendering."""

import pytest
import torch
from torch.nn.functional import max_pool2d

from guidance.base import Conditions
from guidance.prior.camera import random_cameras, rays
from guidance.prior.dataset import over, shaded
from guidance.prior.perfect import PerfectPrior, true_picture
from guidance.prior.render import render
from guidance.prior.shapes import canonical, distances
from nerf.core.cameras import orbit
from nerf.core.structs import Control
from tests.guidance.models import gradient
from tests.helpers.parts import part_of

PROMPT = "a red car with a white roof"


def views_and_picture(ambient, brightness=1.0):
    """Two views of the shape, as the prior's own renderer shows it in a slanted light over two colours."""
    shape, drawn = canonical(PROMPT), random_cameras(2, torch.Generator().manual_seed(3))
    views = orbit(**drawn, height=64, width=64)
    proportions = {name: torch.full((2,), value) for name, value in shape.proportions.items()}
    material, normal, _ = render(shape.kind, proportions, drawn, 64)
    light = torch.nn.functional.normalize(torch.tensor([[0.3, 0.2, 1.0]]), dim=-1).expand(2, 3)
    layers = shaded(material, normal, shape.palette.expand(2, -1, -1), light, torch.full((2,), ambient))
    layers[:, :3] *= brightness
    return shape, views, over(layers, torch.tensor([[1.0, 1.0, 1.0], [0.2, 0.4, 0.6]]))


@pytest.mark.parametrize("ambient", [1.0, 0.5])
def test_picture_has_the_light_and_the_background_of_the_rendering(ambient):
    shape, views, seen = views_and_picture(ambient)
    found = true_picture(shape, views, seen)
    assert (found - seen).abs().mean() < 0.005
    assert (found - true_picture(shape, views, torch.rand_like(seen))).abs().mean() > 0.02


def test_picture_is_not_as_dark_as_the_rendering():
    shape, views, dark = views_and_picture(0.6, brightness=0.5)
    bright = views_and_picture(0.6)[2]
    found = true_picture(shape, views, dark)
    assert (found - bright).abs().mean() < 0.1 * (dark - bright).abs().mean()


def test_gradient_vanishes_at_the_truth_and_leads_there_from_elsewhere(prior_folder):
    model = PerfectPrior(prior_folder)
    model.prepare(Conditions(text=PROMPT))
    _, views, truth = views_and_picture(1.0)
    part = part_of("guided", seed=5)
    at_truth, elsewhere = (gradient(model, image, views, part) for image in (truth, torch.full_like(truth, 0.5)))
    assert at_truth.abs().mean() < 0.02 * elsewhere.abs().mean()
    assert ((0.5 - truth) * elsewhere).sum() > 0


@pytest.mark.parametrize("size", [64, 32])
def test_geometry_is_that_of_the_true_shape(prior_folder, size):
    model = PerfectPrior(prior_folder)
    model.prepare(Conditions(text=PROMPT))
    shape, drawn = canonical(PROMPT), random_cameras(2, torch.Generator().manual_seed(3))
    views = orbit(**drawn, height=size, width=size)
    found = model.geometry(torch.rand(2, 3, size, size), views, part_of("guided"), Control((0.02, 0.98), 7.5))
    origin, direction = rays(views.pose, views.fovy, size)
    points = origin[:, None, None] + found.depth[..., None] * direction
    inner = -max_pool2d(-found.coverage[:, None], 3, 1, 1)[:, 0] > 0.99
    away = distances(shape.kind, {n: torch.tensor(v) for n, v in shape.proportions.items()}, points[inner])[0].abs()
    assert inner.float().mean() > 0.1 and away.median() < 0.005
    cosine = (found.normal.movedim(1, -1) * direction).sum(-1)
    assert (cosine[inner] < 0.1).float().mean() > 0.99  # they face the camera
