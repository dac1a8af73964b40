"""How objects are shown to people: from above and below, in a frame around them, lit. B views, N pixels, V points.

Photographs include their light, and are shown as their cameras see them; what is measured is unlit too.
"""

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from nerf.config.config import Config
from nerf.config.groups import CameraConfig
from nerf.core.cameras import orbit, view_rays
from nerf.core.shading import SHOW_AMBIENT, diffuse_factor, show_lights
from nerf.core.structs import Rays, RenderOutput, Views

RAISED = 62.0  # degrees: polar angle of turntables and of the upper row of a sheet, unless --default_polar says another
BESIDE = 35.0  # degrees from the front
SHEET_COLUMNS = 4
MARGIN = 1.08  # of the frame around the object
_PROBE_VIEWS, _PROBE_SIZE = 8, 48  # in which the object is looked for where it has no surface of its own
_SOLID = 0.5  # opacity of a pixel that shows the object
_EPSILON = 1e-3  # opacity below which there is nothing
_BLUR = 1 / 200  # of the height: standard deviation of the smoothing of a depth whose normals are wanted
_CLOSEST = math.tan(math.radians(1.0))  # half the height of the narrowest frame, at unit distance


def is_shown_as_object(config: Config) -> bool:
    """Whether there are no photographs of a scene, so that pictures go around one object."""
    return config.data.data is None


def shown_polar(config: Config) -> float:
    """Polar angle in degrees from which an object is shown: ``--default_polar`` if it was asked for or is that of a picture."""
    camera, prompt = config.camera, config.prompt
    chosen = prompt.has_images or config.asked("default_polar") or camera.default_polar != CameraConfig().default_polar
    return camera.default_polar if chosen else RAISED


def turntable(config: Config, count: int, height: int, width: int) -> Views:
    """One turn around the object from ``--default_azimuth`` on, seen from above; the last view stops one step short.

    Args:
        config: the frozen options; the camera group is read.
        count: number of views.
        height, width: pixels.
    """
    azimuth = config.camera.default_azimuth + torch.arange(count) * (360.0 / count)
    return _around(config, torch.full((count,), shown_polar(config)), azimuth, height, width)


def sheet_views(config: Config, height: int, width: int) -> Views:
    """The views of a contact sheet, in rows of :data:`SHEET_COLUMNS`: four from above and four from below, beside the front
    first."""
    azimuth = config.camera.default_azimuth + BESIDE + torch.arange(SHEET_COLUMNS) * (360.0 / SHEET_COLUMNS)
    above = min(shown_polar(config), RAISED)
    polar = torch.tensor([above, 180.0 - above]).repeat_interleave(SHEET_COLUMNS)
    return _around(config, polar, azimuth.repeat(2), height, width)


def preview_views(config: Config, count: int, height: int, width: int) -> Views:
    """``count`` views around the object, beside the front first; the last is from below there, if there are several."""
    around = max(count - 1, 1)
    azimuth = config.camera.default_azimuth + BESIDE + torch.arange(around) * (360.0 / around)
    above = min(shown_polar(config), RAISED)
    polar, azimuth = torch.full((count,), above), torch.cat([azimuth, azimuth[:1]])[:count]
    if count > 1:
        polar[-1] = 180.0 - above
    return _around(config, polar, azimuth, height, width)


def _around(config: Config, polar: Tensor, azimuth: Tensor, height: int, width: int) -> Views:
    return orbit(polar, azimuth, config.camera.default_radius, config.camera.default_fovy, height, width)


def framed(views: Views, points: Tensor) -> Views:
    """Pinhole views with one lens, the narrowest that all of them see all points [V, 3] with; as they are without points.

    The horizontal middle of the pictures stays on the view axis, so that a turntable does not sway; the vertical middle is
    that of the points in all views together. Views that the points come too close to stay as they are.
    """
    if len(points) == 0:
        return views
    pose = views.pose
    local = (points.to(pose)[None] - pose[:, None, :3, 3]) @ pose[:, :3, :3]
    ahead = -local[..., 2]
    if bool((ahead <= 0).any()):
        return views
    across, up = local[..., 0] / ahead, local[..., 1] / ahead
    low, high = float(up.min()), float(up.max())
    reach = max(float(across.abs().max()) * views.height / views.width, (high - low) / 2, _CLOSEST) * MARGIN
    focal = views.height / 2 / reach
    return replace(
        views,
        fx=torch.full_like(views.fx, focal),
        fy=torch.full_like(views.fy, focal),
        cx=torch.full_like(views.cx, views.width / 2),
        cy=torch.full_like(views.cy, views.height / 2 + focal * (low + high) / 2),
        fovy=torch.full_like(views.fovy, 2 * math.degrees(math.atan(reach))),
    )


