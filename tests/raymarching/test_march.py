"""The march samples exactly the occupied steps of each ray's lattice, in a fixed order, on every backend."""

import math

import pytest
import torch

import extension
import raymarching
from raymarching import reference


def sphere_rays(n, device, dtype=torch.float64, seed=0, distance=2.5):
    """n rays from points on a sphere towards points near the origin."""
    g = torch.Generator().manual_seed(seed)
    origins = torch.nn.functional.normalize(torch.randn(n, 3, generator=g, dtype=torch.float64), dim=-1) * distance
    targets = 1.2 * torch.rand(n, 3, generator=g, dtype=torch.float64) - 0.6
    directions = torch.nn.functional.normalize(targets - origins, dim=-1)
    return origins.to(device, dtype), directions.to(device, dtype)


def box(bound, like):
    """aabb of [-bound, bound]^3."""
    return torch.tensor([-bound] * 3 + [bound] * 3, dtype=like.dtype, device=like.device)


def random_bits(cascades, grid_size, share, device, seed=1):
    """A bitfield with blobs: whole empty and whole full blocks of several sizes, and single cells."""
    g = torch.Generator().manual_seed(seed)
    grid = torch.rand(cascades, grid_size**3, generator=g) < share
    for size in (8, 64, 512):
        if grid_size**3 >= 4 * size:
            blocks = grid.reshape(-1, size)
            pick = torch.rand(len(blocks), generator=g)
            blocks[pick < 0.2] = True
            blocks[pick > 0.5] = False
    return raymarching.packbits(grid.float().to(device), 0.5)


def march(origins, directions, bits, bound, cascades, grid_size, min_near=0.1, noise=None, **options):
    near, far = raymarching.near_far_from_aabb(origins, directions, box(bound, origins), min_near)
    return raymarching.march_rays_train(origins, directions, near, far, bits, bound, cascades, grid_size, noise, **options)


SCENES = [
    {"bound": 1.0, "cascades": 1, "grid_size": 32, "max_steps": 256},
    {"bound": 1.0, "cascades": 1, "grid_size": 4, "max_steps": 128},
    {"bound": 1.0, "cascades": 1, "grid_size": 8, "max_steps": 128},
    {"bound": 0.6, "cascades": 1, "grid_size": 16, "max_steps": 200},
    {"bound": 4.0, "cascades": 3, "grid_size": 32, "max_steps": 128},
    {"bound": 3.0, "cascades": 3, "grid_size": 16, "max_steps": 128},
    {"bound": 4.0, "cascades": 3, "grid_size": 32, "max_steps": 512, "dt_gamma": 1 / 64},
    {"bound": 6.0, "cascades": 4, "grid_size": 16, "max_steps": 512, "dt_gamma": 1 / 16},
    {"bound": 1.0, "cascades": 1, "grid_size": 32, "max_steps": 256, "dt_gamma": 1 / 32},
]


@pytest.mark.parametrize("share", [0.02, 0.6])
@pytest.mark.parametrize("scene", SCENES)
def test_march_equals_the_dense_reference(native, scene, share):
    scene = dict(scene)
    bits = random_bits(scene["cascades"], scene["grid_size"], share, native)
    origins, directions = sphere_rays(150, native, distance=1.5 * scene["bound"])
    origins[:20] *= 0.1  # some from inside
    noise = torch.rand(150, dtype=torch.float64, generator=torch.Generator().manual_seed(3)).to(native)
    bound, cascades, size = (scene.pop(k) for k in ("bound", "cascades", "grid_size"))
    got = march(origins, directions, bits, bound, cascades, size, noise=noise, **scene)
    with extension.scope("torch"):
        want = march(origins, directions, bits, bound, cascades, size, noise=noise, **scene)
    assert want[0].shape[0] > 100
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_march_never_samples_an_empty_cell_and_misses_no_occupied_one(device):
    bits = random_bits(1, 16, 0.3, device)
    origins, directions = sphere_rays(100, device)
    positions, *_ = march(origins, directions, bits, 1.0, 1, 16, max_steps=300)
    all_positions, *_, count = march(origins, directions, torch.full_like(bits, 255), 1.0, 1, 16, max_steps=300)

    def set_bits(x):
        cell = ((x + 1) * 8).int().clamp(0, 15)
        code = raymarching.morton3D(cell).long()
        return ((bits[code >> 3] >> (code & 7).to(torch.uint8)) & 1).bool()

    assert bool(set_bits(positions).all())
    assert int(set_bits(all_positions).sum()) == len(positions)
    assert int(count.sum()) == len(all_positions)


