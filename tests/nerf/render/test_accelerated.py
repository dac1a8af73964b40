"""What the accelerated path spares, and that sparing changes no picture."""

import logging
from dataclasses import replace

import pytest
import torch
from torch import nn

from nerf.core.streams import Random
from nerf.core.structs import RenderSettings
from nerf.render import accelerated, visibility
from nerf.render.accelerated import AcceleratedPath
from raymarching import march_rays_train, near_far_from_aabb
from tests.nerf.analytic import Ball, image_rays

BOX = torch.tensor([-1.0, -1, -1, 1, 1, 1])


def path_of(field, max_steps=256, grid_size=32, buffered=None):
    path = AcceleratedPath(1.0, grid_size, 10.0, max_steps, dt_gamma=0.0, min_near=0.01, buffered=buffered)
    path.update(field, torch.Generator().manual_seed(0))
    return path


def allow(monkeypatch, samples):
    """Let a training part have so many samples a ray."""
    monkeypatch.setattr(accelerated, "SAMPLES", {"cpu": (0, samples)})


def test_a_survey_keeps_exactly_the_visible_samples_of_a_plain_march(monkeypatch):
    monkeypatch.setattr(visibility, "FIRST_ROUND", 3)  # many rounds, of different lengths
    field, rays, settings = Ball(0.5, density=25.0), image_rays(7, 9), RenderSettings(source="guided")
    grid = path_of(field).grid
    near, far = near_far_from_aabb(rays.origins, rays.directions, BOX, 0.01)
    seen, used = visibility.survey(field, visibility.March(rays, (near, far), grid, 0.0, 256), settings, 10**9)
    assert 0 < used < 1
    positions, t, dt, ray_index, first, count = march_rays_train(
        rays.origins, rays.directions, near, far, grid.bitfield, 1.0, 1, 32, None, 0.0, 256
    )
    inside = field.density(positions) > 0
    before = (inside * dt).cumsum(0) - inside * dt
    before = before - before[first.clamp(max=len(t) - 1)][ray_index]
    visible = inside & (torch.exp(-25.0 * before) > visibility.SEEN_LIGHT)
    torch.testing.assert_close(seen.t, t[visible])
    assert torch.equal(seen.ray_index, ray_index[visible])
    torch.testing.assert_close(seen.positions, positions[visible])


def test_what_is_left_out_is_a_thousandth_of_a_pixel(monkeypatch):
    allow(monkeypatch, 10**6)
    field, rays, settings = Ball(0.5, density=40.0), image_rays(8, 8), RenderSettings(source="guided", random=Random(4))
    path = path_of(field)
    short = path.trace(field, rays, settings)
    monkeypatch.setattr(visibility, "SEEN_LIGHT", 1e-9)
    monkeypatch.setattr(visibility, "SEEN_ALPHA", 0.0)
    full = path.trace(field, rays, settings)
    assert len(full.samples) > 1.5 * len(short.samples)
    torch.testing.assert_close(short.color, full.color, atol=2e-3, rtol=0)


def test_fog_is_marched_with_long_steps_and_a_surface_with_short_ones(monkeypatch):
    allow(monkeypatch, 5)
    rays, settings = image_rays(16, 16, fovy=60.0), RenderSettings(source="guided")
    fog, ball = Ball(0.9, density=0.5), Ball(0.3, density=300.0, margin=0.03)
    path = path_of(fog, max_steps=1024)
    samples = path.trace(fog, rays, settings).samples
    assert len(samples) <= 5 * len(rays) and path.doublings > 0
    path = path_of(ball, max_steps=1024)
    path.trace(ball, rays, settings)
    assert path.doublings == 0


def test_the_step_shortens_again_once_the_fog_has_cleared(monkeypatch):
    allow(monkeypatch, 5)
    rays = image_rays(16, 16, fovy=60.0)
    fog, ball = Ball(0.9, density=0.5), Ball(0.3, density=300.0, margin=0.03)
    path = path_of(fog, max_steps=1024)
    path.trace(fog, rays, RenderSettings(source="guided"))
    before = int(path.doublings)
    for seed in range(40):
        path.update(ball, torch.Generator().manual_seed(seed))
    for seed in range(before):
        path.trace(ball, rays, RenderSettings(source="guided", random=Random(seed)))
    assert before > 0 and path.doublings == 0


def test_long_steps_change_the_opacity_of_fog_little(monkeypatch):
    rays, fog = image_rays(16, 16, fovy=30.0), Ball(0.9, density=0.5)
    path = path_of(fog, max_steps=1024)
    allow(monkeypatch, 8)
    long = path.trace(fog, rays, RenderSettings(source="guided")).opacity
    allow(monkeypatch, 10**6)
    path.doublings.zero_()
    short = path.trace(fog, rays, RenderSettings(source="guided")).opacity
    # The ends of a ray through the fog fall into a step or not: at most two steps of 0.2, and on average none.
    assert (long - short).abs().max() < 0.15
    assert long.mean().item() == pytest.approx(short.mean().item(), abs=0.01)


