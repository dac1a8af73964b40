"""Image prompts as training sees them: square pictures with alpha, depth and normals where there are some, and their views.

The files are those of ``preprocess_image.py``, which has the conventions of stable-dreamfusion: ``_rgba.png`` with straight
alpha; ``_depth.png``, 8 or 16 bits of grey, larger is farther, up to scale and offset; ``_normal.png`` with, in red, green and
blue, the components towards the scene, down and to the right of the image, each ``(n + 1) / 2``.
S pixels a side, B views, N rays.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from guidance.base import ImageCondition
from nerf.config.references import Reference
from nerf.core.cameras import look_at, orbit, orbit_up, view_rays
from nerf.core.errors import UserError
from nerf.core.pictures import as_mode, check_levels, open_picture
from nerf.core.streams import Random, Stream
from nerf.core.structs import Batch, Views
from nerf.data.image_store import resample

MAX_SIDE = 1024  # pixels; larger pictures are scaled down, as no view is rendered at more
MIN_ALPHA = 1e-3  # below it a pixel has no colour of its own
VISIBLE = 0.5  # alpha from which a pixel is of the object
OPAQUE_SHARE = 0.999  # of pixels from which on a picture has no background that was removed
NORMAL_LENGTH = 0.25  # shorter decoded vectors are no normals but the grey of resampling
FULL = 65535  # level of 16 bits
WHITE_RATE = 0.3  # of the views that training composites over white; the others have noise behind them
HINT = "make it with: python preprocess_image.py {}"


@dataclass(frozen=True)
class ImagePrompt:
    """A picture whose camera is known, with what else is known of its view."""

    condition: ImageCondition  # the picture [4, S, S] and its camera
    depth: Tensor | None = None  # [S, S] larger is farther, up to a positive scale and an offset
    normal: Tensor | None = None  # [3, S, S] in camera axes (x right, y up, z backwards), unit length, 0 where unknown


def image_prompts(references: Sequence[Reference]) -> tuple[ImagePrompt, ...]:
    """Read the pictures of a run, on the CPU.

    Args:
        references: of ``nerf.config.references.references``.

    Raises:
        UserError: a file cannot be read, shows nothing, or has another size than its picture.
    """
    return tuple(_read(reference) for reference in references)


def image_conditions(references: Sequence[Reference]) -> tuple[ImageCondition, ...]:
    """The pictures of a run as guidance takes them; see :func:`image_prompts`."""
    return tuple(prompt.condition for prompt in image_prompts(references))


def _read(reference: Reference) -> ImagePrompt:
    """One picture with the files beside it."""
    path, what = reference.path, f"{reference.source} {reference.path}"
    hint = HINT.format(path)
    with open_picture(path, what, hint) as opened:
        rgba = _to_tensor(np.asarray(as_mode(ImageOps.exif_transpose(opened), "RGBA")), 255.0)
    alpha = rgba[3]
    if not bool((alpha > VISIBLE).any()):
        raise UserError(f"{what} is transparent everywhere, so there is nothing to learn; {hint}")
    if float((alpha > VISIBLE).float().mean()) > OPAQUE_SHARE:
        raise UserError(f"{what} has no transparent background, so what is the object is not known; {hint}")
    size = (rgba.shape[1], rgba.shape[2])
    depth = _plane(reference.depth, "depth", size, _decode_depth)
    normal = _plane(reference.normal, "normals", size, _decode_normal)
    planes = _fitted(torch.cat([(plane * alpha) for plane in (rgba[:3], depth, normal) if plane is not None] + [alpha[None]]))
    alpha = planes[-1:]
    planes = unpremultiplied(planes[:-1], alpha)
    condition = ImageCondition(
        torch.cat([planes[:3].clamp(0, 1), alpha.clamp(0, 1)]),
        reference.polar,
        reference.azimuth,
        reference.radius,
        reference.fovy,
        reference.weight,
    )
    return ImagePrompt(condition, None if depth is None else planes[3], None if normal is None else unit_normals(planes[-3:]))


def unpremultiplied(planes: Tensor, alpha: Tensor) -> Tensor:
    """Planes [C, ...] that were multiplied by alpha [1, ...], divided by it; 0 where there is almost none."""
    return torch.where(alpha > MIN_ALPHA, planes / alpha.clamp(min=MIN_ALPHA), 0.0)


def unit_normals(normal: Tensor) -> Tensor:
    """Vectors [3, ...] scaled to unit length, 0 where they are too short to be averages of normals."""
    length = normal.norm(dim=0, keepdim=True)
    return torch.where(length > NORMAL_LENGTH, normal / length.clamp(min=NORMAL_LENGTH), 0.0)


def _to_tensor(array: np.ndarray, white: float) -> Tensor:
    """Pixels [H, W] or [H, W, C] as [C, H, W] float."""
    plane = torch.from_numpy(np.array(array, dtype=np.float32)) / white
    return plane[None] if plane.ndim == 2 else plane.permute(2, 0, 1).contiguous()


def _decode_depth(image: Image.Image) -> Tensor:
    """[1, H, W] in [0, 1]; 16-bit grey keeps its levels."""
    check_levels(image)
    if image.mode.startswith("I"):
        return _to_tensor(np.asarray(image.convert("I")), FULL)
    return _to_tensor(np.asarray(as_mode(image, "L")), 255.0)


def _decode_normal(image: Image.Image) -> Tensor:
    """[3, H, W] in camera axes, 0 where the file is black: see the conventions of the module."""
    stored = _to_tensor(np.asarray(as_mode(image, "RGB")), 255.0)
    known = (stored > 0).any(dim=0, keepdim=True)
    towards_scene, down, right = (2.0 * stored - 1.0).unbind(0)
    return torch.where(known, torch.stack([right, -down, -towards_scene]), 0.0)


def encode_normal(normal: Tensor) -> Tensor:
    """The colours [3, H, W] in [0, 1] of normals [3, H, W] in camera axes, black where they are 0; undone on reading."""
    right, up, back = normal.unbind(0)
    colours = (torch.stack([-back, -up, right]) + 1.0) / 2.0
    return torch.where((normal != 0).any(dim=0, keepdim=True), colours, 0.0)


def _plane(path: Path | None, what: str, size: tuple[int, int], decode: Callable[[Image.Image], Tensor]) -> Tensor | None:
    """A decoded file beside the picture, None if there is none; it must have the picture's size (height, width)."""
    if path is None:
        return None
    hint = "replace the file, or remove it and do without"
    with open_picture(path, f"{what} {path}", hint) as opened:
        plane: Tensor = decode(opened)
    if tuple(plane.shape[1:]) != size:
        raise UserError(
            f"{what} {path} must have the size of its picture, {size[1]}x{size[0]} pixels, got "
            f"{plane.shape[2]}x{plane.shape[1]}; {hint}"
        )
    return plane


