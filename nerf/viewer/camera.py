"""The camera of a viewer: it orbits a target, pans and zooms. Conventions of ``nerf/core/cameras.py``; degrees."""

import math
from dataclasses import dataclass, replace

import torch

from nerf.core import cameras
from nerf.core.structs import Views

ORBIT_RATE = 0.3  # degrees a pixel
ZOOM_STEP = 1.1  # factor of the distance for one notch of the wheel
MIN_RADIUS, MAX_RADIUS = 1e-3, 1e4  # scene units
MIN_FOVY, MAX_FOVY = 1.0, 120.0  # degrees
Point = tuple[float, float, float]


@dataclass(frozen=True)
class OrbitCamera:
    """A camera on a sphere around a target. It never rolls; at the poles the azimuth says what is up."""

    polar: float = 90.0  # 0 above the target, 90 at its height, 180 below
    azimuth: float = 0.0  # 0 = front (+Z), 90 = +X
    radius: float = 5.0  # distance from the target, scene units
    fovy: float = 20.0  # vertical field of view
    target: Point = (0.0, 0.0, 0.0)

    def __post_init__(self) -> None:
        """Numbers are finite and within their ranges.

        Raises:
            ValueError: one is not.
        """
        ranges = (
            ("polar", self.polar, 0.0, 180.0),
            ("radius", self.radius, MIN_RADIUS, MAX_RADIUS),
            ("fovy", self.fovy, MIN_FOVY, MAX_FOVY),
        )
        for name, value, low, high in ranges:
            if not low <= value <= high:
                raise ValueError(f"OrbitCamera: expected {name} from {low:g} to {high:g}, got {value}")
        if not all(map(math.isfinite, (self.azimuth, *self.target))):
            raise ValueError(f"OrbitCamera: expected a finite azimuth and target, got {self.azimuth} and {self.target}")

    @staticmethod
    def seen_by(views: Views) -> "OrbitCamera":
        """The camera nearest to the first of B views: its place, its direction and its lens, without its roll.

        The target is the point of the viewing line that is nearest to the origin.
        """
        pose = views.pose[0].double().cpu()
        back, position = pose[:3, 2], pose[:3, 3]
        radius = min(max(float(position @ back), 10 * MIN_RADIUS), MAX_RADIUS)
        polar = math.degrees(math.acos(min(max(float(back[1]), -1.0), 1.0)))
        azimuth = float(cameras.angles_of(cameras.pose_from(pose[None, :3, :3], back[None]))[1])
        fovy = min(max(float(views.fovy[0]), MIN_FOVY), MAX_FOVY)
        x, y, z = (position - radius * back).tolist()
        return OrbitCamera(polar, azimuth, radius, fovy, (x, y, z))

    def orbit(self, dx: float, dy: float) -> "OrbitCamera":
        """The camera after a drag by (dx, dy) pixels, right and down: the object turns with the hand."""
        polar = min(max(self.polar - ORBIT_RATE * dy, 0.0), 180.0)
        return replace(self, azimuth=wrapped(self.azimuth - ORBIT_RATE * dx), polar=polar)

    def pan(self, dx: float, dy: float, height: int) -> "OrbitCamera":
        """The camera after a drag by (dx, dy) pixels of an image of that height: what is at the target follows the hand."""
        unit = 2.0 * self.radius * math.tan(math.radians(self.fovy) / 2.0) / max(height, 1)  # scene units a pixel
        right, up = (self.pose()[:3, axis] for axis in (0, 1))
        x, y, z = (torch.tensor(self.target, dtype=torch.float64) - unit * dx * right + unit * dy * up).tolist()
        return replace(self, target=(x, y, z))

    def zoom(self, notches: float) -> "OrbitCamera":
        """The camera nearer to the target (positive) or farther from it."""
        radius = self.radius * ZOOM_STEP ** -min(max(notches, -100.0), 100.0)
        return replace(self, radius=min(max(radius, MIN_RADIUS), MAX_RADIUS))

    def with_fovy(self, fovy: float) -> "OrbitCamera":
        """The camera with another vertical field of view, degrees, at the same place."""
        return replace(self, fovy=min(max(fovy, MIN_FOVY), MAX_FOVY))

    def pose(self) -> torch.Tensor:
        """Camera to world, [4, 4] float64, OpenGL axes, determinant +1."""
        polar, azimuth = (torch.tensor([angle], dtype=torch.float64) for angle in (self.polar, self.azimuth))
        target = torch.tensor([self.target], dtype=torch.float64)
        position = target + self.radius * cameras.direction_of(polar, azimuth)
        return cameras.look_at(position, target, cameras.orbit_up(polar, azimuth))[0]

    def views(self, height: int, width: int) -> Views:
        """The camera with an image of that size, as B = 1 views with square pixels; float32, on the host."""
        fovy = torch.tensor([self.fovy], dtype=torch.float32)
        return cameras.centred_views(self.pose()[None].float(), fovy, height, width)


def wrapped(azimuth: float) -> float:
    """The equivalent angle in (-180, 180] degrees, as ``cameras.wrap_degrees`` of a tensor."""
    return 180.0 - (180.0 - azimuth) % 360.0
