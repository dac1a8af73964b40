"""The grid encoder against its reference, against finite differences and what must hold of any interpolation."""

import itertools

import pytest
import torch

import extension
from gridencoder import (
    GridEncoder,
    GridLayout,
    encode,
    encode_with_jacobian,
    encode_with_pullback,
    reference,
    total_variation,
)
from tests.helpers.rounding import ANY_ORDER

CASES = list(itertools.product((2, 3, 4), ("hash", "tiled"), ("linear", "smoothstep"), (False, True)))
FEATURES = {2: 1, 3: 2, 4: 4}
BOUND = 1.5


def make(dims=3, gridtype="hash", interpolation="smoothstep", align=False, features=None, device="cpu", points=7, levels=3):
    """A small float64 case whose finest levels are hashed or tiled, with some points outside the box."""
    torch.manual_seed(0)
    features = features or FEATURES[dims]
    layout = GridLayout(dims, levels, features, 3, 11, 6, gridtype, interpolation, align)
    table = torch.randn(layout.rows, features, dtype=torch.float64).to(device).requires_grad_()
    positions = (2 * torch.rand(points, dims, dtype=torch.float64) - 1) * BOUND * 1.1
    return positions.to(device).requires_grad_(), table, layout


@pytest.mark.parametrize("case", CASES)
def test_encode_equals_reference(case, device):
    positions, table, layout = make(*case, device=device, points=300)
    ours, twin = encode(positions, table, layout, BOUND), reference.encode(positions, table, layout, BOUND, 3)
    torch.testing.assert_close(ours, twin)
    cotangent = torch.randn_like(ours)
    for got, wanted in zip(*(torch.autograd.grad(y, (positions, table), cotangent) for y in (ours, twin)), strict=True):
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("case", CASES)
def test_encode_gradcheck_and_gradgradcheck(case, device):
    positions, table, layout = make(*case, device=device, points=3)

    def function(x, t):
        return encode(x, t, layout, BOUND)

    assert torch.autograd.gradcheck(function, (positions, table), fast_mode=True, nondet_tol=ANY_ORDER)
    assert torch.autograd.gradgradcheck(function, (positions, table), fast_mode=True, nondet_tol=ANY_ORDER)


def test_a_table_at_an_odd_place_of_a_larger_tensor_reaches_the_kernels_aligned(device, monkeypatch):
    positions, table, layout = make(device=device, features=2, points=30)
    positions, table = positions.detach().float().requires_grad_(), table.detach().float()
    whole = torch.cat([table.new_zeros(1), table.reshape(-1)]).requires_grad_()
    addresses = []
    run = extension.Kernels.run
    tensors = {"positions", "table", "grad_values", "known_jacobian"}

    def recorded(self, *arguments, **values):
        addresses.extend(values[k].data_ptr() for k in tensors & values.keys())
        run(self, *arguments, **values)

    monkeypatch.setattr(extension.Kernels, "run", recorded)
    view = whole[1:].view_as(table)
    assert view.is_contiguous() and view.data_ptr() % 8 == 4
    ours, twin = (encode(positions, t, layout, BOUND) for t in (view, table))
    assert torch.equal(ours, twin)
    ours.sum().backward()
    assert whole.grad[1:].abs().sum() > 0 and len(addresses) > 4 and all(address % 16 == 0 for address in addresses)


@pytest.mark.parametrize("features", [1, 2, 4, 8])
def test_every_number_of_features_equals_reference(features, device):
    positions, table, layout = make(features=features, device=device)
    values, jacobian = encode_with_jacobian(positions, table, layout, BOUND)
    twin_values, twin_jacobian = reference.encode_with_jacobian(positions, table, layout, BOUND, 3)
    torch.testing.assert_close(values, twin_values)
    torch.testing.assert_close(jacobian, twin_jacobian)


