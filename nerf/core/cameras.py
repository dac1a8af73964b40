"""Pinhole cameras: where they stand, what rays leave their pixels, where a point lands. B views, N rays; degrees.

World: right-handed, +Y up, front = +Z = azimuth 0, azimuth grows towards +X; polar 0 is straight above. Poses are
camera-to-world with OpenGL axes (x right, y up, looks along -z), det(R) = +1. Pixel (column x, row y) has its centre at
(x + 0.5, y + 0.5), y grows downwards. Everything is plain torch and differentiable in the poses and intrinsics.
"""

from dataclasses import replace

import torch
from torch import Tensor

from nerf.core.structs import Rays, Views

UNDISTORT_ITERATIONS = 5
PARALLEL = 1e-5  # sine of the angle under which two directions count as parallel
SMALLEST_DETERMINANT = 1e-3  # of the distortion's Jacobian: where a lens folds over, Newton's step has no meaning


def wrap_degrees(angle: Tensor) -> Tensor:
    """The same direction as an angle in (-180, 180] degrees, any shape."""
    return 180 - torch.remainder(180 - angle, 360)


def direction_of(polar: Tensor, azimuth: Tensor) -> Tensor:
    """Unit vectors [..., 3] from the origin towards (polar, azimuth), degrees [...] each."""
    p, a = torch.deg2rad(polar), torch.deg2rad(azimuth)
    return torch.stack([p.sin() * a.sin(), p.cos(), p.sin() * a.cos()], -1)


def orbit_up(polar: Tensor, azimuth: Tensor) -> Tensor:
    """The image's up direction [..., 3] of a camera at (polar, azimuth) that looks at the origin.

    It is the direction in which polar falls, so it is defined at the poles too: from straight above, at azimuth 0, the
    front is at the bottom.
    """
    p, a = torch.deg2rad(polar), torch.deg2rad(azimuth)
    return torch.stack([-p.cos() * a.sin(), p.sin(), -p.cos() * a.cos()], -1)


def _normalize(vector: Tensor) -> Tensor:
    return vector / vector.norm(dim=-1, keepdim=True).clamp(min=torch.finfo(vector.dtype).tiny)


def _per_view(value: Tensor | float, name: str, like: Tensor | None = None) -> Tensor:
    """A number or [B] as a floating tensor [B]."""
    value = torch.as_tensor(value, device=None if like is None else like.device)
    if not value.is_floating_point():
        value = value.to(torch.get_default_dtype())
    if value.ndim > 1:
        raise ValueError(f"orbit: expected {name} as a number or [B], got {list(value.shape)}")
    return value.reshape(-1)


def _points(value: Tensor | tuple[float, float, float], name: str, like: Tensor) -> Tensor:
    """A point [3] or points [B, 3] as [B, 3], with B, device and dtype of ``like`` [B, 3]."""
    if not isinstance(value, Tensor):
        value = torch.tensor(value, device=like.device)
    if value.shape not in ((3,), (1, 3), like.shape) or value.device != like.device:
        raise ValueError(
            f"look_at: expected {name} as [3] or {list(like.shape)} on {like.device}, got {list(value.shape)} on {value.device}"
        )
    return value.to(like.dtype).expand(like.shape)


def _rotation(back: Tensor, up: Tensor) -> Tensor:
    """Camera axes as columns [B, 3, 3] from the unit direction away from the target and a hint for up."""
    cross = torch.linalg.cross(_normalize(up), back)
    parallel = cross.norm(dim=-1, keepdim=True) < PARALLEL
    zero = torch.zeros_like(back[:, 0])
    steep = back[:, 1].abs() > 0.5
    other = torch.stack([zero, torch.where(steep, zero, zero + 1), torch.where(steep, -back[:, 1].sign(), zero)], -1)
    right = _normalize(torch.where(parallel, torch.linalg.cross(other, back), cross))
    return torch.stack([right, torch.linalg.cross(back, right), back], -1)


