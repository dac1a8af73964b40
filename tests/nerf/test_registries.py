"""A field, a background and a render path that only this file knows are built by name, train and render."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from nerf import renderer
from nerf.config.config import Config
from nerf.config.stages import NERF, Stage
from nerf.core.streams import Random
from nerf.core.structs import FieldOutput, LevelSet, RenderSettings, SceneInfo
from nerf.fields.base import Field
from nerf.render.background import Background
from nerf.render.base import RaySums, RenderPath, box, points_on, sample_colours
from raymarching import near_far_from_aabb
from tests.nerf.analytic import image_rays


class DistanceField(Field):
    """A sphere of learned radius and colour, given by its signed distance and nothing else; no density anywhere."""

    def __init__(self, config, scene):
        super().__init__()
        self.bound, self.num_images = scene.bound, scene.num_images
        self.radius = nn.Parameter(torch.tensor(0.5))
        self.colour = nn.Parameter(torch.full((3,), 0.5))
        self.sharpness = nn.Parameter(torch.tensor(30.0))

    def query(self, points, settings):
        """Signed distance, gradient, albedo, and a constant uncertainty."""
        distance = points.positions.norm(dim=-1)
        return FieldOutput(
            sdf=distance - self.radius,
            gradient=points.positions / distance[:, None],
            albedo=self.colour.expand(len(distance), 3),
            extras={"uncertainty": torch.ones_like(distance)[:, None]},
        )

    def opacity(self, output, points, dt, settings):
        """A logistic density of the signed distance (VolSDF-like)."""
        return -torch.expm1(-dt * self.sharpness * torch.sigmoid(-self.sharpness * output.require("sdf")))

    def occupancy(self, positions, dt, reach=0.0):
        """Opaque inside a slightly larger sphere."""
        return (positions.norm(dim=-1) < self.radius + 0.1).float()

    def level_set(self, threshold):
        """The zero of the signed distance."""
        return LevelSet(lambda at: at.norm(dim=-1) - self.radius, 0.0, "below", logarithmic=False)


class Gradient(Background):
    """A colour that depends on the distance at which the background begins; counts its updates."""

    def __init__(self, config, scene):
        super().__init__()
        self.scale, self.updates = nn.Parameter(torch.tensor(0.1)), 0

    def render(self, rays, near, settings):
        """Grey."""
        return (self.scale * near)[:, None].expand(-1, 3)

    def update(self, generator):
        """Count."""
        self.updates += 1


class MiddlePath(RenderPath):
    """One sample in the middle of the box on every ray."""

    def __init__(self, config, field):
        super().__init__()

    def render(self, field, rays, settings):
        """Opacity and colour of that sample; its distance is an extra output."""
        near, far = near_far_from_aabb(rays.origins, rays.directions, box(field.bound, rays.origins), 0.01)
        hit = far > near
        t, dt = torch.where(hit, 0.5 * (near + far), 0.0), torch.where(hit, far - near, 0.0)
        points = points_on(rays.origins + t[:, None] * rays.directions, torch.arange(len(rays)), rays)
        output = field.query(points, settings)
        alpha = field.opacity(output, points, dt, settings)
        color = alpha[:, None] * sample_colours(output, rays, settings, torch.arange(len(rays)))
        return RaySums(color=color, opacity=alpha, depth=alpha * t, extras={"distance": t[:, None]})


@pytest.fixture
def registered(monkeypatch):
    """The three of them under the name "dummy"."""
    monkeypatch.setitem(renderer.FIELDS, "dummy", DistanceField)
    monkeypatch.setitem(renderer.BACKGROUNDS, "dummy", Gradient)
    monkeypatch.setitem(renderer.PATHS, "dummy", MiddlePath)


def build(path, **render):
    """A model of the dummy field and background on a path, a registered one or one of the two volume paths."""
    steps = dict(max_steps=96, num_steps=24, upsample_steps=8, grid_size=32, cuda_ray=path == "accelerated")
    config = Config()
    field = SimpleNamespace(backbone="dummy", background="dummy", density_thresh=config.field.density_thresh)
    config = replace(config, field=field, render=replace(config.render, **(steps | render)))
    kind = replace(NERF, render_path="dummy" if path == "dummy" else "volume")
    return renderer.build_model(Stage(kind, config), SceneInfo(bound=0.9, num_images=3))


@pytest.mark.parametrize("path", ["plain", "accelerated", "dummy"])
def test_registered_parts_train_and_render(registered, path):
    model, rays = build(path), image_rays(12, 12)
    assert model.bound == 0.9 and model.field.num_images == 3
    optimiser = torch.optim.Adam(model.param_groups(2e-2))
    target, errors = torch.tensor([0.9, 0.2, 0.1]).expand(len(rays), 3), []
    for step in range(30):
        if step % 10 == 0:
            model.update_occupancy(torch.Generator().manual_seed(step))
        out = model.render(rays, RenderSettings(random=Random(step)))
        loss = (out.image - target).square().mean()
        optimiser.zero_grad()
        loss.backward()
        assert all(p.grad is not None for p in model.field.parameters()) and model.background.scale.grad is not None
        optimiser.step()
        errors.append(loss.item())
    assert errors[-1] < 0.5 * errors[0] and model.background.updates == 3


@pytest.mark.parametrize(("path", "name"), [("plain", "uncertainty"), ("accelerated", "uncertainty"), ("dummy", "distance")])
def test_registered_parts_render_extra_outputs_in_chunks(registered, path, name):
    rays, settings = image_rays(7, 9, fovy=60.0), RenderSettings(training=False)
    whole, chunked = (build(path, max_ray_batch=size).render(rays, settings) for size in (4096, 8))
    assert whole.extras[name].shape == (63, 1) and whole.trace is None
    torch.testing.assert_close(chunked.extras[name], whole.extras[name])
    torch.testing.assert_close(chunked.image, whole.image)


def test_a_registered_field_says_where_its_surface_is(registered):
    surface = build("plain").level_set(10.0)
    at = torch.tensor([[0.5, 0.0, 0.0], [0.0, 0.0, 0.7]])
    assert surface.inside == "below" and surface.level == 0.0
    torch.testing.assert_close(surface.value(at).detach(), torch.tensor([0.0, 0.2]))
