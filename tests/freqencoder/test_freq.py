"""The frequency encoding against its reference and by its derivatives."""

import pytest
import torch

from freqencoder import FreqEncoder, encode, reference


def points(device, count=5, dims=3):
    return torch.randn(count, dims, dtype=torch.float64, device=device, requires_grad=True)


@pytest.mark.parametrize(("max_level", "active"), [(1.0, 6), (0.5, 3), (0.0, 0)])
def test_encode_and_its_gradient_equal_reference(max_level, active, device):
    x = points(device, 50)
    ours, twin = encode(x, 6, max_level), reference.encode(x, 6, active)
    torch.testing.assert_close(ours, twin)
    cotangent = torch.randn_like(ours)
    torch.testing.assert_close(*(torch.autograd.grad(y, x, cotangent)[0] for y in (ours, twin)))


@pytest.mark.parametrize("max_level", [1.0, 0.5])
def test_encode_gradcheck_and_gradgradcheck(max_level, device):
    x = points(device)
    assert torch.autograd.gradcheck(lambda x: encode(x, 4, max_level), (x,))
    assert torch.autograd.gradgradcheck(lambda x: encode(x, 4, max_level), (x,))


def test_sine_and_cosine_of_an_octave_lie_on_the_unit_circle(device):
    waves = encode(points(device), 5)[:, 3:].unflatten(1, (5, 2, 3))
    torch.testing.assert_close(waves.square().sum(dim=2), torch.ones_like(waves[:, :, 0]))


def test_degree_zero_is_the_identity_and_no_points_give_no_rows(device):
    x = points(device)
    assert torch.equal(encode(x, 0), x)
    assert FreqEncoder(3, 12)(torch.empty(0, 3, device=device)).shape == (0, 75)


def test_output_dim_counts_the_outputs():
    encoder = FreqEncoder(2, 7)
    assert encoder(torch.zeros(1, 2)).shape[1] == encoder.output_dim == 2 + 2 * 2 * 7


def test_arguments_that_do_not_fit_are_refused_with_a_sentence():
    with pytest.raises(ValueError, match=r"expected positions \[M, 3\], got \[4, 2\]"):
        FreqEncoder()(torch.zeros(4, 2))
    with pytest.raises(ValueError, match="max_level must be a fraction"):
        FreqEncoder()(torch.zeros(4, 3), 1.1)
    with pytest.raises(ValueError, match="expected floats"):
        encode(torch.zeros(4, 3, dtype=torch.int64), 2)
    with pytest.raises(ValueError, match="degree in"):
        FreqEncoder(3, 99)
