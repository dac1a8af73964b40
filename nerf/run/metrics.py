"""How close a render is to a photograph: PSNR and SSIM, in plain torch. H rows, W columns, C channels in [0, 1]."""

import torch
from torch import Tensor

WINDOW, SIGMA = 11, 1.5  # of the Gaussian in Wang et al. 2004, sec. III.B
K1, K2 = 0.01, 0.03  # of Wang et al. 2004, sec. III.B


def _check(name: str, a: Tensor, b: Tensor, valid: Tensor | None) -> None:
    if a.shape != b.shape:
        raise ValueError(f"{name}: expected two images of one shape, got {list(a.shape)} and {list(b.shape)}")
    if valid is not None and valid.shape != a.shape[:-1]:
        raise ValueError(f"{name}: expected valid {list(a.shape[:-1])} for images {list(a.shape)}, got {list(valid.shape)}")


def psnr(a: Tensor, b: Tensor, valid: Tensor | None = None) -> Tensor:
    """Peak signal-to-noise ratio ``-10 log10(mean((a - b)^2))`` of values whose peak is 1.

    Args:
        a: [..., C].
        b: the same shape.
        valid: [...] bool, valid mask; None: all pixels.

    Returns:
        Scalar, dB; infinite where both are equal, NaN where no pixel is valid. Differentiable where they are not equal.
    """
    _check("psnr", a, b, valid)
    squared = (a - b).square()
    return -10 * torch.log10((squared if valid is None else squared[valid]).mean())


def _blur(images: Tensor, window: int) -> Tensor:
    """Gaussian-weighted means of the windows that lie wholly inside images [P, 1, H, W]; window - 1 fewer a side."""
    place = torch.arange(window, dtype=images.dtype, device=images.device) - window // 2
    weight = torch.exp(-0.5 * (place / SIGMA).square())
    weight = weight / weight.sum()
    rows = torch.nn.functional.conv2d(images, weight.reshape(1, 1, -1, 1))
    return torch.nn.functional.conv2d(rows, weight.reshape(1, 1, 1, -1))


def ssim(a: Tensor, b: Tensor, valid: Tensor | None = None) -> Tensor:
    """Structural similarity (Wang et al. 2004, eq. 13), mean over channels and over the windows inside the image.

    The window is Gaussian, 11 x 11, sigma 1.5; variances are not corrected for the sample; the peak is 1. Equal to
    scikit-image's with ``gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1``. In an image
    less than 11 pixels high or wide the window is the largest odd one that fits.

    Args:
        a: [H, W, C] or [B, H, W, C], channels last as photographs are.
        b: the same shape.
        valid: [H, W] or [B, H, W] bool, valid mask: windows centred on invalid pixels are excluded, and invalid pixels
            inside other windows count as equal. None: all pixels.

    Returns:
        Scalar in [-1, 1]; 1 only where both are equal; NaN where no window is valid. Differentiable.

    Raises:
        ValueError: other shapes, or images without a pixel.
    """
    _check("ssim", a, b, valid)
    if a.ndim not in (3, 4) or 0 in a.shape:
        raise ValueError(f"ssim: expected images [H, W, C] or [B, H, W, C] with pixels in them, got {list(a.shape)}")
    if valid is not None:
        a = torch.where(valid[..., None], a, b)
    window = min(WINDOW, (min(a.shape[-3:-1]) - 1) // 2 * 2 + 1)
    x, y = (t.movedim(-1, -3).reshape(-1, 1, *t.shape[-3:-1]) for t in (a, b))
    similar = _similarity(x, y, window)
    if valid is None:
        return similar.mean()
    inside = slice(window // 2, -(window // 2) or None)
    return _mean_of_valid(similar, valid[..., inside, inside])


def _similarity(x: Tensor, y: Tensor, window: int) -> Tensor:
    """The structural similarity of each window inside images [P, 1, H, W]."""
    mean_x, mean_y = _blur(x, window), _blur(y, window)
    variance_x = _blur(x * x, window) - mean_x * mean_x
    variance_y = _blur(y * y, window) - mean_y * mean_y
    covariance = _blur(x * y, window) - mean_x * mean_y
    c1, c2 = K1**2, K2**2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x.square() + mean_y.square() + c1)
    return luminance * (2 * covariance + c2) / (variance_x + variance_y + c2)


def _mean_of_valid(similar: Tensor, valid: Tensor) -> Tensor:
    """The mean of windows [P, 1, h, w] of all channels whose centres are valid, [h, w] or [B, h, w]."""
    centre = valid.reshape(-1, 1, *similar.shape[-2:])
    grouped = similar.reshape(len(centre), -1, *similar.shape[-2:])
    return grouped[centre.expand(-1, grouped.shape[1], -1, -1)].mean()


def ssim3(a: Tensor, b: Tensor, valid: Tensor | None = None) -> Tensor:
    """The structural similarity that Ha-NeRF's code reports, to set beside its figures and no others.

    The window is 3 x 3, borders are reflected so that every pixel is the middle of one (a single row or column is repeated),
    and windows below 0 count as 0.

    Args:
        a: [H, W, C] with pixels in it.
        b: the same shape.
        valid: [H, W] bool, as of :func:`ssim`.

    Returns:
        Scalar in [0, 1].
    """
    _check("ssim3", a, b, valid)
    if valid is not None:
        a = torch.where(valid[..., None], a, b)
    x, y = (_with_borders(t.movedim(-1, -3)[:, None]) for t in (a, b))
    similar = _similarity(x, y, 3).clamp(min=0)
    return similar.mean() if valid is None else _mean_of_valid(similar, valid)


def _with_borders(image: Tensor) -> Tensor:
    """Images [B, C, H, W] with one more row and column on each side: the second from it, or the only one."""
    for border, size in (((1, 1, 0, 0), image.shape[-1]), ((0, 0, 1, 1), image.shape[-2])):
        image = torch.nn.functional.pad(image, border, mode="reflect" if size > 1 else "replicate")
    return image
