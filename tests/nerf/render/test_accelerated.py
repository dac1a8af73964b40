"""The accelerated path: the work it saves, its sample buffers, and that neither changes an image."""

import logging
import math
import random
from dataclasses import replace

import pytest
import torch
from torch import nn

from nerf.core.streams import Random
from nerf.core.structs import RenderSettings, tensors_of
from nerf.render import accelerated, visibility
from nerf.render.accelerated import AcceleratedPath
from nerf.render.background import Background, ConstantBackground
from nerf.renderer import NeRFRenderer
from raymarching import march_rays_train, near_far_from_aabb
from tests.nerf.analytic import Ball, image_rays

BOX = torch.tensor([-1.0, -1, -1, 1, 1, 1])


def path_of(field, max_steps=256, grid_size=32, buffered=None):
    path = AcceleratedPath(1.0, grid_size, 10.0, max_steps, dt_gamma=0.0, min_near=0.01, buffered=buffered)
    path.update(field, torch.Generator().manual_seed(0))
    return path


def allow(monkeypatch, samples):
    """Set the sample budget of a training part, per ray."""
    monkeypatch.setattr(accelerated, "SAMPLE_BUDGET", {"cpu": (0, samples)})


def test_the_search_keeps_exactly_the_visible_samples_of_a_plain_march(monkeypatch):
    monkeypatch.setattr(visibility, "FIRST_ROUND", 3)  # many rounds, of different lengths
    field, rays, settings = Ball(0.5, density=25.0), image_rays(7, 9), RenderSettings(source="guided")
    grid = path_of(field).grid
    near, far = near_far_from_aabb(rays.origins, rays.directions, BOX, 0.01)
    march = visibility.March(rays, (near, far), grid, 0.0, 256)
    found, used = visibility.find_visible_samples(field, march, settings, 10**9)
    assert 0 < used < 1
    positions, t, dt, ray_index, first, count = march_rays_train(
        rays.origins, rays.directions, near, far, grid.bitfield, 1.0, 1, 32, None, 0.0, 256
    )
    inside = field.density(positions) > 0
    before = (inside * dt).cumsum(0) - inside * dt
    before = before - before[first.clamp(max=len(t) - 1)][ray_index]
    visible = inside & (torch.exp(-25.0 * before) > visibility.EARLY_STOP_EPS)
    torch.testing.assert_close(found.t, t[visible])
    assert torch.equal(found.ray_index, ray_index[visible])
    torch.testing.assert_close(found.positions, positions[visible])


def test_invisible_samples_change_a_pixel_by_about_a_thousandth(monkeypatch):
    allow(monkeypatch, 10**6)
    field, rays, settings = Ball(0.5, density=40.0), image_rays(8, 8), RenderSettings(source="guided", random=Random(4))
    path = path_of(field)
    short = path.render(field, rays, settings)
    monkeypatch.setattr(visibility, "EARLY_STOP_EPS", 1e-9)
    monkeypatch.setattr(visibility, "ALPHA_THRESHOLD", 0.0)
    full = path.render(field, rays, settings)
    assert len(full.trace.samples) > 1.5 * len(short.trace.samples)
    torch.testing.assert_close(short.color, full.color, atol=2e-3, rtol=0)


def test_fog_is_marched_with_long_steps_and_a_surface_with_short_ones(monkeypatch):
    allow(monkeypatch, 5)
    rays, settings = image_rays(16, 16, fovy=60.0), RenderSettings(source="guided")
    fog, ball = Ball(0.9, density=0.5), Ball(0.3, density=300.0, margin=0.03)
    path = path_of(fog, max_steps=1024)
    samples = path.render(fog, rays, settings).trace.samples
    assert len(samples) <= 5 * len(rays) and path.log2_step_scale > 0
    path = path_of(ball, max_steps=1024)
    path.render(ball, rays, settings)
    assert path.log2_step_scale == 0


def test_steps_shorten_again_once_the_fog_is_gone(monkeypatch):
    allow(monkeypatch, 5)
    rays = image_rays(16, 16, fovy=60.0)
    fog, ball = Ball(0.9, density=0.5), Ball(0.3, density=300.0, margin=0.03)
    path = path_of(fog, max_steps=1024)
    path.render(fog, rays, RenderSettings(source="guided"))
    before = int(path.log2_step_scale)
    for seed in range(40):
        path.update(ball, torch.Generator().manual_seed(seed))
    for seed in range(before):
        path.render(ball, rays, RenderSettings(source="guided", random=Random(seed)))
    assert before > 0 and path.log2_step_scale == 0


