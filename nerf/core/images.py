"""Writing images: PNG files, contact sheets, videos, and depth maps in colour.

Letters: F frames, H and W pixels. Colours are sRGB; an image is [H, W, 3] (or [H, W], [H, W, 4]), uint8 or float in
[0, 1], a numpy array or a tensor. Every file is written under a temporary name and then renamed, so that readers never
see a partial file.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from nerf.core.files import write_atomically
from nerf.core.progress import track

ImageLike = np.ndarray | Tensor

_LOG = logging.getLogger("somnia.video")
_CAPTION_HEIGHT = 14  # pixels; PIL's built-in font is 11 high
_H264_QUALITY = 8  # of imageio's 0 to 10; visually lossless at the size of a preview
_JPEG_QUALITY = 85
_MIN_GIF_FRAME = 20  # milliseconds; browsers slow down GIFs with shorter frames
_VISIBLE_OPACITY = 0.5  # pixels above it decide the range of the depth colours
_EPSILON = 1e-6  # lower limit of divisors
# Colour map of depth from far to near: dark blue through red to pale yellow, with increasing lightness.
_DEPTH_COLORS = np.array([[0, 0, 4], [66, 10, 104], [147, 38, 103], [221, 81, 58], [252, 165, 10], [252, 255, 164]]) / 255.0


def to_uint8(image: ImageLike) -> np.ndarray:
    """An image as uint8: floats in [0, 1] are clipped, scaled and rounded; uint8 passes through.

    Args:
        image: [..., H, W] or [..., H, W, C], float or uint8.

    Raises:
        TypeError: another dtype.
        ValueError: a float image that holds NaN or infinity.
    """
    array: np.ndarray[Any, Any] = image.detach().cpu().numpy() if isinstance(image, Tensor) else np.asarray(image)
    if array.dtype == np.uint8:
        return array
    if not np.issubdtype(array.dtype, np.floating):
        raise TypeError(f"to_uint8: expected a uint8 or float image, got {array.dtype}; convert it to floats in [0, 1]")
    if not np.isfinite(array).all():
        raise ValueError(f"to_uint8: the image of shape {list(array.shape)} holds NaN or infinity; it cannot be shown")
    rounded: np.ndarray[Any, Any] = np.round(np.clip(array, 0.0, 1.0) * 255.0).astype(np.uint8)
    return rounded


def write_png(path: str | Path, image: ImageLike) -> Path:
    """Write one image [H, W], [H, W, 1], [H, W, 3] or [H, W, 4] as PNG.

    Raises:
        ValueError: another shape, or NaN in it.
        OSError: it cannot be written.
    """
    array = to_uint8(image)
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[-1] not in (3, 4)) or 0 in array.shape:
        raise ValueError(f"write_png: expected an image [H, W] or [H, W, 3 or 4], got {list(array.shape)}")
    return write_atomically(path, lambda temporary: Image.fromarray(np.ascontiguousarray(array)).save(temporary, "PNG"))


def write_jpeg(path: str | Path, image: ImageLike, quality: int = _JPEG_QUALITY) -> Path:
    """Write one image [H, W, 3] as JPEG, for pages with many pictures; ``quality`` is PIL's, up to 95.

    Raises:
        ValueError: another shape, or NaN in it.
        OSError: it cannot be written.
    """
    array = to_uint8(image)
    if array.ndim != 3 or array.shape[-1] != 3 or 0 in array.shape:
        raise ValueError(f"write_jpeg: expected an image [H, W, 3], got {list(array.shape)}")
    return write_atomically(path, lambda temporary: Image.fromarray(array).save(temporary, "JPEG", quality=quality))


def ffmpeg_available() -> bool:
    """Whether imageio finds an ffmpeg executable, which it needs to write mp4."""
    try:
        import imageio_ffmpeg

        imageio_ffmpeg.get_ffmpeg_exe()
    except (ImportError, RuntimeError):
        return False
    return True


def write_video(
    path: str | Path, frames: ImageLike | Iterable[ImageLike], fps: float = 30, report: Callable[[str], None] | None = None
) -> Path:
    """Write frames as an H.264 mp4, or as a GIF of the same stem where ffmpeg is missing.

    H.264 with 4:2:0 chroma needs even sizes: the last row or column of an odd image is repeated.

    Args:
        path: file to write; its suffix becomes .gif if ffmpeg is missing.
        frames: [F, H, W, 3] or a sequence of [H, W, 3], all of one size.
        fps: frames per second.
        report: called with one line if a GIF is written instead of an mp4; None: a warning in the log.

    Returns:
        The path of the file that was written.

    Raises:
        ValueError: no frames, another shape, or fps < 1.
        OSError: it cannot be written.
    """
    path = Path(path)
    arrays = [to_uint8(frame) for frame in frames]
    if not arrays or any(a.ndim != 3 or a.shape[-1] != 3 or a.shape != arrays[0].shape for a in arrays):
        shapes = sorted({tuple(a.shape) for a in arrays})
        raise ValueError(f"write_video: expected at least one frame and all [H, W, 3] of one size, got shapes {shapes}")
    if fps < 1:
        raise ValueError(f"write_video: fps must be at least 1, got {fps}")
    if path.suffix.lower() != ".gif" and not ffmpeg_available():
        path = path.with_suffix(".gif")
        warn = report or _LOG.warning
        warn(f"no ffmpeg was found, so {path.name} is written as a GIF; pip install imageio-ffmpeg for mp4")
    if path.suffix.lower() == ".gif":
        return write_atomically(path, lambda temporary: _write_gif(temporary, arrays, fps))
    return write_atomically(path, lambda temporary: _write_mp4(temporary, arrays, fps, path.name))


def _write_mp4(path: Path, arrays: list[np.ndarray], fps: float, name: str) -> None:
    """Write uint8 frames [H, W, 3] as H.264 in yuv420p, the pixel format that every player decodes."""
    import imageio.v2 as imageio

    height, width = arrays[0].shape[:2]
    pad = ((0, height % 2), (0, width % 2), (0, 0))
    with imageio.get_writer(
        path,
        format="FFMPEG",
        fps=fps,
        codec="libx264",
        quality=_H264_QUALITY,
        macro_block_size=1,
        pixelformat="yuv420p",
        ffmpeg_log_level="error",
        output_params=["-movflags", "+faststart"],  # browsers play it before all of it has arrived
    ) as writer:
        for array in track(arrays, f"encoding {name}"):
            writer.append_data(np.pad(array, pad, mode="edge"))  # type: ignore[attr-defined]  # typed as its base class


def _write_gif(path: Path, arrays: list[np.ndarray], fps: float) -> None:
    """Write uint8 frames [H, W, 3] as a looping GIF; GIF frame times are multiples of 10 ms."""
    images = [Image.fromarray(a) for a in arrays]
    duration = max(_MIN_GIF_FRAME, round(100 / fps) * 10)
    images[0].save(path, "GIF", save_all=True, append_images=images[1:], duration=duration, loop=0)


def contact_sheet(
    images: Sequence[ImageLike], columns: int, captions: Sequence[str] | None = None, gap: int = 2, background: int = 255
) -> np.ndarray:
    """Lay images out in rows, optionally with one line of text under each.

    Args:
        images: [H, W, 3] of one size, in row-major order from the top left.
        columns: images per row.
        captions: one line of text for each image, cut at the image's width.
        gap: pixels between images.
        background: grey level of gaps and captions, 0 to 255.

    Returns:
        uint8 [rows * (H + caption) + gaps, columns * W + gaps, 3].

    Raises:
        ValueError: no images, different sizes, columns < 1, or another number of captions.
    """
    arrays = [to_uint8(image) for image in images]
    if not arrays or columns < 1 or any(a.ndim != 3 or a.shape != arrays[0].shape for a in arrays):
        shapes = sorted({tuple(a.shape) for a in arrays})
        raise ValueError(
            f"contact_sheet: expected images [H, W, 3] of one size and columns >= 1, got {shapes} and columns {columns}"
        )
    if captions is not None and len(captions) != len(arrays):
        raise ValueError(f"contact_sheet: expected one caption per image, got {len(captions)} for {len(arrays)} images")
    height, width = arrays[0].shape[:2]
    cell = height + gap + (_CAPTION_HEIGHT if captions is not None else 0)
    rows = -(-len(arrays) // columns)
    sheet = np.full((rows * cell + gap, columns * (width + gap) + gap, 3), background, dtype=np.uint8)
    for k, array in enumerate(arrays):
        top, left = gap + (k // columns) * cell, gap + (k % columns) * (width + gap)
        sheet[top : top + height, left : left + width] = array[..., :3]
    if captions is None:
        return sheet
    text_level = 0 if background > 127 else 255
    for k, caption in enumerate(captions):
        strip = Image.new("L", (width, _CAPTION_HEIGHT), background)
        ImageDraw.Draw(strip).text((1, 1), caption.encode("latin-1", "replace").decode("latin-1"), fill=text_level)
        top, left = gap + (k // columns) * cell + height, gap + (k % columns) * (width + gap)
        sheet[top : top + _CAPTION_HEIGHT, left : left + width] = np.asarray(strip)[..., None]
    return sheet


def depth_to_color(depth: Tensor, opacity: Tensor | None = None, limits: tuple[float, float] | None = None) -> Tensor:
    """Depth map in colour: near is pale yellow, far is dark blue, empty pixels are black.

    Args:
        depth: [..., H, W] distances along unit rays, scene units; sums of weight * t if ``opacity`` is given.
        opacity: [..., H, W] in [0, 1]; depth is divided by it and colours are multiplied by it. None: opaque.
        limits: (near, far), scene units; None: the range of depth over the visible pixels.

    Returns:
        Colours [..., H, W, 3] in [0, 1]. Not differentiable.
    """
    depth = depth.detach().float().cpu()
    alpha = torch.ones_like(depth) if opacity is None else opacity.detach().float().cpu().clamp(0, 1)
    distance = depth / alpha.clamp(min=_EPSILON) if opacity is not None else depth
    visible = alpha > _VISIBLE_OPACITY
    if limits is None:
        limits = (float(distance[visible].min()), float(distance[visible].max())) if bool(visible.any()) else (0.0, 1.0)
    near, far = limits
    nearness = ((far - distance) / max(far - near, _EPSILON)).clamp(0, 1).numpy()
    steps = np.linspace(0.0, 1.0, len(_DEPTH_COLORS))
    color = np.stack([np.interp(nearness, steps, _DEPTH_COLORS[:, c]) for c in range(3)], axis=-1)
    return torch.from_numpy(color).float() * alpha[..., None]


def depth_image(depth: Tensor, opacity: Tensor, shape: tuple[int, int]) -> np.ndarray:
    """Depth map uint8 [H, W, 3] of one rendered view.

    Args:
        depth: [H * W] sums of weight * t, as in ``RenderOutput``.
        opacity: [H * W] sums of weights.
        shape: (H, W).
    """
    return to_uint8(depth_to_color(depth.reshape(shape), opacity.reshape(shape)))
