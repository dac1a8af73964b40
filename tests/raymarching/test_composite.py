"""Compositing obeys its closed forms, and its gradient is the true one for all four outputs."""

import pytest
import torch
from torch.autograd import gradcheck

import extension
import raymarching


def packed(counts, channels, device, seed=0, dtype=torch.float64, opacity=0.7):
    """alpha, values, t, first, count of rays with the given numbers of samples."""
    g = torch.Generator().manual_seed(seed)
    m = sum(counts)
    alpha = (opacity * torch.rand(m, generator=g, dtype=torch.float64)).to(device, dtype)
    values = torch.rand(m, channels, generator=g, dtype=torch.float64).to(device, dtype)
    t = torch.rand(m, generator=g, dtype=torch.float64).cumsum(0).to(device, dtype)
    count = torch.tensor(counts, dtype=torch.int64, device=device)
    return alpha.requires_grad_(), values.requires_grad_(), t, count.cumsum(0) - count, count


COUNTS = [3, 0, 7, 1, 0, 20]


@pytest.mark.parametrize("channels", [1, 3, 4, 6, 16])
@pytest.mark.parametrize("stop", [0.0, 1e-4, 0.3])
def test_composite_equals_the_reference_and_so_does_its_gradient(native, channels, stop):
    results = []
    for name in (extension.requested(), "torch"):
        alpha, values, t, first, count = packed(COUNTS, channels, native)
        with extension.scope(name):
            outputs = raymarching.composite_rays_train(alpha, values, t, first, count, stop)
            weight = [torch.randn(o.shape, generator=torch.Generator().manual_seed(i), dtype=o.dtype).to(native)
                      for i, o in enumerate(outputs)]  # fmt: skip
            grads = torch.autograd.grad(sum((o * w).sum() for o, w in zip(outputs, weight, strict=True)), (alpha, values))
        results.append((*outputs, *grads))
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("stop", [0.0, 0.2])
def test_gradients_of_weights_opacity_depth_and_image_are_true(native, stop):
    alpha, values, t, first, count = packed(COUNTS, 3, native)
    for output in range(4):
        assert gradcheck(
            lambda a, v, o=output: raymarching.composite_rays_train(a, v, t, first, count, stop)[o], (alpha, values)
        )


def test_weights_and_remaining_transmittance_sum_to_one(device):
    alpha, values, t, first, count = packed(COUNTS, 3, device)
    weights, opacity, *_ = raymarching.composite_rays_train(alpha, values, t, first, count, 0.0)
    for n, (f, c) in enumerate(zip(first.tolist(), count.tolist(), strict=True)):
        left = (1 - alpha[f : f + c]).prod()
        torch.testing.assert_close(weights[f : f + c].sum() + left, torch.ones_like(left))
        torch.testing.assert_close(weights[f : f + c].sum(), opacity[n])


def test_depth_and_image_are_the_weighted_sums(device):
    alpha, values, t, first, count = packed(COUNTS, 5, device)
    weights, _, depth, image = raymarching.composite_rays_train(alpha, values, t, first, count)
    ray = raymarching.flatten_rays(count, len(t))
    want = torch.zeros(len(count), 6, dtype=t.dtype, device=device)
    want = want.index_add(0, ray, weights[:, None] * torch.cat([t[:, None], values], -1))
    torch.testing.assert_close(torch.cat([depth[:, None], image], -1), want)


def test_a_homogeneous_fog_follows_beer_and_lambert(device):
    steps, length, density = 200, 2.0, 1.5
    dt = length / steps
    t = (torch.arange(steps, dtype=torch.float64, device=device) + 0.5) * dt
    alpha = torch.full_like(t, 1 - torch.exp(torch.tensor(-density * dt)).item())
    count = torch.tensor([steps], device=device)
    _, opacity, *_ = raymarching.composite_rays_train(alpha, t[:, None], t, count - count, count, 0.0)
    assert float(opacity) == pytest.approx(1 - torch.exp(torch.tensor(-density * length)).item(), abs=1e-6)


def test_an_opaque_sample_hides_what_is_behind_and_gets_a_finite_gradient(device):
    alpha = torch.tensor([0.5, 1.0, 0.5], dtype=torch.float64, device=device, requires_grad=True)
    values = torch.tensor([[1.0], [2.0], [4.0]], dtype=torch.float64, device=device)
    first, count = torch.tensor([0], device=device), torch.tensor([3], device=device)
    weights, *_, image = raymarching.composite_rays_train(alpha, values, values[:, 0], first, count, 0.0)
    assert weights.tolist() == [0.5, 0.5, 0.0]
    (grad,) = torch.autograd.grad(image.sum(), alpha)
    # image = a v0 + (1-a) b v1 + (1-a)(1-b) c v2
    torch.testing.assert_close(grad, torch.tensor([1.0 - 2.0, 0.5 * (2 - 0.5 * 4), 0.0], dtype=torch.float64, device=device))


