"""Images in memory: decoded once and stored as bytes in one tensor. I images, P pixels of all images, C channels, N pixels."""

import functools
import io
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from nerf.core.errors import UserError
from nerf.core.files import read_bytes, reading
from nerf.core.pictures import as_mode, exif_tags, nonzero, open_picture
from nerf.core.progress import task, track
from nerf.data.pixel_cache import DECODE_THREADS, Layout, Planes, chosen_folder, decode, decode_into, fingerprint

log = logging.getLogger("somnia.photographs")

HALF_VALID = 128  # mean level of a block of mask pixels of 0 and 255 from which the block is valid
UNKNOWN_NORMAL = 128  # byte of all three components where there is no normal map; decodes to a length near 0
NORMAL_TOLERANCE = 0.25  # of a normal's length: 8-bit rounding and resampling stay below it, plain backgrounds exceed it
EXIF_ORIENTATION = 0x0112  # the tag
SIDEWAYS = (5, 6, 7, 8)  # the orientations in which width and height change places
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
MIN_LENGTH = 1e-6  # lower limit of a divisor
_WAY_OUT = "replace the file, or remove it from the dataset"


def read_header(path: Path) -> tuple[int, int, bool]:
    """Width, height, and whether there is an alpha channel or a transparent colour, without decoding the image.

    Raises:
        UserError: the file is not a picture in one of the formats of :mod:`nerf.core.pictures`.
    """
    with open_picture(path, f"photograph {path}", _WAY_OUT) as image:
        return *image.size, "A" in image.getbands() or "transparency" in image.info


def exif_orientation(path: Path) -> int:
    """How the picture is to be turned when it is shown, 1 to 8 as EXIF counts; 1: as it is stored. It is not turned here."""
    with open_picture(path, f"photograph {path}", _WAY_OUT) as image:
        value = exif_tags(image).get(EXIF_ORIENTATION, 1)
        return value if isinstance(value, int) and 1 <= value <= 8 else 1


def turned(image: Image.Image, orientation: int) -> Image.Image:
    """A picture as it is shown, given its EXIF orientation, 1 to 8."""
    return image if orientation == 1 else image.transpose(_TURNS[orientation])


def decode_image(path: Path, mode: str, factor: int = 1, orientation: int = 1) -> Tensor:
    """Decode an image as uint8 [H, W, C], or [H, W] in mode "L", optionally downscaled by an integer factor.

    Downscaling averages blocks of ``factor`` x ``factor`` pixels, with premultiplied alpha in mode "RGBA".

    Args:
        path: in one of the formats of :mod:`nerf.core.pictures`; 16-bit grey is scaled to 8 bits.
        mode: "RGB", "RGBA" or "L".
        factor: width and height are divided by it and rounded up.
        orientation: as EXIF counts, by which the picture is turned; 1: not at all.

    Raises:
        UserError: the file is not a picture, is broken, or is too large to be decoded safely.
    """
    with open_picture(path, f"photograph {path}", _WAY_OUT) as opened:
        image = turned(as_mode(opened, mode), orientation)
        return torch.from_numpy(np.array(image.reduce(factor) if factor > 1 else image))


def decode_mask(path: Path, factor: int = 1) -> Tensor:
    """Pixels [H, W] bool of a mask that are not black; downscaled, those of which at least half is not black.

    Args:
        path: in one of the formats of :mod:`nerf.core.pictures`; white may be any level, also 1 of 255.
        factor: width and height are divided by it and rounded up.

    Raises:
        UserError: the file is not a picture, is broken, or is too large to be decoded safely.
    """
    with open_picture(path, f"mask {path}", _WAY_OUT) as opened:
        valid = Image.fromarray(np.where(nonzero(opened), np.uint8(255), np.uint8(0)))
        return torch.from_numpy(np.array(valid.reduce(factor) if factor > 1 else valid) >= HALF_VALID)