@pytest.mark.parametrize("align", [False, True])
def test_the_jacobian_is_the_derivative_of_the_values(align, device):
    positions, table, layout = make(align=align, device=device, points=30)
    values, jacobian = reference.encode_with_jacobian(positions, table, layout, BOUND, 3)
    for column in range(layout.output_dim):
        wanted = torch.autograd.grad(values[:, column].sum(), positions, retain_graph=True)[0]
        torch.testing.assert_close(jacobian[:, :, column], wanted)


@pytest.mark.parametrize("interpolation", ["linear", "smoothstep"])
def test_jacobian_gradcheck(interpolation, device):
    positions, table, layout = make(interpolation=interpolation, device=device, points=4)

    def function(x, t):
        return encode_with_jacobian(x, t, layout, BOUND)[1]

    assert torch.autograd.gradcheck(function, (positions, table), nondet_tol=ANY_ORDER)


def test_a_loss_on_the_normal_gives_the_table_the_same_gradient_by_both_ways(device):
    positions, table, layout = make(device=device, points=20)
    head = torch.randn(layout.output_dim, dtype=torch.float64, device=device)
    by_autograd = torch.autograd.grad(
        encode(positions, table, layout, BOUND).sin() @ head,
        positions,
        torch.ones(20, dtype=torch.float64, device=device),
        create_graph=True,
    )[0]
    values, pullback = encode_with_pullback(positions.detach(), table, layout, BOUND)
    by_pullback = pullback(values.cos() * head)
    torch.testing.assert_close(by_autograd, by_pullback)
    both = [torch.autograd.grad(n.square().sum(), table)[0] for n in (by_autograd, by_pullback)]
    torch.testing.assert_close(*both)


@pytest.mark.parametrize("features", [1, 2, 4])
def test_the_pullback_of_a_gradient_is_the_jacobian_times_it_with_its_gradients(features, device):
    positions, table, layout = make(features=features, device=device, points=5)
    gradient = torch.randn(5, layout.output_dim, dtype=torch.float64, device=device, requires_grad=True)
    jacobian = encode_with_jacobian(positions, table, layout, BOUND, 0.5)[1]

    def function(x, t, g):
        return encode_with_pullback(x, t, layout, BOUND, 0.5)[1](g)

    torch.testing.assert_close(function(positions, table, gradient), (jacobian * gradient[:, None]).sum(dim=2))
    assert torch.autograd.gradcheck(function, (positions, table, gradient), nondet_tol=ANY_ORDER)


def test_a_constant_table_encodes_every_point_of_the_box_to_that_constant(device):
    positions, table, layout = make(device=device, points=200)
    positions = positions.detach().clamp(-BOUND, BOUND)
    torch.testing.assert_close(
        encode(positions, torch.full_like(table, 0.7), layout, BOUND),
        torch.full_like(positions[:, :1], 0.7).expand(-1, 6),
    )


@pytest.mark.parametrize("align", [False, True])
def test_faces_of_the_box_are_inside_and_what_is_beyond_is_zero(align, device):
    _, table, layout = make(align=align, device=device)
    at = torch.tensor([[1.0, -1, 1], [1.0001, 0, 0], [0, -1.0001, 0], [float("inf"), 0, 0]], dtype=torch.float64) * BOUND
    values = encode(at.to(device), table, layout, BOUND)
    assert values[0].abs().min() > 0
    assert (values[1:] == 0).all()


def test_points_outside_move_neither_table_nor_position(device):
    _, table, layout = make(device=device)
    outside = torch.full((3, 3), 2 * BOUND, dtype=torch.float64, device=device, requires_grad=True)
    grads = torch.autograd.grad(encode(outside, table, layout, BOUND).sum(), (outside, table))
    assert all((g == 0).all() for g in grads)