def test_behind_the_early_stop_weights_and_gradients_are_zero(device):
    alpha, values, t, first, count = packed([12], 3, device, opacity=1.0)
    weights, opacity, *_ = raymarching.composite_rays_train(alpha, values, t, first, count, 0.3)
    transmittance = torch.cat([torch.ones_like(t[:1]), (1 - alpha).cumprod(0)[:-1]])
    assert torch.equal(weights > 0, transmittance >= 0.3)
    assert 0 < int((weights > 0).sum()) < 12
    grads = torch.autograd.grad(opacity.sum(), alpha)[0]
    assert not bool(grads[transmittance < 0.3].any())


@pytest.mark.parametrize("where", [0, 5, 11])
def test_a_nan_alpha_shows_in_its_ray_and_in_no_other_even_behind_the_early_stop(device, where):
    alpha, values, t, first, count = packed([12, 4], 3, device, opacity=1.0)
    broken = alpha.detach().clone()
    broken[where] = float("nan")
    broken.requires_grad_()
    weights, opacity, depth, image = raymarching.composite_rays_train(broken, values, t, first, count, 0.3)
    assert bool(opacity[0].isnan() & depth[0].isnan() & image[0].isnan().all() & weights[where].isnan())
    assert bool(opacity[1].isfinite() & image[1].isfinite().all())
    (grad,) = torch.autograd.grad(image.sum(), broken)
    assert bool(grad[:12].isnan().any()) and bool(grad[12:].isfinite().all())


def test_samples_that_no_ray_owns_get_weight_and_gradient_zero(device):
    alpha, values, t, first, count = packed([3, 4, 5], 3, device)
    count[1] = 2
    weights, _, _, image = raymarching.composite_rays_train(alpha, values, t, first, count)
    grads = torch.autograd.grad(image.sum() + weights.sum(), (alpha, values))
    assert not any(bool(x[5:7].any()) for x in (weights, *grads))


@pytest.mark.parametrize("counts", [[], [0, 0]])
def test_no_rays_or_no_samples_give_empty_sums(device, counts):
    alpha, values, t, first, count = packed(counts, 3, device)
    weights, opacity, depth, image = raymarching.composite_rays_train(alpha, values, t, first, count)
    assert weights.shape == (0,) and image.shape == (len(counts), 3)
    assert not bool(opacity.any()) and not bool(depth.any())
    (image.sum() + weights.sum()).backward()
    assert alpha.grad.shape == (0,)


def test_one_and_two_threads_give_the_same_bits(native):
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            alpha, values, t, first, count = packed([5, 0, 9] * 300, 6, native, dtype=torch.float32)
            outputs = raymarching.composite_rays_train(alpha, values, t, first, count)
            results.append((*outputs, *torch.autograd.grad(sum(o.sum() for o in outputs), (alpha, values))))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_a_second_derivative_is_refused(native):
    alpha, values, t, first, count = packed(COUNTS, 3, native)
    image = raymarching.composite_rays_train(alpha, values, t, first, count)[3]
    (grad,) = torch.autograd.grad(image.square().sum(), alpha, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


@pytest.mark.parametrize(
    ("change", "error", "sentence"),
    [
        ({"values": torch.zeros(2, 3)}, ValueError, r"expected values \[M, C\] with M = 4.*got \[2, 3\]"),
        ({"values": torch.zeros(4, 17)}, ValueError, "1 to 16 channels"),
        ({"values": torch.zeros(4, 3, dtype=torch.float64)}, TypeError, "convert one"),
        ({"values": torch.zeros(4, 3, dtype=torch.bfloat16)}, TypeError, "float32 or float64"),
        ({"t": torch.zeros(4, requires_grad=True)}, ValueError, "detach"),
        ({"count": torch.tensor([2, 3])}, ValueError, "outside the M = 4"),
        ({"count": torch.tensor([2, 2], dtype=torch.int32)}, TypeError, "torch.int64"),
        ({"first": torch.tensor([0])}, ValueError, "expected count"),
        ({"first": torch.tensor([0, 2], device="meta")}, ValueError, "is on meta"),
        ({"min_transmittance": 1.0}, ValueError, "min_transmittance"),
    ],
)
def test_bad_arguments_are_refused_with_a_sentence(change, error, sentence):
    arguments = {
        "alpha": torch.zeros(4), "values": torch.zeros(4, 3), "t": torch.zeros(4),
        "first": torch.tensor([0, 2]), "count": torch.tensor([2, 2]),
    }  # fmt: skip
    with pytest.raises(error, match=sentence):
        raymarching.composite_rays_train(**(arguments | change))
