"""What the accelerated path spares, and that sparing changes no picture."""

import pytest
import torch

from nerf.render import accelerated, survey
from nerf.render.accelerated import AcceleratedPath
from nerf.structs import Part
from raymarching import march_rays_train, near_far_from_aabb
from tests.nerf.analytic import Ball, image_rays

BOX = torch.tensor([-1.0, -1, -1, 1, 1, 1])


def path_of(field, max_steps=256, grid_size=32):
    path = AcceleratedPath(1.0, grid_size, 10.0, max_steps, dt_gamma=0.0, min_near=0.01)
    path.update(field, torch.Generator().manual_seed(0))
    return path


def allow(monkeypatch, samples):
    """Let a training part have so many samples a ray."""
    monkeypatch.setattr(accelerated, "SAMPLES", {"cpu": (0, samples)})


def test_a_survey_keeps_exactly_the_visible_samples_of_a_plain_march(monkeypatch):
    monkeypatch.setattr(survey, "FIRST_ROUND", 3)  # many rounds, of different lengths
    field, rays, part = Ball(0.5, density=25.0), image_rays(7, 9), Part(source="guided")
    grid = path_of(field).grid
    near, far = near_far_from_aabb(rays.origins, rays.directions, BOX, 0.01)
    seen, used = survey.survey(field, rays, part, (near, far), grid, (0.0, 256), 10**9)
    assert 0 < used < 1
    positions, t, dt, ray_index, first, count = march_rays_train(
        rays.origins, rays.directions, near, far, grid.bitfield, 1.0, 1, 32, None, 0.0, 256
    )
    inside = field.density(positions) > 0
    before = (inside * dt).cumsum(0) - inside * dt
    before = before - before[first.clamp(max=len(t) - 1)][ray_index]
    visible = inside & (torch.exp(-25.0 * before) > survey.SEEN_LIGHT)
    torch.testing.assert_close(seen.t, t[visible])
    assert torch.equal(seen.ray_index, ray_index[visible])
    torch.testing.assert_close(seen.positions, positions[visible])


def test_what_is_left_out_is_a_thousandth_of_a_pixel(monkeypatch):
    allow(monkeypatch, 10**6)
    field, rays, part = Ball(0.5, density=40.0), image_rays(8, 8), Part(source="guided", seed=4)
    path = path_of(field)
    short = path.trace(field, rays, part)
    monkeypatch.setattr(survey, "SEEN_LIGHT", 1e-9)
    monkeypatch.setattr(survey, "SEEN_ALPHA", 0.0)
    full = path.trace(field, rays, part)
    assert len(full.samples) > 1.5 * len(short.samples)
    torch.testing.assert_close(short.color, full.color, atol=2e-3, rtol=0)


def test_fog_is_marched_with_long_steps_and_a_surface_with_short_ones(monkeypatch):
    allow(monkeypatch, 5)
    rays, part = image_rays(16, 16, fovy=60.0), Part(source="guided")
    fog, ball = Ball(0.9, density=0.5), Ball(0.3, density=300.0, margin=0.03)
    path = path_of(fog, max_steps=1024)
    samples = path.trace(fog, rays, part).samples
    assert len(samples) <= 5 * len(rays) and path.doublings > 0
    path = path_of(ball, max_steps=1024)
    path.trace(ball, rays, part)
    assert path.doublings == 0


def test_the_step_shortens_again_once_the_fog_has_cleared(monkeypatch):
    allow(monkeypatch, 5)
    rays = image_rays(16, 16, fovy=60.0)
    fog, ball = Ball(0.9, density=0.5), Ball(0.3, density=300.0, margin=0.03)
    path = path_of(fog, max_steps=1024)
    path.trace(fog, rays, Part(source="guided"))
    before = int(path.doublings)
    for seed in range(40):
        path.update(ball, torch.Generator().manual_seed(seed))
    for seed in range(before):
        path.trace(ball, rays, Part(source="guided", seed=seed))
    assert before > 0 and path.doublings == 0


def test_long_steps_change_the_opacity_of_fog_little(monkeypatch):
    rays, fog = image_rays(16, 16, fovy=30.0), Ball(0.9, density=0.5)
    path = path_of(fog, max_steps=1024)
    allow(monkeypatch, 8)
    long = path.trace(fog, rays, Part(source="guided")).opacity
    allow(monkeypatch, 10**6)
    path.doublings.zero_()
    short = path.trace(fog, rays, Part(source="guided")).opacity
    # The ends of a ray through the fog fall into a step or not: at most two steps of 0.2, and on average none.
    assert (long - short).abs().max() < 0.15
    assert long.mean().item() == pytest.approx(short.mean().item(), abs=0.01)


def test_perturbed_samples_are_spread_over_the_step(monkeypatch):
    allow(monkeypatch, 10**6)
    field, rays = Ball(0.5, density=5.0), image_rays(20, 20, fovy=8.0)
    path = path_of(field)
    samples = path.trace(field, rays, Part(source="guided", seed=1)).samples
    near, _ = near_far_from_aabb(rays.origins, rays.directions, BOX, 0.01)
    place = ((samples.t - near[samples.ray_index]) / samples.dt)[samples.first] % 1.0
    assert torch.histc(place, bins=4, min=0, max=1).min() > 50


def test_evaluation_stops_behind_a_surface():
    field, rays = Ball(0.6, density=2000.0), image_rays(16, 16, fovy=8.0)
    path_of(field, max_steps=1024).trace(field, rays, Part(source="eval", training=False))
    assert field.asked < 0.35 * 256 * 1.2 / (2 * 3**0.5 / 1024)
