"""Cameras: poses (extrinsics), rays through pixels, projection; lenses are in ``lens.py``. B views, N rays; degrees.

World: right-handed, +Y up, front = +Z = azimuth 0, azimuth grows towards +X; polar 0 is straight above. Poses are
camera-to-world with OpenGL axes (x right, y up, looking along -z), det(R) = +1. The pixel in column x and row y has its
centre at (x + 0.5, y + 0.5); y grows downwards. Everything is plain torch and differentiable in the poses and intrinsics.
"""

from dataclasses import replace

import torch
from torch import Tensor

from nerf.core.lens import direction_through, plane_of
from nerf.core.structs import Rays, Views

Vector = Tensor | tuple[float, float, float]

PARALLEL_SINE = 1e-5  # two directions count as parallel if the sine of their angle is below this
STEEP = 0.5  # |y| of a unit viewing direction above which an up vector parallel to it is replaced by -Z or +Z, else by +Y
CLIP_MARGIN = 1.01  # of the box's half diagonal: near and far planes lie just outside the box


def wrap_degrees(angle: Tensor) -> Tensor:
    """The equivalent angle in (-180, 180] degrees, any shape."""
    return 180 - torch.remainder(180 - angle, 360)


def direction_of(polar: Tensor, azimuth: Tensor) -> Tensor:
    """Unit vectors [..., 3] from the origin in the direction of polar [...] and azimuth [...], degrees."""
    p, a = torch.deg2rad(polar), torch.deg2rad(azimuth)
    return torch.stack([p.sin() * a.sin(), p.cos(), p.sin() * a.cos()], -1)


def orbit_up(polar: Tensor, azimuth: Tensor) -> Tensor:
    """The up vector [..., 3] of a camera at polar [...] and azimuth [...] (degrees) that looks at the origin.

    It is the direction of decreasing polar angle, so it is also defined at the poles: seen from straight above at
    azimuth 0, the front of the object is at the bottom of the image.
    """
    p, a = torch.deg2rad(polar), torch.deg2rad(azimuth)
    return torch.stack([-p.cos() * a.sin(), p.sin(), -p.cos() * a.cos()], -1)


def _normalize(vector: Tensor) -> Tensor:
    """Unit vectors [..., 3]; a zero vector stays zero."""
    length: Tensor = torch.linalg.vector_norm(vector, dim=-1, keepdim=True)
    return vector / length.clamp(min=torch.finfo(vector.dtype).tiny)


def _per_view(value: Tensor | float, name: str, like: Tensor | None = None) -> Tensor:
    """A number or a tensor [B] as a floating-point tensor [B] (or [1]) on the device of ``like``."""
    value = torch.as_tensor(value, device=None if like is None else like.device)
    if not value.is_floating_point():
        value = value.to(torch.get_default_dtype())
    if value.ndim > 1:
        raise ValueError(f"orbit: expected {name} as a number or [B], got {list(value.shape)}")
    return value.reshape(-1)


def _points(value: Vector, name: str, like: Tensor) -> Tensor:
    """A point [3] or points [B, 3] as [B, 3], with the B, device and dtype of ``like`` [B, 3]."""
    if not isinstance(value, Tensor):
        value = torch.tensor(value, device=like.device)
    if value.shape not in ((3,), (1, 3), like.shape) or value.device != like.device:
        raise ValueError(
            f"look_at: expected {name} as [3] or {list(like.shape)} on {like.device}, got {list(value.shape)} on {value.device}"
        )
    return value.to(like.dtype).expand(like.shape)


def _rotation(back: Tensor, up: Tensor) -> Tensor:
    """Rotations [B, 3, 3] (columns: right, up, back) from the unit backward axes ``back`` [B, 3] and up vectors [B, 3]."""
    cross = torch.linalg.cross(_normalize(up), back)
    parallel = cross.norm(dim=-1, keepdim=True) < PARALLEL_SINE
    zero = torch.zeros_like(back[:, 0])
    steep = back[:, 1].abs() > STEEP
    other = torch.stack([zero, torch.where(steep, zero, zero + 1), torch.where(steep, -back[:, 1].sign(), zero)], -1)
    right = _normalize(torch.where(parallel, torch.linalg.cross(other, back), cross))
    return torch.stack([right, torch.linalg.cross(back, right), back], -1)


