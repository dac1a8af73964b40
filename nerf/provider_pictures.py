"""Pictures in memory: decoded once, kept as bytes end to end. I pictures, P pixels of all of them, C channels."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from nerf.errors import UserError

DECODERS = 4  # threads that decode pictures


def _unreadable(path: Path, error: Exception) -> UserError:
    return UserError(f"photograph {path} cannot be read: {error}")


def _has_alpha(picture) -> bool:
    """Whether a PIL picture has an alpha channel or a transparent colour."""
    return "A" in picture.getbands() or "transparency" in picture.info


def header(path: Path) -> tuple[int, int, bool]:
    """Width, height and whether there may be alpha, without decoding.

    Raises:
        UserError: it is not a picture.
    """
    from PIL import Image

    try:
        with Image.open(path) as picture:
            return *picture.size, _has_alpha(picture)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise _unreadable(path, error) from error


def decode(path: Path, mode: str, factor: int = 1) -> Tensor:
    """A picture as uint8 [H, W, C], or [H, W] for mode "L"; shrunk by a whole factor (means of premultiplied colours).

    Args:
        path: any format that PIL reads; 16-bit grey is scaled to 8.
        mode: "RGB", "RGBA" or "L".
        factor: sizes are divided by it and rounded up.

    Raises:
        UserError: it is not a picture, or broken, or too large to decode safely.
    """
    import numpy as np
    from PIL import Image

    try:
        with Image.open(path) as opened:
            picture = opened
            if opened.mode.startswith("I"):  # 16-bit grey, which PIL would clip instead of scaling
                picture = opened.convert("I").point(lambda value: value / 257).convert("L")
            picture = picture.convert(mode)
        return torch.from_numpy(np.array(picture.reduce(factor) if factor > 1 else picture))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise _unreadable(path, error) from error


def shows_clear_ground(path: Path) -> bool:
    """Whether a picture has pixels that are not opaque."""
    return header(path)[2] and bool((decode(path, "RGBA")[..., 3] < 255).any())


class Pictures:
    """Pictures of any sizes as one block of bytes; photograph ``i`` owns the pixels up to ``ends[i]``, row by row.

    A mask says which pixels count: those where it is white. 3 bytes a pixel, 4 with alpha, and 8 more with masks.

    Args:
        paths: I picture files.
        masks: I mask files, None where a photograph has none.
        factor: shrink by this.
        device: where the bytes live.

    Attributes:
        bytes: [P, C] uint8; C is 4 only if some pixel is not opaque.
        width, height: [I] pixels, after shrinking.
        ends: [I] running sums of width * height.
        full_size: width and height of each before shrinking.

    Raises:
        UserError: unreadable pictures, a factor that leaves nothing, masks of another size or black everywhere.
    """

    def __init__(self, paths: Sequence[Path], masks: Sequence[Path | None], factor: int, device: torch.device):
        headers = [header(path) for path in paths]
        for path, (width, height, _) in zip(paths, headers, strict=True):
            if factor > min(width, height):
                raise UserError(f"--downscale {factor} leaves nothing of {path}, which is {width}x{height} pixels")
        self.full_size = [(width, height) for width, height, _ in headers]
        width = torch.tensor([-(-w // factor) for w, _, _ in headers])
        height = torch.tensor([-(-h // factor) for _, h, _ in headers])
        ends = torch.cumsum(width * height, 0)
        mode = "RGBA" if any(alpha for *_, alpha in headers) else "RGB"
        block = torch.empty(int(ends[-1]), len(mode), dtype=torch.uint8)
        usable = torch.ones(len(block), dtype=torch.bool) if any(masks) else None

        def load(i: int) -> None:
            inside = slice(int(ends[i] - width[i] * height[i]), int(ends[i]))
            block[inside] = decode(paths[i], mode, factor).reshape(-1, len(mode))
            if masks[i] is not None:
                usable[inside] = _mask(masks[i], factor, int(height[i]), int(width[i])).reshape(-1)

        with ThreadPoolExecutor(DECODERS) as pool:
            list(pool.map(load, range(len(paths))))
        if mode == "RGBA" and bool((block[:, 3] == 255).all()):
            block = block[:, :3].contiguous()
        if usable is not None and not usable.any():
            raise UserError(f"{next(filter(None, masks))}: the masks are black everywhere, no pixel is left to learn")
        self.bytes = block.to(device)
        self.width, self.height, self.ends = width.to(device), height.to(device), ends.to(device)
        self._usable = None if usable is None else usable.to(device)
        self._choices = None if usable is None else usable.nonzero()[:, 0].to(device)

    def __len__(self) -> int:
        return len(self.full_size)

    @property
    def has_alpha(self) -> bool:
        """Whether some pixel is not opaque."""
        return self.bytes.shape[1] == 4

    def size(self, i: int) -> tuple[int, int]:
        """Height and width of picture ``i``."""
        return int(self.height[i]), int(self.width[i])

    def _inside(self, i: int) -> slice:
        height, width = self.size(i)
        return slice(int(self.ends[i]) - height * width, int(self.ends[i]))

    def image(self, i: int) -> Tensor:
        """Picture ``i`` as [H, W, C] float in [0, 1]."""
        return (self.bytes[self._inside(i)].float() / 255).reshape(*self.size(i), -1)

    def usable(self, i: int) -> Tensor | None:
        """Which pixels [H, W] of picture ``i`` are not masked out, or None if there are no masks at all."""
        return None if self._usable is None else self._usable[self._inside(i)].reshape(self.size(i))

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Numbers [count] of random pixels, evenly over all usable ones, with replacement."""
        total = len(self.bytes) if self._choices is None else len(self._choices)
        pixel = torch.randint(total, (count,), generator=generator).to(self.bytes.device)
        return pixel if self._choices is None else self._choices[pixel]

    def locate(self, pixel: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Which picture [N], which column and which row [N] pixels [N] are."""
        picture = torch.searchsorted(self.ends, pixel, right=True)
        width = self.width[picture]
        place = pixel - self.ends[picture] + width * self.height[picture]
        return picture, place % width, place // width


def _mask(path: Path, factor: int, height: int, width: int) -> Tensor:
    """Which pixels [H, W] count: those whose mask is white."""
    mask = decode(path, "L", factor)
    if tuple(mask.shape) != (height, width):
        raise UserError(f"mask {path} must have its photograph's size, {width}x{height} pixels after --downscale, got "
                        f"{mask.shape[1]}x{mask.shape[0]}")
    return mask >= 128
