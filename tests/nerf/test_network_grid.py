"""The grid backbone: its fast paths agree with the general ones."""

import dataclasses

import pytest
import torch

from nerf.config.config import Config
from nerf.core.structs import Points, RenderSettings, SceneInfo
from nerf.fields.neural import NetworkField
from nerf.network_grid import CPU_CHUNK, GridField

SMALL = dict(levels=5, finest_resolution=48, log2_hashmap_size=11, hidden=24)


def built(**changes):
    field = GridField(dataclasses.replace(Config().field, **(SMALL | changes)), SceneInfo())
    for p in field.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return field


def test_the_gradient_by_the_chain_rule_equals_autograd_through_the_positions():
    field, at = built(), torch.rand(50, 3) - 0.5
    _, logit, gradient = field._with_gradient(at, 1.0)
    _, expected_logit, expected = NetworkField._with_gradient(field, at, 1.0)
    torch.testing.assert_close(logit, expected_logit)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-4)


def test_gradients_of_normals_equal_autograd_through_the_positions():
    field, at = built(), torch.rand(50, 3) - 0.5
    grads = []
    for cls in (GridField, NetworkField):
        gradient = cls._with_gradient(field, at, 1.0)[2]
        grads.append(torch.autograd.grad(gradient.square().sum(), [field.encoder.embeddings, field.head.weight]))
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


def test_density_without_gradients_equals_density_with_them():
    field, at = built(), 2 * torch.rand(CPU_CHUNK + 7, 3) - 1
    with torch.no_grad():
        plain = field.density(at, max_level=0.6)
    torch.testing.assert_close(plain, field.density(at, max_level=0.6).detach())


@pytest.mark.parametrize("layers", [1, 2, 4])
def test_the_number_of_layers_counts_the_head(layers):
    field = built(layers=layers)
    assert len(field.layers) == layers - 1
    assert field.query(Points(torch.zeros(2, 3)), RenderSettings(source="guided", need_normals=True)).normal.shape == (2, 3)


def test_the_finest_level_has_the_requested_resolution():
    assert max(built(finest_resolution=48).encoder.layout.resolutions) == 48
