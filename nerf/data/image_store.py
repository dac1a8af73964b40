"""Pictures in memory: decoded once, kept as bytes end to end. I pictures, P pixels of all of them, C channels."""

import functools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from nerf.core.errors import UserError

DECODERS = 4  # threads that decode pictures
UNKNOWN_NORMAL = 128  # a byte of a normal of no length
NORMAL_TOLERANCE = 0.25  # of a normal's length: 8 bits and smoothing leave it nearer to 1, ground of any colour does not


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

    A mask says which pixels count: those where it is white. 3 bytes a pixel, 4 with alpha, 9 more with masks and 3 more
    with normals.

    Args:
        paths: I picture files.
        masks: I mask files, None where a photograph has none.
        normals: I files of encoded normals, None where a photograph has none.
        alphas: I files of opacities that go over those of the pictures, None where a photograph has none.
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

    def __init__(
        self,
        paths: Sequence[Path],
        masks: Sequence[Path | None],
        normals: Sequence[Path | None],
        alphas: Sequence[Path | None],
        factor: int,
        device: torch.device,
    ):
        headers = [header(path) for path in paths]
        for path, (width, height, _) in zip(paths, headers, strict=True):
            if factor > min(width, height):
                raise UserError(
                    f"--downscale {factor} leaves nothing of {path}, which is {width}x{height} pixels; give a smaller factor"
                )
        self.full_size = [(width, height) for width, height, _ in headers]
        width = torch.tensor([-(-w // factor) for w, _, _ in headers])
        height = torch.tensor([-(-h // factor) for _, h, _ in headers])
        ends = torch.cumsum(width * height, 0)
        mode = "RGBA" if any(alpha for *_, alpha in headers) or any(alphas) else "RGB"
        block = torch.empty(int(ends[-1]), len(mode), dtype=torch.uint8)
        usable = torch.ones(len(block), dtype=torch.bool) if any(masks) else None
        normal = torch.full((len(block), 3), UNKNOWN_NORMAL, dtype=torch.uint8) if any(normals) else None

        def load(i: int) -> None:
            size, inside = (int(height[i]), int(width[i])), slice(int(ends[i] - width[i] * height[i]), int(ends[i]))
            block[inside] = decode(paths[i], mode, factor).reshape(-1, len(mode))
            if alphas[i] is not None:
                block[inside, 3] = _beside("mask", alphas[i], "L", factor, size).reshape(-1)
            if masks[i] is not None:
                usable[inside] = (_beside("mask", masks[i], "L", factor, size) >= 128).reshape(-1)
            if normals[i] is not None:
                normal[inside] = _beside("normals", normals[i], "RGB", factor, size).reshape(-1, 3)

        _in_threads(load, len(paths))
        if mode == "RGBA" and bool((block[:, 3] == 255).all()):
            block = block[:, :3].contiguous()
        if usable is not None and not usable.any():
            raise UserError(
                f"{next(filter(None, masks))}: the masks are black everywhere, and only white pixels are learned; "
                "turn their colours round, or leave the masks out"
            )
        self.bytes = block.to(device)
        self.width, self.height, self.ends = width.to(device), height.to(device), ends.to(device)
        # The same on the host, so that nobody waits for a GPU to learn them.
        self._sizes, self._ends = list(zip(height.tolist(), width.tolist(), strict=True)), ends.tolist()
        self._usable = None if usable is None else usable.to(device)
        self._normal = None if normal is None else normal.to(device)
        self._choices = None if usable is None else usable.nonzero()[:, 0].to(device)

    def __len__(self) -> int:
        return len(self.full_size)

    @property
    def has_alpha(self) -> bool:
        """Whether some pixel is not opaque."""
        return self.bytes.shape[1] == 4

    def size(self, i: int) -> tuple[int, int]:
        """Height and width of picture ``i``."""
        return self._sizes[i]

    def _inside(self, i: int) -> slice:
        height, width = self._sizes[i]
        return slice(self._ends[i] - height * width, self._ends[i])

    def image(self, i: int) -> Tensor:
        """Picture ``i`` as [H, W, C] float in [0, 1]."""
        return (self.bytes[self._inside(i)].float() / 255).reshape(*self.size(i), -1)

    def usable(self, i: int) -> Tensor | None:
        """Which pixels [H, W] of picture ``i`` are not masked out, or None if there are no masks at all."""
        return None if self._usable is None else self._usable[self._inside(i)].reshape(self.size(i))

    @property
    def has_masks(self) -> bool:
        """Whether some picture has a mask."""
        return self._usable is not None

    def normal(self, i: int) -> Tensor | None:
        """Unit normals [H, W, 3] of picture ``i`` in the axes of their file, 0 where unknown; None if there are none.

        A byte b means ``b / 127.5 - 1``; what is far from unit length is no normal but empty ground.
        """
        if self._normal is None:
            return None
        decoded = self._normal[self._inside(i)].reshape(*self.size(i), 3).float() / 127.5 - 1
        length = decoded.norm(dim=-1, keepdim=True)
        known = (length - 1).abs() < NORMAL_TOLERANCE
        return torch.where(known, decoded / length.clamp(min=1e-6), 0.0)

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Numbers [count] of random pixels, evenly over all usable ones, with replacement.

        The generator belongs to the pictures' device, so that nothing is copied there and waited for.
        """
        total = len(self.bytes) if self._choices is None else len(self._choices)
        pixel = torch.randint(total, (count,), generator=generator, device=self.bytes.device)
        return pixel if self._choices is None else self._choices[pixel]

    def locate(self, pixel: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Which picture [N], which column and which row [N] pixels [N] are."""
        picture = torch.searchsorted(self.ends, pixel, right=True)
        width = self.width[picture]
        place = pixel - self.ends[picture] + width * self.height[picture]
        return picture, place % width, place // width


def _in_threads(load: Callable[[int], None], count: int) -> None:
    """Call ``load`` with the numbers below ``count``, a few at a time; the first error is raised."""
    with ThreadPoolExecutor(DECODERS) as pool:
        list(pool.map(load, range(count)))


def _beside(what: str, path: Path, mode: str, factor: int, size: tuple[int, int]) -> Tensor:
    """A picture that goes with a photograph of ``size`` (height, width) pixels, decoded as :func:`decode` does."""
    picture = decode(path, mode, factor)
    if tuple(picture.shape[:2]) != size:
        raise UserError(
            f"{what} {path} must have its photograph's size, {size[1]}x{size[0]} pixels after --downscale, "
            f"got {picture.shape[1]}x{picture.shape[0]}"
        )
    return picture


def resample(planes: Tensor, height: int, width: int, source: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """A picture at another size without aliasing: a triangle filter as wide as the larger pixel of the two.

    Args:
        planes: [C, h, w].
        height, width: of the result, pixels.
        source: where a point of the result lies in the picture, for a lens that is to be undone: [..., 2] to [..., 2],
            column and row as shares of the size in [0, 1]. It is followed on a raster twice as fine as the result.

    Returns:
        [C, height, width]; where the source lies outside the picture, its nearest border.
    """
    resize = functools.partial(torch.nn.functional.interpolate, mode="bilinear", antialias=True)
    if source is None:
        return resize(planes[None], (height, width))[0]
    fine = (2 * height, 2 * width)
    row, column = ((torch.arange(n, dtype=planes.dtype, device=planes.device) + 0.5) / n for n in fine)
    share = torch.stack([column.expand(len(row), -1), row[:, None].expand(-1, len(column))], -1)
    bent = torch.nn.functional.grid_sample(
        resize(planes[None], fine), 2 * source(share)[None] - 1, padding_mode="border", align_corners=False
    )
    return torch.nn.functional.avg_pool2d(bent, 2)[0]
