"""Both render paths on every rung mean the same: one ball against its closed form, and against each other."""

import pytest
import torch

import extension
from nerf.core.streams import Random
from nerf.core.structs import Rays, RenderSettings, Samples
from nerf.render.accelerated import AcceleratedPath
from nerf.render.plain import PlainPath
from tests.nerf.analytic import Ball, ball_on_rays, image_rays

EVALUATION = RenderSettings(source="eval", training=False, shading="normal")
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
RUNGS = [(device, rung) for device in DEVICES for rung in ("torch", device)]
PATHS = ["plain", "accelerated"]


@pytest.fixture(params=RUNGS, ids=lambda p: f"{p[0]}-{p[1]}")
def rung(request):
    """Each rung that serves a device of this machine; the value is the device."""
    device, name = request.param
    with extension.scope(name):
        yield device


def path_of(kind: str, field, min_near=0.01):
    """A path with steps of about 0.0035 scene units, where the field is; the accelerated one has looked at the field."""
    device = field.centre.device
    if kind == "plain":
        return PlainPath(num_steps=600, upsample_steps=64, min_near=min_near)
    path = AcceleratedPath(field.bound, 32, density_thresh=10.0, max_steps=1024, dt_gamma=0.0, min_near=min_near)
    path.to(device)
    for seed in range(8):
        path.update(field, torch.Generator(device).manual_seed(seed))
    return path


def owned(samples):
    """The samples that belong to a ray; on a GPU the buffers have more room than that."""
    size = int(samples.count.sum())
    packed = (x[:size] for x in (samples.positions, samples.t, samples.dt, samples.ray_index))
    return Samples(*packed, samples.first, samples.count)


@pytest.mark.parametrize("kind", PATHS)
def test_opacity_and_depth_of_a_soft_ball_equal_the_closed_form(kind, rung):
    field, rays = Ball(0.5, density=8.0).to(rung), image_rays(9, 14, device=rung)
    trace = path_of(kind, field).trace(field, rays, EVALUATION)
    _, opacity, depth = ball_on_rays(rays, 0.5, 8.0)
    # A step that straddles the surface counts whole or not at all: half a step at either end, 2 x 0.0017 x 8.
    torch.testing.assert_close(trace.opacity, opacity, atol=0.03, rtol=0)
    torch.testing.assert_close(trace.depth, depth, atol=0.06, rtol=0)


@pytest.mark.parametrize("kind", PATHS)
def test_depth_and_normals_of_a_solid_ball_are_those_of_its_surface(kind, rung):
    field, rays = Ball(0.5, density=3000.0).to(rung), image_rays(11, 7, device=rung)
    trace = path_of(kind, field).trace(field, rays, EVALUATION)
    enter, opacity, _ = ball_on_rays(rays, 0.45, 3000.0)
    well_inside = opacity > 0.999
    enter = ball_on_rays(rays, 0.5, 3000.0)[0][well_inside]
    torch.testing.assert_close(trace.depth[well_inside], enter, atol=0.005, rtol=0)
    surface = rays.origins[well_inside] + enter[:, None] * rays.directions[well_inside]
    torch.testing.assert_close(trace.normal[well_inside], surface / 0.5, atol=0.02, rtol=0)


@pytest.mark.parametrize("kind", PATHS)
def test_the_silhouette_of_a_non_square_image_is_a_centred_disc(kind, rung):
    field, rays = Ball(0.4, density=3000.0).to(rung), image_rays(10, 16, device=rung)
    trace = path_of(kind, field).trace(field, rays, EVALUATION)
    picture = trace.opacity.view(10, 16)
    expected = ball_on_rays(rays, 0.4, 3000.0)[1].view(10, 16)
    assert ((picture > 0.5) == (expected > 0.5)).float().mean() > 0.98
    torch.testing.assert_close(picture, picture.flip(0), atol=0.02, rtol=0)
    torch.testing.assert_close(picture, picture.flip(1), atol=0.02, rtol=0)


def test_paths_agree_on_colour_normal_depth_and_opacity(rung):
    field, rays = Ball(0.5, density=30.0).to(rung), image_rays(8, 8, device=rung)
    settings = RenderSettings(source="eval", training=False, shading="lambertian", ambient=0.3)
    plain = path_of("plain", field).trace(field, rays, settings)
    accelerated = path_of("accelerated", field).trace(field, rays, settings)
    for name in ("color", "opacity", "depth", "normal"):
        torch.testing.assert_close(getattr(plain, name), getattr(accelerated, name), atol=0.06, rtol=0)


@pytest.mark.parametrize("kind", PATHS)
def test_autocast_takes_nothing_from_what_is_summed_along_a_ray(kind, rung):
    field, rays = Ball(0.5, density=30.0).to(rung), image_rays(8, 8, device=rung)
    path, settings = path_of(kind, field), RenderSettings(source="guided", need_normals=True, random=Random(5))
    plain = path.trace(field, rays, settings)
    with torch.autocast(rays.origins.device.type, torch.bfloat16):
        cast = path.trace(field, rays, settings)
    for name in ("color", "opacity", "depth", "normal"):
        torch.testing.assert_close(getattr(cast, name), getattr(plain, name))