def look_at(
    position: Tensor,
    target: Tensor | tuple[float, float, float] = (0.0, 0.0, 0.0),
    up: Tensor | tuple[float, float, float] = (0.0, 1.0, 0.0),
) -> Tensor:
    """Poses of cameras that stand at ``position`` and see ``target`` in the middle of their image.

    Where ``up`` is parallel to the line of sight, -Z is up for a camera that looks down and +Z for one that looks up,
    as on an orbit at azimuth 0; along another axis +Y is.

    Args:
        position: [B, 3] scene units.
        target: [B, 3] or [3], another point than ``position``.
        up: [B, 3] or [3], the world direction that shall point upwards in the image; any length but 0.

    Returns:
        [B, 4, 4] camera-to-world.

    Raises:
        ValueError: wrong shapes.
    """
    if position.ndim != 2 or position.shape[-1] != 3:
        raise ValueError(f"look_at: expected position [B, 3], got {list(position.shape)}")
    back = _normalize(position - _points(target, "target", position))
    rotation = _rotation(back, _points(up, "up", position))
    return pose_from(rotation, position)


def pose_from(rotation: Tensor, position: Tensor) -> Tensor:
    """Poses [B, 4, 4] from rotations [B, 3, 3] (columns: right, up, back) and camera positions [B, 3]."""
    top = torch.cat([rotation, position[..., None]], -1)
    bottom = torch.tensor([0.0, 0.0, 0.0, 1.0], dtype=top.dtype, device=top.device).expand(len(top), 1, 4)
    return torch.cat([top, bottom], -2)


