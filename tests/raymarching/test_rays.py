"""Intersections and cell codes: closed forms, inverses and refusals."""

import math

import pytest
import torch

import extension
import raymarching


def random_rays(n, device, seed=0):
    g = torch.Generator().manual_seed(seed)
    origins = 4 * torch.rand(n, 3, generator=g, dtype=torch.float64) - 2
    directions = torch.nn.functional.normalize(torch.randn(n, 3, generator=g, dtype=torch.float64), dim=-1)
    return origins.to(device), directions.to(device)


def unit_box(device):
    return torch.tensor([-1.0, -1, -1, 1, 1, 1], dtype=torch.float64, device=device)


def test_rays_enter_and_leave_on_the_surface_of_the_box(device):
    origins, directions = random_rays(200, device)
    near, far = raymarching.near_far_from_aabb(origins, directions, unit_box(device), 0.0)
    hit = near.isfinite()
    assert 20 < int(hit.sum()) < 200
    for t in (near, far):
        surface = (origins + t[:, None] * directions).abs().amax(-1)
        on_it = hit & (t > 0)
        torch.testing.assert_close(surface[on_it], torch.ones_like(surface[on_it]))
    middle = (origins + 0.5 * (near + far)[:, None] * directions)[hit]
    assert bool((middle.abs() < 1).all())


def test_a_ray_that_misses_has_near_and_far_at_infinity(device):
    origins = torch.tensor([[0.0, 0, 3], [0, 2, 0], [0, 0, 3]], device=device)
    directions = torch.tensor([[0.0, 0, 1], [1, 0, 0], [0, 1, 0]], device=device)
    near, far = raymarching.near_far_from_aabb(origins, directions, unit_box(device).float())
    assert near.tolist() == far.tolist() == [math.inf] * 3


def test_near_is_never_below_min_near_and_a_box_before_it_is_missed(device):
    origins = torch.tensor([[0.0, 0, 0], [0, 0, 0.9]], device=device)
    directions = torch.tensor([[0.0, 0, 1], [0, 0, 1]], device=device)
    near, far = raymarching.near_far_from_aabb(origins, directions, unit_box(device).float(), 0.5)
    assert near.tolist() == [0.5, math.inf] and far.tolist() == [1.0, math.inf]


def test_a_ray_that_is_not_finite_gets_nan(device):
    origins = torch.tensor([[0.0, math.nan, 3], [0, 0, 3]], device=device)
    directions = torch.tensor([[0.0, 0, -1], [0, 0, -1]], device=device)
    near, far = raymarching.near_far_from_aabb(origins, directions, unit_box(device).float())
    assert bool(near[0].isnan() & far[0].isnan()) and near[1] == 2 and far[1] == 4


def test_intersections_equal_the_reference(native):
    origins, directions = random_rays(100, native)
    directions[:10, 1] = 0
    results = []
    for name in (extension.requested(), "torch"):
        with extension.scope(name):
            results.append((*raymarching.near_far_from_aabb(origins, directions, unit_box(native)),
                            raymarching.sph_from_ray(0.4 * origins, directions, 3.0)))  # fmt: skip
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


def test_sphere_angles_are_those_of_the_far_hit(device):
    directions = torch.tensor([[0.0, 1, 0], [0, -1, 0], [1, 0, 0], [0, 0, 1]], device=device)
    coords = raymarching.sph_from_ray(torch.zeros_like(directions), directions, 2.0)
    torch.testing.assert_close(coords[:2, 0], torch.tensor([-1.0, 1.0], device=device))
    torch.testing.assert_close(coords[2:], torch.tensor([[0.0, 0.0], [0.0, 0.5]], device=device))


def test_morton_decode_inverts_encode(device):
    coords = torch.randint(0, 1024, (500, 3), dtype=torch.int32, generator=torch.Generator().manual_seed(0)).to(device)
    codes = raymarching.morton3D(coords)
    assert torch.equal(raymarching.morton3D_invert(codes), coords)
    assert int(raymarching.morton3D(torch.full_like(coords[:1], 1023))) == 2**30 - 1


def test_morton_codes_of_the_unit_steps_are_one_two_and_four(device):
    assert raymarching.morton3D(torch.eye(3, dtype=torch.int32, device=device)).tolist() == [1, 2, 4]


def test_packed_bits_are_the_comparison_with_the_threshold_and_nan_counts_as_above(device):
    grid = torch.randn(2, 64, generator=torch.Generator().manual_seed(0)).to(device)
    grid[1, 5] = math.nan
    bits = raymarching.packbits(grid, 0.3)
    unpacked = (bits[:, None].int() >> torch.arange(8, device=device)) & 1
    assert torch.equal(unpacked.reshape(2, 64).bool(), ~(grid <= 0.3))


def test_flattened_rays_repeat_each_ray_by_its_count(device):
    count = torch.tensor([2, 0, 3], device=device)
    assert raymarching.flatten_rays(count, 5).tolist() == [0, 0, 2, 2, 2]


@pytest.mark.parametrize(
    ("call", "error", "sentence"),
    [
        (lambda: raymarching.morton3D(torch.full((2, 3), 1024, dtype=torch.int32)), ValueError, "maximum of 1024"),
        (lambda: raymarching.morton3D(torch.full((2, 3), -1, dtype=torch.int32)), ValueError, "minimum of -1"),
        (lambda: raymarching.morton3D(torch.zeros(2, 3)), TypeError, "torch.int32"),
        (lambda: raymarching.packbits(torch.zeros(1, 63), 0.0), ValueError, "multiple of 8"),
        (lambda: raymarching.packbits(torch.zeros(64), 0.0), ValueError, r"expected grid \[C, H\^3\]"),
        (lambda: raymarching.flatten_rays(torch.tensor([1, 2]), 4), ValueError, "sums to 3"),
        (lambda: raymarching.sph_from_ray(torch.zeros(1, 3), torch.ones(1, 3), 0.0), ValueError, "radius"),
        (
            lambda: raymarching.near_far_from_aabb(torch.zeros(2, 3), torch.zeros(3, 3), torch.zeros(6)),
            ValueError,
            "N = 2",
        ),
    ],
)
def test_bad_arguments_are_refused_with_a_sentence(call, error, sentence):
    with pytest.raises(error, match=sentence):
        call()
