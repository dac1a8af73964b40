"""The renderer as a whole: its outputs, and that every backbone and path learns a tiny scene."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch

from nerf.config.config import Config
from nerf.config.stages import NERF, Stage
from nerf.core.errors import UserError
from nerf.core.streams import Random
from nerf.core.structs import Rays, RenderOutput, RenderSettings, SceneInfo
from nerf.render.background import Background, ConstantBackground, NetworkBackground
from nerf.renderer import NeRFRenderer, build_model, make_volume_path
from nerf.training import losses
from tests.nerf.analytic import Ball, ball_on_rays, image_rays

GREEN = torch.tensor([0.0, 1.0, 0.0])


def options(field=None, **render):
    """Small sizes, white background, no blob."""
    small = dict(levels=6, finest_resolution=64, log2_hashmap_size=13, hidden=32, bg_radius=-1.0, blob_density=0.0)
    config = Config()
    steps = dict(max_steps=96, num_steps=16, upsample_steps=8, grid_size=32)
    return dataclasses.replace(
        config,
        field=dataclasses.replace(config.field, **(small | (field or {}))),
        render=dataclasses.replace(config.render, **(steps | render)),
    )


def built(config) -> NeRFRenderer:
    return build_model(Stage(NERF, config), SceneInfo())


def of_a_ball(cuda_ray=False, **render) -> NeRFRenderer:
    config = options(cuda_ray=cuda_ray, **render)
    ball = Ball(0.5, density=300.0)
    model = NeRFRenderer(ball, ConstantBackground(), make_volume_path(config, ball), config.render.max_ray_batch)
    model.update_occupancy(torch.Generator().manual_seed(0))
    return model


@pytest.fixture(params=[False, True], ids=["plain", "accelerated"])
def cuda_ray(request):
    """Both render paths."""
    return request.param


def test_rays_that_miss_show_the_background_alone(cuda_ray):
    rays = image_rays(6, 10)
    out = of_a_ball(cuda_ray).render(rays, RenderSettings(source="eval", training=False, background=GREEN))
    missed = ball_on_rays(rays, 0.55, 1.0)[1] == 0
    assert torch.equal(out.image[missed], GREEN.expand(int(missed.sum()), 3)) and out.depth[missed].max() == 0


def test_each_view_of_a_batch_has_its_own_background_and_light(cuda_ray):
    rays = image_rays(6, 6, views=2)
    light = torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, -1.0]])  # from the front, from behind
    settings = RenderSettings(source="guided", shading="textureless", ambient=0.0, light=light, background=torch.eye(3)[:2])
    image = of_a_ball(cuda_ray).render(rays, settings).as_images(of_a_ball(cuda_ray).render(rays, settings).image)
    assert image[0, :, 0, 0].tolist() == [1, 0, 0] and image[1, :, 0, 0].tolist() == [0, 1, 0]
    assert image[0, :, 3, 3].min() > 0.8 and image[1, :, 3, 3].max() < 0.2


def test_without_a_light_the_camera_holds_it(cuda_ray):
    rays = image_rays(7, 7)
    settings = RenderSettings(source="eval", training=False, shading="textureless", ambient=0.0, background=torch.zeros(3))
    image = of_a_ball(cuda_ray).render(rays, settings).image.view(7, 7, 3)
    assert image[3, 3].min() > 0.95 and image[3, 3, 0] > image[3, 2, 0]


def test_chunks_change_nothing(cuda_ray):
    rays = image_rays(5, 9)
    settings = RenderSettings(source="eval", training=False, shading="lambertian", ambient=0.4)
    whole = of_a_ball(cuda_ray, max_ray_batch=4096).render(rays, settings)
    chunked = of_a_ball(cuda_ray, max_ray_batch=7).render(rays, settings)
    for name in ("image", "opacity", "depth", "normal"):
        torch.testing.assert_close(getattr(whole, name), getattr(chunked, name))
    assert chunked.shape == (1, 5, 9)


def test_training_keeps_a_trace_and_evaluation_does_not(cuda_ray):
    rays = image_rays(3, 3)
    kept = of_a_ball(cuda_ray).render(rays, RenderSettings(source="guided"))
    dropped = of_a_ball(cuda_ray).render(rays, RenderSettings(source="eval", training=False))
    assert isinstance(kept, RenderOutput) and kept.trace is not None and dropped.trace is None


def test_regularisers_mean_the_same_on_both_paths():
    rays, settings = image_rays(10, 10), RenderSettings(source="guided", shading="normal", random=Random(3))
    values = []
    for cuda_ray in (False, True):
        out = of_a_ball(cuda_ray, max_steps=1024, num_steps=400).render(rays, settings)
        trace = out.trace
        towards = -rays.directions[trace.samples.ray_index]  # seen from behind, all of the ball faces away
        values.append(
            [
                losses.orientation(trace.weights, trace.field.normal, towards, len(rays)),
                losses.entropy(out.opacity),
                losses.opacity(out.opacity),
            ]
        )
    torch.testing.assert_close(torch.stack(values[0]), torch.stack(values[1]), rtol=0.05, atol=5e-3)


def test_a_view_dependent_training_part_shows_some_rays_their_diffuse_colour(cuda_ray):
    rays = image_rays(30, 30, fovy=8.0)  # every ray meets the ball, whose view-dependent colour is white
    model = of_a_ball(cuda_ray)
    trained = model.render(rays, RenderSettings(source="photos", view_dependent=True, background=torch.ones(3))).image
    shown = model.render(rays, RenderSettings(view_dependent=True, training=False, background=torch.ones(3))).image
    diffuse = (trained < 0.99).any(-1).float().mean()
    assert 0.02 < diffuse < 0.15 and shown.min() > 0.99


def test_directions_that_are_not_unit_are_refused():
    rays = image_rays(2, 2)
    longer = Rays(rays.origins, 1.1 * rays.directions, rays.view_index)
    with pytest.raises(ValueError, match="unit length"):
        of_a_ball().render(longer, RenderSettings(source="eval", training=False))


def test_a_view_dependent_part_with_lights_is_refused():
    with pytest.raises(UserError, match="albedo"):
        of_a_ball().render(image_rays(2, 2), RenderSettings(source="photos", view_dependent=True, shading="lambertian"))


@pytest.mark.parametrize(("changes", "match"), [({"backbone": "none"}, "backbone"), ({"background": "none"}, "background")])
def test_an_unknown_backbone_or_background_is_refused(changes, match):
    field = SimpleNamespace(**({"backbone": "grid", "background": "constant"} | changes))
    with pytest.raises(UserError, match=match):
        built(dataclasses.replace(options(), field=field))


@pytest.mark.parametrize(
    ("said", "radius", "kind"),
    [
        ("auto", 1.4, NetworkBackground),
        ("auto", -1.0, ConstantBackground),
        ("constant", 1.4, ConstantBackground),
        ("network", -1.0, NetworkBackground),
    ],
)
def test_the_background_is_the_chosen_one_and_by_default_follows_its_radius(said, radius, kind):
    model = built(options(field={"background": said, "bg_radius": radius}))
    assert type(model.background) is kind


class Where(Background):
    """A background that records where it begins."""

    def render(self, rays, near, settings):
        self.near = near
        return torch.zeros(len(rays), 3)


def test_the_background_begins_where_rays_leave_the_box():
    background, rays = Where(), image_rays(3, 3, distance=2.5, fovy=120.0)
    ball = Ball()
    NeRFRenderer(ball, background, make_volume_path(options(), ball)).render(rays, RenderSettings(training=False))
    middle = background.near.view(3, 3)[1, 1]
    assert middle.item() == pytest.approx(3.5) and background.near.view(3, 3)[0, 0] == 0  # the corner misses the box


class Uncertain(Ball):
    """A ball with two extra outputs: its x coordinate, and a constant pair."""

    def query(self, points, settings):
        out = super().query(points, settings)
        extras = {"x": points.positions[:, :1], "pair": torch.ones(len(points.positions), 2)}
        return dataclasses.replace(out, extras=extras)


def uncertain(cuda_ray, **render):
    field, config = Uncertain(0.5, density=300.0), options(cuda_ray=cuda_ray, **render)
    model = NeRFRenderer(field, ConstantBackground(), make_volume_path(config, field), config.render.max_ray_batch)
    model.update_occupancy(torch.Generator().manual_seed(0))
    return model


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("normals", [True, False])
def test_extra_outputs_are_composited_like_colours(cuda_ray, training, normals):
    rays, settings = image_rays(6, 8), RenderSettings(training=training, need_normals=normals)
    out = uncertain(cuda_ray).render(rays, settings)
    assert {name: list(value.shape) for name, value in out.extras.items()} == {"x": [48, 1], "pair": [48, 2]}
    torch.testing.assert_close(out.extras["pair"], out.opacity[:, None].expand(-1, 2))
    red = out.image[:, :1] - (1.0 - out.opacity)[:, None]  # the albedo's red is 0.5 + 0.4 x
    torch.testing.assert_close(0.5 * out.opacity[:, None] + 0.4 * out.extras["x"], red)


def test_chunks_carry_extra_outputs_even_where_no_ray_meets_anything(cuda_ray):
    rays, settings = image_rays(5, 9, fovy=100.0), RenderSettings(training=False)
    whole, chunked = (uncertain(cuda_ray, max_ray_batch=size).render(rays, settings) for size in (4096, 4))
    for name, value in whole.extras.items():
        torch.testing.assert_close(chunked.extras[name], value)


@pytest.mark.parametrize("training", [True, False])
def test_points_carry_the_attributes_of_their_rays(cuda_ray, training):
    class Attributes(Ball):
        def query(self, points, settings):
            self.found.append(points)
            return super().query(points, settings)

        geometry = query

    rays, field = image_rays(5, 4, fovy=20.0), Attributes()
    rays = dataclasses.replace(rays, image_index=torch.arange(20) + 7, uv=torch.rand(20, 2))
    field.found = []
    model = NeRFRenderer(field, ConstantBackground(), make_volume_path(options(cuda_ray=cuda_ray), field))
    model.render(rays, RenderSettings(training=training))
    for points in field.found:
        ray = points.image_index - 7
        assert torch.equal(points.uv, rays.uv[ray]) and torch.equal(points.directions, rays.directions[ray])
        across = torch.linalg.cross(points.positions - rays.origins[ray], points.directions)
        assert len(ray) == 0 or across.abs().max() < 1e-5
    assert sum(len(points.positions) for points in field.found) > 0


def test_the_state_dict_holds_everything_a_render_depends_on():
    config = options(cuda_ray=True)
    model, other = built(config), built(config)
    for i in range(3):
        model.update_occupancy(torch.Generator().manual_seed(i))
    model.render(image_rays(4, 4), RenderSettings(source="guided", random=Random(1)))
    other.load_state_dict(model.state_dict())
    rays, settings = image_rays(5, 5), RenderSettings(source="guided", random=Random(2))
    assert torch.equal(model.render(rays, settings).image, other.render(rays, settings).image)
    for m in (model, other):
        m.update_occupancy(torch.Generator().manual_seed(9))
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), other.buffers(), strict=True))


def test_param_groups_hold_field_and_background():
    model = built(options(field={"bg_radius": 1.4}))
    groups = model.param_groups(1e-3)
    assert [g["name"] for g in groups] == ["encoder", "network", "background"]
    assert sorted(id(p) for g in groups for p in g["params"]) == sorted(id(p) for p in model.parameters())


def two_balls(rays: Rays) -> torch.Tensor:
    """The image of a red and a blue ball over white, exact: [N, 3]."""
    image, nearest = torch.ones(len(rays), 3), torch.full((len(rays),), torch.inf)
    for centre, colour in (((-0.3, 0.0, 0.0), (0.9, 0.1, 0.1)), ((0.35, 0.2, 0.1), (0.1, 0.2, 0.8))):
        moved = Rays(rays.origins - torch.tensor(centre), rays.directions, rays.view_index)
        enter, opacity, _ = ball_on_rays(moved, 0.3, 1e4)
        front = (opacity > 0.5) & (enter < nearest)
        image[front], nearest[front] = torch.tensor(colour), enter[front]
    return image


@pytest.mark.parametrize("backbone", ["grid", "vanilla"])
def test_a_tiny_scene_is_learned(backbone, cuda_ray):
    torch.manual_seed(0)
    model = built(options(field={"backbone": backbone}, cuda_ray=cuda_ray))
    optimiser = torch.optim.Adam(model.param_groups(5e-3), betas=(0.9, 0.99), eps=1e-15)
    rays = image_rays(20, 20)
    target = two_balls(rays)
    for step in range(50):
        if step % 8 == 0:
            model.update_occupancy(torch.Generator().manual_seed(step))
        settings = RenderSettings(source="photos", background=torch.ones(3), random=Random(step))
        loss = losses.image_mse(model.render(rays, settings).image, target)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
    with torch.no_grad():
        image = model.render(rays, RenderSettings(source="eval", training=False, background=torch.ones(3))).image
    psnr = -10 * torch.log10((image - target).square().mean()).item()
    assert psnr > 18.0  # 25 to 29 as a rule; a white image has 9


@pytest.mark.parametrize(("cuda_ray", "chunks"), [(True, 3), (False, 8)])
def test_a_frame_is_few_chunks_on_a_gpu_and_of_4096_rays_on_a_cpu(cuda_ray, chunks):
    model = of_a_ball(cuda_ray)
    assert -(-800 * 800 // model.ray_batch(torch.device("cuda"))) == chunks
    assert model.ray_batch(torch.device("cpu")) == 4096
    assert of_a_ball(cuda_ray, max_ray_batch=7).ray_batch(torch.device("cuda")) == 7
