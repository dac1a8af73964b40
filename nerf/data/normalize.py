"""Scene normalisation: the similarity transform that brings a dataset into the scene box. I photographs, P points.

A dataset's own world may have any up axis, origin and scale. The normalised world has +Y up and its scene in
[-bound, bound]^3.
"""

import logging
from dataclasses import dataclass

import torch
from torch import Tensor

from nerf.config.photographs import PlacementConfig
from nerf.core.errors import UserError
from nerf.data.upright import estimate_up, mean_up, plane_up

log = logging.getLogger("somnia.photographs")

DEFAULT_PLACEMENT = PlacementConfig()

MIN_ONE_SIDED = 0.3  # length of the mean horizontal direction to the cameras above which they are on one side of the scene
MIN_HALF_SIDE = 1e-6  # of the scene box, in units of the dataset; below it there is no baseline between the cameras
SCENE_MARGIN = 1.1  # factor on the radius of a captured scene that gives half the side of its box
POINT_QUANTILE = 0.98  # fraction of a sparse point cloud that the box must contain; the others count as outliers
MIN_POINTS = 30  # of a sparse point cloud that counts; reconstructions have thousands
NARROW = 1e-3  # tangent of half a field of view, below which it is no camera's that sees an object
MAX_HALF_SIDE = 1e12  # of the scene box, in units of the dataset
STRAY = 100.0  # times the median distance from the middle of the cameras, beyond which one is a mistake in the poses
SAME_POSE = 1e-9  # difference of two poses, as a fraction of their largest number, below which they are one
MIN_AXIS_SPREAD = 1e-3  # mean squared sine of the optical axes' angle to their common direction; below it they are parallel
MIN_SPREAD = 1e-6  # distance of camera centres from their mean below which they coincide
OPPOSITE = 1e-9  # 1 + cosine below which two directions are opposite, and the rotation between them is not unique
DOWN_VECTOR_FLIP = (1.0, -1.0, -1.0)  # half a turn about x, the rotation used for -Y up


BOX_SOURCE = {  # SceneNormalization.kind in words, for the log
    "box": "the dataset",
    "limit": "aabb_scale and the camera positions",
    "object": "the field of view (transparent background)",
    "points": "the reconstruction's points",
    "scene": "the camera positions",
    "seen": "what the cameras see around the point that they look at",
    "given": "--scene_center and --scene_scale",
}


@dataclass(frozen=True)
class SceneNormalization:
    """The similarity transform between a dataset's world and the normalised world, and how the scene box was chosen."""

    kind: str  # "box", "limit", "object", "points", "scene", "seen" or "given": see :func:`normalize_scene`
    to_source: Tensor  # [4, 4] float64, normalised world -> dataset's world
    scale: float  # normalised units per unit of the dataset
    unbounded: bool = False  # the photographs show more than the box holds

    def apply(self, pose: Tensor) -> Tensor:
        """Camera-to-world poses [I, 4, 4] of the dataset's world in the normalised world; rotations stay orthonormal."""
        moved = torch.linalg.inv(self.to_source) @ pose
        moved[:, :3, :3] /= self.scale
        return moved

    def points(self, points: Tensor) -> Tensor:
        """Points [P, 3] of the dataset's world in the normalised world."""
        to_box = torch.linalg.inv(self.to_source)
        return points @ to_box[:3, :3].T + to_box[:3, 3]


def focus_point(pose: Tensor) -> Tensor:
    """The point [3] closest to all optical axes in the least-squares sense, if it is in front of most cameras.

    Parallel axes, or a single one, have no such point; then it is the mean of the camera centres moved along the mean
    viewing direction by their spread (by 1 if they coincide). For cameras that look outwards from a common centre it is
    that centre.

    Args:
        pose: [I, 4, 4] camera-to-world.
    """
    origin, forward = pose[:, :3, 3], -pose[:, :3, 2]
    mean_origin = origin.mean(0)
    spread = (origin - mean_origin).norm(dim=-1).max()
    point, in_front = _nearest_to_axes(pose)
    if point is not None and in_front > 0.5:
        return point
    return mean_origin + forward.mean(0) * (spread if spread > MIN_SPREAD else 1.0)


def looks_inwards(pose: Tensor) -> bool:
    """Whether cameras [I, 4, 4] look at a common point, or all in one direction, and not outwards from where they stand."""
    point, in_front = _nearest_to_axes(pose)
    return point is None or in_front > 0.5


