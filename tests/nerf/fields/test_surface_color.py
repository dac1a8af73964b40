"""The colour that is baked after photographs: of a signed distance what their cameras see, of a density the diffuse one."""

import torch

from nerf.config.groups import FieldConfig
from nerf.core.structs import Points, RenderSettings, SceneInfo
from nerf.network_grid import GridField
from nerf.network_sdf import SdfField


def positions(count: int = 12):
    """Random places."""
    return torch.rand(count, 3, generator=torch.Generator().manual_seed(0)) - 0.5


def coloured_field():
    """A signed distance whose colour depends on the direction."""
    field = SdfField(FieldConfig(backbone="sdf"), SceneInfo(1.0))
    for parameter in field.parameters():  # the offset that sees the direction is zero before training
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    return field


def test_a_signed_distance_shows_the_colour_that_is_seen_along_its_normal_without_cameras():
    field = coloured_field()
    settings = RenderSettings(source="eval", training=False, need_normals=True)
    with torch.no_grad():
        shown = field.surface_color(positions())
    normal = field.query(Points(positions()), settings).normal
    along = RenderSettings(source="eval", training=False, view_dependent=True)
    expected = field.query(Points(positions(), -normal), along).rgb
    torch.testing.assert_close(shown, expected)
    assert (shown - field.albedo(positions())).abs().max() > 1e-3
    assert (shown - field.query(Points(positions(), normal), along).rgb).abs().max() > 1e-3


def test_a_signed_distance_shows_the_mean_of_what_the_most_upright_cameras_before_it_see():
    field, points = coloured_field(), positions()
    settings = RenderSettings(source="eval", training=False, need_normals=True)
    along = RenderSettings(source="eval", training=False, view_dependent=True)
    normal = field.query(Points(points), settings).normal
    eyes = 3 * torch.nn.functional.normalize(torch.randn(9, 3, generator=torch.Generator().manual_seed(2)), dim=-1)
    with torch.no_grad():
        shown = field.surface_color(points, eyes.double())
        alone = field.surface_color(points, points[:1] - 2 * normal[:1])  # a camera behind the first point
        above = field.surface_color(points)
    for i, (point, upright) in enumerate(zip(points, normal, strict=True)):
        towards = torch.nn.functional.normalize(eyes - point, dim=-1)
        cosine = (towards @ upright).clamp(min=0.0)
        best = cosine.argsort(descending=True)[:4]
        seen = field.query(Points(point.expand(4, 3), -towards[best]), along).rgb
        expected = (seen * cosine[best, None]).sum(0) / cosine[best].sum()
        torch.testing.assert_close(shown[i], expected if cosine.max() > 0 else above[i], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(alone[0], above[0])


def test_a_density_shows_its_diffuse_colour():
    field = GridField(FieldConfig(), SceneInfo(1.0))
    with torch.no_grad():
        torch.testing.assert_close(field.surface_color(positions()), field.albedo(positions()))