def test_a_nan_position_gives_nan_values_and_leaves_the_other_points_and_the_table_gradient_finite(device):
    positions, table, layout = make(device=device)
    bad = positions.detach().clone()
    bad[2, 1] = float("nan")
    values = encode(bad, table, layout, BOUND)
    assert values[2].isnan().all() and values[[0, 1, 3]].isfinite().all()
    assert torch.autograd.grad(values.sum(), table)[0].isfinite().all()


def test_levels_above_max_level_are_zero_and_the_others_do_not_change(device):
    positions, table, layout = make(device=device)
    whole, part = (encode(positions, table, layout, BOUND, f) for f in (1.0, 0.5))
    torch.testing.assert_close(part[:, :4], whole[:, :4])
    assert (part[:, 4:] == 0).all()
    assert (torch.autograd.grad(part.sum(), table)[0][layout.first[2] :] == 0).all()


def test_no_points_encode_to_no_values_and_a_zero_gradient(device):
    _, table, layout = make(device=device)
    values, jacobian = encode_with_jacobian(torch.empty(0, 3, dtype=torch.float64, device=device), table, layout)
    assert values.shape == (0, 6) and jacobian.shape == (0, 3, 6)
    assert (torch.autograd.grad(values.sum() + jacobian.sum(), table)[0] == 0).all()


@pytest.mark.parametrize("levels", [1, 3])
def test_one_and_two_threads_give_the_same_bits(levels, device):
    if device.type != "cpu":
        pytest.skip("CUDA sums table gradients with atomics, in no fixed order")
    if levels == 1 and extension.requested("gridencoder") == "taichi":
        pytest.skip("in Taichi a level is never shared by threads, so that one level is no case of its own")
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            positions, table, layout = make(points=40_000, levels=levels)
            values, jacobian = encode_with_jacobian(positions.detach(), table, layout, BOUND)
            grad = torch.autograd.grad((values.sin().sum() + jacobian.cos().sum()), table)[0]
            results.append((values, jacobian, grad))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_more_points_than_one_chunk_equal_the_chunks_apart(device):
    positions, table, layout = make(points=140_000, levels=2, device=device)
    x = positions.detach()
    whole = encode(x, table, layout, BOUND)
    parts = torch.cat([encode(part, table, layout, BOUND) for part in x.split(50_000)])
    assert torch.equal(whole, parts)
    torch.testing.assert_close(*(torch.autograd.grad(y.square().sum(), table)[0] for y in (whole, parts)))


@pytest.mark.parametrize("levels", [1, 3, 4])
@pytest.mark.parametrize("points", [1, 31, 32, 33, 101])
def test_float32_with_two_features_equals_reference_for_any_number_of_levels_and_points(levels, points, device):
    positions, table, layout = make(device=device, points=points, levels=levels)
    x, small = positions.detach().float(), table.detach().float().requires_grad_()
    x[0] = torch.nan
    active = max(1, levels - 1)
    expected = reference.encode(x.double(), small.double(), layout, BOUND, active)
    actual = encode(x, small, layout, BOUND, active / levels)
    torch.testing.assert_close(actual.double(), expected, atol=1e-5, rtol=1e-5, equal_nan=True)
    weight = torch.randn_like(expected)
    grads = [torch.autograd.grad((y[1:] * weight[1:].to(y.dtype)).sum(), small)[0] for y in (actual, expected)]
    torch.testing.assert_close(*grads, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("levels", [1, 3])
def test_float32_with_two_features_has_the_same_bits_on_one_two_and_five_threads(levels, device):
    if device.type != "cpu":
        pytest.skip("CUDA sums table gradients with atomics, in no fixed order")
    if levels == 1 and extension.requested("gridencoder") == "taichi":
        pytest.skip("in Taichi a level is never shared by threads, so that one level is no case of its own")
    positions, table, layout = make(points=40_000, levels=levels)
    x, small = positions.detach().float(), table.detach().float().requires_grad_()
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2) if extension.requested("gridencoder") == "taichi" else (1, 2, 5):  # each compiles it again
            torch.set_num_threads(threads)
            values, jacobian = encode_with_jacobian(x, small, layout, BOUND)
            plain = encode(x, small, layout, BOUND)
            losses = (values.sin().sum() + jacobian.cos().sum(), plain.sin().sum())
            grads = [torch.autograd.grad(loss, small)[0] for loss in losses]
            results.append((values, jacobian, plain, *grads))
    finally:
        torch.set_num_threads(before)
    for others in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], others, strict=True))


