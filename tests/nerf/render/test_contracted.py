"""The contracted background against scenes known in closed form. N rays."""

import dataclasses

import pytest
import torch
from torch import nn

from nerf.config.config import Config
from nerf.core.streams import Random
from nerf.core.structs import FieldOutput, Rays, RenderSettings, SceneInfo
from nerf.fields.base import DensityField
from nerf.fields.contraction import uncontract
from nerf.render.background import ConstantBackground, background_kind
from nerf.render.contracted import FARTHEST, STEPS, ContractedBackground
from nerf.renderer import BACKGROUNDS, NeRFRenderer
from tests.nerf.analytic import Ball
from tests.nerf.render.test_accelerated import path_of

EVALUATION = RenderSettings(training=False)
GREY = 0.25


class Haze(DensityField):
    """One density per unit of disparity beyond a radius of the scene, grey."""

    def __init__(self, density, beyond=0.0, bound=1.0, dtype=torch.float32):
        super().__init__()
        self.bound, self.beyond, self.scale = 1.0, beyond, bound
        self.inside = nn.Parameter(torch.tensor(density, dtype=dtype))
        self.albedo_ = nn.Parameter(torch.full((3,), GREY, dtype=dtype))

    def density(self, positions, max_level=1.0):
        """See :meth:`DensityField.density`; positions of the background's box."""
        place = self.scale * uncontract(2.0 * positions)
        return torch.where(place.norm(dim=-1) > self.beyond, self.inside, 0.0)

    def query(self, points, settings):
        """See :meth:`Field.query`."""
        colour = self.albedo_.expand(len(points.positions), 3)
        return FieldOutput(density=self.density(points.positions), albedo=colour, rgb=colour)


def background(field, bound=1.0):
    return ContractedBackground(field, bound)


def rays_of(count=16, dtype=torch.float32, origin=(0.0, 0.0, 0.0)):
    generator = torch.Generator().manual_seed(3)
    directions = torch.nn.functional.normalize(torch.randn(count, 3, generator=generator, dtype=dtype), dim=-1)
    return Rays(torch.tensor([origin], dtype=dtype).expand(count, 3).contiguous(), directions, torch.zeros(count).long())


@pytest.mark.parametrize("bound", [1.0, 2.0])
def test_a_thin_haze_has_the_opacity_and_colour_of_its_closed_form(bound):
    sigma, start, rays = 1.5, 1.5 * bound, rays_of()
    out = background(Haze(sigma, bound=bound), bound).behind(rays, torch.full((16,), start), EVALUATION, torch.zeros(16))
    opacity = 1 - torch.exp(torch.tensor(-sigma * FARTHEST / (1 + FARTHEST)))
    torch.testing.assert_close(out.opacity, opacity.expand(16), atol=2e-3, rtol=0)
    torch.testing.assert_close(out.color, (GREY * opacity + 1 - opacity).expand(16, 3), atol=2e-3, rtol=0)


def test_the_depth_of_a_haze_is_the_mean_distance_at_which_light_is_stopped():
    sigma, start = 8.0, 1.5
    out = background(Haze(sigma)).behind(rays_of(), torch.full((16,), start), EVALUATION, torch.zeros(16))
    s = (torch.arange(10**6, dtype=torch.float64) + 0.5) / 10**6 * FARTHEST / (1 + FARTHEST)
    depth = (sigma * torch.exp(-sigma * s) * (start + s / (1 - s))).mean() * FARTHEST / (1 + FARTHEST)
    torch.testing.assert_close(out.depth, depth.float().expand(16), rtol=0.02, atol=0)


@pytest.mark.parametrize("training", [True, False])
def test_a_wall_is_seen_where_it_stands(training):
    rays, near = rays_of(64), torch.full((64,), 1.2)
    settings = RenderSettings(training=training, random=Random(1))
    out = background(Haze(1e4, beyond=4.0)).behind(rays, near, settings, torch.zeros(64))
    assert (out.opacity > 0.999).all()
    s = 1 - 1 / (1 + 4.0 - 1.2)
    step = 1 / (1 - s - 1.5 / STEPS) - 1 / (1 - s)  # of disparity, in scene units there
    assert ((out.depth - 4.0).abs() < step).all()
    torch.testing.assert_close(out.color, torch.full((64, 3), GREY), atol=1e-3, rtol=0)


def test_updates_of_its_grid_keep_the_wall_and_leave_out_the_space_before_it():
    made, rays, near = background(Haze(1e3, beyond=3.0)), rays_of(64), torch.full((64,), 1.2)
    before = made.behind(rays, near, dataclasses.replace(EVALUATION, training=True), torch.zeros(64))
    full = int(made._samples(rays, near, EVALUATION, torch.zeros(64))[0].count.sum())
    for seed in range(9):
        made.update(torch.Generator().manual_seed(seed))
    after = made.behind(rays, near, dataclasses.replace(EVALUATION, training=True), torch.zeros(64))
    torch.testing.assert_close(after.opacity, before.opacity, atol=1e-3, rtol=0)
    torch.testing.assert_close(after.depth, before.depth, atol=0.15, rtol=0)  # a step there
    left = int(made._samples(rays, near, EVALUATION, torch.zeros(64))[0].count.sum())
    assert full == 64 * STEPS and left < 0.65 * full


