"""What the neural fields promise, on both backbones: bounds, normals, gradients, levels, heads."""

import dataclasses

import pytest
import torch
from torch.nn.functional import cosine_similarity

from nerf.config.config import Config
from nerf.core.errors import UserError
from nerf.core.structs import Points, RenderSettings
from nerf.network import VanillaField
from nerf.network_grid import GridField

ALBEDO = RenderSettings(source="guided")
SHADED = RenderSettings(source="guided", shading="lambertian", ambient=0.5)
COLOURED = RenderSettings(source="photos", view_dependent=True)


def options(**changes):
    """A small grid, so that tests are quick."""
    small = dict(levels=6, finest_resolution=64, log2_hashmap_size=12, hidden=32)
    return dataclasses.replace(Config().field, **(small | changes))


def built(backbone, **changes):
    field = {"grid": GridField, "vanilla": VanillaField}[backbone](options(**changes))
    for p in field.parameters():  # a field that has seen something: heads and table are not near zero
        torch.nn.init.normal_(p, std=0.3)
    return field


def cloud(m=64, bound=0.9):
    return (torch.rand(m, 3) * 2 - 1) * bound


@pytest.fixture(params=["grid", "vanilla"])
def backbone(request):
    """Each backbone in turn."""
    return request.param


@pytest.mark.parametrize("activation", ["exp", "softplus"])
def test_density_is_not_negative_and_colours_lie_in_zero_to_one(backbone, activation):
    field = built(backbone, density_activation=activation)
    directions = torch.nn.functional.normalize(torch.randn(64, 3), dim=-1)
    out = field.query(Points(cloud(), directions), COLOURED)
    assert (out.density >= 0).all() and out.density.shape == (64,)
    for colour in (out.albedo, out.rgb):
        assert colour.shape == (64, 3) and (colour >= 0).all() and (colour <= 1).all()


def test_density_and_query_agree(backbone):
    field, at = built(backbone), cloud()
    torch.testing.assert_close(field.query(Points(at), SHADED).density, field.density(at))
    torch.testing.assert_close(field.albedo(at), field.query(Points(at), ALBEDO).albedo)


def test_alpha_of_points_and_alpha_of_an_output_agree(backbone):
    field, at, dt = built(backbone), cloud(), torch.rand(64)
    out = field.query(Points(at), ALBEDO)
    torch.testing.assert_close(field.alpha(Points(at), dt, ALBEDO), field.to_alpha(out, dt))


def test_normals_are_computed_if_and_only_if_the_part_needs_them(backbone):
    field = built(backbone)
    assert field.query(Points(cloud()), ALBEDO).normal is None
    assert field.query(Points(cloud()), RenderSettings(source="guided", need_normals=True)).normal is not None


def test_analytic_normals_are_unit_and_point_down_the_density(backbone):
    field, at = built(backbone), cloud()
    normal = field.query(Points(at), SHADED).normal
    torch.testing.assert_close(normal.norm(dim=-1), torch.ones(64), atol=1e-4, rtol=0)
    ahead, behind = (field.raw_density(at + s * 1e-3 * normal) for s in (1, -1))
    assert (ahead < behind).float().mean() > 0.95


def test_analytic_normals_agree_with_finite_differences_on_a_smooth_field(backbone):
    field, at = built(backbone, blob_density=5.0, blob_radius=0.5), cloud(bound=0.6)
    for p in field.head.parameters():
        torch.nn.init.zeros_(p)  # nothing but the blob
    analytic = field.query(Points(at), SHADED).normal
    field.normals = "finite"
    finite = field.query(Points(at), SHADED).normal
    assert cosine_similarity(analytic, finite, dim=-1).min() > 0.999
    assert cosine_similarity(analytic, at, dim=-1).min() > 0.999


@pytest.mark.parametrize("normals", ["analytic", "finite"])
def test_normals_teach_the_field(backbone, normals):
    field = built(backbone, normals=normals)
    normal = field.query(Points(cloud()), SHADED).normal
    normal[:, 0].sum().backward()
    encoder_or_entry = field.encoder.embeddings if backbone == "grid" else field.entry.weight
    assert encoder_or_entry.grad.abs().sum() > 0 and field.head.weight.grad[0].abs().sum() > 0


