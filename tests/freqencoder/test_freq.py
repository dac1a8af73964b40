"""The frequency encoding against its reference and closed forms, and its derivatives, on every backend."""

import math

import pytest
import torch

import extension
from freqencoder import FreqEncoder, encode, reference
from freqencoder.freq import MAX_DEGREE

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.fixture(params=[(d, b) for d in DEVICES for b in (d, "torch")], ids=lambda p: f"{p[0]}-{p[1]}")
def device(request):
    """The device of every backend in turn, with that backend requested."""
    device, backend = request.param
    with extension.scope("auto"):
        if extension.backend(device) == "torch":
            pytest.skip(f"no kernels for {device} can be built here")
    with extension.scope(backend):
        yield device


def points(device, count=5, dims=3):
    return torch.randn(count, dims, dtype=torch.float64, device=device, requires_grad=True)


@pytest.mark.parametrize(("max_level", "active"), [(1.0, 6), (0.5, 3), (0.0, 0)])
@pytest.mark.parametrize("dims", [1, 3, 4])
def test_encode_and_its_gradient_equal_reference(max_level, active, dims, device):
    x = points(device, 50, dims)
    ours, exact = encode(x, 6, max_level), reference.encode(x, 6, active)
    torch.testing.assert_close(ours, exact)
    cotangent = torch.randn_like(ours)
    torch.testing.assert_close(*(torch.autograd.grad(y, x, cotangent)[0] for y in (ours, exact)))


@pytest.mark.parametrize("max_level", [1.0, 0.5, 0.0])
def test_encode_gradcheck_and_gradgradcheck(max_level, device):
    x = points(device)
    assert torch.autograd.gradcheck(lambda x: encode(x, 4, max_level), (x,))
    assert torch.autograd.gradgradcheck(lambda x: encode(x, 4, max_level), (x,))


def test_the_third_derivative_is_that_of_the_sines_and_cosines(device):
    x = torch.tensor([[0.3], [-1.1]], dtype=torch.float64, device=device, requires_grad=True)
    derivative = encode(x, 2)[:, 1:].sum(dim=1)
    for _ in range(3):
        derivative = torch.autograd.grad(derivative.sum(), x, create_graph=True)[0]
    torch.testing.assert_close(derivative, -x.cos() + x.sin() - 8 * (2 * x).cos() + 8 * (2 * x).sin())


def test_float32_is_as_close_to_float64_as_rounding_allows_at_every_octave(device):
    x = (torch.rand(2000, 3, device=device) * 2 - 1) * 4
    ours, exact = encode(x, MAX_DEGREE), encode(x.double(), MAX_DEGREE)
    # Half a unit in the last place of a number below 1 is 2^-25; the recurrence adds 2^23 * 2e-16 at the last octave. The
    # sines and cosines of backend torch are right to about one unit in the last place.
    error = (ours.double() - exact).abs().amax()
    assert error < (2**-25 + 5e-9 if extension.requested() != "torch" else 2**-23)


def test_float32_gradient_is_that_of_float64(device):
    x = torch.randn(200, 3, device=device)
    grads = []
    for dtype in (torch.float32, torch.float64):
        leaf = x.to(dtype).requires_grad_()
        grads.append(torch.autograd.grad(encode(leaf, 12).square().cumsum(1).sum(), leaf)[0].double())
    scale = 2.0**11 * 2 * 75  # of the largest term: frequency, derivative of the square, how often it is summed
    torch.testing.assert_close(*grads, rtol=0, atol=1e-6 * scale)


def test_zero_is_encoded_exactly_and_large_positions_stay_accurate(device):
    encoded = encode(torch.tensor([[0.0], [12345.678], [-3.0e7]], device=device), 8)
    assert encoded[0].tolist() == [0.0] + [0.0, 1.0] * 8
    exact = encode(torch.tensor([[12345.678], [-3.0e7]], device=device).double(), 8)
    torch.testing.assert_close(encoded[1:].double(), exact, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_position_that_is_not_finite_gives_nan_in_its_row_and_no_other(bad, device):
    encoded = encode(torch.tensor([[0.5, bad], [0.5, 1.0]], device=device), 3)
    assert encoded[0, 3::2].isnan().all() and encoded[0, 2::2].isfinite().all() and encoded[1].isfinite().all()


def test_sine_and_cosine_of_an_octave_lie_on_the_unit_circle(device):
    waves = encode(points(device), 5)[:, 3:].unflatten(1, (5, 2, 3))
    torch.testing.assert_close(waves.square().sum(dim=2), torch.ones_like(waves[:, :, 0]))


def test_degree_zero_is_the_identity_and_no_points_give_no_rows(device):
    x = points(device)
    assert torch.equal(encode(x, 0), x)
    assert FreqEncoder(3, 12)(torch.empty(0, 3, device=device)).shape == (0, 75)


def test_positions_that_are_not_contiguous_are_encoded_alike(device):
    x = torch.randn(3, 7, device=device).T
    assert torch.equal(encode(x, 4), encode(x.contiguous(), 4))


def test_one_and_two_threads_give_the_same_bits():
    x, before, results = torch.randn(5000, 3, requires_grad=True), torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            encoded = encode(x, 7)
            results.append((encoded, torch.autograd.grad(encoded.square().sum(), x)[0]))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_output_dim_counts_the_outputs():
    encoder = FreqEncoder(2, 7)
    assert encoder(torch.zeros(1, 2)).shape[1] == encoder.output_dim == 2 + 2 * 2 * 7


def test_arguments_that_do_not_fit_are_refused_with_a_sentence():
    with pytest.raises(ValueError, match=r"expected positions \[M, 3\], got \[4, 2\]"):
        FreqEncoder()(torch.zeros(4, 2))
    with pytest.raises(ValueError, match="max_level must be a fraction"):
        FreqEncoder()(torch.zeros(4, 3), 1.1)
    with pytest.raises(TypeError, match="expected x in float32 or float64, got torch.int64"):
        encode(torch.zeros(4, 3, dtype=torch.int64), 2)
    with pytest.raises(ValueError, match=r"expected x \[M, D\], got \[4\]"):
        encode(torch.zeros(4), 2)
    with pytest.raises(ValueError, match=r"degree in \[0, 24\]"):
        FreqEncoder(3, 99)
    with pytest.raises(ValueError, match=r"degree must lie in \[0, 24\], got 25"):
        encode(torch.zeros(4, 3), 25)
