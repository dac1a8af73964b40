"""How close a render is to a photograph: PSNR and SSIM, in plain torch. H rows, W columns, C channels in [0, 1]."""

import torch
from torch import Tensor

WINDOW, SIGMA = 11, 1.5  # of the Gaussian in Wang et al. 2004, sec. III.B
K1, K2 = 0.01, 0.03


def _check(name: str, a: Tensor, b: Tensor) -> None:
    if a.shape != b.shape:
        raise ValueError(f"{name}: expected two images of one shape, got {list(a.shape)} and {list(b.shape)}")


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio ``-10 log10(mean((a - b)^2))`` of values whose peak is 1.

    Args:
        a: any shape.
        b: the same shape.

    Returns:
        Scalar, dB; infinite where both are equal. Differentiable where they are not.
    """
    _check("psnr", a, b)
    return -10 * torch.log10((a - b).square().mean())


def _blur(images: Tensor) -> Tensor:
    """Gaussian-weighted means [P, 1, H - 10, W - 10] of the windows that lie wholly inside images [P, 1, H, W]."""
    place = torch.arange(WINDOW, dtype=images.dtype, device=images.device) - WINDOW // 2
    weight = torch.exp(-0.5 * (place / SIGMA).square())
    weight = weight / weight.sum()
    rows = torch.nn.functional.conv2d(images, weight.reshape(1, 1, -1, 1))
    return torch.nn.functional.conv2d(rows, weight.reshape(1, 1, 1, -1))


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity (Wang et al. 2004, eq. 13), mean over channels and over the windows inside the image.

    The window is Gaussian, 11 x 11, sigma 1.5; variances are not corrected for the sample; the peak is 1. Equal to
    scikit-image's with ``gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1``.

    Args:
        a: [H, W, C] or [B, H, W, C], at least 11 pixels a side, channels last as photographs are.
        b: the same shape.

    Returns:
        Scalar in [-1, 1]; 1 only where both are equal. Differentiable.
    """
    _check("ssim", a, b)
    if a.ndim not in (3, 4) or min(a.shape[-3:-1]) < WINDOW:
        raise ValueError(f"ssim: expected images [H, W, C] or [B, H, W, C] of at least {WINDOW} pixels a side, "
                         f"got {list(a.shape)}")
    x, y = (t.movedim(-1, -3).reshape(-1, 1, *t.shape[-3:-1]) for t in (a, b))
    mean_x, mean_y = _blur(x), _blur(y)
    variance_x = _blur(x * x) - mean_x * mean_x
    variance_y = _blur(y * y) - mean_y * mean_y
    covariance = _blur(x * y) - mean_x * mean_y
    c1, c2 = K1**2, K2**2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x.square() + mean_y.square() + c1)
    return (luminance * (2 * covariance + c2) / (variance_x + variance_y + c2)).mean()