def _nearest_to_axes(pose: Tensor) -> tuple[Tensor | None, float]:
    """The point [3] nearest to all optical axes, None if these are parallel; and the fraction of cameras it is in front of."""
    origin, forward = pose[:, :3, 3], -pose[:, :3, 2]
    projector = torch.eye(3, dtype=pose.dtype) - forward[:, :, None] * forward[:, None, :]  # onto the plane across each axis
    normal_matrix = projector.mean(0)
    if not torch.linalg.eigvalsh(normal_matrix)[0] > MIN_AXIS_SPREAD:
        return None, 0.0
    point = torch.linalg.solve(normal_matrix, (projector @ origin[:, :, None]).mean(0)[:, 0])
    return point, (((point - origin) * forward).sum(-1) > 0).double().mean().item()


def warn_of_poses(pose: Tensor) -> None:
    """Log a warning if poses [I, 4, 4] are all equal, one is far from all others, or all look away from their common point."""
    if len(pose) > 1 and (pose - pose[0]).abs().max() <= SAME_POSE * pose.abs().max():
        log.warning("all %d photographs have the same pose, so nothing tells how far anything is; check the poses", len(pose))
        return
    distance = (pose[:, :3, 3] - pose[:, :3, 3].median(0).values).norm(dim=-1)
    stray = int((distance > STRAY * distance.median()).sum()) if distance.median() > 0 else 0
    if stray:
        log.warning(
            "%d of %d cameras are more than %g times as far away as the others, so what these look at has almost no size in "
            "the scene; correct or remove their poses",
            stray,
            len(pose),
            STRAY,
        )
    point, in_front = _nearest_to_axes(pose)
    if point is not None and in_front < 0.5:
        log.warning(
            "the cameras look away from the point where their axes meet: expected poses with OpenGL axes (y up, looking along "
            "-z). If these have OpenCV's (y down, looking along z), negate the second and third column of each; photographs "
            "taken outwards from one place are right as they are"
        )


def rotation_to_y_up(up: Tensor) -> Tensor:
    """The smallest rotation [3, 3] that maps the unit vector ``up`` [3] to +Y; for +Z it maps (x, y, z) to (x, z, -y)."""
    y = torch.tensor([0.0, 1.0, 0.0], dtype=up.dtype)
    if up @ y < -1 + OPPOSITE:
        return torch.diag(torch.tensor(DOWN_VECTOR_FLIP, dtype=up.dtype))
    v = torch.linalg.cross(up, y)
    skew = torch.zeros(3, 3, dtype=up.dtype)
    skew[0, 1], skew[0, 2], skew[1, 2] = -v[2], v[1], -v[0]
    skew = skew - skew.T
    return torch.eye(3, dtype=up.dtype) + skew + skew @ skew / (1 + up @ y)


def _rotation_to_front(offset: Tensor) -> Tensor:
    """The rotation [3, 3] about +Y that brings cameras on one side of the focus point to +Z; else the identity.

    ``offset`` [I, 3]: camera centres relative to the focus point, +Y up.
    """
    mean = torch.nn.functional.normalize(offset[:, [0, 2]], dim=-1).mean(0)  # x, z
    if mean.norm() < MIN_ONE_SIDED:
        return torch.eye(3, dtype=offset.dtype)
    s, c = (mean / mean.norm()).unbind(0)
    zero, one = torch.zeros_like(s), torch.ones_like(s)
    return torch.stack([torch.stack([c, zero, -s]), torch.stack([zero, one, zero]), torch.stack([s, zero, c])])


def bounding_ball(points: Tensor) -> tuple[Tensor, float]:
    """A ball that is robust to outliers: the median [3] of points [P, 3], and the ``POINT_QUANTILE`` of distances from it."""
    centre = points.median(0).values
    return centre, _ball_radius(points, centre)


def _ball_radius(points: Tensor, centre: Tensor) -> float:
    """The ``POINT_QUANTILE`` of the distances of points [P, 3] from a centre [3]."""
    distance = (points - centre).norm(dim=-1)
    return distance.kthvalue(max(1, round(POINT_QUANTILE * len(points)))).values.item()


def _within_limit(limit: tuple[Tensor, float], position: Tensor, bound: float) -> float:
    """Half the side of the box of a scene around the centre of its limit; ``position`` [I, 3]: of the cameras.

    instant-ngp's converters write an ``aabb_scale`` that is on the safe side, by default 32 and up to ten times what the
    cameras span. A box of that size leaves little resolution, and long steps of the march, for what they look at. So the box
    holds the cameras at most; ``bound`` above 1 widens it, in units of that box, as far as the limit. A limit that no camera
    is inside of is too small for photographs without transparency, which show what is behind the object.
    """
    centre, half_side = limit
    distance = (position - centre).norm(dim=-1)
    needed = SCENE_MARGIN * distance.max().item()
    if half_side < distance.min().item():
        log.info("no camera is inside the box of the dataset's aabb_scale, so the box that holds them is used")
        return max(bound, 1.0) * needed
    if half_side > max(bound, 1.0) * needed > 0:
        log.info(
            "the dataset's aabb_scale is for a box %.1f times as wide as the one that holds the cameras; --bound N, with N "
            "above 1, makes a box N times as wide as that one",
            half_side / needed,
        )
    return min(half_side, max(bound, 1.0) * needed)