def test_an_empty_bitfield_has_no_samples(device):
    origins, directions = sphere_rays(10, device)
    bits = torch.zeros(16**3 // 8, dtype=torch.uint8, device=device)
    positions, t, dt, ray_index, first, count = march(origins, directions, bits, 1.0, 1, 16)
    assert positions.shape == (0, 3) and t.shape == dt.shape == ray_index.shape == (0,)
    assert count.tolist() == first.tolist() == [0] * 10


def test_no_rays_have_no_samples(device):
    origins = torch.zeros(0, 3, device=device)
    out = march(origins, origins, torch.full((64,), 255, dtype=torch.uint8, device=device), 1.0, 1, 8)
    assert [len(x) for x in out] == [0] * 6


def test_samples_lie_on_their_ray_in_order_and_within_near_and_far(device):
    origins, directions = sphere_rays(60, device, torch.float32)
    near, far = raymarching.near_far_from_aabb(origins, directions, box(1.0, origins), 1.7)
    bits = random_bits(1, 32, 0.5, device)
    positions, t, dt, ray, first, count = raymarching.march_rays_train(origins, directions, near, far, bits, 1.0, 1, 32, None)
    torch.testing.assert_close(positions, origins[ray] + t[:, None] * directions[ray], rtol=0, atol=1e-6)
    assert bool((t >= near[ray]).all()) and bool((t <= far[ray]).all()) and bool((dt > 0).all())
    assert torch.equal(ray, raymarching.flatten_rays(count, len(t)))
    assert torch.equal(first, count.cumsum(0) - count)
    assert bool(((t.diff() > 0) | (ray.diff() > 0)).all())


def test_the_step_is_dt_min_without_growth_and_grows_with_distance_up_to_dt_max(device):
    origin = torch.tensor([[0.0, 0.0, 8.0]], dtype=torch.float64, device=device)
    direction = torch.tensor([[0.0, 0.0, -1.0]], dtype=torch.float64, device=device)
    bits = torch.full((4 * 64,), 255, dtype=torch.uint8, device=device)
    low, high = raymarching.step_sizes(8.0, 512, 8)
    assert low == pytest.approx(2 * math.sqrt(3) / 512)
    _, _, dt, *_ = march(origin, direction, bits, 8.0, 4, 8, max_steps=512)
    torch.testing.assert_close(dt, torch.full_like(dt, low))
    _, t, dt, *_ = march(origin, direction, bits, 8.0, 4, 8, max_steps=512, dt_gamma=0.05)
    want = (t * 0.05).clamp(low, high)
    torch.testing.assert_close(dt, want, rtol=0.03, atol=0)  # t is the middle; the law holds at the beginning


def test_steps_cover_the_ray_without_gaps(device):
    origins, directions = sphere_rays(20, device)
    bits = torch.full((16**3 // 8,), 255, dtype=torch.uint8, device=device)
    for gamma in (0.0, 0.02):
        _, t, dt, ray, *_ = march(origins, directions, bits, 1.0, 1, 16, dt_gamma=gamma)
        same = ray.diff() == 0
        gaps = ((t - dt / 2)[1:] - (t + dt / 2)[:-1])[same]
        torch.testing.assert_close(gaps, torch.zeros_like(gaps), atol=1e-9, rtol=0)


def test_noise_moves_the_first_sample_through_the_first_step(device):
    origins = torch.tensor([[0.0, 0.0, 3.0]] * 3, dtype=torch.float64, device=device)
    directions = torch.tensor([[0.0, 0.0, -1.0]] * 3, dtype=torch.float64, device=device)
    bits = torch.full((64,), 255, dtype=torch.uint8, device=device)
    noise = torch.tensor([0.25, 0.5, 0.99], dtype=torch.float64, device=device)
    _, t, dt, _, first, _ = march(origins, directions, bits, 1.0, 1, 8, noise=noise)
    torch.testing.assert_close(t[first], 2.0 + noise * dt[0])


def test_rays_along_axes_and_cell_faces_are_sampled(device):
    origins = torch.tensor([[0.0, 0.0, 3.0], [3.0, 0.25, 0.0], [0.5, -3.0, 1.0]], device=device)
    directions = torch.tensor([[0.0, 0.0, -1.0], [-1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], device=device)
    bits = torch.full((64,), 255, dtype=torch.uint8, device=device)
    *_, count = march(origins, directions, bits, 1.0, 1, 8, max_steps=100)
    expected = round(2 / raymarching.step_sizes(1.0, 100, 8)[0])
    assert all(abs(c - expected) <= 1 for c in count.tolist())


def test_a_capacity_keeps_whole_rays_first_and_counts_what_was_needed(device):
    origins, directions = sphere_rays(40, device)
    bits = torch.full((64,), 255, dtype=torch.uint8, device=device)
    full = march(origins, directions, bits, 1.0, 1, 8, max_steps=64)
    total = len(full[0])
    raymarching.clear_overflow(device)
    roomy = march(origins, directions, bits, 1.0, 1, 8, max_steps=64, capacity=total + 7)
    assert raymarching.overflow(device).tolist() == [0, 0]
    assert all(torch.equal(a[:total], b) for a, b in zip(roomy[:4], full[:4], strict=True))
    assert not bool(roomy[2][total:].any())
    tight = march(origins, directions, bits, 1.0, 1, 8, max_steps=64, capacity=total - 5)
    assert raymarching.overflow(device).tolist() == [total, 0]
    assert len(tight[0]) == int(tight[5].sum()) == total - 5
    assert all(torch.equal(a, b[: total - 5]) for a, b in zip(tight[:4], full[:4], strict=True))
    raymarching.clear_overflow(device)


def test_one_and_two_threads_give_the_same_bits(native):
    origins, directions = sphere_rays(500, native, torch.float32)
    bits = random_bits(1, 32, 0.3, native)
    results = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(march(origins, directions, bits, 1.0, 1, 32, dt_gamma=0.01))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("where", ["origins", "directions", "near", "far", "noise"])
def test_a_ray_that_is_not_finite_is_refused(where):
    origins, directions = sphere_rays(5, "cpu")
    tensors = {"origins": origins, "directions": directions}
    tensors |= {"near": torch.ones(5).double(), "far": torch.ones(5).double() * 3, "noise": torch.zeros(5).double()}
    tensors[where].view(5, -1)[3, 0] = float("nan")
    for name in ("auto", "taichi", "torch"):
        with extension.scope(name), pytest.raises(ValueError, match="ray 3"):
            raymarching.march_rays_train(
                *(tensors[k] for k in ("origins", "directions", "near", "far")),
                torch.full((64,), 255, dtype=torch.uint8), 1.0, 1, 8, tensors["noise"],
            )  # fmt: skip


@pytest.mark.parametrize(
    ("change", "error", "sentence"),
    [
        ({"grid_size": 12}, ValueError, "power of two"),
        ({"bound": 4.0}, ValueError, "needs 3 cascades"),
        ({"bound": -1.0}, ValueError, "bound must be positive"),
        ({"near": torch.zeros(4)}, ValueError, r"expected near \[N\] with N = 5, got \[4\]"),
        ({"far": torch.zeros(5, dtype=torch.float64)}, TypeError, "convert one"),
        ({"bitfield": torch.zeros(63, dtype=torch.uint8)}, ValueError, "expected bitfield"),
        ({"bitfield": torch.zeros(64)}, TypeError, "torch.uint8"),
        ({"origins": torch.zeros(5, 3, dtype=torch.float16)}, TypeError, "float32 or float64"),
        ({"origins": [0, 0, 0]}, TypeError, "to be a tensor"),
        ({"directions": torch.zeros(5, 3, device="meta")}, ValueError, "is on meta"),
        ({"dt_gamma": -0.1}, ValueError, "dt_gamma"),
        ({"max_steps": 0}, ValueError, "max_steps"),
        ({"capacity": -1}, ValueError, "capacity"),
    ],
)
def test_bad_arguments_are_refused_with_a_sentence(change, error, sentence):
    arguments = {
        "origins": torch.zeros(5, 3), "directions": torch.ones(5, 3), "near": torch.zeros(5), "far": torch.ones(5),
        "bitfield": torch.zeros(64, dtype=torch.uint8), "bound": 1.0, "cascades": 1, "grid_size": 8, "noise": None,
    }  # fmt: skip
    with pytest.raises(error, match=sentence):
        raymarching.march_rays_train(**(arguments | change))


def test_the_reference_keeps_the_lattice_of_growing_steps_continuous():
    near = torch.tensor([0.1], dtype=torch.float64)
    t, dt = reference.lattice(near, None, torch.arange(200), 0.02, 0.01, 0.05)
    torch.testing.assert_close((t + dt / 2)[:, :-1], (t - dt / 2)[:, 1:])
    assert float(dt.min()) > 0.0099 and float(dt.max()) < 0.0501
