"""Both volume paths on every backend: a ball against its closed form, and the paths against each other."""

from dataclasses import replace

import pytest
import torch

from nerf.core.streams import Random
from nerf.core.structs import Rays, RenderSettings, Samples
from nerf.render.accelerated import AcceleratedPath
from nerf.render.plain import PlainPath
from tests.helpers import kernel_backends
from tests.nerf.analytic import Ball, ball_on_rays, image_rays

EVALUATION = RenderSettings(source="eval", training=False, shading="normal")
PATHS = ["plain", "accelerated"]


@pytest.fixture(params=kernel_backends.ALL, ids=kernel_backends.name)
def device(request):
    """Each backend of each device of this machine; the value is the device."""
    with kernel_backends.on(*request.param):
        yield request.param[0]


def path_of(kind: str, field, min_near=0.01):
    """A path with steps of about 0.0035 scene units, where the field is; the accelerated one has its occupancy grid."""
    device = field.centre.device
    if kind == "plain":
        return PlainPath(num_steps=600, upsample_steps=64, min_near=min_near)
    path = AcceleratedPath(field.bound, 32, density_thresh=10.0, max_steps=1024, dt_gamma=0.0, min_near=min_near)
    path.to(device)
    for seed in range(8):
        path.update(field, torch.Generator(device).manual_seed(seed))
    return path


def owned(samples):
    """The samples that belong to a ray; on a GPU the buffers are larger than that."""
    size = int(samples.count.sum())
    packed = (x[:size] for x in (samples.positions, samples.t, samples.dt, samples.ray_index))
    return Samples(*packed, samples.first, samples.count)


@pytest.mark.parametrize("kind", PATHS)
def test_opacity_and_depth_of_a_soft_ball_equal_the_closed_form(kind, device):
    field, rays = Ball(0.5, density=8.0).to(device), image_rays(9, 14, device=device)
    sums = path_of(kind, field).render(field, rays, EVALUATION)
    _, opacity, depth = ball_on_rays(rays, 0.5, 8.0)
    # A step that straddles the surface counts whole or not at all: half a step at either end, 2 x 0.0017 x 8.
    torch.testing.assert_close(sums.opacity, opacity, atol=0.03, rtol=0)
    torch.testing.assert_close(sums.depth, depth, atol=0.06, rtol=0)


@pytest.mark.parametrize("kind", PATHS)
def test_depth_and_normals_of_a_solid_ball_are_those_of_its_surface(kind, device):
    field, rays = Ball(0.5, density=3000.0).to(device), image_rays(11, 7, device=device)
    sums = path_of(kind, field).render(field, rays, EVALUATION)
    enter, opacity, _ = ball_on_rays(rays, 0.45, 3000.0)
    well_inside = opacity > 0.999
    enter = ball_on_rays(rays, 0.5, 3000.0)[0][well_inside]
    torch.testing.assert_close(sums.depth[well_inside], enter, atol=0.005, rtol=0)
    surface = rays.origins[well_inside] + enter[:, None] * rays.directions[well_inside]
    torch.testing.assert_close(sums.normal[well_inside], surface / 0.5, atol=0.02, rtol=0)


@pytest.mark.parametrize("kind", PATHS)
def test_the_silhouette_of_a_non_square_image_is_a_centred_disc(kind, device):
    field, rays = Ball(0.4, density=3000.0).to(device), image_rays(10, 16, device=device)
    sums = path_of(kind, field).render(field, rays, EVALUATION)
    picture = sums.opacity.view(10, 16)
    expected = ball_on_rays(rays, 0.4, 3000.0)[1].view(10, 16)
    assert ((picture > 0.5) == (expected > 0.5)).float().mean() > 0.98
    torch.testing.assert_close(picture, picture.flip(0), atol=0.02, rtol=0)
    torch.testing.assert_close(picture, picture.flip(1), atol=0.02, rtol=0)