def _why_no_size(kind: str, half_side: float, pose: Tensor, half_fov: Tensor) -> str:
    """Why the scene box of a dataset has no size; the message of the error."""
    origin = pose[:, :3, 3]
    if kind == "box":
        return f"the scene box that the dataset prescribes is {2 * half_side:.2g} units wide; correct its size, or remove it"
    if (origin - origin.mean(0)).norm(dim=-1).max() <= SAME_POSE * max(float(origin.abs().max()), MIN_HALF_SIDE):
        return (
            f"the {len(pose)} photographs were all taken from one position in different directions, so there is no parallax "
            "to learn depth from; add photographs from other positions"
        )
    if kind == "given":
        return (
            f"--scene_center and --scene_scale give a box {2 * half_side:.2g} units wide, which single precision cannot "
            "hold; give a larger scale"
        )
    if kind == "object" and torch.tan(half_fov).median() < NARROW:
        degrees = 2.0 * torch.rad2deg(half_fov).median().item()
        return (
            f"the cameras have a field of view of {degrees:.2g} degrees, in which no object has a size; correct their focal "
            "lengths, which are in pixels"
        )
    return (
        f"the cameras are less than {4 * MIN_HALF_SIDE:.0e} units apart, which single precision cannot hold; multiply the "
        "positions in the poses by a constant"
    )


def _choose_box(
    pose: Tensor,
    half_fov: Tensor,
    focus: Tensor,
    prescribed_box: tuple[Tensor, float] | None,
    has_transparency: bool,
    bound: float,
    points: Tensor | None,
    limit: tuple[Tensor, float] | None,
) -> tuple[str, Tensor, float]:
    """The kind of a scene box, its centre [3] and half its side; see :func:`normalize_scene`."""
    if prescribed_box is not None:
        return "box", *prescribed_box
    distance = (pose[:, :3, 3] - focus).norm(dim=-1)
    if has_transparency:
        half_side = _seen(pose, half_fov, focus)
        return "object", *(limit if limit is not None and limit[1] < half_side else (focus, half_side))
    if limit is not None:
        return "limit", limit[0], _within_limit(limit, pose[:, :3, 3], bound)
    half_side = SCENE_MARGIN * distance.max().item()
    if points is not None and len(points) >= MIN_POINTS:  # a few points, or one, say nothing of the size
        middle, radius = bounding_ball(points)
        if MIN_HALF_SIDE < SCENE_MARGIN * radius < half_side:
            return "points", middle, SCENE_MARGIN * radius
    return "scene", focus, half_side


def _seen(pose: Tensor, half_fov: Tensor, centre: Tensor) -> float:
    """Half the side of the box that cameras [I, 4, 4] with half the fields of view [I] see around a centre [3]."""
    return ((pose[:, :3, 3] - centre).norm(dim=-1) * torch.tan(half_fov)).median().item()


def _within_sight(
    box: tuple[str, Tensor, float], pose: Tensor, half_fov: Tensor, centre: Tensor | None
) -> tuple[str, Tensor, float]:
    """The box that cameras see around their focus point or a given centre; ``box`` where that is smaller, or prescribed, or
    where the cameras do not look at a common point."""
    meeting, in_front = _nearest_to_axes(pose)
    if box[0] == "box" or meeting is None or in_front <= 0.5:
        return box
    middle = meeting if centre is None else centre
    half_side = _seen(pose, half_fov, middle)
    return ("seen", middle, half_side) if half_side < box[2] else box


def _place(
    box: tuple[str, Tensor, float],
    pose: Tensor,
    half_fov: Tensor,
    focus: Tensor,
    points: Tensor | None,
    options: PlacementConfig,
) -> tuple[str, Tensor, float]:
    """The box that ``--scene_center`` and ``--scene_scale`` ask for; ``box`` where they ask for nothing.

    A centre without a scale makes the box around it that holds all cameras.
    """
    kind, centre, half_side = box
    if options.scene_center == "auto" and options.scene_scale == "auto":
        return box
    if options.scene_center == "auto" and options.scene_scale == "seen":
        return _within_sight(box, pose, half_fov, None)
    asked = [flag for flag in ("scene_center", "scene_scale") if getattr(options, flag) == "points"]
    if asked and (points is None or len(points) < MIN_POINTS):
        raise UserError(
            f"--{asked[0]} points needs at least {MIN_POINTS} sparse points of a reconstruction, and the dataset has "
            f"{0 if points is None else len(points)}; choose another"
        )
    position = pose[:, :3, 3]
    if options.scene_center != "auto":
        centres = {"cameras": position.mean(0), "axes": focus}
        if points is not None and len(points):
            centres["points"] = points.median(0).values
        centre = centres[options.scene_center]
    distance = (position - centre).norm(dim=-1)
    scale = "cameras" if options.scene_scale == "auto" else options.scene_scale
    if scale == "seen":
        return _within_sight(("given", centre, SCENE_MARGIN * distance.max().item()), pose, half_fov, centre)
    if scale == "points":
        assert points is not None, "refused above"
        half_side = SCENE_MARGIN * _ball_radius(points, centre)
    elif scale in ("cameras", "nearest"):
        half_side = SCENE_MARGIN * distance.max().item() if scale == "cameras" else distance.min().item()
    else:
        half_side = float(scale)
    return "given", centre, half_side