def test_long_steps_change_the_opacity_of_fog_little(monkeypatch):
    rays, fog = image_rays(16, 16, fovy=30.0), Ball(0.9, density=0.5)
    path = path_of(fog, max_steps=1024)
    allow(monkeypatch, 8)
    long = path.render(fog, rays, RenderSettings(source="guided")).opacity
    allow(monkeypatch, 10**6)
    path.log2_step_scale.zero_()
    short = path.render(fog, rays, RenderSettings(source="guided")).opacity
    # The ends of a ray through the fog fall into a step or not: at most two steps of 0.2, and on average none.
    assert (long - short).abs().max() < 0.15
    assert long.mean().item() == pytest.approx(short.mean().item(), abs=0.01)


def test_perturbed_samples_are_spread_over_the_step(monkeypatch):
    allow(monkeypatch, 10**6)
    field, rays = Ball(0.5, density=5.0), image_rays(20, 20, fovy=8.0)
    path = path_of(field)
    samples = path.render(field, rays, RenderSettings(source="guided", random=Random(1))).trace.samples
    near, _ = near_far_from_aabb(rays.origins, rays.directions, BOX, 0.01)
    place = ((samples.t - near[samples.ray_index]) / samples.dt)[samples.first] % 1.0
    assert torch.histc(place, bins=4, min=0, max=1).min() > 50


def test_evaluation_stops_behind_a_surface():
    field, rays = Ball(0.6, density=2000.0), image_rays(16, 16, fovy=8.0)
    path_of(field, max_steps=1024).render(field, rays, RenderSettings(source="eval", training=False))
    assert field.queried < 0.35 * 256 * 1.2 / (2 * 3**0.5 / 1024)


# ---- training in buffers, as on a GPU ----


class Tinted(Ball):
    """A ball whose density and colour have learned factors."""

    def __init__(self, **shape):
        super().__init__(**shape)
        self.gain = nn.Parameter(torch.ones(2))

    def query(self, points, settings):
        output = super().query(points, settings)
        return replace(output, density=self.gain[0] * output.density, albedo=self.gain[1] * output.albedo)


def learned(path, field, rays, settings, background=None):
    """What the path renders, and the gradient of a loss on the image and on the samples."""
    field.gain.grad = None
    out = NeRFRenderer(field, background or ConstantBackground(), path).render(rays, settings)
    trace = out.trace
    (out.image.square().sum() + out.depth.sum() + (trace.weights * trace.samples.t).sum()).backward()
    return out, field.gain.grad


def test_training_in_buffers_gives_the_images_and_gradients_of_counted_training(monkeypatch):
    allow(monkeypatch, 10**6)
    field, rays = Tinted(density=30.0), image_rays(7, 9)
    exact, buffered = path_of(field), path_of(field, buffered=True)
    for seed in range(3):  # the first part is counted before, the others rely on it
        settings = RenderSettings(source="guided", random=Random(seed), shading="normal")
        (a, grad_a), (b, grad_b) = (learned(path, field, rays, settings) for path in (exact, buffered))
        for name in ("image", "opacity", "depth", "normal"):
            torch.testing.assert_close(getattr(a, name), getattr(b, name))
        torch.testing.assert_close(grad_a, grad_b)
        one, other = a.trace.samples, b.trace.samples
        assert int(other.count.sum()) == len(one) and torch.equal(one.first, other.first)
        torch.testing.assert_close(other.positions[: len(one)], one.positions)


def test_samples_that_fill_a_buffer_up_have_no_length_and_no_weight(monkeypatch):
    allow(monkeypatch, 10**6)
    field, rays = Tinted(density=30.0), image_rays(7, 9)
    trace = path_of(field, buffered=True).render(field, rays, RenderSettings(source="guided")).trace
    filled = slice(int(trace.samples.count.sum()), None)
    assert len(trace.samples.t[filled]) > 0
    assert (trace.samples.dt[filled] == 0).all() and (trace.weights[filled] == 0).all()