def test_values_too_many_for_the_cache_equal_those_of_smaller_calls():
    positions, table, layout = make(points=300_001, levels=4)  # 9.6 MB, written past the cache; the parts are not
    x, small = positions.detach().float(), table.detach().float()
    whole = encode(x, small, layout, BOUND)
    assert torch.equal(whole, torch.cat([encode(part, small, layout, BOUND) for part in x.split(70_001)]))


def test_float32_is_close_to_float64_with_a_large_table(device):
    torch.manual_seed(0)
    layout = GridLayout()
    table = torch.randn(layout.rows, 2).to(device)
    x = 2 * torch.rand(500, 3).to(device) - 1
    # A fraction of 1 / 2048 cells is resolved to 2^-24 * 2048 = 1e-4 of a cell in float32; features are of order 1.
    torch.testing.assert_close(encode(x, table, layout).double(), encode(x.double(), table.double(), layout), atol=2e-3, rtol=0)


def test_resolutions_and_rows_are_those_of_torch_ngp():
    layout = GridLayout()
    assert layout.resolutions == (16, 23, 31, 43, 59, 81, 112, 154, 213, 295, 407, 562, 777, 1073, 1483, 2048)
    assert layout.first[:6] == (0, 4096, 16264, 46056, 125568, 330952) and layout.rows == 6_098_120


def test_four_dimensions_with_more_corners_than_32_bits_stay_inside_the_table(device):
    torch.manual_seed(0)
    for gridtype in ("hash", "tiled"):
        layout = GridLayout(4, 2, 2, 1024, 2**20, 10, gridtype)
        table = torch.randn(layout.rows, 2, dtype=torch.float64, device=device)
        x = 2 * torch.rand(100, 4, dtype=torch.float64, device=device) - 1
        torch.testing.assert_close(encode(x, table, layout), reference.encode(x, table, layout, 1.0, 2))


@pytest.mark.parametrize("dims", [2, 3, 4])
def test_total_variation_equals_reference_and_gradcheck(dims, device):
    positions, table, layout = make(dims, device=device)
    ours = total_variation(positions, table, layout, BOUND, 0.5)
    torch.testing.assert_close(ours, reference.total_variation(positions, table, layout, BOUND, 2))

    def function(t):
        return total_variation(positions, t, layout, BOUND, 0.5)

    assert torch.autograd.gradcheck(function, (table,), nondet_tol=ANY_ORDER)


def test_total_variation_of_a_constant_table_is_zero_and_falls_when_followed(device):
    encoder = GridEncoder(num_levels=2, desired_resolution=32, log2_hashmap_size=10).to(device)
    points = 2 * torch.rand(500, 3, device=device) - 1
    with torch.no_grad():
        encoder.embeddings.fill_(0.3)
    assert encoder.total_variation(points) == 0
    encoder.reset_parameters()
    before = encoder.total_variation(points)
    before.backward()
    with torch.no_grad():
        encoder.embeddings -= 1e-6 * encoder.embeddings.grad.sign()
    assert encoder.total_variation(points) < before


def test_total_variation_draws_its_points_from_the_generator():
    encoder = GridEncoder(num_levels=2, desired_resolution=32, log2_hashmap_size=10)
    draw = [encoder.total_variation(generator=torch.Generator().manual_seed(s), num_points=50) for s in (1, 1, 2)]
    assert draw[0] == draw[1] != draw[2]