def test_perturbed_samples_are_spread_over_the_step(monkeypatch):
    allow(monkeypatch, 10**6)
    field, rays = Ball(0.5, density=5.0), image_rays(20, 20, fovy=8.0)
    path = path_of(field)
    samples = path.trace(field, rays, RenderSettings(source="guided", random=Random(1))).samples
    near, _ = near_far_from_aabb(rays.origins, rays.directions, BOX, 0.01)
    place = ((samples.t - near[samples.ray_index]) / samples.dt)[samples.first] % 1.0
    assert torch.histc(place, bins=4, min=0, max=1).min() > 50


def test_evaluation_stops_behind_a_surface():
    field, rays = Ball(0.6, density=2000.0), image_rays(16, 16, fovy=8.0)
    path_of(field, max_steps=1024).trace(field, rays, RenderSettings(source="eval", training=False))
    assert field.asked < 0.35 * 256 * 1.2 / (2 * 3**0.5 / 1024)


# ---- training in buffers, as on a GPU ----


class Tinted(Ball):
    """A ball whose density and colour have a factor that is learned."""

    def __init__(self, **shape):
        super().__init__(**shape)
        self.gain = nn.Parameter(torch.ones(2))

    def query(self, points, settings):
        output = super().query(points, settings)
        return replace(output, density=self.gain[0] * output.density, albedo=self.gain[1] * output.albedo)


def learned(path, field, rays, settings):
    """What the path renders, and the gradient that a picture's loss has."""
    field.gain.grad = None
    trace = path.trace(field, rays, settings)
    (trace.color.square().sum() + trace.depth.sum() + (trace.weights * trace.samples.t).sum()).backward()
    return trace, field.gain.grad


def test_training_in_buffers_shows_and_teaches_what_counted_training_does(monkeypatch):
    allow(monkeypatch, 10**6)
    field, rays = Tinted(density=30.0), image_rays(7, 9)
    exact, buffered = path_of(field), path_of(field, buffered=True)
    for seed in range(3):  # the first part is counted before, the others rely on it
        settings = RenderSettings(source="guided", random=Random(seed), shading="normal")
        (a, grad_a), (b, grad_b) = (learned(path, field, rays, settings) for path in (exact, buffered))
        for name in ("color", "opacity", "depth", "normal"):
            torch.testing.assert_close(getattr(a, name), getattr(b, name))
        torch.testing.assert_close(grad_a, grad_b)
        m = len(a.samples)
        assert int(b.samples.count.sum()) == m and torch.equal(a.samples.first, b.samples.first)
        torch.testing.assert_close(b.samples.positions[:m], a.samples.positions)


def test_samples_that_fill_a_buffer_up_have_no_length_and_no_weight(monkeypatch):
    allow(monkeypatch, 10**6)
    field, rays = Tinted(density=30.0), image_rays(7, 9)
    trace, _ = learned(path_of(field, buffered=True), field, rays, RenderSettings(source="guided"))
    filled = slice(int(trace.samples.count.sum()), None)
    assert len(trace.samples.t[filled]) > 0
    assert (trace.samples.dt[filled] == 0).all() and (trace.weights[filled] == 0).all()


def test_what_does_not_fit_teaches_nothing_is_told_and_fits_the_next_time(monkeypatch, caplog):
    monkeypatch.setattr(visibility, "BLOCK", 64)
    allow(monkeypatch, 10**6)
    field, settings = Tinted(density=30.0), RenderSettings(source="guided")
    path, exact = path_of(field, buffered=True), path_of(field)
    far, near = image_rays(8, 8, fovy=120.0), image_rays(8, 8, fovy=20.0)
    learned(path, field, far, settings)
    with caplog.at_level(logging.INFO, "somnia.render"):
        trace, grad = learned(path, field, near, settings)
        assert int(trace.samples.count.sum()) < len(exact.trace(field, near, settings).samples)
        assert (grad == 0).all() and caplog.text == ""  # not known on the host before the next part begins
        trace, grad = learned(path, field, near, settings)
    assert "a part of guided needed room for" in caplog.text and "left out of training" in caplog.text
    expected, expected_grad = learned(exact, field, near, settings)
    torch.testing.assert_close(trace.color, expected.color)
    torch.testing.assert_close(grad, expected_grad)
    assert (grad != 0).all()