def _fitted(planes: Tensor) -> Tensor:
    """Planes [C, H, W] in the middle of a square of at most :data:`MAX_SIDE` pixels, zero around."""
    height, width = planes.shape[1:]
    side = max(height, width)
    left, top = (side - width) // 2, (side - height) // 2
    planes = torch.nn.functional.pad(planes, (left, side - width - left, top, side - height - top))
    return resample(planes, MAX_SIDE, MAX_SIDE) if side > MAX_SIDE else planes


class KnownViews:
    """The views of image prompts as batches: what is known of them, at any size.

    Args:
        prompts: at least one.
        device: where views and planes go.
    """

    def __init__(self, prompts: Sequence[ImagePrompt], device: torch.device | str = "cpu"):
        self.device = torch.device(device)
        self.has_depth, self.has_normal = (
            any(getattr(prompt, name) is not None for prompt in prompts) for name in ("depth", "normal")
        )
        self._stored = [self._planes_of(prompt).to(self.device) for prompt in prompts]
        self._resampled: dict[int, Tensor] = {}  # side -> [K, 8, side, side]; a stage asks for one size
        conditions = [prompt.condition for prompt in prompts]
        self._camera = torch.tensor([[c.polar, c.azimuth, c.radius, c.fovy] for c in conditions])

    @staticmethod
    def _planes_of(prompt: ImagePrompt) -> Tensor:
        """[8, S, S]: colour, depth and normal, each times alpha, and alpha; 0 where they are not known."""
        image = prompt.condition.image
        unknown = torch.zeros_like(image[:3])
        depth = unknown[:1] if prompt.depth is None else prompt.depth[None]
        normal = unknown if prompt.normal is None else prompt.normal
        return torch.cat([torch.cat([image[:3], depth, normal]) * image[3:], image[3:]])

    def __len__(self) -> int:
        return len(self._stored)

    def views(self, chosen: Sequence[int], side: int, noise: float = 0.0, generator: torch.Generator | None = None) -> Views:
        """The cameras of the pictures ``chosen``, ``side`` pixels high and wide, on the CPU.

        Args:
            chosen: B indices.
            side: pixels.
            noise: standard deviation, scene units, of the camera's position, and of the point it looks at.
            generator: of the noise, on the CPU.
        """
        polar, azimuth, radius, fovy = self._camera[list(chosen)].unbind(-1)
        views = orbit(polar, azimuth, radius, fovy, side, side)
        if noise == 0:
            return views
        moved = noise * torch.randn(2, len(chosen), 3, generator=generator)
        pose = look_at(views.pose[:, :3, 3] + moved[0], moved[1], orbit_up(views.polar, views.azimuth))
        return replace(views, pose=pose)

    def batch(self, chosen: Sequence[int], side: int, noise: float, random: Random) -> Batch:
        """Training rays of whole views and what the pictures know of them.

        Colours are composited with the picture's own alpha over noise, a colour for each ray, which only the correct opacity
        can reproduce, or over white.

        Args:
            chosen: B indices.
            side: pixels.
            noise: of the cameras, see :meth:`views`.
            random: of the part.
        """
        views = self.views(chosen, side, noise, random.generator(Stream.KNOWN_CAMERAS)).to(self.device)
        generator = random.generator(Stream.KNOWN_BACKGROUND, self.device)
        behind = torch.rand(len(chosen), side * side, 3, generator=generator, device=self.device)
        white = torch.rand(len(chosen), 1, 1, generator=generator, device=self.device) < WHITE_RATE
        return self._batch(chosen, views, torch.where(white, 1.0, behind).reshape(-1, 3))

    def eval_batch(self, i: int, side: int) -> Batch:
        """The view of picture ``i`` over white, without noise."""
        views = self.views([i], side).to(self.device)
        return self._batch([i], views, torch.ones(side * side, 3, device=self.device))

    def _batch(self, chosen: Sequence[int], views: Views, background: Tensor) -> Batch:
        """What is known of the rays of B whole views, over a background [N, 3]."""
        rays = view_rays(views)
        planes = self._at(views.height)[list(chosen)].permute(0, 2, 3, 1).reshape(len(rays), -1)
        premultiplied, alpha = planes[:, :7], planes[:, 7]
        rgb = premultiplied[:, :3] + (1 - alpha)[:, None] * background
        known = premultiplied[:, 3:] / alpha.clamp(min=MIN_ALPHA)[:, None]
        normal = None
        if self.has_normal:
            rotation = views.pose[:, :3, :3][rays.view_index]
            normal = unit_normals((rotation @ known[:, 1:, None])[..., 0].T).T
        return Batch(rays, views, rgb, alpha, known[:, 0] if self.has_depth else None, normal, background)

    def _at(self, side: int) -> Tensor:
        """All planes [K, 8, side, side], resampled with antialiasing."""
        if side not in self._resampled:
            self._resampled = {side: torch.stack([resample(planes, side, side) for planes in self._stored])}
        return self._resampled[side]