def test_rays_that_the_scene_stops_have_no_samples_behind():
    front = torch.tensor([1.0, 0.0, 0.9999, 0.5])
    samples, _ = background(Haze(0.1))._samples(rays_of(4), torch.ones(4), EVALUATION, front)
    assert samples.count.tolist() == [0, STEPS, 0, STEPS]


def test_what_shines_through_is_random_in_training_and_white_in_evaluation():
    made, rays, near = background(Haze(0.0)), rays_of(200), torch.ones(200)
    shown = [made.behind(rays, near, RenderSettings(random=Random(seed)), torch.zeros(200)).color for seed in (1, 1, 2)]
    assert torch.equal(shown[0], shown[1]) and not torch.equal(shown[0], shown[2])
    assert shown[0].std() > 0.25 and (made.render(rays, near, EVALUATION) == 1).all()


def test_a_background_learns_at_its_own_rate_and_begins_with_its_own_density():
    options = dataclasses.replace(
        Config().field, background="contracted", background_lr=0.25, background_bias=-2.0, density_bias=1.0
    )
    made = BACKGROUNDS["contracted"](options, SceneInfo())
    rates = {group["name"]: group["lr"] for group in made.param_groups(0.01)}
    alone = {f"background {group['name']}": group["lr"] for group in made.field.param_groups(0.01)}
    assert rates == {name: pytest.approx(0.25 * rate) for name, rate in alone.items()} and len(rates) > 1
    with torch.no_grad():
        opacity = made.behind(rays_of(64), torch.full((64,), 1.2), EVALUATION, torch.zeros(64)).opacity
    # the table begins near zero, so the density is about exp(-2) per unit of disparity
    torch.testing.assert_close(opacity.mean(), 1 - torch.exp(-torch.tensor(-2.0).exp()), atol=0.03, rtol=0)


def test_background_gradcheck():
    field = Haze(0.3, dtype=torch.float64)
    made, rays = background(field).double(), rays_of(5, torch.float64)
    near, front = torch.full((5,), 1.3, dtype=torch.float64), torch.zeros(5, dtype=torch.float64)
    settings = RenderSettings(random=Random(5))

    def rendered(density, albedo):
        field.inside.data, field.albedo_.data = density.data, albedo.data
        object.__setattr__(field, "_values", (density, albedo))
        out = made.behind(rays, near, settings, front)
        return torch.cat([out.color.flatten(), out.opacity, out.depth])

    class Given(Haze):
        def density(self, positions, max_level=1.0):
            return self._values[0].expand(len(positions))

        def query(self, points, settings):
            colour = self._values[1].expand(len(points.positions), 3)
            return FieldOutput(density=self.density(points.positions), albedo=colour, rgb=colour)

    field.__class__ = Given
    inputs = torch.tensor(0.3, dtype=torch.float64), torch.tensor([0.2, 0.5, 0.7], dtype=torch.float64)
    assert torch.autograd.gradcheck(rendered, tuple(x.requires_grad_(True) for x in inputs))


def test_a_render_is_the_scene_over_the_background_and_its_whole_depth_is_that_of_both():
    made = background(Haze(1e4, beyond=4.0))
    model = NeRFRenderer(Ball(0.5, density=500.0), made, path_of(Ball(0.5, density=500.0)))
    rays = Rays(torch.tensor([[0.0, 0.0, 0.9], [0.0, 0.8, 0.9]]), torch.tensor([[0.0, 0.0, -1.0]] * 2), torch.zeros(2).long())
    out = model.render(rays, EVALUATION)
    opacity, depth = out.whole
    torch.testing.assert_close(opacity, torch.ones(2), atol=2e-3, rtol=0)
    assert out.opacity[1] == 0 and depth[0].item() == pytest.approx(0.4, abs=0.02)
    beyond = 0.9 + (16.0 - 0.64) ** 0.5
    assert depth[1].item() == pytest.approx(beyond, rel=0.12)
    torch.testing.assert_close(out.image[1], torch.full((3,), GREY), atol=1e-3, rtol=0)
    plain = NeRFRenderer(Ball(0.5), ConstantBackground(), path_of(Ball(0.5))).render(rays, EVALUATION)
    assert plain.whole[0] is plain.opacity and plain.whole[1] is plain.depth


@pytest.mark.parametrize(
    ("options", "unbounded", "kind"),
    [
        ({}, False, "network"),
        ({"bg_radius": -1.0}, False, "constant"),
        ({"bg_radius": -1.0}, True, "contracted"),
        ({"bg_radius": -1.0, "background": "constant"}, True, "constant"),
    ],
)
def test_a_scene_that_the_box_does_not_hold_has_a_contracted_background(options, unbounded, kind):
    config = dataclasses.replace(Config().field, **options)
    assert background_kind(config, SceneInfo(unbounded=unbounded)) == kind
