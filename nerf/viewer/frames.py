"""Rendering one frame: in chunks that can be cancelled, to a picture of the chosen mode. H x W pixels, N = H * W rays."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from nerf.core import cameras, images
from nerf.core.structs import RenderOutput, RenderSettings, Views, join_records
from nerf.renderer import NeRFRenderer
from nerf.viewer.camera import OrbitCamera
from nerf.viewer.settings import Mode, ViewSettings

# Steps of the positions within a pixel that samples are taken at: the R2 sequence (Roberts 2018), multiples of the powers of
# 1 / 1.3247..., the plastic number. The first sample is at the centre.
_R2 = (0.7548776662466927, 0.5698402909980532)


class Cancelled(Exception):
    """The frame is no longer wanted."""


@dataclass(frozen=True)
class Request:
    """What a view wants to see."""

    camera: OrbitCamera = OrbitCamera()
    settings: ViewSettings = ViewSettings()
    width: int = 512
    height: int = 512

    def __post_init__(self) -> None:
        """The image has pixels.

        Raises:
            ValueError: it has none.
        """
        if self.width < 1 or self.height < 1:
            raise ValueError(f"Request: expected a size of at least 1 x 1, got {self.width} x {self.height}")

    def size_at(self, scale: float) -> tuple[int, int]:
        """(width, height) at a scale of the sides, at least one pixel each."""
        return max(round(self.width * scale), 1), max(round(self.height * scale), 1)


@dataclass(frozen=True)
class Frame:
    """A rendered picture; nothing of it changes."""

    pixels: np.ndarray  # [h, w, 3] float32 sRGB in [0, 1], row 0 above; read-only. Smaller than asked for at scales below 1
    request: Request  # that it answers
    version: int  # of the request in its view, see ``View.show``
    number: int  # of the frame in its view, counted from 1
    scale: float  # of the sides
    samples: int  # per pixel
    seconds: float  # that it took, of its newest sample
    step: int  # of the training that it shows
    snapshot: int  # number of the weights that it shows

    def as_bytes(self) -> np.ndarray:
        """The picture as uint8 [h, w, 3]."""
        return images.to_uint8(self.pixels)


def shifted(views: Views, sample: int) -> Views:
    """The views with rays through another point of each pixel: the centre for sample 0, then spread evenly over the pixel."""
    if sample == 0:
        return views
    dx, dy = (((0.5 + sample * step) % 1.0) - 0.5 for step in _R2)
    return replace(views, cx=views.cx - dx, cy=views.cy - dy)


@torch.no_grad()
def render(
    model: NeRFRenderer, views: Views, settings: RenderSettings, chunk: int, go_on: Callable[[int], bool] = lambda done: True
) -> RenderOutput:
    """Render one view of N pixels.

    Args:
        model: without gradients.
        views: B = 1.
        settings: of evaluation; the background is one colour or None.
        chunk: rays at once, where the render path takes parts of an image.
        go_on: asked before each chunk, with the number of pixels that are done.

    Raises:
        Cancelled: ``go_on`` said no.
    """
    rays = cameras.view_rays(views)
    if model.path.whole_images or len(rays) <= chunk:
        if not go_on(0):
            raise Cancelled
        return model.render(rays, settings)
    parts = []
    for first in range(0, len(rays), chunk):
        if not go_on(first):
            raise Cancelled
        parts.append(model.render(rays[first : first + chunk], settings))
    return replace(join_records(parts, torch.cat), shape=rays.shape)


def picture(out: RenderOutput, mode: Mode) -> Tensor:
    """The picture [h, w, 3] of a rendered view, float32 in [0, 1] on the host; depth in colours, opacity in grey.

    Raises:
        ValueError: it is not finite.
    """
    _, height, width = out.image_shape
    if mode == "depth":
        shown = images.depth_to_color(out.depth.reshape(height, width), out.opacity.reshape(height, width))
    elif mode == "opacity":
        shown = out.opacity.reshape(height, width, 1).expand(height, width, 3)
    else:
        shown = out.image.reshape(height, width, 3)
    if not bool(shown.isfinite().all()):
        raise ValueError(
            "the picture holds values that are not finite: the training has diverged, reset it or show a checkpoint"
        )
    return shown.float().clamp(0.0, 1.0).cpu()
