"""Cameras that nobody photographed with: random ones for training, turntables and six views for people. B views.

The ranges are those of the camera flags, in degrees and scene units. Every view of a batch draws its own numbers, all
from its part's generator, on the CPU, so the same step sees the same cameras on every device.
"""

from dataclasses import replace

import torch
from torch import Tensor

from nerf.config.config import Config
from nerf.core.cameras import angles_of, look_at, orbit, orbit_up, view_rays
from nerf.core.structs import Batch, Part, Views

STREAM_CAMERAS, STREAM_LIGHT = 1, 2
PROGRESSIVE_RATE = 2.0  # of the training progress: the ranges are whole by half-time, as in the peer
SIX_VIEWS = ((90.0, 0.0), (90.0, 90.0), (90.0, 180.0), (90.0, -90.0), (0.0, 0.0), (180.0, 0.0))  # polar, azimuth


def view_ratio(fraction: float, config: Config) -> float:
    """How much of the camera ranges is in use at this training progress in [0, 1]; 1 without ``--progressive_view``."""
    camera = config.camera
    if not camera.progressive_view:
        return 1.0
    return min(1.0, camera.progressive_view_init_ratio + PROGRESSIVE_RATE * fraction)


def narrowed(low_high: tuple[float, float], middle: float, ratio: float) -> tuple[float, float]:
    """The range between ``middle`` (ratio 0) and itself (ratio 1)."""
    low, high = low_high
    return middle + (low - middle) * ratio, middle + (high - middle) * ratio


def random_lights(views: Views, generator: torch.Generator) -> Tensor:
    """A light near each camera: unit directions [B, 3] from the origin towards ``position + N(0, I)``.

    DreamFusion (Poole et al. 2022, sec. 3.2) centres the light on the camera in the same way.

    Args:
        views: B views.
        generator: on the CPU.
    """
    noise = torch.randn(len(views), 3, generator=generator).to(views.pose)
    return torch.nn.functional.normalize(views.pose[:, :3, 3] + noise, dim=-1)


class RandomCameras:
    """Random views of the object, the source of views of a guided run.

    Radius, polar angle (in angle, not in area), azimuth and field of view are uniform in their ranges. A share
    ``--uniform_sphere_rate`` of the views is drawn evenly over the whole sphere instead, below the horizon too,
    whatever the two angle ranges say. With ``--progressive_view`` ranges and share start small around the default view.

    Args:
        config: the frozen options; the camera group is read.
        device: where views, lights and rays go.
        stratified: cut the azimuth range into B equal parts, one for each view of a batch, so that four views see four
            sides. Each part's view is still uniform in it; False draws all of them independently.
    """

    def __init__(self, config: Config, device: torch.device | str = "cpu", stratified: bool = True):
        self.config = config
        self.device = torch.device(device)
        self.stratified = stratified

    def views(self, part: Part) -> Views:
        """``part.num_views`` random views of ``part.height`` x ``part.width`` pixels.

        Args:
            part: the part of a step; the same part gives the same views. Its ``fraction`` moves the progressive view.

        Returns:
            B views. Their angles are those of the camera as it stands, after any jitter.
        """
        camera, count = self.config.camera, part.num_views
        generator = part.generator(STREAM_CAMERAS)
        ratio = view_ratio(part.fraction, self.config)

        def uniform(low_high: tuple[float, float], middle: float) -> Tensor:
            low, high = narrowed(low_high, middle, ratio)
            return low + (high - low) * torch.rand(count, generator=generator)

        radius = uniform(camera.radius_range, camera.default_radius)
        polar = uniform(camera.theta_range, camera.default_polar)
        fovy = uniform(camera.fovy_range, camera.default_fovy)
        azimuth = self._azimuth(narrowed(camera.phi_range, camera.default_azimuth, ratio), count, generator)
        polar, azimuth = self._some_on_the_sphere(polar, azimuth, ratio, generator)
        views = orbit(polar, azimuth, radius, fovy, part.height, part.width)
        if camera.jitter_pose:
            views = self._jittered(views, generator)
        return views.to(self.device)

    def batch(self, part: Part) -> Batch:
        """The rays of random views as whole images, with a light for each view."""
        views = self.views(part)
        return Batch(view_rays(views), views, light=random_lights(views, part.generator(STREAM_LIGHT)))

    def _azimuth(self, low_high: tuple[float, float], count: int, generator: torch.Generator) -> Tensor:
        low, high = low_high
        place = torch.rand(count, generator=generator)
        if self.stratified:
            place = (torch.arange(count) + place) / count
        return low + (high - low) * place

    def _some_on_the_sphere(
        self, polar: Tensor, azimuth: Tensor, ratio: float, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Replace a share of the angles [B] by those of directions that are uniform in area."""
        on_sphere = torch.rand(len(polar), generator=generator) < self.config.camera.uniform_sphere_rate * ratio
        height = 2 * torch.rand(len(polar), generator=generator) - 1  # uniform by Archimedes' hat-box theorem
        turn = 360 * torch.rand(len(polar), generator=generator) - 180
        return torch.where(on_sphere, torch.rad2deg(torch.acos(height)), polar), torch.where(on_sphere, turn, azimuth)

    def _jittered(self, views: Views, generator: torch.Generator) -> Views:
        """Move positions by U(-c/2, c/2)^3, targets by N(0, t^2)^3 and the up directions by N(0, u^2)^3."""
        camera, count = self.config.camera, len(views)
        position = views.pose[:, :3, 3] + camera.jitter_center * (torch.rand(count, 3, generator=generator) - 0.5)
        target = camera.jitter_target * torch.randn(count, 3, generator=generator)
        up = orbit_up(views.polar, views.azimuth) + camera.jitter_up * torch.randn(count, 3, generator=generator)
        pose = look_at(position, target, up)
        polar, azimuth, radius = angles_of(pose)
        return replace(views, pose=pose, polar=polar, azimuth=azimuth, radius=radius)


def turntable(config: Config, count: int, height: int, width: int) -> Views:
    """One turn around the object at the default polar angle, distance and field of view, from the default azimuth on.

    Args:
        config: the frozen options; the camera group is read.
        count: number of views; the last one stops one step short of the first.
        height: pixels.
        width: pixels.
    """
    camera = config.camera
    azimuth = camera.default_azimuth + torch.arange(count) * (360.0 / count)
    return orbit(camera.default_polar, azimuth, camera.default_radius, camera.default_fovy, height, width)


def six_views(config: Config, height: int, width: int) -> Views:
    """Front, right side (+X), back, left side, above, below: at the default distance and field of view."""
    polar, azimuth = torch.tensor(SIX_VIEWS).unbind(-1)
    return orbit(polar, azimuth, config.camera.default_radius, config.camera.default_fovy, height, width)
