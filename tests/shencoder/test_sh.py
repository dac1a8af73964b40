"""Spherical harmonics: orthonormal, with the right signs and gradients, and equal to their reference and to scipy's."""

import numpy as np
import pytest
import torch

import extension
from shencoder import SHEncoder, encode, reference


def directions(device, count=6):
    d = torch.nn.functional.normalize(torch.randn(count, 3, dtype=torch.float64), dim=1)
    return d.to(device).requires_grad_()


@pytest.mark.parametrize("degree", range(2, 9))
def test_encode_and_its_gradient_equal_reference(degree, device):
    d = directions(device, 50)
    ours, twin = encode(d, degree), reference.encode(d, degree)
    torch.testing.assert_close(ours, twin)
    cotangent = torch.randn_like(ours)
    torch.testing.assert_close(*(torch.autograd.grad(y, d, cotangent, allow_unused=True)[0] for y in (ours, twin)))


def test_encode_gradcheck(device):
    assert torch.autograd.gradcheck(lambda d: encode(d, 8), (directions(device, 2),))


def test_bands_are_orthonormal_on_the_sphere(device):
    # Gauss-Legendre in z and equal steps in azimuth integrate polynomials of degree 2 * 7 exactly.
    z, weight = np.polynomial.legendre.leggauss(8)
    azimuth = np.arange(16) * 2 * np.pi / 16
    z, azimuth = (a.ravel() for a in np.meshgrid(z, azimuth, indexing="ij"))
    radius = np.sqrt(1 - z**2)
    d = torch.tensor(np.stack([radius * np.cos(azimuth), radius * np.sin(azimuth), z], axis=1), device=device)
    values = encode(d, 8)
    measure = torch.tensor(np.repeat(weight, 16) * 2 * np.pi / 16, device=device)
    gram = values.T @ (values * measure[:, None])
    torch.testing.assert_close(gram, torch.eye(64, dtype=torch.float64, device=device))


def test_harmonics_equal_those_of_scipy(device):
    special = pytest.importorskip("scipy.special")
    d = directions(device, 20).detach()
    x, y, z = d.cpu().numpy().T
    for band in range(8):
        for m in range(-band, band + 1):
            complex_value = special.sph_harm_y(band, abs(m), np.arccos(z), np.arctan2(y, x))
            part = complex_value.imag if m < 0 else complex_value.real
            wanted = torch.tensor(part * (np.sqrt(2) if m else 1), device=device)
            torch.testing.assert_close(encode(d, 8)[:, band * band + band + m], wanted)


def test_the_first_bands_have_the_condon_shortley_sign(device):
    d = directions(device)
    x, y, z = d.unbind(1)
    wanted = torch.stack([torch.full_like(x, 0.5 / np.pi**0.5), *(np.sqrt(3 / (4 * np.pi)) * c for c in (-y, z, -x))], 1)
    torch.testing.assert_close(encode(d, 2), wanted)


def test_a_second_derivative_is_refused(device):
    d = directions(device)
    first = torch.autograd.grad(encode(d, 3).square().sum(), d, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


def test_no_directions_give_no_rows_and_backend_torch_is_the_reference(device):
    assert SHEncoder(degree=5)(torch.empty(0, 3, device=device)).shape == (0, SHEncoder(degree=5).output_dim)
    d = directions(device)
    with extension.scope("torch"):
        assert torch.equal(encode(d, 4), reference.encode(d, 4))


def test_arguments_that_do_not_fit_are_refused_with_a_sentence():
    with pytest.raises(ValueError, match=r"expected directions \[M, 3\], got \[4, 2\]"):
        encode(torch.zeros(4, 2), 3)
    with pytest.raises(ValueError, match="degree must lie in"):
        SHEncoder(degree=9)
    with pytest.raises(ValueError, match="3 dimensions"):
        SHEncoder(2)
    with pytest.raises(TypeError, match="float32 or float64"):
        encode(torch.zeros(4, 3, dtype=torch.float16), 3)
