"""PSNR and SSIM against closed forms and against scikit-image."""

import math

import pytest
import torch
from skimage.metrics import structural_similarity

from nerf.metrics import psnr, ssim


@pytest.mark.parametrize("error, decibels", [(1.0, 0.0), (0.1, 20.0), (0.01, 40.0)])
def test_psnr_of_a_constant_error_equals_the_closed_form(error, decibels):
    truth = torch.rand(5, 7, 3).double()
    assert math.isclose(psnr(truth + error, truth).item(), decibels, abs_tol=1e-9)


def test_psnr_of_equal_images_is_infinite():
    image = torch.rand(4, 4, 3)
    assert psnr(image, image) == math.inf


@pytest.mark.parametrize("shape", [(11, 11, 1), (30, 17, 3), (12, 40, 3)])
def test_ssim_equals_scikit_image(shape, device):
    a = torch.rand(shape, dtype=torch.float64, device=device)
    b = (a + 0.2 * torch.randn_like(a)).clamp(0, 1)
    theirs = structural_similarity(a.cpu().numpy(), b.cpu().numpy(), channel_axis=-1, gaussian_weights=True, sigma=1.5,
                                   use_sample_covariance=False, data_range=1.0)
    assert math.isclose(ssim(a, b).item(), theirs, abs_tol=1e-9)


def test_ssim_of_constant_images_equals_the_closed_form():
    a, b = torch.full((16, 16, 3), 0.5).double(), torch.full((16, 16, 3), 0.25).double()
    assert math.isclose(ssim(a, b).item(), (2 * 0.5 * 0.25 + 1e-4) / (0.25 + 0.0625 + 1e-4), rel_tol=1e-9)


def test_ssim_of_equal_images_is_one_and_symmetric_otherwise():
    a, b = torch.rand(20, 20, 3).double(), torch.rand(20, 20, 3).double()
    assert math.isclose(ssim(a, a).item(), 1.0)
    assert math.isclose(ssim(a, b).item(), ssim(b, a).item()) and ssim(a, b) < 0.5


def test_ssim_of_a_batch_is_the_mean_over_its_images():
    a, b = torch.rand(3, 14, 15, 3).double(), torch.rand(3, 14, 15, 3).double()
    torch.testing.assert_close(ssim(a, b), torch.stack([ssim(x, y) for x, y in zip(a, b, strict=True)]).mean())


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_metrics_refuse_images_of_two_shapes(metric):
    with pytest.raises(ValueError, match=r"one shape, got \[12, 12, 3\] and \[12, 13, 3\]"):
        metric(torch.zeros(12, 12, 3), torch.zeros(12, 13, 3))


def test_ssim_refuses_images_smaller_than_its_window():
    with pytest.raises(ValueError, match=r"at least 11 pixels a side, got \[10, 20, 3\]"):
        ssim(torch.zeros(10, 20, 3), torch.zeros(10, 20, 3))