def test_paths_agree_on_colour_normal_depth_and_opacity(device):
    field, rays = Ball(0.5, density=30.0).to(device), image_rays(8, 8, device=device)
    settings = RenderSettings(source="eval", training=False, shading="lambertian", ambient=0.3)
    plain = path_of("plain", field).render(field, rays, settings)
    accelerated = path_of("accelerated", field).render(field, rays, settings)
    for name in ("color", "opacity", "depth", "normal"):
        torch.testing.assert_close(getattr(plain, name), getattr(accelerated, name), atol=0.06, rtol=0)


@pytest.mark.parametrize("kind", PATHS)
def test_sums_along_rays_stay_single_precision_under_autocast(kind, device):
    field, rays = Ball(0.5, density=30.0).to(device), image_rays(8, 8, device=device)
    path, settings = path_of(kind, field), RenderSettings(source="guided", need_normals=True, random=Random(5))
    plain = path.render(field, rays, settings)
    with torch.autocast(rays.origins.device.type, torch.bfloat16):
        cast = path.render(field, rays, settings)
    for name in ("color", "opacity", "depth", "normal"):
        torch.testing.assert_close(getattr(cast, name), getattr(plain, name))


@pytest.mark.parametrize("kind", PATHS)
def test_training_and_evaluation_agree_and_training_keeps_a_trace(kind, device):
    field, rays = Ball(0.5, density=30.0).to(device), image_rays(6, 6, device=device)
    path = path_of(kind, field)
    training = path.render(field, rays, RenderSettings(source="guided", need_normals=True))
    evaluation = path.render(field, rays, RenderSettings(source="eval", need_normals=True, training=False))
    torch.testing.assert_close(training.opacity, evaluation.opacity, atol=0.12, rtol=0)
    trace, nothing = training.trace, torch.zeros(len(rays), device=device)
    weights, ray_index = trace.weights, trace.samples.ray_index
    assert evaluation.trace is None and len(trace.samples) == len(weights)
    summed = nothing.index_add(0, ray_index, weights)
    torch.testing.assert_close(summed, training.opacity, atol=1e-5, rtol=0)
    distance = nothing.index_add(0, ray_index, weights * trace.samples.t)
    torch.testing.assert_close(distance, training.depth, atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", PATHS)
def test_samples_lie_on_their_rays_and_are_packed_in_ray_order(kind, device):
    field, rays = Ball(0.5, density=5.0).to(device), image_rays(5, 4, device=device)
    samples = owned(path_of(kind, field).render(field, rays, RenderSettings(source="guided")).trace.samples)
    at = rays.origins[samples.ray_index] + samples.t[:, None] * rays.directions[samples.ray_index]
    torch.testing.assert_close(samples.positions, at)
    assert torch.equal(samples.ray_index, torch.arange(len(rays), device=device).repeat_interleave(samples.count))
    assert torch.equal(samples.first, samples.count.cumsum(0) - samples.count)


@pytest.mark.parametrize("kind", PATHS)
def test_min_near_is_honoured(kind, device):
    field = Ball(0.9, density=5.0).to(device)
    ahead = torch.tensor([[0.0, 0.0, 1.0]], device=device)
    rays = Rays(torch.zeros_like(ahead), ahead, torch.zeros(1, dtype=torch.int64, device=device))
    near, far = 0.25, 0.6
    samples = owned(path_of(kind, field, min_near=near).render(field, rays, RenderSettings(source="guided")).trace.samples)
    assert samples.t.min() >= near and samples.t.min() < near + 0.01
    behind = path_of(kind, field, min_near=2.0).render(field, rays, RenderSettings(source="guided"))
    assert behind.opacity.item() == 0 and far > near


@pytest.mark.parametrize("kind", PATHS)
def test_rays_that_miss_give_zeros_and_finite_gradients(kind, device):
    field = Ball(0.5, density=5.0).to(device)
    up = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, -1.0]], device=device)
    origins = torch.tensor([[0.0, 0.0, 5.0]], device=device).expand(2, 3).contiguous()
    rays = Rays(origins, up, torch.zeros(2, dtype=torch.int64, device=device))
    sums = path_of(kind, field).render(field, rays, RenderSettings(source="guided", shading="normal"))
    for tensor in (sums.color, sums.opacity, sums.depth, sums.normal):
        assert torch.isfinite(tensor).all() and tensor[0].abs().sum() == 0
    assert sums.opacity[1] > 0.9