def test_gradient_of_normals_equals_differences_of_normals():
    field, at = built("vanilla").double(), cloud(4).double()
    weight = field.blocks[1].linear.weight

    (slope,) = torch.autograd.grad(field.query(Points(at), SHADED).normal[:, 1].sum(), weight)
    values = []
    with torch.no_grad():
        for step in (1e-5, -2e-5):
            weight[3, 5] += step
            values.append(field.query(Points(at), SHADED).normal[:, 1].sum())
    torch.testing.assert_close(slope[3, 5], (values[0] - values[1]) / 2e-5, rtol=1e-3, atol=1e-6)


def test_normals_come_without_gradients_too(backbone):
    field = built(backbone)
    with torch.no_grad():
        out = field.query(Points(cloud()), SHADED)
    assert out.normal is not None and not out.normal.requires_grad and not out.density.requires_grad


def test_a_field_without_slope_has_zero_normals_and_finite_gradients(backbone):
    field = built(backbone, blob_density=0.0)
    for p in field.head.parameters():
        torch.nn.init.zeros_(p)
    normal = field.query(Points(cloud()), SHADED).normal
    assert normal.abs().max() == 0
    normal.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in field.parameters() if p.grad is not None)


def test_a_young_field_is_a_blob_at_the_origin(backbone):
    field = {"grid": GridField, "vanilla": VanillaField}[backbone](options())
    middle, outside = field.density(torch.zeros(1, 3)), field.density(torch.tensor([[0.7, 0.5, 0.0]]))
    assert middle > 20 * outside


def test_before_training_the_view_changes_nothing(backbone):
    field = {"grid": GridField, "vanilla": VanillaField}[backbone](options())
    directions = torch.nn.functional.normalize(torch.randn(64, 3), dim=-1)
    out = field.query(Points(cloud(), directions), COLOURED)
    assert torch.equal(out.rgb, out.albedo)


def test_the_view_changes_the_colour_of_a_trained_field_but_not_its_albedo(backbone):
    field, at = built(backbone), cloud()
    front, side = (torch.eye(3)[i].expand(64, 3) for i in (2, 0))
    one, other = (field.query(Points(at, d), COLOURED) for d in (front, side))
    assert not torch.allclose(one.rgb, other.rgb) and torch.equal(one.albedo, other.albedo)


def test_a_view_dependent_part_without_directions_is_told(backbone):
    with pytest.raises(ValueError, match="directions"):
        built(backbone).query(Points(cloud()), COLOURED)


def test_levels_come_in_with_max_level(backbone):
    field, at = built(backbone), cloud()
    coarse, full = field.density(at, max_level=0.25), field.density(at, max_level=1.0)
    assert not torch.allclose(coarse, full)
    torch.testing.assert_close(field.query(Points(at), RenderSettings(source="guided", max_level=0.25)).density, coarse)


def test_param_groups_hold_every_parameter_once(backbone):
    field = built(backbone)
    groups = field.param_groups(1e-3)
    assert sorted(id(p) for g in groups for p in g["params"]) == sorted(id(p) for p in field.parameters())


def test_the_table_learns_ten_times_faster():
    rates = {g["name"]: g["lr"] for g in built("grid").param_groups(1e-3)}
    assert rates == {"encoder": pytest.approx(1e-2), "network": pytest.approx(1e-3)}


def test_no_points_are_no_special_case(backbone):
    out = built(backbone).query(Points(torch.zeros(0, 3)), SHADED)
    assert out.density.shape == (0,) and out.normal.shape == (0, 3)


def test_the_grid_has_total_variation_and_weight_decay_and_vanilla_says_it_has_not():
    generator = torch.Generator().manual_seed(0)
    grid = built("grid")
    assert grid.total_variation(generator) > 0 and grid.weight_decay() > 0
    for call in (lambda: built("vanilla").total_variation(generator), built("vanilla").weight_decay):
        with pytest.raises(UserError, match="grid"):
            call()


def test_under_autocast_all_answers_are_single_precision_and_learn(backbone):
    field = built(backbone)
    directions = torch.nn.functional.normalize(torch.randn(64, 3), dim=-1)
    settings = RenderSettings(source="photos", view_dependent=True, need_normals=True)
    with torch.autocast("cpu", torch.bfloat16):
        out = field.query(Points(cloud(), directions), settings)
    for tensor in (out.density, out.albedo, out.normal, out.rgb):
        assert tensor.dtype == torch.float32
    (out.normal.sum() + out.rgb.sum() + out.density.clamp(max=1.0).sum()).backward()
    assert all(torch.isfinite(p.grad).all() for p in field.parameters())