class Glow(Background):
    """A background with one learned colour."""

    def __init__(self):
        super().__init__()
        self.colour = nn.Parameter(torch.full((3,), 0.5))

    def render(self, rays, near, settings):
        return self.colour.expand(len(rays), 3)


def overflowing(monkeypatch, field):
    """A path whose buffers suffice for the first rays of the pair that is returned with it, and not for the second."""
    monkeypatch.setattr(visibility, "BLOCK", 64)
    allow(monkeypatch, 10**6)
    return path_of(field, buffered=True), image_rays(8, 8, fovy=120.0), image_rays(8, 8, fovy=20.0)


def test_a_part_that_does_not_fit_has_no_gradients_is_logged_and_fits_the_next_time(monkeypatch, caplog):
    field, settings = Tinted(density=30.0), RenderSettings(source="guided")
    path, far, near = overflowing(monkeypatch, field)
    exact = path_of(field)
    learned(path, field, far, settings)
    with caplog.at_level(logging.INFO, "somnia.render"):
        out, grad = learned(path, field, near, settings)
        assert int(out.trace.samples.count.sum()) < len(exact.render(field, near, settings).trace.samples)
        assert (grad == 0).all() and caplog.text == ""  # not known on the host before the next part begins
        out, grad = learned(path, field, near, settings)
    assert "sample buffers of source guided were too small" in caplog.text and "left out of training" in caplog.text
    expected, expected_grad = learned(exact, field, near, settings)
    torch.testing.assert_close(out.image, expected.image)
    torch.testing.assert_close(grad, expected_grad)
    assert (grad != 0).all()


def test_a_part_that_does_not_fit_gives_no_gradients_to_the_background(monkeypatch):
    field, settings = Tinted(density=30.0), RenderSettings(source="guided")
    path, far, near = overflowing(monkeypatch, field)
    model, grads = NeRFRenderer(field, Glow(), path), []
    for rays in (far, near, near):
        model.zero_grad(set_to_none=True)
        model.render(rays, settings).image.square().sum().backward()
        grads.append(model.background.colour.grad.abs().sum().item())
    assert grads[0] > 0 and grads[1] == 0 and grads[2] > 0


def test_a_part_that_does_not_fit_gives_no_gradients_through_any_of_its_outputs(monkeypatch):
    class Everything(Tinted):
        def query(self, points, settings):
            out = super().query(points, settings)
            column = out.density[:, None]
            return replace(out, sdf=-out.density, gradient=column.expand(-1, 3), extras={"uncertainty": column})

    field = Everything(density=30.0)
    settings = RenderSettings(source="guided", need_normals=True)
    path, far, near = overflowing(monkeypatch, field)
    model = NeRFRenderer(field, Glow(), path)
    model.render(far, settings)  # meets nothing, so the buffers of the next part are small
    for fits in (False, True):
        out = model.render(near, settings)
        differentiable = [value for value in tensors_of(out) if value.requires_grad]
        assert len(differentiable) == 12  # 6 of the pixels, the weights, and 5 of the field
        for value in differentiable:
            model.zero_grad(set_to_none=True)
            value.square().sum().backward(retain_graph=True)
            found = sum(p.grad.abs().sum().item() for p in model.parameters() if p.grad is not None)
            assert (found > 0) == fits


def test_buffer_sizes_follow_rays_and_steps_and_the_largest_need_of_the_last_parts():
    sizes = visibility.BufferSizes()
    assert not sizes.known
    sizes.observe(100_000, 10_000, rays=1000, steps=512)
    marched, visible = sizes.capacity(1000, 512)
    assert 125_000 <= marched < 125_000 + visibility.BLOCK and 12_500 <= visible < 12_500 + visibility.BLOCK
    assert sizes.capacity(4000, 256)[0] == pytest.approx(2 * marched, abs=2 * visibility.BLOCK)
    assert sizes.capacity(1000, 512, budget=5000) == (10_000, 5000)
    for _ in range(visibility.REMEMBERED_PARTS - 1):
        sizes.observe(0, 0, 1000, 512)
        assert sizes.capacity(1000, 512) == (marched, visible)
    sizes.observe(0, 0, 1000, 512)
    assert sizes.capacity(1000, 512) == (visibility.BLOCK, visibility.BLOCK)
    sizes.observe(10**6, 10**6, 1000, 512)
    assert min(sizes.capacity(1000, 512)) >= 1_250_000