@pytest.mark.parametrize("kind", PATHS)
@pytest.mark.parametrize("n", [0, 3])
def test_no_rays_and_rays_that_all_miss_are_no_special_case(kind, n, device):
    field = Ball(0.5).to(device)
    away = torch.tensor([[0.0, 0.0, 1.0]], device=device).expand(n, 3).contiguous()
    rays = Rays(5 * away, away, torch.zeros(n, dtype=torch.int64, device=device))
    sums = path_of(kind, field).render(field, rays, RenderSettings(source="guided", shading="lambertian", ambient=0.5))
    assert sums.opacity.shape == (n,) and sums.normal.shape == (n, 3) and sums.opacity.sum() == 0


def test_the_plain_path_evaluates_each_sample_once():
    field, rays = Ball(0.5), image_rays(4, 4, fovy=10.0)
    PlainPath(num_steps=20, upsample_steps=10, min_near=0.01).render(field, rays, RenderSettings(source="guided"))
    assert field.queried == 16 * 30


def test_the_same_part_renders_the_same_bits(device):
    field, rays = Ball(0.5).to(device), image_rays(5, 5, device=device)
    for kind in PATHS:
        path, settings = path_of(kind, field), RenderSettings(source="guided", random=Random(7))
        assert torch.equal(path.render(field, rays, settings).color, path.render(field, rays, settings).color)


def test_another_seed_perturbs_the_samples(device):
    field, rays = Ball(0.5).to(device), image_rays(5, 5, device=device)
    for kind in PATHS:
        path = path_of(kind, field)
        one, other = (
            path.render(field, rays, RenderSettings(source="guided", random=Random(s))).trace.samples.t for s in (1, 2)
        )
        assert one.shape != other.shape or not torch.equal(one, other)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", PATHS)
def test_every_path_samples_nothing_before_the_near_plane_of_a_ray(kind, training, device):
    field, rays = Ball(0.5, density=500.0).to(device), image_rays(4, 4, device=device)
    near = torch.where(torch.arange(16, device=device) < 8, 2.45, 0.0)
    path, settings = path_of(kind, field), RenderSettings(training=training)
    out = path.render(field, replace(rays, near=near), settings)
    whole = path.render(field, rays, settings)
    hit = whole.opacity > 0.5
    assert hit[:8].any() and hit[8:].any()
    torch.testing.assert_close(out.opacity[8:], whole.opacity[8:])
    assert (out.depth[:8][hit[:8]] > 2.44).all() and (whole.depth[hit] < 2.4).all()
    if training:
        samples = owned(out.trace.samples)
        assert (samples.t >= near[samples.ray_index] - 0.004).all()


@pytest.mark.parametrize("kind", PATHS)
def test_a_crop_box_shows_what_is_inside_it_alone(kind, device):
    field, rays = Ball(0.5, density=3000.0).to(device), image_rays(24, 24, device=device)
    path = path_of(kind, field)
    half = torch.tensor([-1.0, 0.0, -1.0, 1.0, 1.0, 0.2], device=device)  # the upper half, cut behind its front
    whole = path.render(field, rays, EVALUATION)
    cut = path.render(field, rays, replace(EVALUATION, crop=half))
    opaque, depth = cut.opacity.view(24, 24) > 0.5, cut.depth / cut.opacity.clamp(min=1e-6)
    assert not opaque[13:].any() and opaque[6:11, 10:14].all()
    hit = (rays.origins + depth[:, None] * rays.directions).view(24, 24, 3)[opaque]
    assert (hit[:, 2] < 0.22).all() and (hit[:, 1] > -0.05).all()
    assert whole.opacity.view(24, 24)[13:17, 10:14].min() > 0.9  # what the crop left out was there
    away = torch.tensor([2.0, 2.0, 2.0, 3.0, 3.0, 3.0], device=device)  # beyond the box of the field
    assert path.render(field, rays, replace(EVALUATION, crop=away)).opacity.max() == 0
