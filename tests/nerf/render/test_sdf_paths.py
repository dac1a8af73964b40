"""Plain and accelerated paths of a signed distance: the same picture of a sphere, and nothing where there is nothing."""

import dataclasses

import pytest
import torch
from torch.nn import functional

from nerf.config.groups import FieldConfig
from nerf.core.structs import FieldOutput, Points, RenderSettings, SceneInfo
from nerf.fields.signed_distance import SignedDistanceField
from nerf.render.accelerated import AcceleratedPath
from nerf.render.plain import PlainPath
from tests.nerf.analytic import image_rays

RADIUS, SHARPNESS = 0.5, 150.0


class SphereField(SignedDistanceField):
    """The exact distance from a sphere, or from anything else that is given, coloured by position."""

    def __init__(self, distance=lambda x: x.norm(dim=-1) - RADIUS, sharpness=SHARPNESS):
        super().__init__(FieldConfig(sharpness_start=sharpness), SceneInfo(), 3)
        self.exact = distance

    def trunk(self, positions, max_level):
        return self.exact(positions), positions

    def trunk_with_gradient(self, positions, max_level):
        with torch.enable_grad():
            at = positions.detach().requires_grad_()
            sdf = self.exact(at)
            (gradient,) = torch.autograd.grad(sdf.sum(), at)
        return sdf.detach(), positions, gradient

    def geometry_parameters(self):
        return []

    def query(self, points: Points, settings: RenderSettings) -> FieldOutput:
        output = super().query(points, settings)
        return dataclasses.replace(output, albedo=0.5 + 0.5 * points.positions.clamp(-1, 1))


def paths(field, max_steps=1024):
    accelerated = AcceleratedPath(1.0, 64, 0.3, max_steps, 0.0, 0.01)
    for _ in range(2):
        accelerated.update(field, torch.Generator().manual_seed(0))
    return PlainPath(64, 64, 0.01), accelerated


@pytest.fixture(scope="module")
def rendered():
    field, rays = SphereField(), image_rays(24, 24)
    settings = RenderSettings(training=False, need_normals=True)
    with torch.no_grad():
        return rays, [path.render(field, rays, settings) for path in paths(field)]


def hits(rays):
    """Distance at which rays meet the sphere, and which of them do so, or miss it, by a margin."""
    middle = -(rays.origins * rays.directions).sum(-1)
    beside = (rays.origins + middle[:, None] * rays.directions).norm(dim=-1)
    return middle - (RADIUS**2 - beside**2).clamp(min=0).sqrt(), beside < 0.9 * RADIUS, beside > 1.1 * RADIUS


def test_both_paths_see_the_same_sphere(rendered):
    rays, (plain, accelerated) = rendered
    for name, tolerance in (("opacity", 5e-3), ("depth", 1e-2), ("color", 1e-2), ("normal", 2e-2)):
        a, b = getattr(plain, name), getattr(accelerated, name)
        inside = hits(rays)[1] | hits(rays)[2]
        assert (a - b)[inside].abs().max() < tolerance, name


def test_depth_opacity_and_normals_are_those_of_the_sphere(rendered):
    rays, both = rendered
    t, hit, miss = hits(rays)
    normal = functional.normalize(rays.origins + t[:, None] * rays.directions, dim=-1)
    for sums in both:
        assert sums.opacity[hit].min() > 0.99 and sums.opacity[miss].max() < 0.01
        assert (sums.depth - t)[hit].abs().max() < 0.02
        assert (functional.normalize(sums.normal, dim=-1) * normal).sum(-1)[hit].min() > 0.995


def test_up_sampling_puts_samples_at_the_surface():
    field, rays = SphereField(), image_rays(8, 8)
    with torch.no_grad():
        trace = PlainPath(32, 32, 0.01).render(field, rays, RenderSettings()).trace
    near = field.exact(trace.samples.positions).abs() < 0.05
    _, hit, _ = hits(rays)
    assert near[hit[trace.samples.ray_index]].float().mean() > 0.4  # a fraction of 0.1 would be there without it


def test_rays_that_miss_and_parts_without_samples_are_clear_and_finite():
    field = SphereField(lambda x: x.norm(dim=-1) + 5.0, sharpness=500.0)  # nothing is inside
    rays = image_rays(6, 6)
    for path in paths(field):
        sums = path.render(field, rays, RenderSettings(need_normals=True))
        assert float(sums.opacity.detach().max()) < 1e-3 and sums.color.isfinite().all()
        (sums.color.sum() + sums.opacity.sum() + field.sharpness * 0).backward()
    away = dataclasses.replace(rays, directions=-rays.directions)
    for path in paths(SphereField()):
        sums = path.render(field, away, RenderSettings())
        assert float(sums.opacity.abs().max()) == 0 and len(sums.trace.samples) == 0


def test_the_march_takes_the_steps_that_the_sharpness_needs():
    blunt, sharp = SphereField(sharpness=20.0), SphereField(sharpness=1000.0)
    rays = image_rays(8, 8)
    counts = []
    for field in (blunt, sharp):
        path = paths(field, max_steps=1024)[1]
        path.log2_step_scale.zero_()
        counts.append(path._least_scale(field))
        assert float(path.render(field, rays, RenderSettings()).opacity.detach().max()) > 0.99
    assert counts == [3, 0]  # a step of 0.0034 may be 0.05 long at a sharpness of 20


def wavy(x):
    """A random smooth field, up to half again as steep as a distance."""
    return x.norm(dim=-1) - RADIUS + 0.05 * torch.sin(9 * x[:, 0] + 1) * torch.sin(8 * x[:, 1]) * torch.cos(7 * x[:, 2])


@pytest.mark.parametrize("distance", [lambda x: x.norm(dim=-1) - RADIUS, wavy])
@pytest.mark.parametrize("sharpness", [20.0, 150.0, 1000.0])
def test_evaluation_without_the_steps_that_nobody_sees_gives_the_same_picture(distance, sharpness, monkeypatch):
    field, rays = SphereField(distance, sharpness), image_rays(16, 16)
    path, settings = paths(field)[1], RenderSettings(training=False, need_normals=True)
    path.grid.bitfield.fill_(255)  # empty space is marched too
    asked = []
    trunk = field.trunk_with_gradient
    monkeypatch.setattr(field, "trunk_with_gradient", lambda x, level: asked.append(len(x)) or trunk(x, level))
    sums, evaluated = path.render(field, rays, settings), sum(asked)
    asked.clear()
    monkeypatch.setattr(SignedDistanceField, "may_be_seen", lambda *_: None)
    full = path.render(field, rays, settings)
    for name in ("color", "opacity", "depth", "normal"):
        assert (getattr(sums, name) - getattr(full, name)).abs().max() < 5e-3, name
    assert evaluated < {20.0: 0.95, 150.0: 0.35, 1000.0: 0.2}[sharpness] * sum(asked)
