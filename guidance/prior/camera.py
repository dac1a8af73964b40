"""The camera conditions of the embedded prior: a vector and a ray map.

B views; degrees outside, radians inside. The world and the poses are those of ``nerf/core/cameras.py``.
"""

import torch
from torch import Tensor

from nerf.core.cameras import direction_of, orbit_up, pose_from
from nerf.core.structs import Views

CONDITION_DIM = 8
RAY_CHANNELS = 13
# The cameras of the training sets. The preset "embedded" of the command line draws views from the same ranges, with the polar
# angles that the geometry network knows.
RADIUS_RANGE = (3.0, 3.5)  # scene units
FOVY_RANGE = (18.0, 24.0)  # degrees
POLAR_RANGE = (30.0, 105.0)  # degrees
GEOMETRY_POLAR_RANGE = (30.0, 130.0)  # of the geometry network, which also knows the objects from below


def _per_view(value: Tensor | float, name: str, device: torch.device | None) -> Tensor:
    """A number or [B] as a float32 tensor of one dimension."""
    value = torch.as_tensor(value, dtype=torch.float32, device=device)
    if value.ndim > 1:
        raise ValueError(f"condition: expected {name} as a number or [B], got {list(value.shape)}")
    return value.reshape(-1)


def of_views(views: Views) -> dict[str, Tensor]:
    """``polar``, ``azimuth``, ``radius`` and ``fovy`` of views on an orbit, each [B] float32 on the CPU, by name."""
    return {name: getattr(views, name).cpu().float() for name in ("polar", "azimuth", "radius", "fovy")}


def condition(polar: Tensor | float, azimuth: Tensor | float, radius: Tensor | float, fovy: Tensor | float) -> Tensor:
    """Camera vector for the UNet's projected class embedding; all zeros mean "camera unknown".

    The first harmonic of the azimuth has twice the weight of the second and four times that of the fourth, because front and
    back take a network longest to tell apart. Radius and field of view enter as the visible half-height
    ``radius * tan(fovy / 2)``.

    Args:
        polar: degrees or [B], 0 = above, 90 = horizon.
        azimuth: degrees or [B], 0 = front (+Z), 90 = +X.
        radius: scene units or [B].
        fovy: degrees or [B], vertical field of view.

    Returns:
        [B, 8] float32 on the device of the arguments. Not meant to be differentiated.
    """
    given = {"polar": polar, "azimuth": azimuth, "radius": radius, "fovy": fovy}
    device = next((value.device for value in given.values() if isinstance(value, Tensor)), None)
    p, a, r, f = torch.broadcast_tensors(*(_per_view(value, name, device) for name, value in given.items()))
    a = torch.deg2rad(a)
    extent = r * torch.tan(torch.deg2rad(f) / 2)
    return torch.stack(
        [
            2 * a.sin(),
            2 * a.cos(),
            (2 * a).sin(),
            (2 * a).cos(),
            0.5 * (4 * a).cos(),
            (p - 75) / 20,
            (extent - 0.6) * 5,
            torch.ones_like(a),
        ],
        -1,
    )


def look_at(polar: Tensor, azimuth: Tensor, radius: Tensor) -> Tensor:
    """Pose of a camera on a sphere about the origin, looking at it.

    Args:
        polar: [B] degrees in (0, 180).
        azimuth: [B] degrees.
        radius: [B] scene units.

    Returns:
        [B, 3, 4] camera-to-world, det(R) = +1.
    """
    back, up = direction_of(polar, azimuth), orbit_up(polar, azimuth)
    rotation = torch.stack([torch.linalg.cross(up, back), up, back], -1)
    return pose_from(rotation, back * radius[:, None])[:, :3]


def turned(pose: Tensor, degrees: Tensor) -> Tensor:
    """Poses [B, 3, 4] or [B, 4, 4] turned about the vertical, so that their azimuths grow by ``degrees`` [B]."""
    angle = torch.deg2rad(degrees.to(pose))
    turn = torch.zeros(len(pose), 3, 3, dtype=pose.dtype, device=pose.device)
    turn[:, 0, 0] = turn[:, 2, 2] = angle.cos()
    turn[:, 0, 2], turn[:, 2, 0], turn[:, 1, 1] = angle.sin(), -angle.sin(), 1
    return torch.cat([turn @ pose[:, :3], pose[:, 3:]], 1)


def rays(pose: Tensor, fovy: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Rays through the pixel centres of square images.

    Args:
        pose: [B, 3, 4] or [B, 4, 4] camera-to-world.
        fovy: [B] degrees.
        size: pixels a side.

    Returns:
        origins [B, 3] and unit directions [B, size, size, 3].
    """
    if pose.ndim != 3 or pose.shape[-2:] not in ((3, 4), (4, 4)):
        raise ValueError(f"rays: expected pose [B, 3, 4] or [B, 4, 4], got {list(pose.shape)}")
    half = torch.tan(torch.deg2rad(fovy.to(pose)) / 2)[:, None, None]
    centre = (torch.arange(size, device=pose.device, dtype=pose.dtype) + 0.5) / size * 2 - 1
    x = (centre[None, None, :] * half).expand(-1, size, -1)
    y = (-centre[None, :, None] * half).expand(-1, -1, size)
    local = torch.stack([x, y, -torch.ones_like(x)], -1)
    local = local / local.norm(dim=-1, keepdim=True)
    return pose[:, :3, 3], torch.einsum("bij,bhwj->bhwi", pose[:, :3, :3], local)


def ray_map(pose: Tensor, fovy: Tensor, size: int = 8) -> Tensor:
    """The central ray of each patch of the image, as extra input channels; all zeros mean "camera unknown".

    Channels: the point of the ray nearest to the origin, in world coordinates (3, times 2), the six products of its
    coordinates (times 4), the unit direction (3), and ones.

    Args:
        pose: [B, 3, 4] or [B, 4, 4] camera-to-world.
        fovy: [B] vertical field of view in degrees.
        size: patches a side.

    Returns:
        [B, 13, size, size], dtype and device of ``pose``.
    """
    fovy = torch.as_tensor(fovy, dtype=pose.dtype, device=pose.device).reshape(-1).expand(pose.shape[0])
    origin, direction = rays(pose, fovy, size)
    origin = origin[:, None, None, :]
    nearest = 2 * (origin - (origin * direction).sum(-1, keepdim=True) * direction)
    x, y, z = nearest.unbind(-1)
    products = torch.stack([x * x, y * y, z * z, x * y, y * z, z * x], -1)
    channels = [nearest, products, direction, torch.ones_like(nearest[..., :1])]
    return torch.cat(channels, -1).permute(0, 3, 1, 2).contiguous()


def conditions(cameras: dict[str, Tensor], size: int) -> tuple[Tensor, Tensor]:
    """Camera vectors [B, 8] and ray maps [B, 13, size, size] of cameras such as those of :func:`random_cameras`."""
    pose = look_at(cameras["polar"], cameras["azimuth"], cameras["radius"])
    return condition(**cameras), ray_map(pose, cameras["fovy"], size)


def random_cameras(count: int, generator: torch.Generator, polar: tuple[float, float] = POLAR_RANGE) -> dict[str, Tensor]:
    """Cameras of the training distribution: ``polar``, ``azimuth``, ``radius``, ``fovy``, each [count].

    Radius and field of view are uniform; azimuth is uniform on the circle; polar is uniform in angle.
    """

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=generator)

    return {
        "polar": uniform(*polar),
        "azimuth": uniform(0.0, 360.0),
        "radius": uniform(*RADIUS_RANGE),
        "fovy": uniform(*FOVY_RANGE),
    }
