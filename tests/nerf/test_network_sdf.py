"""The fields that are a signed distance: first shapes, gradients, opacity, the two networks."""

import dataclasses

import pytest
import torch

from nerf.config.groups import FieldConfig
from nerf.core.errors import UserError
from nerf.core.structs import Points, RenderSettings, SceneInfo
from nerf.fields.opacity import sdf_to_alpha
from nerf.fields.shapes import hull, sphere
from nerf.fields.taps import TAPS, differences
from nerf.network_sdf import SdfField
from nerf.network_sdf_vanilla import VanillaSdfField
from nerf.render.plain import weights_from_alpha

SMALL = FieldConfig(layers=2, levels=6, base_resolution=8, finest_resolution=64, log2_hashmap_size=12, hidden=64)
D = torch.float64


def make(config=SMALL, bound=1.0, points=None, kind=SdfField, **options):
    torch.manual_seed(0)
    scene = SceneInfo(bound, points=points)
    field = kind(dataclasses.replace(config, **options), scene)
    return field, scene


def fitted(**options):
    kind = options.pop("kind", SdfField)
    field, scene = make(kind=kind, **options)
    line = field.initialize(scene, torch.Generator().manual_seed(1))
    return field, line


def box_points(count, bound=1.0, dtype=torch.float32):
    return (2 * torch.rand(count, 3, generator=torch.Generator().manual_seed(2), dtype=dtype) - 1) * bound


def around(radius, spread, count=2000):
    """Points at distances of up to ``spread`` from a sphere."""
    generator = torch.Generator().manual_seed(3)
    direction = torch.nn.functional.normalize(torch.randn(count, 3, generator=generator), dim=-1)
    return direction * (radius + spread * (2 * torch.rand(count, 1, generator=generator) - 1))


# ---- the first shape ----


@pytest.mark.parametrize("radius", [0.3, 0.5, 0.8])
@pytest.mark.parametrize("inside_out", [False, True])
def test_a_field_begins_within_two_per_cent_of_the_distance_from_a_sphere(radius, inside_out):
    field, line = fitted(sdf_radius=radius, sdf_init="inside_out" if inside_out else "sphere", level_start=3)
    at = box_points(4000)
    with torch.no_grad():
        error = (field.distance(at, field.first_level()) - sphere(radius, inside_out).distance(at)).abs()
    assert error.mean() < 0.005 and error.quantile(0.99) < 0.02  # the tip of the cone at the centre is rounded off
    near = around(radius, 0.1)
    with torch.no_grad():
        assert (field.distance(near, field.first_level()) - sphere(radius, inside_out).distance(near)).abs().max() < 0.02
    assert ("hollow" if inside_out else "sphere") in line


def test_the_first_shape_scales_with_the_bound():
    field, _ = fitted(bound=4.0)
    at = box_points(2000, 4.0)
    with torch.no_grad():
        assert (field.distance(at) - sphere(2.0).distance(at)).abs().mean() < 0.02 * 4.0


def test_the_network_of_neus_begins_as_a_sphere():
    field, scene = make(kind=VanillaSdfField, sdf_init_steps=40)
    field.initialize(scene, torch.Generator().manual_seed(1))
    at = box_points(2000)
    with torch.no_grad():
        assert (field.distance(at) - sphere(0.5).distance(at)).abs().mean() < 0.02


def test_a_hull_of_points_is_fitted():
    corner = torch.tensor([0.6, 0.4, 0.5])
    cloud = (2 * torch.rand(4000, 3, generator=torch.Generator().manual_seed(5)) - 1) * corner
    shape = hull(cloud)
    torch.testing.assert_close(shape.distance(torch.zeros(1, 3)), torch.tensor([-0.4]), atol=0.02, rtol=0)
    field, line = fitted(points=cloud, sdf_init="hull")
    assert "points of the reconstruction" in line
    at = box_points(3000)
    with torch.no_grad():
        assert (field.distance(at) - shape.distance(at)).abs().mean() < 0.02


