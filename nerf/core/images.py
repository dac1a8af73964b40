"""Pictures on disk: PNG files, contact sheets, turntable videos, and depth and normals as colours.

Letters: F frames, H and W pixels. Colours are sRGB; an image is [H, W, 3] (or [H, W], [H, W, 4]), uint8 or float in
[0, 1], a numpy array or a tensor. Every file is written to a temporary name beside it and renamed, so a reader never
sees half of one.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from nerf.core.files import write_atomically

Picture = np.ndarray | Tensor

_LOG = logging.getLogger("somnia.video")
_CAPTION_HEIGHT = 14  # pixels; PIL's built-in font is 11 high
# Anchors of the depth ramp from far to near: dark blue over red to pale yellow, of rising lightness.
_RAMP = np.array([[0, 0, 4], [66, 10, 104], [147, 38, 103], [221, 81, 58], [252, 165, 10], [252, 255, 164]]) / 255.0


def to_uint8(image: Picture) -> np.ndarray:
    """An image as uint8: floats in [0, 1] are clipped, scaled and rounded; uint8 passes through.

    Args:
        image: [..., H, W] or [..., H, W, C], float or uint8.

    Raises:
        TypeError: another dtype.
        ValueError: a float image that holds NaN or infinity.
    """
    array = image.detach().cpu().numpy() if isinstance(image, Tensor) else np.asarray(image)
    if array.dtype == np.uint8:
        return array
    if not np.issubdtype(array.dtype, np.floating):
        raise TypeError(f"to_uint8: expected a uint8 or float image, got {array.dtype}; convert it to floats in [0, 1]")
    if not np.isfinite(array).all():
        raise ValueError(f"to_uint8: the image of shape {list(array.shape)} holds NaN or infinity; it is not a picture")
    return np.round(np.clip(array, 0.0, 1.0) * 255.0).astype(np.uint8)


def write_png(path: str | Path, image: Picture) -> Path:
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


def ffmpeg_available() -> bool:
    """Whether imageio can find an ffmpeg to write mp4 with."""
    try:
        import imageio_ffmpeg

        imageio_ffmpeg.get_ffmpeg_exe()
    except (ImportError, RuntimeError):
        return False
    return True


def write_video(
    path: str | Path, frames: Picture | Iterable[Picture], fps: int = 30, report: Callable[[str], None] | None = None
) -> Path:
    """Write frames as an H.264 mp4, or as a GIF of the same stem where ffmpeg is missing.

    H.264 wants even sizes: an odd image gets its last row or column twice.

    Args:
        path: file to write; its suffix becomes .gif if there is no ffmpeg (or is .gif already).
        frames: [F, H, W, 3] or a sequence of [H, W, 3], all of one size.
        fps: frames a second.
        report: takes the one line that says a GIF was written instead; the module's log without it.

    Returns:
        The path that was written.

    Raises:
        ValueError: no frames, another shape, or fps < 1.
        OSError: it cannot be written.
    """
    path = Path(path)
    pictures = [to_uint8(frame) for frame in frames]
    if not pictures or any(p.ndim != 3 or p.shape[-1] != 3 or p.shape != pictures[0].shape for p in pictures):
        shapes = sorted({tuple(p.shape) for p in pictures})
        raise ValueError(f"write_video: expected at least one frame and all [H, W, 3] of one size, got shapes {shapes}")
    if fps < 1:
        raise ValueError(f"write_video: fps must be at least 1, got {fps}")
    if path.suffix.lower() != ".gif" and not ffmpeg_available():
        say = report or _LOG.warning
        path = path.with_suffix(".gif")
        say(f"no ffmpeg was found, so {path.name} is a GIF; pip install imageio-ffmpeg gives an mp4")
    if path.suffix.lower() == ".gif":
        return write_atomically(path, lambda temporary: _write_gif(temporary, pictures, fps))
    return write_atomically(path, lambda temporary: _write_mp4(temporary, pictures, fps))


def _write_mp4(path: Path, pictures: list[np.ndarray], fps: int) -> None:
    """H.264 in yuv420p, the profile that every player takes."""
    import imageio.v2 as imageio

    height, width = pictures[0].shape[:2]
    pad = ((0, height % 2), (0, width % 2), (0, 0))
    with imageio.get_writer(
        path,
        format="FFMPEG",
        fps=fps,
        codec="libx264",
        quality=8,
        macro_block_size=1,
        pixelformat="yuv420p",
        ffmpeg_log_level="error",
    ) as writer:
        for picture in pictures:
            writer.append_data(np.pad(picture, pad, mode="edge"))


def _write_gif(path: Path, pictures: list[np.ndarray], fps: int) -> None:
    """An endless GIF; its frames last a whole number of hundredths of a second, at least two."""
    images = [Image.fromarray(p) for p in pictures]
    duration = max(20, round(100 / fps) * 10)
    images[0].save(path, "GIF", save_all=True, append_images=images[1:], duration=duration, loop=0)


def contact_sheet(
    images: Sequence[Picture], columns: int, captions: Sequence[str] | None = None, gap: int = 2, background: int = 255
) -> np.ndarray:
    """Lay images out in rows, optionally with one line of text under each.

    Args:
        images: pictures [H, W, 3] of one size, row by row from the top left.
        columns: pictures in a row.
        captions: one text for each image; what does not fit its width is cut.
        gap: pixels between pictures.
        background: grey level of the gaps and captions.

    Returns:
        uint8 [rows * (H + caption) + gaps, columns * W + gaps, 3].

    Raises:
        ValueError: no images, different sizes, columns < 1, or another number of captions.
    """
    pictures = [to_uint8(image) for image in images]
    if not pictures or columns < 1 or any(p.ndim != 3 or p.shape != pictures[0].shape for p in pictures):
        shapes = sorted({tuple(p.shape) for p in pictures})
        raise ValueError(
            f"contact_sheet: expected images [H, W, 3] of one size and columns >= 1, got {shapes} and columns {columns}"
        )
    if captions is not None and len(captions) != len(pictures):
        raise ValueError(f"contact_sheet: expected one caption an image, got {len(captions)} for {len(pictures)}")
    height, width = pictures[0].shape[:2]
    cell = height + gap + (_CAPTION_HEIGHT if captions is not None else 0)
    rows = -(-len(pictures) // columns)
    sheet = np.full((rows * cell + gap, columns * (width + gap) + gap, 3), background, dtype=np.uint8)
    for k, picture in enumerate(pictures):
        top, left = gap + (k // columns) * cell, gap + (k % columns) * (width + gap)
        sheet[top : top + height, left : left + width] = picture[..., :3]
    if captions is None:
        return sheet
    ink = 0 if background > 127 else 255
    for k, caption in enumerate(captions):
        strip = Image.new("L", (width, _CAPTION_HEIGHT), background)
        ImageDraw.Draw(strip).text((1, 1), caption.encode("latin-1", "replace").decode("latin-1"), fill=ink)
        top, left = gap + (k // columns) * cell + height, gap + (k % columns) * (width + gap)
        sheet[top : top + _CAPTION_HEIGHT, left : left + width] = np.asarray(strip)[..., None]
    return sheet


def depth_to_color(depth: Tensor, opacity: Tensor | None = None, limits: tuple[float, float] | None = None) -> Tensor:
    """Depth as a colour: near is pale yellow, far dark blue, nothing is black.

    Args:
        depth: [..., H, W] distances along unit rays; sums of weight * t if ``opacity`` is given.
        opacity: [..., H, W]; depth is divided by it, and pixels fade to black with it.
        limits: (near, far); the range of the visible pixels without it.

    Returns:
        Colours [..., H, W, 3] in [0, 1]. Not differentiable.
    """
    depth = depth.detach().float().cpu()
    cover = torch.ones_like(depth) if opacity is None else opacity.detach().float().cpu().clamp(0, 1)
    distance = depth / cover.clamp(min=1e-6) if opacity is not None else depth
    seen = cover > 0.5
    if limits is None:
        limits = (float(distance[seen].min()), float(distance[seen].max())) if bool(seen.any()) else (0.0, 1.0)
    near, far = limits
    nearness = ((far - distance) / max(far - near, 1e-6)).clamp(0, 1).numpy()
    steps = np.linspace(0.0, 1.0, len(_RAMP))
    color = np.stack([np.interp(nearness, steps, _RAMP[:, c]) for c in range(3)], axis=-1)
    return torch.from_numpy(color).float() * cover[..., None]


def depth_image(depth: Tensor, opacity: Tensor, shape: tuple[int, int]) -> np.ndarray:
    """The picture uint8 [H, W, 3] of one rendered view: depth [H * W] and opacity [H * W] as the renderer sums them."""
    return to_uint8(depth_to_color(depth.reshape(shape), opacity.reshape(shape)))