def test_weight_decay_is_the_sum_over_levels_of_the_mean_square():
    encoder = GridEncoder(num_levels=4, level_dim=2, desired_resolution=32, log2_hashmap_size=10)
    with torch.no_grad():
        encoder.embeddings.fill_(0.5)
    torch.testing.assert_close(encoder.weight_decay(), torch.tensor(4 * 2 * 0.25))


def test_backend_torch_is_the_reference():
    positions, table, layout = make()
    with extension.scope("torch"):
        assert torch.equal(encode(positions, table, layout, BOUND), reference.encode(positions, table, layout, BOUND, 3))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"input_dim": 5}, "input_dim must be one of 2, 3, 4"),
        ({"level_dim": 3}, "level_dim must be one of"),
        ({"num_levels": 0}, "num_levels must lie in"),
        ({"base_resolution": 64, "desired_resolution": 32}, "base_resolution <= desired_resolution"),
        ({"gridtype": "dense"}, "gridtype must be one of hash, tiled"),
        ({"log2_hashmap_size": 40}, "log2_hashmap_size must lie in"),
    ],
)
def test_a_layout_out_of_range_is_refused_with_a_sentence(changes, words):
    with pytest.raises(ValueError, match=words):
        GridLayout(**changes)


def test_arguments_that_do_not_fit_are_refused_with_a_sentence():
    positions, table, layout = make()
    with pytest.raises(ValueError, match=r"expected positions \[M, 3\], got \[7, 2\]"):
        encode(positions[:, :2], table, layout)
    with pytest.raises(ValueError, match=rf"expected table \[{layout.rows}, 2\], got \[{layout.rows - 1}, 2\]"):
        encode(positions, table[:-1], layout)
    with pytest.raises(TypeError, match="positions is torch.float32 but table is torch.float64"):
        encode(positions.float(), table, layout)
    with pytest.raises(TypeError, match="float16 tables are supported on CUDA only"):
        encode(positions.float(), table.half(), layout)
    with pytest.raises(ValueError, match="max_level must be a fraction"):
        encode(positions, table, layout, BOUND, 1.5)
    with pytest.raises(ValueError, match="bound must be positive"):
        encode(positions, table, layout, 0.0)
    with pytest.raises(ValueError, match="positions is on meta but table is on cpu"):
        encode(positions.to("meta"), table, layout)


def test_a_pullback_of_another_precision_or_shape_is_refused(device):
    positions = torch.rand(5, 3, device=device)
    encoder = GridEncoder(num_levels=2, log2_hashmap_size=6, desired_resolution=32).to(device)
    values, pullback = encoder.value_and_pullback(positions)
    for wrong in (torch.ones_like(values).bfloat16(), torch.ones_like(values)[:3]):
        with pytest.raises(ValueError, match="pullback: expected"):
            pullback(wrong)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="float16 tables are for CUDA")
@pytest.mark.parametrize("features", [1, 2, 4])
def test_a_float16_table_gives_what_its_float32_copy_gives(features):
    positions, table, layout = make(features=features, device="cuda", points=200)
    positions, half = positions.detach().float(), table.detach().half()
    results = []
    for table in (half.clone().requires_grad_(), half.float().requires_grad_()):
        x = positions.clone().requires_grad_()
        values = encode(x, table, layout, BOUND)
        normal = torch.autograd.grad(values.sum(), x, create_graph=True)[0]
        (values.float().square().mean() + 1e-2 * normal.square().mean()).backward()
        variation = torch.autograd.grad(total_variation(positions, table, layout, BOUND), table)[0]
        assert {values.dtype, table.grad.dtype, variation.dtype} == {table.dtype} and x.grad.dtype == torch.float32
        results.append([t.detach().float() for t in (values, normal, table.grad, x.grad, variation)])
    for got, wanted in zip(*results, strict=True):
        torch.testing.assert_close(got, wanted, rtol=0, atol=5e-3 * float(wanted.abs().max()))
