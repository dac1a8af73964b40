"""Rendering round by round gives what training's single pass gives, and finished rays leave the queue."""

import math

import pytest
import torch

import raymarching
from raymarching import RayQueue

BOUND, CASCADES, GRID = 2.0, 2, 16


def scene(device, n=60):
    """Rays towards a shell of fog, and its bitfield."""
    g = torch.Generator().manual_seed(0)
    origins = torch.nn.functional.normalize(torch.randn(n, 3, generator=g, dtype=torch.float64), dim=-1) * 4
    directions = torch.nn.functional.normalize(0.6 * torch.randn(n, 3, generator=g, dtype=torch.float64) - origins, dim=-1)
    origins, directions = origins.to(device), directions.to(device)
    cells = raymarching.morton3D_invert(torch.arange(GRID**3, dtype=torch.int32, device=device))
    grid = []
    for half in (1.0, 2.0):
        radius = ((cells + 0.5) / GRID * 2 * half - half).norm(dim=-1)
        grid.append(((radius > 0.4) & (radius < 1.1)).float())
    aabb = torch.tensor([-BOUND] * 3 + [BOUND] * 3, dtype=torch.float64, device=device)
    near, far = raymarching.near_far_from_aabb(origins, directions, aabb)
    return (origins, directions, near, far), raymarching.packbits(torch.stack(grid), 0.5)


def field(positions, dt):
    """A fog whose density and colour vary."""
    density = 6 * (1 + positions[:, 0].sin())
    return 1 - torch.exp(-density * dt), 0.5 + 0.5 * positions.cos()


@pytest.mark.parametrize("gamma", [0.0, 0.02])
@pytest.mark.parametrize("num_steps", [1, 7, 1000])
def test_rounds_of_any_length_equal_the_single_pass(device, num_steps, gamma):
    rays, bits = scene(device)
    options = {"dt_gamma": gamma, "max_steps": 128}
    positions, t, dt, _, first, count = raymarching.march_rays_train(*rays, bits, BOUND, CASCADES, GRID, None, **options)
    _, opacity, depth, image = raymarching.composite_rays_train(*field(positions, dt), t, first, count, 1e-2)
    queue = RayQueue.start(*rays)
    rounds = 0
    while len(queue):
        positions, t, dt, ray, first, count = raymarching.march_rays(queue, bits, BOUND, CASCADES, GRID, num_steps, **options)
        assert int(count.max()) <= num_steps
        assert torch.equal(ray, queue.alive.repeat_interleave(count))
        raymarching.composite_rays(queue, *field(positions, dt), t, first, count, 1e-2)
        rounds += 1
    assert bool((opacity > 0.5).any()) and rounds <= 128 * 4
    for got, want in ((queue.opacity, opacity), (queue.depth, depth), (queue.image, image)):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


def test_rays_that_miss_or_become_opaque_leave_the_queue(device):
    (origins, directions, near, far), bits = scene(device, 20)
    near[:5] = far[:5] = math.inf
    queue = RayQueue.start(origins, directions, near, far)
    assert queue.alive.tolist() == [n for n in range(20) if near[n] < far[n]]
    positions, t, _, ray, first, count = raymarching.march_rays(queue, bits, BOUND, CASCADES, GRID, 4)
    raymarching.composite_rays(queue, torch.ones_like(t), positions, t, first, count)
    assert len(queue) == 0
    assert queue.opacity.nonzero().flatten().tolist() == ray.unique().tolist()


def test_an_empty_queue_marches_nothing(device):
    rays, bits = scene(device, 3)
    queue = RayQueue.start(*(x[:0] for x in rays))
    assert len(queue) == 0
    out = raymarching.march_rays(queue, bits, BOUND, CASCADES, GRID, 4)
    assert [len(x) for x in out] == [0] * 6


def test_a_nan_alpha_shows_in_the_image(device):
    rays, bits = scene(device, 10)
    queue = RayQueue.start(*rays)
    positions, t, _, ray, first, count = raymarching.march_rays(queue, bits, BOUND, CASCADES, GRID, 4)
    alpha = torch.full_like(t, 0.1)
    alpha[0] = math.nan
    raymarching.composite_rays(queue, alpha, positions, t, first, count)
    broken = queue.opacity.isnan()
    assert broken.nonzero().flatten().tolist() == [int(ray[0])]


def test_bad_arguments_are_refused_with_a_sentence():
    rays, bits = scene("cpu", 4)
    queue = RayQueue.start(*rays)
    with pytest.raises(ValueError, match="num_steps must be at least 1"):
        raymarching.march_rays(queue, bits, BOUND, CASCADES, GRID, 0)
    positions, t, _, _, first, count = raymarching.march_rays(queue, bits, BOUND, CASCADES, GRID, 4)
    with pytest.raises(ValueError, match="rays alive"):
        raymarching.composite_rays(queue, t, positions, t, first[:1], count[:1])
    with pytest.raises(ValueError, match="with C = 3|C = 3"):
        raymarching.composite_rays(queue, t, positions[:, :2], t, first, count)
    with pytest.raises(ValueError, match="finite"):
        RayQueue.start(rays[0] * math.nan, *rays[1:])