def seen_points(config: Config, render: Callable[[Views], RenderOutput]) -> Tensor:
    """Points [V, 3] of the surface that small views from above and below show; none of a scene that is still fog.

    Args:
        config: the frozen options.
        render: views without shading.
    """
    views = preview_views(config, _PROBE_VIEWS, _PROBE_SIZE, _PROBE_SIZE)
    out = render(views)
    rays = view_rays(views.to(out.opacity.device))
    return _surface(out, rays)[out.opacity > _SOLID]


def _surface(out: RenderOutput, rays: Rays) -> Tensor:
    """The mean points [N, 3] that rays see of the object."""
    return rays.origins + (out.depth / out.opacity.clamp(min=_EPSILON))[:, None] * rays.directions


def normals(out: RenderOutput, views: Views) -> Tensor:
    """Normals [N, 3] of rendered pixels: those of the render, or else those of its depth, which is smoothed a little.

    Normals at all samples of a volume cost twice as much as the rest of its render; those at the mean depth alone are noise, as
    the density has its peak about there. Zero where there is nothing.

    Args:
        out: whole images of the views.
        views: B cameras.
    """
    if out.normal is not None:
        return out.normal
    rays = view_rays(views.to(out.image.device))
    weighted = torch.cat([out.opacity[:, None] * _surface(out, rays), out.opacity[:, None]], -1)
    smooth = _blurred(out.as_images(weighted), _BLUR * views.height)  # [B, 4, H, W]
    points = smooth[:, :3] / smooth[:, 3:].clamp(min=_EPSILON)
    padded = functional.pad(points, (1, 1, 1, 1), mode="replicate")
    right, down = padded[:, :, 1:-1, 2:] - padded[:, :, 1:-1, :-2], padded[:, :, 2:, 1:-1] - padded[:, :, :-2, 1:-1]
    found = functional.normalize(torch.linalg.cross(down, right, dim=1), dim=1).permute(0, 2, 3, 1).reshape(-1, 3)
    towards = -(found * rays.directions).sum(-1, keepdim=True)
    return torch.where(out.opacity[:, None] > _EPSILON, found * towards.sign(), 0.0)


def _blurred(images: Tensor, sigma: float) -> Tensor:
    """Images [B, C, H, W] after a Gaussian of ``sigma`` pixels, zero beyond the border."""
    reach = math.ceil(3 * sigma)
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, device=images.device) / max(sigma, _EPSILON)) ** 2)
    kernel = (kernel / kernel.sum()).to(images).expand(images.shape[1], 1, -1)
    across = functional.conv2d(images, kernel[:, :, None], padding=(0, reach), groups=images.shape[1])
    return functional.conv2d(across, kernel[..., None], padding=(reach, 0), groups=images.shape[1])


def lit(out: RenderOutput, normal: Tensor, views: Views) -> Tensor:
    """Colours [N, 3] of rendered albedo under the light in which objects are shown (:data:`nerf.core.shading.SHOW_LIGHT`).

    Each pixel is shaded once; the background keeps its colour.

    Args:
        out: albedo of whole images of the views.
        normal: [N, 3] of any length, from :func:`normals`.
        views: B cameras.
    """
    b, h, w = out.image_shape
    light = show_lights(views.pose.to(out.image)).repeat_interleave(h * w, 0)
    factor = diffuse_factor(functional.normalize(normal, dim=-1), light, SHOW_AMBIENT)
    behind = (1.0 - out.opacity)[:, None] * out.background
    return (out.image - behind) * factor + behind