def look_at(position: Tensor, target: Vector = (0.0, 0.0, 0.0), up: Vector = (0.0, 1.0, 0.0)) -> Tensor:
    """Poses of cameras at ``position`` that see ``target`` at the principal point.

    Where ``up`` is parallel to the viewing direction it is replaced: by -Z for a camera that looks down and +Z for one
    that looks up, as on an orbit at azimuth 0; by +Y for any other viewing direction.

    Args:
        position: [B, 3] scene units.
        target: [B, 3] or [3], different from ``position``.
        up: [B, 3] or [3], world direction that points upwards in the image; any length but 0.

    Returns:
        [B, 4, 4] camera-to-world. Differentiable.

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
    """Camera positions in spherical coordinates about the origin; the inverse of :func:`orbit`.

    Straight above or below the origin the position does not determine the azimuth, so it is taken from the camera's
    right axis: ``angles_of(orbit(0, azimuth, ...).pose)`` returns ``azimuth``.

    Args:
        pose: [B, 4, 4] camera-to-world.

    Returns:
        polar [B] in [0, 180] degrees, azimuth [B] in (-180, 180] degrees, radius [B] scene units.
    """
    position, right = pose[:, :3, 3], pose[:, :3, 0]
    radius = position.norm(dim=-1)
    horizontal = position[:, [0, 2]].norm(dim=-1)
    polar = torch.rad2deg(torch.atan2(horizontal, position[:, 1]))
    on_axis = horizontal <= PARALLEL_SINE * radius
    azimuth = torch.where(on_axis, torch.atan2(-right[:, 2], right[:, 0]), torch.atan2(position[:, 0], position[:, 2]))
    return polar, wrap_degrees(torch.rad2deg(azimuth)), radius


def focal_of(fovy: Tensor, height: int) -> Tensor:
    """Focal length in pixels for a vertical field of view ``fovy`` in degrees, any shape."""
    return height / (2 * torch.tan(torch.deg2rad(fovy) / 2))


def centred_views(pose: Tensor, fovy: Tensor, height: int, width: int) -> Views:
    """Views with square pixels and the principal point at the image centre.

    Args:
        pose: [B, 4, 4] camera-to-world.
        fovy: [B] vertical field of view, degrees.
        height: pixels.
        width: pixels.

    Returns:
        B views without lens distortion; their polar, azimuth and radius are computed from the poses.
    """
    focal = focal_of(fovy, height)
    polar, azimuth, radius = angles_of(pose)
    cx, cy = torch.full_like(focal, width / 2), torch.full_like(focal, height / 2)
    return Views(pose, focal, focal, cx, cy, height, width, polar, azimuth, radius, fovy)


def orbit(
    polar: Tensor | float,
    azimuth: Tensor | float,
    radius: Tensor | float,
    fovy: Tensor | float,
    height: int,
    width: int,
    target: Vector | None = None,
    up: Vector | None = None,
) -> Views:
    """Cameras on spheres about the origin that look at it. Numbers and tensors [B] can be mixed.

    Args:
        polar: [B] degrees in [0, 180]; 0 above, 90 horizon. At the poles the azimuth determines the up vector.
        azimuth: [B] degrees, any; 0 front (+Z), 90 on +X.
        radius: [B] distance from the origin, scene units, positive.
        fovy: [B] vertical field of view, degrees in (0, 180).
        height: pixels.
        width: pixels.
        target: [B, 3] or [3] point to look at instead of the origin; the position does not change.
        up: [B, 3] or [3] up vector instead of the orbit's own.

    Returns:
        B views without lens distortion; their azimuth is wrapped into (-180, 180].

    Raises:
        ValueError: wrong shapes, image sizes below 1, angles or radii outside their ranges (checked on the CPU only).
    """
    if height < 1 or width < 1:
        raise ValueError(f"orbit: height and width must be at least 1, got {height} and {width}")
    like = next((v for v in (polar, azimuth, radius, fovy) if isinstance(v, Tensor)), None)
    pairs = (("polar", polar), ("azimuth", azimuth), ("radius", radius), ("fovy", fovy))
    polars, azimuths, radii, fovys = torch.broadcast_tensors(*[_per_view(v, name, like) for name, v in pairs])
    if polars.device.type == "cpu":
        _check_ranges(polars, radii, fovys)
    dtype = torch.promote_types(polars.dtype, radii.dtype)
    polar64, azimuth64 = polars.double(), wrap_degrees(azimuths.double())
    position = direction_of(polar64, azimuth64) * radii.double()[:, None]
    pose = look_at(
        position, (0.0, 0.0, 0.0) if target is None else target, orbit_up(polar64, azimuth64) if up is None else up
    ).to(dtype)
    views = centred_views(pose, fovys.to(dtype), height, width)
    return replace(views, polar=polars.to(dtype), azimuth=azimuth64.to(dtype), radius=radii.to(dtype))


def _check_ranges(polar: Tensor, radius: Tensor, fovy: Tensor) -> None:
    if not ((polar >= 0) & (polar <= 180)).all():
        raise ValueError(f"orbit: polar must lie in [0, 180] degrees (0 = above, 90 = horizon), got {polar.tolist()}")
    if not (radius > 0).all():
        raise ValueError(f"orbit: radius must be positive, got {radius.tolist()}")
    if not ((fovy > 0) & (fovy < 180)).all():
        raise ValueError(f"orbit: fovy must lie in (0, 180) degrees, got {fovy.tolist()}")


def _camera_directions(views: Views, index: Tensor | slice, xy: Tensor) -> Tensor:
    """Unit directions [..., 3] in camera axes through pixel positions [..., 2].

    ``index`` selects the views; one value per selected view is broadcast over the dimensions between first and last.
    """

    def pick(value: Tensor) -> Tensor:
        value = value[index]
        return value.reshape(value.shape[0], *[1] * (xy.ndim - 2), *value.shape[1:])

    x, y = (xy[..., 0] - pick(views.cx)) / pick(views.fx), (xy[..., 1] - pick(views.cy)) / pick(views.fy)
    distortion, fisheye = (None if value is None else pick(value) for value in (views.distortion, views.fisheye))
    return _normalize(direction_through(torch.stack([x, y], -1), distortion, fisheye))


def _normalized_uv(views: Views, xy: Tensor) -> Tensor:
    """Pixel positions [..., 2] divided by width and height, in [0, 1]; without a copy from host to device."""
    return torch.stack([xy[..., 0] / views.width, xy[..., 1] / views.height], -1)


def pixel_rays(views: Views, view_index: Tensor, xy: Tensor) -> Rays:
    """Rays through given pixel positions of given views.

    Args:
        views: B views.
        view_index: [N] int64 in [0, B).
        xy: [N, 2] pixel positions (column, row); the centre of the first pixel is (0.5, 0.5).

    Returns:
        N rays from the camera centres with unit directions, lens distortion undone, and their ``uv``. Differentiable in
        poses and intrinsics.

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
    near = None if views.near is None else views.near[view_index]
    return Rays(pose[:, :3, 3], directions, view_index, uv=_normalized_uv(views, xy), near=near)


