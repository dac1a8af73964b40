"""The neural fields on both backbones: ranges, normals, gradients, levels, heads, opacity."""

import dataclasses

import pytest
import torch
from torch.nn.functional import cosine_similarity

from nerf.config.config import Config
from nerf.core.errors import UserError
from nerf.core.structs import FieldOutput, Points, RenderSettings, SceneInfo
from nerf.fields.opacity import density_to_alpha
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
    field = {"grid": GridField, "vanilla": VanillaField}[backbone](options(**changes), SceneInfo())
    for p in field.parameters():  # as after training: heads and table are not near zero
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


def test_opacity_of_the_geometry_and_of_the_whole_output_agree(backbone):
    field, points, dt = built(backbone), Points(cloud()), torch.rand(64)
    found = [ask(points, ALBEDO) for ask in (field.query, field.geometry)]
    whole, geometry = (field.opacity(out, points, dt, ALBEDO) for out in found)
    torch.testing.assert_close(geometry, whole)
    assert found[1].albedo is None


def test_occupancy_is_the_opacity_of_a_step(backbone):
    field, points, settings = built(backbone), Points(cloud()), RenderSettings()
    opacity = field.opacity(field.geometry(points, settings), points, torch.full((64,), 0.02), settings)
    torch.testing.assert_close(field.occupancy(points.positions, 0.02), opacity.detach())


def test_alpha_is_the_opacity_of_a_homogeneous_medium():
    density, dt = torch.tensor([0.0, 2.0, 1e12]), torch.tensor([1.0, 0.5, 0.1])
    torch.testing.assert_close(density_to_alpha(density, dt), torch.tensor([0.0, 1 - torch.e**-1, 1.0]))


def test_the_level_set_of_a_density_is_where_it_crosses_the_threshold(backbone):
    field, at = built(backbone), cloud()
    surface = field.level_set(7.0)
    assert surface.level == 7.0 and surface.inside == "above" and surface.logarithmic
    value = surface.value(at)
    torch.testing.assert_close(value, field.density(at).detach())
    assert not value.requires_grad


def test_an_output_without_geometry_is_refused():
    with pytest.raises(ValueError, match="density .* or sdf"):
        FieldOutput(albedo=torch.zeros(4, 3))


def test_an_extra_output_that_is_not_a_row_for_each_point_is_refused():
    with pytest.raises(ValueError, match="uncertainty"):
        FieldOutput(density=torch.zeros(4), extras={"uncertainty": torch.zeros(4)})


def test_an_array_that_was_not_computed_is_named_where_it_is_needed():
    with pytest.raises(ValueError, match="albedo is needed"):
        FieldOutput(density=torch.zeros(4)).require("albedo")


def test_finite_differences_scale_with_the_box():
    fields = [GridField(options(normals="finite"), SceneInfo(bound)) for bound in (1.0, 3.0)]
    fields[1].load_state_dict(fields[0].state_dict())
    fields[1].blob_radius = 3 * fields[0].blob_radius
    at = cloud(bound=0.5)
    small, large = (field.query(Points(scale * at), SHADED).normal for field, scale in zip(fields, (1, 3), strict=True))
    torch.testing.assert_close(small, large, atol=1e-3, rtol=0)


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
def test_normals_give_gradients_to_the_field(backbone, normals):
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


def test_an_untrained_field_is_a_blob_at_the_origin(backbone):
    field = {"grid": GridField, "vanilla": VanillaField}[backbone](options(), SceneInfo())
    middle, outside = field.density(torch.zeros(1, 3)), field.density(torch.tensor([[0.7, 0.5, 0.0]]))
    assert middle > 20 * outside


def test_before_training_the_view_changes_nothing(backbone):
    field = {"grid": GridField, "vanilla": VanillaField}[backbone](options(), SceneInfo())
    directions = torch.nn.functional.normalize(torch.randn(64, 3), dim=-1)
    out = field.query(Points(cloud(), directions), COLOURED)
    assert torch.equal(out.rgb, out.albedo)


def test_the_view_changes_the_colour_of_a_trained_field_but_not_its_albedo(backbone):
    field, at = built(backbone), cloud()
    front, side = (torch.eye(3)[i].expand(64, 3) for i in (2, 0))
    one, other = (field.query(Points(at, d), COLOURED) for d in (front, side))
    assert not torch.allclose(one.rgb, other.rgb) and torch.equal(one.albedo, other.albedo)


def test_a_view_dependent_query_without_directions_is_refused(backbone):
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


def test_total_variation_and_weight_decay_need_a_grid_backbone():
    generator = torch.Generator().manual_seed(0)
    grid = built("grid")
    assert grid.total_variation(generator) > 0 and grid.weight_decay() > 0
    for call in (lambda: built("vanilla").total_variation(generator), built("vanilla").weight_decay):
        with pytest.raises(UserError, match="grid"):
            call()


def test_under_autocast_all_outputs_are_single_precision_and_get_gradients(backbone):
    field = built(backbone)
    directions = torch.nn.functional.normalize(torch.randn(64, 3), dim=-1)
    settings = RenderSettings(source="photos", view_dependent=True, need_normals=True)
    with torch.autocast("cpu", torch.bfloat16):
        out = field.query(Points(cloud(), directions), settings)
    for tensor in (out.density, out.albedo, out.normal, out.rgb):
        assert tensor.dtype == torch.float32
    (out.normal.sum() + out.rgb.sum() + out.density.clamp(max=1.0).sum()).backward()
    assert all(torch.isfinite(p.grad).all() for p in field.parameters())