def _up(
    pose: Tensor, points: Tensor | None, orientation: Tensor | None, known: Tensor | None, options: PlacementConfig
) -> Tensor:
    """The unit up direction [3] in the dataset's world that ``--scene_up`` asks for."""
    if options.scene_up == "plane":
        return plane_up(pose, points, orientation)
    if options.scene_up == "cameras":
        mean = mean_up(pose, orientation)
        if mean is None:
            raise UserError("--scene_up cameras: the up vectors of the cameras point in all directions; choose an axis")
        return mean
    if options.scene_up == "auto":
        return estimate_up(pose, orientation) if known is None else known.to(pose.dtype)
    axis = torch.zeros(3, dtype=pose.dtype)
    axis["xyz".index(options.scene_up[-1])] = -1.0 if options.scene_up.startswith("-") else 1.0
    return axis


def normalize_scene(
    pose: Tensor,
    half_fov: Tensor,
    prescribed_box: tuple[Tensor, float] | None,
    has_transparency: bool,
    bound: float,
    points: Tensor | None = None,
    limit: tuple[Tensor, float] | None = None,
    up: Tensor | None = None,
    orientation: Tensor | None = None,
    options: PlacementConfig = DEFAULT_PLACEMENT,
) -> SceneNormalization:
    """Choose the scene box of a dataset and the similarity that maps it to [-bound, bound]^3 with +Y up.

    * "box": the dataset prescribes its box (NeuS's ``scale_mat``).
    * "object": the photographs have transparent pixels, so they show an isolated object completely. The box is centred at
      the focus point and as large as what the cameras see there. Blender's front, -y, becomes +Z.
      A smaller limit (instant-ngp's ``aabb_scale``) is used instead.
    * "limit": any other dataset with a limit; see :func:`_within_limit`.
    * "scene": any other dataset. The box is centred at the focus point and contains all cameras.
    * "points": as "scene", but the box around the sparse point cloud of the reconstruction is smaller and is used instead.
    * "seen": with ``--scene_scale seen``, what the cameras see around the focus point, as of an object.
    * "given": by ``--scene_center`` and ``--scene_scale``.

    Except for an object, cameras that are all on one side of the scene are rotated to the front (+Z).

    Args:
        pose: [I, 4, 4] float64, poses of the training photographs.
        half_fov: [I] radians, half of the larger of the horizontal and the vertical field of view.
        prescribed_box: centre [3] and half side in the dataset's world, or None.
        has_transparency: the photographs have transparent pixels.
        bound: half the side of the normalised box.
        points: [P, 3] float64 point cloud in the dataset's world, or None.
        limit: centre [3] and half side of a box in the dataset's world that the scene does not exceed, or None.
        up: [3] unit up direction in the dataset's world, where its format defines one, or None.
        orientation: [I] EXIF orientations of the photographs, or None.
        options: of the flags ``--scene_center``, ``--scene_up`` and ``--scene_scale``.

    Raises:
        UserError: the box has no size, as all cameras have the same position for example, or it is too large.
    """
    focus = focus_point(pose)
    box = _choose_box(pose, half_fov, focus, prescribed_box, has_transparency, bound, points, limit)
    kind, centre, half_side = _place(box, pose, half_fov, focus, points, options)
    if not half_side > MIN_HALF_SIDE:
        raise UserError(_why_no_size(kind, half_side, pose, half_fov))
    if not half_side < MAX_HALF_SIDE:
        raise UserError(f"the scene would be {2 * half_side:.3g} units wide; correct its poses, or the box that it prescribes")
    rotation = rotation_to_y_up(_up(pose, points, orientation, up, options))
    if not has_transparency or prescribed_box is not None:
        rotation = _rotation_to_front((pose[:, :3, 3] - focus) @ rotation.T) @ rotation
    scale = bound / half_side
    to_source = torch.eye(4, dtype=pose.dtype)
    to_source[:3, :3] = rotation.T / scale
    to_source[:3, 3] = centre
    cut = limit is not None and half_side < limit[1]
    return SceneNormalization(kind, to_source, scale, kind in ("scene", "seen") or (kind == "limit" and cut))