def test_capacity_follows_rays_and_steps_and_forgets_a_large_need_slowly():
    capacity = visibility.Capacity()
    assert not capacity.known
    capacity.learn(100_000, 10_000, rays=1000, steps=512)
    looked, seen = capacity.sizes(1000, 512)
    assert 125_000 <= looked < 125_000 + visibility.BLOCK and 12_500 <= seen < 12_500 + visibility.BLOCK
    assert capacity.sizes(4000, 256)[0] == pytest.approx(2 * looked, abs=2 * visibility.BLOCK)
    assert capacity.sizes(1000, 512, limit=5000) == (10_000, 5000)
    capacity.learn(0, 0, 1000, 512)
    assert capacity.sizes(1000, 512)[0] == pytest.approx(0.98 * looked, abs=visibility.BLOCK)
    capacity.learn(10**6, 10**6, 1000, 512)
    assert min(capacity.sizes(1000, 512)) >= 1_250_000


def test_buffers_of_each_source_have_their_own_size(monkeypatch):
    monkeypatch.setattr(visibility, "BLOCK", 64)
    allow(monkeypatch, 10**6)
    field = Tinted(density=30.0)
    path = path_of(field, buffered=True)
    wide, narrow = image_rays(8, 8, fovy=60.0), image_rays(8, 8, fovy=20.0)
    for seed in range(3):
        for source, rays in (("guided", wide), ("photos", narrow)):
            settings = RenderSettings(source=source, random=Random(seed))
            trace, grad = learned(path, field, rays, settings)
            torch.testing.assert_close(trace.opacity, path_of(field).trace(field, rays, settings).opacity)
            assert (grad != 0).all()


def test_fog_in_buffers_gets_longer_steps_and_a_surface_shorter_ones(monkeypatch):
    allow(monkeypatch, 5)
    rays, fog, ball = image_rays(16, 16, fovy=60.0), Ball(0.9, density=0.5), Ball(0.3, density=300.0, margin=0.03)
    path = path_of(fog, max_steps=1024, buffered=True)
    for seed in range(6):
        samples = path.trace(fog, rays, RenderSettings(source="guided", random=Random(seed))).samples
    assert 0 < samples.count.sum() <= 5 * len(rays)
    doubled = int(path.doublings)
    path.trace(fog, rays, RenderSettings(source="guided", random=Random(7)))
    assert doubled > 0 and path.doublings == doubled  # it has settled
    for seed in range(40):
        path.update(ball, torch.Generator().manual_seed(seed))
    for seed in range(doubled + 2):
        path.trace(ball, rays, RenderSettings(source="guided", random=Random(seed)))
    assert path.doublings < doubled - 1


def test_doublings_of_a_checkpoint_are_those_that_training_in_buffers_goes_on_with(monkeypatch):
    allow(monkeypatch, 10**6)
    field, rays = Tinted(density=30.0), image_rays(4, 4)
    path, other = path_of(field, buffered=True), path_of(field)
    path.trace(field, rays, RenderSettings(source="guided"))
    other.doublings.fill_(2)
    path.load_state_dict(other.state_dict())
    samples = path.trace(field, rays, RenderSettings(source="guided")).samples
    assert samples.dt.max().item() == pytest.approx(2 * 3**0.5 / 64)


def test_rays_that_are_not_finite_are_told_when_the_next_part_begins(monkeypatch):
    path, field, rays = path_of(Ball(), buffered=True), Ball(), image_rays(4, 4)
    path.trace(field, rays, RenderSettings(source="guided"))
    path._pending[0].need[2] = 3  # on a CPU broken rays are refused at the door; a GPU counts them
    with pytest.raises(ValueError, match="3 of 16 rays of the last part .guided. were not finite"):
        path.trace(field, rays, RenderSettings(source="guided"))


@pytest.mark.parametrize("buffered", [False, True])
def test_a_density_that_is_not_a_number_shows_in_the_picture(buffered):
    field, rays = Ball(density=30.0), image_rays(5, 5)
    path = path_of(field, buffered=buffered)
    path.trace(field, rays, RenderSettings(source="guided"))
    field.inside = float("nan")
    assert path.trace(field, rays, RenderSettings(source="guided")).opacity.isnan().any()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="only a GPU can be waited for, and there is none here")
def test_training_in_buffers_waits_for_no_gpu():
    field = Tinted(density=30.0).cuda()
    near, far = image_rays(8, 8), image_rays(8, 8)
    path = path_of(Ball(density=30.0)).cuda()
    rays = [replace(r, **{k: getattr(r, k).cuda() for k in ("origins", "directions", "view_index")}) for r in (near, far)]
    learned(path, field, rays[0], RenderSettings(source="guided"))
    torch.cuda.set_sync_debug_mode("error")
    try:
        learned(path, field, rays[1], RenderSettings(source="guided"))
    finally:
        torch.cuda.set_sync_debug_mode("default")