@pytest.mark.parametrize("kind", PATHS)
def test_training_and_evaluation_agree_and_training_keeps_its_samples(kind, rung):
    field, rays = Ball(0.5, density=30.0).to(rung), image_rays(6, 6, device=rung)
    path = path_of(kind, field)
    training = path.trace(field, rays, RenderSettings(source="guided", need_normals=True))
    evaluation = path.trace(field, rays, RenderSettings(source="eval", need_normals=True, training=False))
    torch.testing.assert_close(training.opacity, evaluation.opacity, atol=0.12, rtol=0)
    assert evaluation.samples is None and len(training.samples) == len(training.weights)
    weights, nothing = training.weights, torch.zeros(len(rays), device=rung)
    summed = nothing.index_add(0, training.samples.ray_index, weights)
    torch.testing.assert_close(summed, training.opacity, atol=1e-5, rtol=0)
    distance = nothing.index_add(0, training.samples.ray_index, weights * training.samples.t)
    torch.testing.assert_close(distance, training.depth, atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", PATHS)
def test_samples_lie_on_their_rays_and_are_packed_in_ray_order(kind, rung):
    field, rays = Ball(0.5, density=5.0).to(rung), image_rays(5, 4, device=rung)
    samples = owned(path_of(kind, field).trace(field, rays, RenderSettings(source="guided")).samples)
    at = rays.origins[samples.ray_index] + samples.t[:, None] * rays.directions[samples.ray_index]
    torch.testing.assert_close(samples.positions, at)
    assert torch.equal(samples.ray_index, torch.arange(len(rays), device=rung).repeat_interleave(samples.count))
    assert torch.equal(samples.first, samples.count.cumsum(0) - samples.count)


@pytest.mark.parametrize("kind", PATHS)
def test_min_near_is_honoured(kind, rung):
    field = Ball(0.9, density=5.0).to(rung)
    ahead = torch.tensor([[0.0, 0.0, 1.0]], device=rung)
    rays = Rays(torch.zeros_like(ahead), ahead, torch.zeros(1, dtype=torch.int64, device=rung))
    near, far = 0.25, 0.6
    samples = owned(path_of(kind, field, min_near=near).trace(field, rays, RenderSettings(source="guided")).samples)
    assert samples.t.min() >= near and samples.t.min() < near + 0.01
    behind = path_of(kind, field, min_near=2.0).trace(field, rays, RenderSettings(source="guided"))
    assert behind.opacity.item() == 0 and far > near


@pytest.mark.parametrize("kind", PATHS)
def test_rays_that_miss_give_zeros_and_finite_gradients(kind, rung):
    field = Ball(0.5, density=5.0).to(rung)
    up = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, -1.0]], device=rung)
    origins = torch.tensor([[0.0, 0.0, 5.0]], device=rung).expand(2, 3).contiguous()
    rays = Rays(origins, up, torch.zeros(2, dtype=torch.int64, device=rung))
    trace = path_of(kind, field).trace(field, rays, RenderSettings(source="guided", shading="normal"))
    for tensor in (trace.color, trace.opacity, trace.depth, trace.normal):
        assert torch.isfinite(tensor).all() and tensor[0].abs().sum() == 0
    assert trace.opacity[1] > 0.9


@pytest.mark.parametrize("kind", PATHS)
@pytest.mark.parametrize("n", [0, 3])
def test_no_rays_and_rays_that_all_miss_are_no_special_case(kind, n, rung):
    field = Ball(0.5).to(rung)
    away = torch.tensor([[0.0, 0.0, 1.0]], device=rung).expand(n, 3).contiguous()
    rays = Rays(5 * away, away, torch.zeros(n, dtype=torch.int64, device=rung))
    trace = path_of(kind, field).trace(field, rays, RenderSettings(source="guided", shading="lambertian", ambient=0.5))
    assert trace.opacity.shape == (n,) and trace.normal.shape == (n, 3) and trace.opacity.sum() == 0


def test_the_plain_path_evaluates_each_sample_once():
    field, rays = Ball(0.5), image_rays(4, 4, fovy=10.0)
    PlainPath(num_steps=20, upsample_steps=10, min_near=0.01).trace(field, rays, RenderSettings(source="guided"))
    assert field.asked == 16 * 30


def test_the_same_part_renders_the_same_bits(rung):
    field, rays = Ball(0.5).to(rung), image_rays(5, 5, device=rung)
    for kind in PATHS:
        path, settings = path_of(kind, field), RenderSettings(source="guided", random=Random(7))
        assert torch.equal(path.trace(field, rays, settings).color, path.trace(field, rays, settings).color)


def test_another_seed_perturbs_the_samples(rung):
    field, rays = Ball(0.5).to(rung), image_rays(5, 5, device=rung)
    for kind in PATHS:
        path = path_of(kind, field)
        one, other = (path.trace(field, rays, RenderSettings(source="guided", random=Random(s))).samples.t for s in (1, 2))
        assert one.shape != other.shape or not torch.equal(one, other)