def angles_of(pose: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Where cameras stand relative to the origin.

    Straight above or below the origin the position says nothing about the azimuth, so the camera's right-hand axis
    does: ``angles_of(orbit(0, azimuth, ...).pose)`` gives ``azimuth`` back.

    Args:
        pose: [B, 4, 4] camera-to-world.

    Returns:
        polar [B] in [0, 180] degrees, azimuth [B] in (-180, 180] degrees, radius [B] scene units.
    """
    position, right = pose[:, :3, 3], pose[:, :3, 0]
    radius = position.norm(dim=-1)
    level = position[:, [0, 2]].norm(dim=-1)
    polar = torch.rad2deg(torch.atan2(level, position[:, 1]))
    on_axis = level <= PARALLEL * radius
    azimuth = torch.where(on_axis, torch.atan2(-right[:, 2], right[:, 0]), torch.atan2(position[:, 0], position[:, 2]))
    return polar, wrap_degrees(torch.rad2deg(azimuth)), radius


def focal_of(fovy: Tensor, height: int) -> Tensor:
    """Focal length in pixels of a vertical field of view in degrees, any shape."""
    return height / (2 * torch.tan(torch.deg2rad(fovy) / 2))


def centred_views(pose: Tensor, fovy: Tensor, height: int, width: int) -> Views:
    """Views with square pixels and the principal point in the middle.

    Args:
        pose: [B, 4, 4] camera-to-world.
        fovy: [B] vertical field of view, degrees.
        height: pixels.
        width: pixels.

    Returns:
        B views, whose angles are those of the poses.
    """
    focal = focal_of(fovy, height)
    polar, azimuth, radius = angles_of(pose)
    middle_x, middle_y = torch.full_like(focal, width / 2), torch.full_like(focal, height / 2)
    return Views(pose, focal, focal, middle_x, middle_y, height, width, polar, azimuth, radius, fovy)


def orbit(
    polar: Tensor | float,
    azimuth: Tensor | float,
    radius: Tensor | float,
    fovy: Tensor | float,
    height: int,
    width: int,
    target: Tensor | tuple[float, float, float] | None = None,
    up: Tensor | tuple[float, float, float] | None = None,
) -> Views:
    """Cameras on spheres about the origin that look at it. Numbers and [B] mix freely.

    Args:
        polar: [B] degrees in [0, 180]; 0 above, 90 horizon. At the poles up is defined by the azimuth.
        azimuth: [B] degrees, any; 0 front (+Z), 90 on +X.
        radius: [B] distance from the origin, scene units, positive.
        fovy: [B] vertical field of view, degrees in (0, 180).
        height: pixels.
        width: pixels.
        target: [B, 3] or [3] what to look at instead of the origin; the position stays.
        up: [B, 3] or [3] hint for the image's up direction instead of the orbit's own.

    Returns:
        B views; their azimuth is wrapped into (-180, 180].

    Raises:
        ValueError: wrong shapes, image sizes below 1, angles or radii outside their ranges (checked on the CPU only).
    """
    if height < 1 or width < 1:
        raise ValueError(f"orbit: height and width must be at least 1, got {height} and {width}")
    like = next((v for v in (polar, azimuth, radius, fovy) if isinstance(v, Tensor)), None)
    pairs = (("polar", polar), ("azimuth", azimuth), ("radius", radius), ("fovy", fovy))
    polar, azimuth, radius, fovy = torch.broadcast_tensors(*[_per_view(v, name, like) for name, v in pairs])
    if polar.device.type == "cpu":
        _check_ranges(polar, radius, fovy)
    dtype = torch.promote_types(polar.dtype, radius.dtype)
    polar64, azimuth64 = polar.double(), wrap_degrees(azimuth.double())
    position = direction_of(polar64, azimuth64) * radius.double()[:, None]
    pose = look_at(
        position, (0.0, 0.0, 0.0) if target is None else target, orbit_up(polar64, azimuth64) if up is None else up
    ).to(dtype)
    views = centred_views(pose, fovy.to(dtype), height, width)
    return replace(views, polar=polar.to(dtype), azimuth=azimuth64.to(dtype), radius=radius.to(dtype))


def _check_ranges(polar: Tensor, radius: Tensor, fovy: Tensor) -> None:
    if not ((polar >= 0) & (polar <= 180)).all():
        raise ValueError(f"orbit: polar must lie in [0, 180] degrees (0 = above, 90 = horizon), got {polar.tolist()}")
    if not (radius > 0).all():
        raise ValueError(f"orbit: radius must be positive, got {radius.tolist()}")
    if not ((fovy > 0) & (fovy < 180)).all():
        raise ValueError(f"orbit: fovy must lie in (0, 180) degrees, got {fovy.tolist()}")


def distort(xy: Tensor, distortion: Tensor) -> Tensor:
    """OpenCV's radial-tangential lens: where an ideal image point really lands.

    ``x' = x s + 2 p1 x y + p2 (r2 + 2 x x)`` and ``y' = y s + p1 (r2 + 2 y y) + 2 p2 x y`` with ``r2 = x x + y y`` and
    ``s = 1 + k1 r2 + k2 r2^2 + k3 r2^3 + k4 r2^4`` (Brown 1966; the k4 term as in the nerfstudio format).

    Args:
        xy: [..., 2] ideal image coordinates in focal lengths from the principal point, y downwards.
        distortion: [..., 6] k1 k2 k3 k4 p1 p2, broadcast against ``xy``.

    Returns:
        [..., 2] distorted coordinates. Differentiable any number of times.
    """
    k1, k2, k3, k4, p1, p2 = distortion.unbind(-1)
    x, y = xy.unbind(-1)
    r2 = x * x + y * y
    radial = 1 + r2 * (k1 + r2 * (k2 + r2 * (k3 + r2 * k4)))
    return torch.stack(
        [x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x), y * radial + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y], -1
    )


def undistort(xy: Tensor, distortion: Tensor, iterations: int = UNDISTORT_ITERATIONS) -> Tensor:
    """The inverse of :func:`distort` by Newton's method, for points where the lens does not fold over.

    Args:
        xy: [..., 2] distorted image coordinates, y downwards.
        distortion: [..., 6] k1 k2 k3 k4 p1 p2.
        iterations: Newton steps; the error squares in each.

    Returns:
        [..., 2] ideal coordinates.
    """
    k1, k2, k3, k4, p1, p2 = distortion.unbind(-1)
    guess = xy
    for _ in range(iterations):
        x, y = guess.unbind(-1)
        r2 = x * x + y * y
        radial = 1 + r2 * (k1 + r2 * (k2 + r2 * (k3 + r2 * k4)))
        slope = 2 * (k1 + r2 * (2 * k2 + r2 * (3 * k3 + r2 * 4 * k4)))  # d radial / d x = slope * x
        xx = radial + slope * x * x + 2 * p1 * y + 6 * p2 * x
        yy = radial + slope * y * y + 6 * p1 * y + 2 * p2 * x
        cross = slope * x * y + 2 * p1 * x + 2 * p2 * y
        determinant = xx * yy - cross * cross
        miss_x, miss_y = (distort(guess, distortion) - xy).unbind(-1)
        step = torch.stack([yy * miss_x - cross * miss_y, xx * miss_y - cross * miss_x], -1)
        sound = determinant > SMALLEST_DETERMINANT
        guess = guess - torch.where(sound[..., None], step / torch.where(sound, determinant, 1)[..., None], 0)
    return guess


def _camera_directions(views: Views, index: Tensor | slice, xy: Tensor) -> Tensor:
    """Unit directions in camera axes through pixels [..., 2]; ``index`` picks the views, which broadcast to them."""

    def pick(value: Tensor) -> Tensor:
        value = value[index]
        return value.reshape(value.shape[0], *[1] * (xy.ndim - 2), *value.shape[1:])

    x, y = (xy[..., 0] - pick(views.cx)) / pick(views.fx), (xy[..., 1] - pick(views.cy)) / pick(views.fy)
    plane = torch.stack([x, y], -1)
    if views.distortion is not None:
        plane = undistort(plane, pick(views.distortion))
    return _normalize(torch.stack([plane[..., 0], -plane[..., 1], -torch.ones_like(plane[..., 0])], -1))


def _shares(views: Views, xy: Tensor) -> Tensor:
    """Pixel positions [..., 2] as shares of the views' width and height; nothing is copied to a GPU and waited for."""
    return torch.stack([xy[..., 0] / views.width, xy[..., 1] / views.height], -1)


def pixel_rays(views: Views, view_index: Tensor, xy: Tensor) -> Rays:
    """Rays through chosen pixel positions of chosen views.

    Args:
        views: B views.
        view_index: [N] int64 in [0, B).
        xy: [N, 2] pixel positions (column, row); the centre of the first pixel is (0.5, 0.5).

    Returns:
        N rays with unit directions, lens distortion undone, and their ``uv``. They start at the cameras.

    Raises:
        ValueError: wrong shapes.
    """
    if view_index.ndim != 1 or xy.shape != (len(view_index), 2):
        raise ValueError(
            f"pixel_rays: expected view_index [N] and xy [N, 2], got {list(view_index.shape)} and {list(xy.shape)}"
        )
    xy = xy.to(views.pose.dtype)
    local = _camera_directions(views, view_index, xy)
    pose = views.pose[view_index]
    directions = (pose[:, :3, :3] * local[:, None, :]).sum(-1)
    return Rays(pose[:, :3, 3], directions, view_index, uv=_shares(views, xy))


def view_rays(views: Views) -> Rays:
    """The rays through all pixel centres of all views, row by row.

    Returns:
        N = B * H * W rays with ``shape`` (B, H, W), unit directions, and their ``uv``.
    """
    b, h, w = len(views), views.height, views.width
    pose = views.pose
    y, x = torch.meshgrid(
        torch.arange(h, dtype=pose.dtype, device=pose.device) + 0.5,
        torch.arange(w, dtype=pose.dtype, device=pose.device) + 0.5,
        indexing="ij",
    )
    xy = torch.stack([x, y], -1).reshape(1, h * w, 2)
    local = _camera_directions(views, slice(None), xy)
    directions = (local @ pose[:, :3, :3].mT).reshape(-1, 3)
    origins = pose[:, None, :3, 3].expand(b, h * w, 3).reshape(-1, 3)
    view_index = torch.arange(b, device=pose.device).repeat_interleave(h * w)
    uv = _shares(views, xy).expand(b, -1, -1).reshape(-1, 2)
    return Rays(origins, directions, view_index, (b, h, w), uv=uv, views=views)


def clip_space(views: Views, points: Tensor, min_near: float, reach: float) -> Tensor:
    """World points in the clip space of a rasteriser: OpenGL's, x right, y up, -1 <= z / w <= 1 between near and far.

    Near and far hold the box [-reach, reach]^3, near not below ``min_near``. A pixel's centre is where its ray passes.

    Args:
        views: B views without distortion.
        points: [V, 3] world points.
        min_near: scene units.
        reach: half the edge of the box, scene units.

    Returns:
        [B, V, 4]. Differentiable in the points.

    Raises:
        ValueError: the views have lens distortion, which no triangle survives; undistort the pictures first.
    """
    if views.distortion is not None and bool((views.distortion != 0).any()):
        raise ValueError("clip_space: expected views without lens distortion; undistort the pictures on loading")
    pose = views.pose
    local = (points[None].to(pose.dtype) - pose[:, None, :3, 3]) @ pose[:, :3, :3]
    ahead = -local[..., 2]
    distance, margin = pose[:, :3, 3].norm(dim=-1)[:, None], 3**0.5 * reach * 1.01
    near, far = (distance - margin).clamp(min=min_near), distance + margin
    fx, fy, cx, cy = (k[:, None] for k in (views.fx, views.fy, views.cx, views.cy))
    x = 2.0 / views.width * (fx * local[..., 0] + cx * ahead) - ahead
    y = ahead - 2.0 / views.height * (cy * ahead - fy * local[..., 1])
    z = ((far + near) * ahead - 2.0 * far * near) / (far - near)
    return torch.stack([x, y, z, ahead], dim=-1)


def project(views: Views, points: Tensor) -> tuple[Tensor, Tensor]:
    """Where world points land in the views: the inverse of the rays.

    Args:
        views: B views.
        points: [..., 3] world points, the same for all views.

    Returns:
        xy [B, ..., 2] pixel positions (column, row), lens distortion included, and depth [B, ...], the distance along
        the ray in scene units. Points behind a camera have negative depth and a meaningless position.

    Raises:
        ValueError: points do not end in 3.
    """
    if points.shape[-1] != 3:
        raise ValueError(f"project: expected points [..., 3], got {list(points.shape)}")
    pose = views.pose
    flat = points.reshape(-1, 3).to(pose.dtype)
    local = (flat[None] - pose[:, None, :3, 3]) @ pose[:, :3, :3]  # [B, P, 3] in camera axes
    ahead = -local[..., 2]
    safe = torch.where(ahead.abs() < torch.finfo(pose.dtype).tiny, torch.finfo(pose.dtype).tiny, ahead)
    plane = torch.stack([local[..., 0] / safe, -local[..., 1] / safe], -1)
    if views.distortion is not None:
        plane = distort(plane, views.distortion[:, None])
    xy = torch.stack(
        [plane[..., 0] * views.fx[:, None] + views.cx[:, None], plane[..., 1] * views.fy[:, None] + views.cy[:, None]], -1
    )
    depth = torch.where(ahead < 0, -1.0, 1.0) * local.norm(dim=-1)
    shape = (len(views), *points.shape[:-1])
    return xy.reshape(*shape, 2), depth.reshape(shape)