def test_points_of_a_plane_have_no_hull_and_that_is_said():
    cloud = torch.rand(100, 3, generator=torch.Generator().manual_seed(5))
    cloud[:, 1] = 0.25
    with pytest.raises(UserError, match="points of the reconstruction lie in a plane, and have no hull; take sphere"):
        hull(cloud)


def test_without_points_a_hull_is_a_sphere():
    line = fitted(sdf_init="hull", sdf_init_steps=2)[1]
    assert "a sphere of radius 0.5 (--sdf_init hull needs 30 points of a reconstruction, and there are 0)" in line
    assert "hull" not in fitted(sdf_init_steps=2)[1]


def test_a_field_is_left_alone_without_steps():
    assert fitted(sdf_init_steps=0)[1] is None


def test_the_first_shape_repeats_bit_for_bit():
    one, two = (fitted(sdf_init_steps=20)[0].state_dict() for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_the_network_of_neus_stays_a_distance_at_the_learning_rate_of_photographs():
    """At 0.01 itself, which is for hash grids, the mean squared error of the gradient's length is in the thousands at once."""
    field, _ = make(kind=VanillaSdfField)
    optimizer = torch.optim.Adam(field.param_groups(0.01), eps=1e-15)
    for _ in range(4):
        at = box_points(128)
        output = field.query(Points(at, torch.nn.functional.normalize(at, dim=-1)), RenderSettings(view_dependent=True))
        eikonal = (output.require("gradient").norm(dim=-1) - 1).square().mean()
        loss = (output.require("rgb") - 0.3).abs().mean() + 0.1 * eikonal
        loss += (output.require("sdf") - (at.norm(dim=-1) - 0.5)).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert eikonal < 1.0


# ---- gradients ----


def with_detail(field, spread=0.05):
    """The field with table entries that matter, in float64."""
    torch.manual_seed(4)
    with torch.no_grad():
        field.encoder.embeddings.normal_(std=spread)
        field.layers[0].weight[:, 3:].normal_(std=0.2)
    return field.double()


@pytest.mark.parametrize("kind", [SdfField, VanillaSdfField])
def test_the_analytic_gradient_is_that_of_autograd(kind):
    field = kind(SMALL, SceneInfo(1.5)).double()
    field = with_detail(field) if kind is SdfField else field
    at = box_points(50, 1.4, D).requires_grad_()
    sdf, _, gradient = field.trunk_with_gradient(at.detach(), 1.0)
    (expected,) = torch.autograd.grad(field.distance(at).sum(), at)
    torch.testing.assert_close(sdf, field.distance(at))
    torch.testing.assert_close(gradient, expected)


def test_the_gradient_trains_the_network_as_a_double_backward_does():
    """A loss on the gradient has the parameter gradients that automatic differentiation, twice, gives."""
    field = with_detail(make()[0])
    at = box_points(40, 0.9, D)
    parameters = field.geometry_parameters()
    loss = (field.trunk_with_gradient(at, 1.0)[2].norm(dim=-1) - 1).square().sum()
    mine = torch.autograd.grad(loss, parameters, allow_unused=True)
    moved = at.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(field.trunk(moved, 1.0)[0].sum(), moved, create_graph=True)
    theirs = torch.autograd.grad((gradient.norm(dim=-1) - 1).square().sum(), parameters, allow_unused=True)
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(
            a if a is not None else torch.zeros(()).double(), b if b is not None else torch.zeros(()).double()
        )


@pytest.mark.parametrize("taps", TAPS)
def test_taps_are_exact_for_quadratics(taps):
    generator = torch.Generator().manual_seed(6)
    curve, slope = torch.randn(3, 3, generator=generator, dtype=D), torch.randn(3, generator=generator, dtype=D)
    curve = curve + curve.T

    def value(x):
        return 0.5 * ((x @ curve) * x).sum(-1) + x @ slope + 0.3

    at = box_points(20, 0.8, D)
    gradient, laplacian = differences(value, at, value(at), taps, 0.05, 1.0)
    expected = at @ curve + slope
    if taps == "taps6":
        torch.testing.assert_close(gradient, expected)
        torch.testing.assert_close(laplacian, curve.trace().expand(20))
    else:  # four corners leave the mixed second derivatives in the gradient, of the order of the reach
        mixed = torch.stack([curve[1, 2], curve[0, 2], curve[0, 1]])
        torch.testing.assert_close(gradient, expected + 0.05 / 3**0.5 * mixed)
        torch.testing.assert_close(laplacian, curve.trace().expand(20))


@pytest.mark.parametrize("taps", TAPS)
def test_taps_of_a_sphere_give_normal_and_curvature(taps):
    at = around(0.6, 0.1).double()
    radius = at.norm(dim=-1)
    gradient, laplacian = differences(lambda x: x.norm(dim=-1) - 0.5, at, radius - 0.5, taps, 1e-3, 1.0)
    torch.testing.assert_close(gradient, at / radius[:, None], atol=2e-3, rtol=0)
    torch.testing.assert_close(laplacian, 2 / radius, atol=2e-2, rtol=0)


@pytest.mark.parametrize("taps", TAPS)
def test_taps_stay_in_the_box(taps):
    seen = []

    def value(x):
        seen.append(x)
        return x[:, 0] * 2.0

    at = torch.tensor([[1.0, 1.0, -1.0], [0.999, 0.0, 0.0], [0.0, 0.0, 0.0]], dtype=D)
    gradient, laplacian = differences(value, at, 2.0 * at[:, 0], taps, 0.01, 1.0)
    assert seen[0].abs().max() <= 1.0
    torch.testing.assert_close(gradient, torch.tensor([[2.0, 0, 0]] * 3, dtype=D))
    torch.testing.assert_close(laplacian, torch.zeros(3, dtype=D), atol=1e-9, rtol=0)


@pytest.mark.parametrize("kind", ["taps4", "taps6"])
def test_a_field_with_taps_has_the_gradient_of_its_smoothed_self(kind):
    field, _ = fitted(sdf_gradient=kind, level_start=2)
    output = field.geometry(Points(around(0.5, 0.05)), RenderSettings(max_level=field.first_level()))
    assert (output.gradient.norm(dim=-1) - 1).abs().mean() < 0.1
    assert float(output.laplacian.detach().median()) == pytest.approx(4.0, rel=0.5)  # 2 / r


def test_the_reach_of_taps_follows_the_finest_level_that_is_on():
    field, _ = make(bound=2.0, sdf_taps_reach=0.5)
    sizes = field.encoder.layout.resolutions
    assert field.taps_reach(1.0) == pytest.approx(0.5 * 4.0 / sizes[-1])
    assert field.taps_reach(1 / 6) == pytest.approx(0.5 * 4.0 / sizes[0])


def rendered(field, positions, directions, t, kind):
    """Depth of three rays of four samples, through field, opacity and compositing."""
    points, settings = Points(positions, directions), RenderSettings(fraction=0.5)
    if kind == "twice":  # slopes of the distances along the rays, which autograd can differentiate twice
        sdf = field.distance(positions).view(3, 4)
        alpha = sdf_to_alpha(sdf[:, :3], sdf.diff(dim=1) / 0.1, 0.1, field.sharpness)
        weights = weights_from_alpha(alpha)[0]
        return (weights * t[:, :3]).sum(-1)
    output = field.query(points, dataclasses.replace(settings, view_dependent=True))
    alpha = field.opacity(output, points, torch.full((12,), 0.1, dtype=D), settings)
    weights = weights_from_alpha(alpha.view(3, 4))[0]
    return torch.cat([(weights * t).sum(-1), (weights[..., None] * output.rgb.view(3, 4, 3)).sum((1, 2))])


@pytest.mark.parametrize("field_kind", [SdfField, VanillaSdfField])
@pytest.mark.parametrize("kind", ["once", "twice"])
def test_rendering_is_differentiable_through_field_opacity_and_compositing(field_kind, kind):
    tiny = {"levels": 2, "log2_hashmap_size": 5, "base_resolution": 2, "finest_resolution": 4, "hidden": 4}
    config = dataclasses.replace(SMALL, **tiny, colour_hidden=4, cos_anneal=1.0)
    torch.manual_seed(0)
    field = (SdfField(config, SceneInfo()) if field_kind is SdfField else VanillaSdfField(config, SceneInfo(), 44, 2)).double()
    if field_kind is SdfField:
        field = with_detail(field, 0.3)
    generator = torch.Generator().manual_seed(7)
    start = 0.3 * torch.randn(3, 3, generator=generator, dtype=D)
    direction = torch.nn.functional.normalize(torch.randn(3, 3, generator=generator, dtype=D), dim=-1)
    t = 0.1 * torch.arange(4, dtype=D).expand(3, 4)
    at = (start[:, None] + t[..., None] * direction[:, None]).reshape(-1, 3)
    directions = direction.repeat_interleave(4, 0)
    chosen = [field.out.bias if hasattr(field.out, "bias") else None, field.layers[0].bias, field.variance]
    if field_kind is SdfField:
        chosen += [field.out.weight, field.encoder.embeddings]

    def run(*_):
        return rendered(field, at, directions, t, kind)

    with torch.no_grad():
        field.variance.fill_(0.2)
    assert torch.autograd.gradcheck(run, chosen, atol=1e-5, rtol=1e-3)
    if kind == "twice":
        assert torch.autograd.gradgradcheck(run, chosen, atol=1e-4, rtol=1e-3)


# ---- the field interface ----


def test_levels_that_are_off_do_not_matter():
    field = with_detail(make()[0])
    at = box_points(20, 1.0, D)
    half = field.distance(at, 0.5)
    with torch.no_grad():
        field.encoder.embeddings[field.encoder.layout.first[3] :] += 1.0
    assert torch.equal(half, field.distance(at, 0.5)) and not torch.equal(field.distance(at), half)


def test_the_level_set_is_where_the_distance_is_zero():
    field, _ = fitted(sdf_init_steps=5)
    level_set = field.level_set(10.0)
    assert (level_set.level, level_set.inside, level_set.logarithmic) == (0.0, "below", False)
    assert not level_set.value(box_points(3)).requires_grad


def test_occupancy_answers_for_the_whole_cell():
    field, _ = fitted(sharpness_start=500.0)
    outside = torch.tensor([[0.54, 0.0, 0.0]])
    assert float(field.occupancy(outside, 0.01)) < 1e-3 < 0.5 < float(field.occupancy(outside, 0.01, 0.06))
    assert float(field.occupancy(torch.tensor([[0.2, 0.0, 0.0]]), 0.01, 0.06)) > 0.9  # inside


def test_a_scheduled_sharpness_follows_the_progress():
    field, _ = make(sharpness="scheduled", sharpness_start=20.0, sharpness_end=200.0)
    assert "variance" not in dict(field.named_parameters())
    for fraction, expected in ((0.0, 20.0), (0.5, 110.0), (1.0, 200.0)):
        field.begin_step(fraction)
        assert float(field.sharpness) == pytest.approx(expected, rel=1e-4)


def test_a_learned_sharpness_starts_where_it_is_told():
    field, _ = make(sharpness_start=50.0, sharpness_lr=0.5)
    assert float(field.sharpness.detach()) == pytest.approx(50.0, rel=1e-4)
    groups = {group["name"]: group for group in field.param_groups(1e-3)}
    assert groups["sharpness"]["lr"] == 5e-4 and groups["sharpness"]["params"] == [field.variance]
    assert sum(len(group["params"]) for group in groups.values()) == len(list(field.parameters()))


@pytest.mark.parametrize("kind", [SdfField, VanillaSdfField])
def test_every_query_of_no_points_works(kind):
    field, _ = make(kind=kind)
    nowhere = Points(torch.zeros(0, 3), torch.zeros(0, 3))
    output = field.query(nowhere, RenderSettings(view_dependent=True, need_normals=True))
    assert output.rgb.shape == (0, 3) and output.normal.shape == (0, 3)
    assert field.opacity(output, nowhere, torch.zeros(0), RenderSettings()).shape == (0,)
