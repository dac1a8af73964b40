"""Densities stay finite and their slopes right."""

import pytest
import torch

from nerf.core.activation import density_activation, density_blob, softplus, truncated_exp, unit


def test_truncated_exp_equals_exp_where_exp_is_tame():
    x = torch.linspace(-30, 15, 50, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(truncated_exp(x), x.exp())
    (slope,) = torch.autograd.grad(truncated_exp(x).sum(), x)
    torch.testing.assert_close(slope, x.detach().exp())


@pytest.mark.parametrize("function", [truncated_exp, softplus])
def test_density_and_slope_are_finite_at_extremes(function):
    x = torch.tensor([-1e30, -100.0, 0.0, 100.0, 1e30], requires_grad=True)
    y = function(x)
    (slope,) = torch.autograd.grad((y.clamp(max=1e30) * 1e-3).sum(), x)
    assert torch.isfinite(y).all() and torch.isfinite(slope).all() and (y >= 0).all()


def test_half_precision_becomes_single_before_the_exponential():
    y = truncated_exp(torch.tensor([30.0], dtype=torch.float16))
    assert y.dtype == torch.float32 and torch.isfinite(y).all()


def test_truncated_exp_has_a_second_derivative():
    x = torch.randn(6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(truncated_exp, (x,))


def test_an_unknown_activation_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="exp, softplus"):
        density_activation("relu")


@pytest.mark.parametrize("activation", ["exp", "softplus"])
def test_the_blob_peaks_at_the_origin_and_falls_outwards(activation):
    at = torch.tensor([[0.0, 0.0, 0.0], [0.1, 0.0, 0.0], [0.0, 0.5, 0.0]])
    values = density_blob(at, activation, 5.0, 0.2)
    assert values[0] == pytest.approx(5.0, rel=2e-3) and (values.diff() < 0).all()


@pytest.mark.parametrize("activation", ["exp", "softplus"])
def test_the_blob_has_finite_derivatives_at_the_origin(activation):
    at = torch.zeros(1, 3, requires_grad=True)
    (slope,) = torch.autograd.grad(density_blob(at, activation, 5.0, 0.2).sum(), at, create_graph=True)
    (second,) = torch.autograd.grad(slope.sum(), at)
    assert torch.isfinite(slope).all() and torch.isfinite(second).all()


def test_unit_is_zero_at_zero_and_its_gradient_is_finite():
    v = torch.tensor([[0.0, 0.0, 0.0], [3.0, 0.0, 4.0]], requires_grad=True)
    u = unit(v)
    (slope,) = torch.autograd.grad(u.sum(), v)
    torch.testing.assert_close(u.detach(), torch.tensor([[0.0, 0.0, 0.0], [0.6, 0.0, 0.8]]))
    assert torch.isfinite(slope).all()