def test_needs_that_vary_as_those_of_random_cameras_seldom_exceed_the_buffers():
    sizes, generator = visibility.BufferSizes(), random.Random(0)
    left_out, size, parts = 0, 0.0, 2000
    for number in range(parts):
        need = int(1e6 * math.exp(0.2 * generator.gauss(0, 1)))  # one part in five needs 1.25 times that of the last, or more
        if number > 0:
            left_out += need > sizes.capacity(4096, 512)[0]
            size += sizes.capacity(4096, 512)[0] / need / parts
        sizes.observe(need, need // 4, 4096, 512)
    assert left_out < 0.01 * parts and size < 2


def test_buffers_of_each_source_have_their_own_size(monkeypatch):
    monkeypatch.setattr(visibility, "BLOCK", 64)
    allow(monkeypatch, 10**6)
    field = Tinted(density=30.0)
    path = path_of(field, buffered=True)
    wide, narrow = image_rays(8, 8, fovy=60.0), image_rays(8, 8, fovy=20.0)
    for seed in range(3):
        for source, rays in (("guided", wide), ("photos", narrow)):
            settings = RenderSettings(source=source, random=Random(seed))
            out, grad = learned(path, field, rays, settings)
            torch.testing.assert_close(out.opacity, path_of(field).render(field, rays, settings).opacity)
            assert (grad != 0).all()


def test_fog_in_buffers_gets_longer_steps_and_a_surface_shorter_ones(monkeypatch):
    allow(monkeypatch, 5)
    rays, fog, ball = image_rays(16, 16, fovy=60.0), Ball(0.9, density=0.5), Ball(0.3, density=300.0, margin=0.03)
    path = path_of(fog, max_steps=1024, buffered=True)
    for seed in range(6):
        samples = path.render(fog, rays, RenderSettings(source="guided", random=Random(seed))).trace.samples
    assert 0 < samples.count.sum() <= 5 * len(rays)
    scale = int(path.log2_step_scale)
    path.render(fog, rays, RenderSettings(source="guided", random=Random(7)))
    assert scale > 0 and path.log2_step_scale == scale  # it has settled
    for seed in range(40):
        path.update(ball, torch.Generator().manual_seed(seed))
    for seed in range(scale + 2):
        path.render(ball, rays, RenderSettings(source="guided", random=Random(seed)))
    assert path.log2_step_scale < scale - 1


def test_training_in_buffers_continues_with_the_step_scale_of_a_checkpoint(monkeypatch):
    allow(monkeypatch, 10**6)
    field, rays = Tinted(density=30.0), image_rays(4, 4)
    path, other = path_of(field, buffered=True), path_of(field)
    path.render(field, rays, RenderSettings(source="guided"))
    other.log2_step_scale.fill_(2)
    path.load_state_dict(other.state_dict())
    samples = path.render(field, rays, RenderSettings(source="guided")).trace.samples
    assert samples.dt.max().item() == pytest.approx(2 * 3**0.5 / 64)


def random_rays(count, seed=0):
    """So many of the rays of an image, as independent ones."""
    rays = image_rays(32, 32, fovy=60.0)
    return rays[torch.randint(len(rays), (count,), generator=torch.Generator().manual_seed(seed))]


@pytest.mark.parametrize("buffered", [False, True])
def test_random_rays_in_fog_are_fewer_before_their_steps_are_longer(monkeypatch, buffered):
    monkeypatch.setattr(accelerated, "SAMPLE_BUDGET", {"cpu": (1024, 0)})
    fog = Ball(0.9, density=0.5)
    path, whole = path_of(fog, max_steps=64, buffered=buffered), path_of(fog, max_steps=64, buffered=buffered)
    asked, image = 256, image_rays(16, 16, fovy=60.0)
    for seed in range(40):
        settings = RenderSettings(source="photos", random=Random(seed))
        count = path.affordable_rays(asked)
        samples = path.render(fog, random_rays(count, seed), settings).trace.samples
        whole.render(fog, image, settings)
    assert 0.4 * asked <= count < asked and path.log2_step_scale == 0 < whole.log2_step_scale
    assert 0.6 * 1024 < samples.count.sum() < 1024
    assert whole.affordable_rays(asked) == asked  # the rays of whole images are as many as they are


def test_all_random_rays_come_back_once_the_fog_is_gone(monkeypatch):
    monkeypatch.setattr(accelerated, "SAMPLE_BUDGET", {"cpu": (4096, 0)})
    fog, ball = Ball(0.9, density=0.5), Ball(0.3, density=300.0, margin=0.03)
    path = path_of(fog, max_steps=256)
    for seed in range(10):
        path.render(fog, random_rays(path.affordable_rays(256)), RenderSettings(source="photos", random=Random(seed)))
    few = path.affordable_rays(256)
    path.grid.load_state_dict(path_of(ball).grid.state_dict())
    for seed in range(60):
        path.render(ball, random_rays(path.affordable_rays(256)), RenderSettings(source="photos", random=Random(seed)))
    assert few < 128 and path.affordable_rays(256) > 240 and path.log2_step_scale == 0


def test_a_resumed_path_takes_as_many_rays_as_one_that_went_on():
    path, other = path_of(Ball()), path_of(Ball())
    path.ray_share.fill_(0.3)
    other.affordable_rays(10)
    other.load_state_dict(path.state_dict())
    assert other.affordable_rays(1000) == 300


@pytest.mark.parametrize("used", [0.0, 0.1, 0.5, 0.79, 0.81, 1.0, 3.0])
@pytest.mark.parametrize("share", [0.25, 0.4, 1.0])
@pytest.mark.parametrize("scale", [0, 3])
def test_the_share_of_the_rays_stays_between_its_least_and_one_and_falls_at_once(used, share, scale):
    new_scale, new_share = accelerated.adapted(scale, share, used, least=0.25)
    assert new_scale in (scale, scale - 1) and new_scale >= 0
    assert 0.25 <= new_share <= 1.0
    if used > 0.8:
        assert new_share == max(0.25, 0.8 * share / used) if new_scale == scale else new_share <= share
    else:
        assert new_share >= 0.5 * share  # at half the step a ray has twice the samples
    assert accelerated.adapted(scale, share, used, least=None)[1] == share


def test_all_rays_are_kept_at_first_and_those_of_images_always():
    rays = random_rays(4)
    assert accelerated.least_rays(rays, RenderSettings(fraction=0.0)) == 1.0
    assert accelerated.least_rays(rays, RenderSettings(fraction=1.0)) == pytest.approx(accelerated.LEAST_RAY_SHARE)
    assert accelerated.least_rays(image_rays(2, 2), RenderSettings(fraction=1.0)) is None


def test_rays_that_are_not_finite_are_reported_when_the_next_part_begins(monkeypatch):
    path, field, rays = path_of(Ball(), buffered=True), Ball(), image_rays(4, 4)
    path.render(field, rays, RenderSettings(source="guided"))
    path._pending[0].need.result()[2] = 3  # a CPU refuses rays that are not finite at once; a GPU counts them
    with pytest.raises(ValueError, match="3 of 16 rays of the last part .guided. were not finite"):
        path.render(field, rays, RenderSettings(source="guided"))


@pytest.mark.parametrize("buffered", [False, True])
def test_a_density_that_is_nan_shows_in_the_image(buffered):
    field, rays = Ball(density=30.0), image_rays(5, 5)
    path = path_of(field, buffered=buffered)
    path.render(field, rays, RenderSettings(source="guided"))
    field.inside = float("nan")
    assert path.render(field, rays, RenderSettings(source="guided")).opacity.isnan().any()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="a host sync needs a GPU")
def test_training_in_buffers_has_no_host_sync():
    field, background = Tinted(density=30.0).cuda(), ConstantBackground().cuda()  # moving it later would be a wait
    near, far = image_rays(8, 8), image_rays(8, 8)
    path = path_of(Ball(density=30.0)).cuda()
    rays = [replace(r, **{k: getattr(r, k).cuda() for k in ("origins", "directions", "view_index")}) for r in (near, far)]
    learned(path, field, rays[0], RenderSettings(source="guided"), background)
    torch.cuda.set_sync_debug_mode("error")
    try:
        learned(path, field, rays[1], RenderSettings(source="guided"), background)
    finally:
        torch.cuda.set_sync_debug_mode("default")