def decode_depth(path: Path, size: tuple[int, int]) -> Tensor:
    """The levels of a depth map as float32 [H, W], at the nearest pixel of another size; 0 where it knows no depth.

    Args:
        path: a picture of 8 or 16 bits or of floating-point numbers, or an npy file of numbers.
        size: H, W of the result.

    Raises:
        UserError: the file is neither, is broken, or holds no plane of numbers.
    """
    if path.suffix == ".npy":
        with reading(f"depth map {path}", _WAY_OUT):
            levels = np.lib.format.read_array(io.BytesIO(read_bytes(path, _WAY_OUT)), allow_pickle=False)
    else:
        with open_picture(path, f"depth map {path}", _WAY_OUT) as image:
            plain = image if image.mode in ("1", "L", "I", "I;16", "I;16B", "I;16L", "F") else image.convert("L")
            levels = np.array(plain)
    levels = levels.squeeze(-1) if levels.ndim == 3 and levels.shape[-1] == 1 else levels
    if levels.dtype.kind not in "fiub" or levels.ndim != 2 or 0 in levels.shape:
        raise UserError(f"depth map {path} must be a plane of numbers, got {levels.dtype} {list(levels.shape)}; {_WAY_OUT}")
    row, column = ((np.arange(n) * 2 + 1) * have // (2 * n) for n, have in zip(size, levels.shape, strict=True))
    picked = torch.from_numpy(levels[row][:, column].astype(np.float32))
    return torch.where(picked.isfinite() & (picked > 0), picked, 0.0)


def decode_opacity(path: Path, factor: int = 1) -> Tensor:
    """An alpha channel uint8 [H, W] in a file of its own; one of zeros and ones is scaled to 255.

    Raises:
        UserError: the file is not a picture, is broken, or is too large to be decoded safely.
    """
    alpha = decode_image(path, "L")
    alpha = alpha * 255 if int(alpha.max()) == 1 else alpha
    return alpha if factor == 1 else torch.from_numpy(np.array(Image.fromarray(alpha.numpy()).reduce(factor)))


def has_transparency(path: Path) -> bool:
    """Whether an image file has pixels that are not opaque."""
    return read_header(path)[2] and bool((decode_image(path, "RGBA")[..., 3] < 255).any())


class _Files(NamedTuple):
    """The files of I images."""

    images: Sequence[Path]
    masks: Sequence[Path | None]
    normals: Sequence[Path | None]
    alphas: Sequence[Path | None]
    orientations: Sequence[int]

    def decoded(self, width: Tensor, height: Tensor, ends: Tensor, factor: int, mode: str, cache: str) -> Planes:
        """Their pixels, masks and normal maps, in memory or in a file of the cache; arguments as of :class:`ImageStore`."""
        kinds = {"pixels": ("U8", len(mode))}
        kinds |= {"valid": ("BOOL", 0)} if any(self.masks) else {}
        kinds |= {"normal": ("U8", 3)} if any(self.normals) else {}

        def load(i: int, planes: Planes) -> None:
            size, inside = (int(height[i]), int(width[i])), slice(int(ends[i] - width[i] * height[i]), int(ends[i]))
            planes["pixels"][inside] = decode_image(self.images[i], mode, factor, self.orientations[i]).reshape(-1, len(mode))
            if (path := self.alphas[i]) is not None:
                planes["pixels"][inside, 3] = _of_size("mask", path, decode_opacity(path, factor), size).reshape(-1)
            if (path := self.masks[i]) is not None:
                planes["valid"][inside] = _of_size("mask", path, decode_mask(path, factor), size).reshape(-1)
            if (path := self.normals[i]) is not None:
                planes["normal"][inside] = _of_size("normals", path, decode_image(path, "RGB", factor), size).reshape(-1, 3)

        layout = Layout(len(self.images), int(ends[-1]), kinds)
        fill = {name: value for name, value in {"valid": 1, "normal": UNKNOWN_NORMAL}.items() if name in kinds}
        folder = chosen_folder(cache, layout)
        if folder is None:
            return decode(layout, load, fill)
        key = fingerprint([self.images, self.masks, self.normals, self.alphas], [factor, mode, list(self.orientations)])
        return decode_into(folder, f"{self.images[0].resolve()} {factor}", key, layout, load, fill)


class ImageStore:
    """Images of any sizes in one tensor of bytes; image ``i`` owns the pixels before ``ends[i]``, in row-major order.

    Memory per pixel: 3 bytes, 4 with alpha, 9 more with masks, 3 more with normal maps and 4 more with depth maps.

    Args:
        paths: I image files.
        masks: I mask files, or None; pixels that are not black are valid.
        normals: I normal maps, or None.
        alphas: I files that replace the alpha channels of the images, or None.
        depths: I depth maps and what one of their levels means, or None; 0 is unknown. They may have another size.
        factor: downscale by this factor.
        device: where the tensors live.
        orientations: I EXIF orientations by which the images are turned, see :func:`turned`; None: none is. Their masks and
            maps are those of the turned images.
        cache: where decoded images are kept, as ``--photo_cache`` says; on a CPU they stay in that file, mapped into memory.

    Attributes:
        pixels: [P, C] uint8, straight (not premultiplied) alpha; C is 4 only if some pixel is not opaque.
        width, height: [I] pixels, after downscaling.
        ends: [I] cumulative sums of width * height.
        original_sizes: width and height of each image before downscaling, and as it is turned.

    Raises:
        UserError: an image is unreadable, the factor exceeds an image, a mask has another size, or all masks are black.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        masks: Sequence[Path | None],
        normals: Sequence[Path | None],
        alphas: Sequence[Path | None],
        factor: int,
        device: torch.device,
        depths: Sequence[tuple[Path | None, float]] = (),
        orientations: Sequence[int] | None = None,
        cache: str = "off",
    ):
        orientations = orientations or [1] * len(paths)
        headers = [read_header(path) for path in track(paths, "reading the sizes of photographs")]
        headers = [(h, w, a) if turn in SIDEWAYS else (w, h, a) for (w, h, a), turn in zip(headers, orientations, strict=True)]
        for path, (w, h, _) in zip(paths, headers, strict=True):
            if factor > min(w, h):
                raise UserError(
                    f"--downscale {factor} leaves nothing of {path}, which is {w}x{h} pixels; give a smaller factor"
                )
        self.original_sizes = [(w, h) for w, h, _ in headers]
        width = torch.tensor([-(-w // factor) for w, _, _ in headers])
        height = torch.tensor([-(-h // factor) for _, h, _ in headers])
        ends = torch.cumsum(width * height, 0)
        mode = "RGBA" if any(alpha for *_, alpha in headers) or any(alphas) else "RGB"
        files = _Files(paths, masks, normals, alphas, orientations)
        planes = files.decoded(width, height, ends, factor, mode, cache)
        pixels, valid, normal = planes["pixels"], planes.get("valid"), planes.get("normal")
        if mode == "RGBA" and bool((pixels[:, 3] == 255).all()):
            pixels = pixels[:, :3]
        if mode == "RGBA" and not bool(pixels[:, -1].any()):
            log.warning(
                "%s transparent everywhere, so there is nothing to learn; check the alpha channel",
                "the photograph is" if len(paths) == 1 else f"all {len(paths)} photographs are",
            )
        if valid is not None and not valid.any():
            raise UserError(
                f"{next(filter(None, masks))}: all masks are black everywhere, and only the other pixels are used; "
                "invert the masks, or remove them"
            )
        self.pixels = pixels.to(device)
        self.width, self.height, self.ends = width.to(device), height.to(device), ends.to(device)
        # Copies on the host, so that reading a size does not synchronise with the GPU.
        self._sizes, self._ends = list(zip(height.tolist(), width.tolist(), strict=True)), ends.tolist()
        self._valid = None if valid is None else valid.to(device)
        self._normal = None if normal is None else normal.to(device)
        self._depth = self._load_depths(depths, device)
        self._valid_pixels = None if valid is None else valid.nonzero()[:, 0].to(device)
        self._patch_positions: dict[int, tuple[Tensor, int]] = {}

    def _load_depths(self, depths: Sequence[tuple[Path | None, float]], device: torch.device) -> Tensor | None:
        """The depths [P] of all pixels; None if no image has a depth map."""
        if not any(path for path, _ in depths):
            return None
        depth = torch.zeros(len(self.pixels))

        def load(i: int) -> None:
            path, unit = depths[i]
            if path is not None:
                depth[self._slice(i)] = unit * decode_depth(path, self.size(i)).reshape(-1)

        _run_in_threads(load, len(depths))
        return depth.to(device)

    @property
    def has_alpha(self) -> bool:
        """Whether some pixel is not opaque."""
        return self.pixels.shape[1] == 4

    @property
    def has_masks(self) -> bool:
        """Whether some image has a mask."""
        return self._valid is not None

    def size(self, i: int) -> tuple[int, int]:
        """Height and width of image ``i``."""
        return self._sizes[i]

    def _slice(self, i: int) -> slice:
        """The pixels of image ``i``."""
        height, width = self._sizes[i]
        return slice(self._ends[i] - height * width, self._ends[i])

    def image(self, i: int) -> Tensor:
        """Image ``i`` as [H, W, C] float in [0, 1], straight alpha."""
        return (self.pixels[self._slice(i)].float() / 255).reshape(*self.size(i), -1)

    def valid_mask(self, i: int) -> Tensor | None:
        """Pixels [H, W] bool of image ``i`` that are not masked out; None if no image has a mask."""
        return None if self._valid is None else self._valid[self._slice(i)].reshape(self.size(i))

    def normal(self, i: int) -> Tensor | None:
        """Normal map [H, W, 3] of image ``i`` in the axes of its file, unit length or 0 where unknown; None if there is none.

        A byte b means ``b / 127.5 - 1``. Vectors far from unit length are not normals but the background of the map.
        """
        if self._normal is None:
            return None
        decoded = self._normal[self._slice(i)].reshape(*self.size(i), 3).float() / 127.5 - 1
        length = decoded.norm(dim=-1, keepdim=True)
        known = (length - 1).abs() < NORMAL_TOLERANCE
        return torch.where(known, decoded / length.clamp(min=MIN_LENGTH), 0.0)

    def depth(self, pixel: Tensor) -> Tensor | None:
        """Depths [N] of pixels [N] as their maps give them, 0 where unknown; None if no image has a depth map."""
        return None if self._depth is None else self._depth[pixel]

    def valid(self, pixel: Tensor) -> Tensor | None:
        """Which of the pixels [N] are not masked out, bool; None if no image has a mask."""
        return None if self._valid is None else self._valid[pixel]

    def sample_pixels(self, count: int, generator: torch.Generator) -> Tensor:
        """Indices [count] int64 into ``pixels``, uniform over all valid pixels of all images, with replacement.

        The generator must be on the device of the images, so that nothing is copied from the host.
        """
        total = len(self.pixels) if self._valid_pixels is None else len(self._valid_pixels)
        pixel = torch.randint(total, (count,), generator=generator, device=self.pixels.device)
        return pixel if self._valid_pixels is None else self._valid_pixels[pixel]

    def locate(self, pixel: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Image, column and row, [N] int64 each, of pixels [N]."""
        return _locate(pixel, self.ends, self.width, self.height)

    def pixel_index(self, image: Tensor, column: Tensor, row: Tensor) -> Tensor:
        """Indices [N] int64 into ``pixels`` of the given image, column and row [N]; the inverse of :meth:`locate`."""
        width = self.width[image]
        return self.ends[image] - width * self.height[image] + row * width + column

    def sample_patches(self, count: int, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Square patches whose positions are uniform over all that lie entirely inside one image, with replacement.

        With masks, only patches whose centre pixel (row and column ``size // 2``) is valid are drawn. Nothing is copied
        from the device, except once for each patch size if there are masks.

        Args:
            count: number of patches.
            size: side of a patch, pixels; at most the smaller side of every image.
            generator: on the device of the images.

        Returns:
            Image [count], and column and row [count] of the first pixel; int64.

        Raises:
            UserError: no position has a valid centre.
        """
        columns, rows = self.width - size + 1, self.height - size + 1  # number of positions
        if self._valid is None:
            total = sum((h - size + 1) * (w - size + 1) for h, w in self._sizes)
            position = torch.randint(total, (count,), generator=generator, device=self.pixels.device)
            return _locate(position, torch.cumsum(columns * rows, 0), columns, rows)
        centres, total = self._valid_centres(size)
        choice = torch.randint(total, (count,), generator=generator, device=self.pixels.device)
        image, column, row = self.locate(centres[choice])
        return image, column - size // 2, row - size // 2

    def _valid_centres(self, size: int) -> tuple[Tensor, int]:
        """Valid pixels that are the centres of patches inside their image: indices into ``pixels``, and how many."""
        if size not in self._patch_positions:
            pixel = self._valid_pixels
            assert pixel is not None, "asked only where there are masks"
            image, column, row = self.locate(pixel)
            left, top = column - size // 2, row - size // 2
            inside = (left >= 0) & (left + size <= self.width[image]) & (top >= 0) & (top + size <= self.height[image])
            centres = pixel[inside]
            if len(centres) == 0:
                raise UserError(
                    f"no patch of {size}x{size} pixels has a valid centre, as the masks are white only near the borders of "
                    "the photographs; give smaller patches"
                )
            self._patch_positions[size] = centres, len(centres)
        return self._patch_positions[size]

    def first_smaller_than(self, size: int) -> int | None:
        """The first image that is narrower or lower than ``size`` pixels; None if there is none."""
        return next((i for i, sides in enumerate(self._sizes) if min(sides) < size), None)


def _locate(index: Tensor, ends: Tensor, width: Tensor, height: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Grid, column and row [N] of ``index`` [N] in row-major grids of [I] columns and rows with cumulative sizes ``ends``."""
    grid = torch.searchsorted(ends, index, right=True)
    columns = width[grid]
    offset = index - ends[grid] + columns * height[grid]
    return grid, offset % columns, offset // columns


def _run_in_threads(load: Callable[[int], None], count: int) -> None:
    """Call ``load`` with 0 to ``count`` - 1 in ``DECODE_THREADS`` threads; the first error is raised."""
    with ThreadPoolExecutor(DECODE_THREADS) as pool, task("reading photographs", count) as advance:
        for done, _ in enumerate(pool.map(load, range(count)), 1):
            advance(done)


def _of_size(kind: str, path: Path, image: Tensor, size: tuple[int, int]) -> Tensor:
    """A decoded mask or normal map [H, W, ...], which must have the size of its photograph: ``size`` (height, width)."""
    if tuple(image.shape[:2]) != size:
        raise UserError(
            f"{kind} {path} must have its photograph's size, {size[1]}x{size[0]} pixels after --downscale, "
            f"got {image.shape[1]}x{image.shape[0]}; resize it"
        )
    return image


def resample(image: Tensor, height: int, width: int, warp: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """Resize an image with antialiasing (a triangle filter as wide as the larger of the two pixel sizes), optionally warped.

    Args:
        image: [C, h, w] float; with premultiplied alpha, so that transparent pixels do not bleed their colour.
        height, width: size of the result, pixels.
        warp: maps points of the result [..., 2] to points of the image [..., 2], for removing lens distortion; both are
            (column, row) divided by the size, in [0, 1]. It is sampled at twice the resolution of the result.

    Returns:
        [C, height, width]; the border is repeated where the warp leaves the image. Differentiable in the image.
    """
    resize = functools.partial(torch.nn.functional.interpolate, mode="bilinear", antialias=True)
    if warp is None:
        return resize(image[None], (height, width))[0]
    double = (2 * height, 2 * width)
    row, column = ((torch.arange(n, dtype=image.dtype, device=image.device) + 0.5) / n for n in double)
    uv = torch.stack([column.expand(len(row), -1), row[:, None].expand(-1, len(column))], -1)
    warped = torch.nn.functional.grid_sample(
        resize(image[None], double), 2 * warp(uv)[None] - 1, padding_mode="border", align_corners=False
    )
    return torch.nn.functional.avg_pool2d(warped, 2)[0]
