"""PSNR and SSIM against closed forms and against scikit-image."""

import math

import pytest
import torch
from skimage.metrics import structural_similarity

from nerf.run.metrics import psnr, ssim, ssim3


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
    theirs = structural_similarity(
        a.cpu().numpy(),
        b.cpu().numpy(),
        channel_axis=-1,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        data_range=1.0,
    )
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


@pytest.mark.parametrize("height, width, window", [(10, 20, 9), (5, 5, 5), (30, 4, 3), (2, 40, 1)])
def test_ssim_of_a_small_image_has_the_largest_odd_window_that_fits(height, width, window):
    a = torch.rand(height, width, 3).double()
    b = (a + 0.2 * torch.randn_like(a)).clamp(0, 1)
    place = torch.arange(window).double() - window // 2
    weight = torch.exp(-0.5 * (place / 1.5) ** 2)
    weight = torch.outer(weight, weight) / weight.sum() ** 2
    found = []
    for row in range(height - window + 1):
        for column in range(width - window + 1):
            x, y = (t[row : row + window, column : column + window].movedim(-1, 0) for t in (a, b))
            mx, my = ((weight * t).sum((1, 2)) for t in (x, y))
            vx, vy = (weight * x * x).sum((1, 2)) - mx**2, (weight * y * y).sum((1, 2)) - my**2
            vxy = (weight * x * y).sum((1, 2)) - mx * my
            found.append((2 * mx * my + 1e-4) * (2 * vxy + 9e-4) / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4)))
    torch.testing.assert_close(ssim(a, b), torch.stack(found).mean())


def test_ssim_refuses_images_without_pixels():
    with pytest.raises(ValueError, match=r"with pixels in them, got \[0, 20, 3\]"):
        ssim(torch.zeros(0, 20, 3), torch.zeros(0, 20, 3))


@pytest.mark.parametrize("metric", [psnr, ssim])
@pytest.mark.parametrize("shape", [(16, 20, 3), (2, 16, 20, 3)])
def test_pixels_that_are_not_valid_do_not_matter(metric, shape):
    a, b = torch.rand(shape).double(), torch.rand(shape).double()
    valid = torch.ones(shape[:-1], dtype=torch.bool)
    torch.testing.assert_close(metric(a, b, valid), metric(a, b))
    valid[..., 4:9, 10:] = False
    other = torch.where(valid[..., None], a, torch.rand(shape).double())
    torch.testing.assert_close(metric(other, b, valid), metric(a, b, valid))
    assert not torch.isclose(metric(a, b, valid), metric(a, b))


def test_psnr_over_valid_pixels_is_that_of_these_pixels_alone():
    a, b = torch.rand(9, 8, 3).double(), torch.rand(9, 8, 3).double()
    valid = torch.zeros(9, 8, dtype=torch.bool)
    valid[2:5, 1:7] = True
    torch.testing.assert_close(psnr(a, b, valid), psnr(a[2:5, 1:7], b[2:5, 1:7]))


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_metrics_without_a_valid_pixel_are_not_a_number(metric):
    image = torch.rand(12, 12, 3)
    assert math.isnan(metric(image, image, torch.zeros(12, 12, dtype=torch.bool)))


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_metrics_refuse_valid_pixels_of_another_picture(metric):
    with pytest.raises(ValueError, match=r"expected valid \[12, 12\] for images \[12, 12, 3\], got \[12, 13\]"):
        metric(torch.zeros(12, 12, 3), torch.zeros(12, 12, 3), torch.ones(12, 13, dtype=torch.bool))


# ---- the peer's window of 3 x 3 ----


def test_ssim3_equals_a_direct_sum_over_windows_with_reflected_borders():
    a = torch.rand(5, 6, 2).double()
    b = (a + 0.3 * torch.randn_like(a)).clamp(0, 1)
    place = torch.arange(-1, 2).double()
    weight = torch.exp(-0.5 * (place / 1.5) ** 2)
    weight = weight[:, None] * weight
    weight = weight / weight.sum()
    values = []
    for c in range(2):
        for i in range(5):
            for j in range(6):
                mirrored = [(4 - abs(4 - abs(i + di)), 5 - abs(5 - abs(j + dj))) for di in (-1, 0, 1) for dj in (-1, 0, 1)]
                x, y = (torch.stack([t[p][c] for p in mirrored]).reshape(3, 3) for t in (a, b))
                mx, my = (weight * x).sum(), (weight * y).sum()
                vx, vy = (weight * x * x).sum() - mx * mx, (weight * y * y).sum() - my * my
                cxy = (weight * x * y).sum() - mx * my
                value = (2 * mx * my + 1e-4) * (2 * cxy + 9e-4) / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4))
                values.append(max(0.0, float(value)))
    assert math.isclose(ssim3(a, b).item(), sum(values) / len(values), abs_tol=1e-9)


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 7, 3), (5, 1, 3), (2, 2, 3)])
def test_ssim3_of_few_pixels(shape):
    a = torch.rand(shape).double()
    assert math.isclose(ssim3(a, a).item(), 1.0) and 0 <= ssim3(a, 1 - a).item() < 1


def test_ssim3_leaves_out_what_is_masked():
    a, b = torch.rand(12, 9, 3).double(), torch.rand(12, 9, 3).double()
    valid = torch.ones(12, 9, dtype=torch.bool)
    assert math.isclose(ssim3(a, b, valid).item(), ssim3(a, b).item(), rel_tol=1e-12)
    valid[:6] = False
    spoilt = torch.where(valid[..., None], b, torch.rand(12, 9, 3).double())
    assert math.isclose(
        ssim3(a, b, valid).item(), ssim3(torch.where(valid[..., None], a, b), spoilt, valid).item(), abs_tol=0.05
    )
    assert math.isclose(ssim3(b, b, valid).item(), 1.0)
