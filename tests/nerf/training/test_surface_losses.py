"""Losses of signed distances and of weights along rays, in closed form."""

import math

import pytest
import torch

from nerf.training import losses, surface_losses

D = torch.float64


def sphere_points(radius, count=500):
    generator = torch.Generator().manual_seed(0)
    return radius * torch.nn.functional.normalize(torch.randn(count, 3, generator=generator, dtype=D), dim=-1)


def test_a_distance_has_no_eikonal_loss_and_its_double_has_one():
    gradient = sphere_points(1.0)
    assert float(surface_losses.eikonal(gradient)) == pytest.approx(0, abs=1e-12)
    assert float(surface_losses.eikonal(2 * gradient)) == pytest.approx(1.0)
    assert float(surface_losses.eikonal(0 * gradient)) == pytest.approx(1.0, abs=1e-5)


def test_the_eikonal_loss_has_a_finite_slope_at_a_vanishing_gradient():
    gradient = torch.zeros(3, 3, requires_grad=True)
    surface_losses.eikonal(gradient).backward()
    assert gradient.grad.isfinite().all()


def test_near_surface_is_one_on_it_and_falls_off():
    assert float(surface_losses.near_surface(torch.zeros(5), 100.0)) == 1.0
    assert float(surface_losses.near_surface(torch.tensor([0.01, -0.01]), 100.0)) == pytest.approx(math.exp(-1))


def test_curvature_of_a_sphere_is_that_of_its_radius():
    assert float(surface_losses.curvature_laplacian(torch.full((7,), 2 / 0.25))) == pytest.approx(8.0)
    normal, step, radius = sphere_points(1.0), 1e-3, 0.5
    tangent = torch.nn.functional.normalize(torch.linalg.cross(normal, sphere_points(1.0).flip(0)), dim=-1)
    beside = torch.nn.functional.normalize(radius * normal + step * tangent, dim=-1)
    assert float(surface_losses.curvature_angle(normal, beside)) == pytest.approx(math.atan(step / radius) / math.pi, rel=1e-2)
    assert float(surface_losses.curvature_angle(normal, -normal)) == pytest.approx(1.0, abs=1e-5)


def test_points_on_the_surface_cost_their_distance():
    assert float(surface_losses.surface_points(torch.tensor([0.1, -0.3]))) == pytest.approx(0.2)


def rays(counts):
    """Samples of rays of some lengths, packed."""
    generator = torch.Generator().manual_seed(1)
    count = torch.tensor(counts)
    first, total = count.cumsum(0) - count, int(count.sum())
    dt = 0.01 + 0.1 * torch.rand(total, generator=generator, dtype=D)
    t = torch.cat([part.cumsum(0) for part in dt.split(counts)]) if total else dt
    weights = 0.2 * torch.rand(total, generator=generator, dtype=D)
    return weights, t, dt, first, count


def distortion_by_pairs(weights, t, dt, first, count):
    total = torch.zeros((), dtype=D)
    for a, n in zip(first.tolist(), count.tolist(), strict=True):
        w, m, d = weights[a : a + n], t[a : a + n], dt[a : a + n]
        total = total + (w[:, None] * w * (m[:, None] - m).abs()).sum() + (w.square() * d).sum() / 3
    return total / len(count)


@pytest.mark.parametrize("counts", [[5], [3, 0, 7, 1], [0, 0], [40, 2, 11]])
def test_distortion_in_linear_time_is_the_sum_over_pairs(counts):
    packed = rays(counts)
    torch.testing.assert_close(surface_losses.distortion(*packed), distortion_by_pairs(*packed))


def test_distortion_ignores_the_end_of_a_buffer():
    weights, t, dt, first, count = rays([4, 6])
    longer = [torch.cat([x, torch.full((5,), 9.0, dtype=D)]) for x in (weights, t, dt)]
    torch.testing.assert_close(
        surface_losses.distortion(*longer, first, count), distortion_by_pairs(weights, t, dt, first, count)
    )


def test_distortion_is_differentiable_and_without_rays_zero():
    weights, t, dt, first, count = rays([4, 6])
    assert torch.autograd.gradcheck(lambda w: surface_losses.distortion(w, t, dt, first, count), weights.requires_grad_())
    nothing = torch.zeros(0)
    assert float(surface_losses.distortion(nothing, nothing, nothing, torch.zeros(0).long(), torch.zeros(0).long())) == 0


@pytest.mark.parametrize("loss", [surface_losses.eikonal, surface_losses.curvature_laplacian, surface_losses.surface_points])
def test_without_points_a_loss_is_zero_and_differentiable(loss):
    points = torch.zeros(0, 3, requires_grad=True) if loss is surface_losses.eikonal else torch.zeros(0, requires_grad=True)
    value = loss(points)
    value.backward()
    assert float(value) == 0


@pytest.mark.parametrize("mask", [0.0, 1.0])
def test_a_mask_all_black_or_all_white_is_answered_by_an_opacity_all_the_same(mask):
    target = torch.full((6,), mask)
    opacity = torch.tensor([0.0, 0.2, 0.5, 0.7, 0.999, 1.0], requires_grad=True)
    losses.mask_cross_entropy(opacity, target).backward()
    inner = opacity.grad[1:4]
    assert (inner < 0).all() if mask else (inner > 0).all()
    assert opacity.grad.isfinite().all()
    assert float(losses.mask_cross_entropy(target, target)) == pytest.approx(-math.log(1 - 1e-3), rel=1e-4)


def test_the_forms_of_the_colour_loss():
    image, target = torch.tensor([[0.2, 0.5, 0.05]]), torch.zeros(1, 3)
    expected = {
        "mse": (0.04 + 0.25 + 0.0025) / 3,
        "l1": 0.75 / 3,
        "smooth_l1": (0.04 + 0.25 + 0.0025) / 6,
        "huber": (0.2 - 0.05 + 0.5 - 0.05 + 0.05**2 / 0.2) / 3,
    }
    assert {name: float(error(image, target).mean()) for name, error in losses.COLOUR_ERRORS.items()} == pytest.approx(expected)
