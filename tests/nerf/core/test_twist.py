"""The exponential of twists against the matrix exponential, and its gradients, at zero too."""

import pytest
import torch

from nerf.core.twist import exponential, skew


def matrices(twist):
    """[B, 4, 4] of se(3)."""
    top = torch.cat([skew(twist[:, :3]), twist[:, 3:, None]], -1)
    return torch.nn.functional.pad(top, (0, 0, 0, 1))


@pytest.mark.parametrize("size", [0.0, 1e-9, 9e-4, 1.1e-3, 0.1, 1.0, 3.0])
def test_it_is_the_matrix_exponential(size):
    twist = size * torch.randn(8, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rotation, shift = exponential(twist)
    expected = torch.matrix_exp(matrices(twist))
    torch.testing.assert_close(rotation, expected[:, :3, :3], atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(shift, expected[:, :3, 3], atol=1e-12, rtol=1e-12)


def test_rotations_have_determinant_one_and_the_opposite_twist_undoes_them():
    twist = torch.randn(5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    (rotation, shift), (back, undone) = exponential(twist), exponential(-twist)
    torch.testing.assert_close(torch.linalg.det(rotation), torch.ones(5, dtype=torch.float64))
    torch.testing.assert_close(back @ rotation, torch.eye(3, dtype=torch.float64).expand(5, 3, 3))
    torch.testing.assert_close((back @ shift[..., None])[..., 0] + undone, torch.zeros(5, 3, dtype=torch.float64))


@pytest.mark.parametrize("size", [0.0, 0.5])
def test_exponential_gradcheck(size):
    twist = size * torch.randn(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    assert torch.autograd.gradcheck(exponential, (twist.requires_grad_(True),))


def test_gradients_are_finite_in_single_precision_at_zero():
    twist = torch.zeros(2, 6, requires_grad=True)
    sum(part.sum() for part in exponential(twist)).backward()
    assert twist.grad.isfinite().all() and twist.grad.abs().sum() > 0