def view_rays(views: Views) -> Rays:
    """Rays through all pixel centres of all views, in row-major order.

    Args:
        views: B views of H x W pixels.

    Returns:
        N = B * H * W rays with ``shape`` (B, H, W), unit directions, lens distortion undone, ``uv`` and ``views``.
        Differentiable in poses and intrinsics.
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
    uv = _normalized_uv(views, xy).expand(b, -1, -1).reshape(-1, 2)
    near = None if views.near is None else views.near[view_index]
    return Rays(origins, directions, view_index, (b, h, w), uv=uv, near=near, views=views)


def clip_space(views: Views, points: Tensor, min_near: float, bound: float) -> Tensor:
    """Homogeneous OpenGL clip coordinates of world points for a rasteriser: x right, y up, -1 <= z / w <= 1.

    The near and far planes enclose the box [-bound, bound]^3, with near at least ``min_near``. A point on the ray through
    a pixel centre lands on that pixel centre.

    Args:
        views: B views without lens distortion.
        points: [V, 3] world points.
        min_near: smallest distance of the near plane, scene units.
        bound: half the side of the box, scene units.

    Returns:
        [B, V, 4]. Differentiable in the points.

    Raises:
        ValueError: the views have lens distortion, under which the edges of triangles are not straight; undistort the
            images first.
    """
    if views.has_lens:
        raise ValueError("clip_space: expected views without lens distortion; undistort the images first")
    pose = views.pose
    local = (points[None].to(pose.dtype) - pose[:, None, :3, 3]) @ pose[:, :3, :3]
    z_depth = -local[..., 2]
    distance, margin = pose[:, :3, 3].norm(dim=-1)[:, None], 3**0.5 * bound * CLIP_MARGIN
    near, far = (distance - margin).clamp(min=min_near), distance + margin
    fx, fy, cx, cy = (k[:, None] for k in (views.fx, views.fy, views.cx, views.cy))
    x = 2.0 / views.width * (fx * local[..., 0] + cx * z_depth) - z_depth
    y = z_depth - 2.0 / views.height * (cy * z_depth - fy * local[..., 1])
    z = ((far + near) * z_depth - 2.0 * far * near) / (far - near)
    return torch.stack([x, y, z, z_depth], dim=-1)


def project(views: Views, points: Tensor) -> tuple[Tensor, Tensor]:
    """Project world points into the views; the inverse of :func:`pixel_rays`.

    Args:
        views: B views.
        points: [..., 3] world points, the same for all views.

    Returns:
        xy [B, ..., 2] pixel positions (column, row), lens distortion included, and depth [B, ...], the distance along
        the ray in scene units. Points behind a perspective camera have negative depth and a meaningless position.
        Differentiable in points, poses and intrinsics.

    Raises:
        ValueError: points do not end in 3.
    """
    if points.shape[-1] != 3:
        raise ValueError(f"project: expected points [..., 3], got {list(points.shape)}")
    pose = views.pose
    flat = points.reshape(-1, 3).to(pose.dtype)
    local = (flat[None] - pose[:, None, :3, 3]) @ pose[:, :3, :3]  # [B, P, 3] in camera axes
    z_depth = -local[..., 2]
    distortion, fisheye = (None if value is None else value[:, None] for value in (views.distortion, views.fisheye))
    plane = plane_of(local, distortion, fisheye)
    xy = torch.stack(
        [plane[..., 0] * views.fx[:, None] + views.cx[:, None], plane[..., 1] * views.fy[:, None] + views.cy[:, None]], -1
    )
    behind = z_depth < 0 if fisheye is None else (z_depth < 0) & ~fisheye
    depth = torch.where(behind, -1.0, 1.0) * local.norm(dim=-1)
    shape = (len(views), *points.shape[:-1])
    return xy.reshape(*shape, 2), depth.reshape(shape)
