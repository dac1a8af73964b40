"""The colour that is baked: of a signed distance as seen along the normal after photographs, of a density the diffuse one."""

import torch

from nerf.config.groups import FieldConfig
from nerf.core.structs import Points, RenderSettings, SceneInfo
from nerf.network_grid import GridField
from nerf.network_sdf import SdfField


def positions(count: int = 12):
    """Random places."""
    return torch.rand(count, 3, generator=torch.Generator().manual_seed(0)) - 0.5


def test_a_signed_distance_shows_the_colour_that_is_seen_along_its_normal():
    field = SdfField(FieldConfig(backbone="sdf"), SceneInfo(1.0))
    for parameter in field.parameters():  # the offset that sees the direction is zero before training
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    settings = RenderSettings(source="eval", training=False, need_normals=True)
    with torch.no_grad():
        shown = field.surface_color(positions())
    normal = field.query(Points(positions()), settings).normal
    along = RenderSettings(source="eval", training=False, view_dependent=True)
    expected = field.query(Points(positions(), -normal), along).rgb
    torch.testing.assert_close(shown, expected)
    assert (shown - field.albedo(positions())).abs().max() > 1e-3
    assert (shown - field.query(Points(positions(), normal), along).rgb).abs().max() > 1e-3


def test_a_density_shows_its_diffuse_colour():
    field = GridField(FieldConfig(), SceneInfo(1.0))
    with torch.no_grad():
        torch.testing.assert_close(field.surface_color(positions()), field.albedo(positions()))
