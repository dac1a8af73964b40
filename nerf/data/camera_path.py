"""Paths of a camera for videos: past the cameras of photographs, or along a file in nerfstudio's format. I photographs."""

import logging
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nerf.config.limits import FAR, MAX_SIDE
from nerf.core.cameras import angles_of, centred_views, focal_of, look_at, wrap_degrees
from nerf.core.errors import UserError
from nerf.core.files import read_json
from nerf.core.structs import Views
from nerf.data.normalize import focus_point, looks_inwards
from nerf.data.values import matrix, number, rigid

log = logging.getLogger("somnia.photographs")

FULL_CIRCLE = 0.7  # fraction of azimuths within CAMERA_REACH of a camera above which the camera path goes all the way round
CAMERA_REACH = 30.0  # degrees of azimuth to either side of a camera in which its photograph supports novel views
PATH_QUANTILES = (0.05, 0.95)  # of the cameras' azimuths; the ends of a path that goes back and forth
SEQUENCE_REACH = 1.5  # photographs to either side that a path along outward-looking cameras averages (standard deviation)
DEFAULT_FPS = 25.0
FPS = (1.0, 240.0)
MOST_FRAMES = 10_000
FOV = (0.1, 170.0)  # degrees
DATAPARSER = "dataparser_transforms.json"  # nerfstudio's record of how it placed the scene, beside a camera path
_WAY_OUT = "export the camera path again"


@dataclass(frozen=True)
class SceneCameras:
    """The cameras of all photographs of a dataset in the normalised world, in the order of their names."""

    pose: Tensor  # [I, 4, 4] float64, on the host
    half_x: float  # tangents of half the field of view of the photographs, horizontally and vertically
    half_y: float
    to_source: Tensor  # [4, 4] float64 from the normalised world to the dataset's
    near: float | None = None  # smallest distance of a sample from a camera of the path; None: that of the render path

    def path(self, count: int, height: int, width: int) -> Views:
        """A smooth camera path near these cameras, for a video.

        It goes once around the scene if there are cameras on all sides, otherwise back and forth; both are closed. Position
        and viewing direction are weighted means of those of cameras near in azimuth, so the path stays where the scene was
        observed. Cameras that look outwards, as in a room, have no azimuth around a common point: the path follows them in
        the order of their names. The field of view does not exceed that of the photographs, horizontally and vertically.

        Args:
            count: number of views.
            height: pixels.
            width: pixels.

        Returns:
            ``count`` views on the host.
        """
        position, target = self._around(count) if looks_inwards(self.pose) else self._along(count)
        fovy = 2 * math.degrees(math.atan(min(self.half_y, self.half_x * height / width)))
        views = centred_views(look_at(position, target).float(), torch.full((count,), fovy), height, width)
        return views if self.near is None else replace(views, near=torch.full((count,), self.near))

    def _around(self, count: int) -> tuple[Tensor, Tensor]:
        """Positions and targets [count, 3] of a path around the point that the cameras look at."""
        focus = focus_point(self.pose)
        offset = self.pose[:, :3, 3] - focus
        azimuth = torch.rad2deg(torch.atan2(offset[:, 0], offset[:, 2]))
        path_azimuth = _path_azimuths(azimuth, count)
        difference = wrap_degrees(path_azimuth[:, None] - azimuth[None])
        weight = torch.softmax(-0.5 * (difference / (CAMERA_REACH / 2)).square(), -1)  # [count, I]
        radius, elevation = weight @ offset[:, [0, 2]].norm(dim=-1), weight @ offset[:, 1]
        angle = torch.deg2rad(path_azimuth)
        position = focus + torch.stack([radius * angle.sin(), elevation, radius * angle.cos()], -1)
        distance = offset.norm(dim=-1, keepdim=True)
        return position, weight @ (self.pose[:, :3, 3] - distance * self.pose[:, :3, 2])

    def _along(self, count: int) -> tuple[Tensor, Tensor]:
        """Positions and targets [count, 3] of a path from the first camera to the last."""
        index = torch.arange(len(self.pose), dtype=torch.float64)
        at = torch.linspace(0, len(self.pose) - 1, count, dtype=torch.float64)
        weight = torch.softmax(-0.5 * ((at[:, None] - index) / SEQUENCE_REACH).square(), -1)
        position = weight @ self.pose[:, :3, 3]
        back = torch.nn.functional.normalize(weight @ self.pose[:, :3, 2], dim=-1)
        return position, position - back


def _path_azimuths(azimuth: Tensor, count: int) -> Tensor:
    """Azimuths [count] in degrees of a path near cameras [I]: once around, or back and forth over their range."""
    circle = torch.arange(360.0, dtype=azimuth.dtype)
    nearest = wrap_degrees(circle[:, None] - azimuth[None]).abs().amin(-1)
    phase = torch.arange(count, dtype=azimuth.dtype) / count
    if (nearest < CAMERA_REACH).double().mean() > FULL_CIRCLE:
        return 360 * phase
    angle = torch.deg2rad(azimuth)
    mean = torch.rad2deg(torch.atan2(angle.sin().mean(), angle.cos().mean()))
    relative = wrap_degrees(azimuth - mean)
    low, high = torch.quantile(relative, torch.tensor(PATH_QUANTILES, dtype=azimuth.dtype))
    return mean + (low + high) / 2 + (high - low) / 2 * torch.sin(2 * math.pi * phase)


# ---- files -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CameraPath:
    """A path that a file gives: one view for each frame of the video."""

    views: Views
    fps: float


def read_camera_path(path: str | Path, to_source: Tensor | None, height: int, width: int) -> CameraPath:
    """Read a camera path in the format that nerfstudio's viewer exports.

    ``camera_path`` lists one entry a frame: ``camera_to_world``, 16 numbers by rows with OpenGL axes, and ``fov``, vertical,
    in degrees (else ``default_fov`` of the file). Cameras are perspective. ``render_height``, ``render_width``, ``fps`` and
    ``seconds`` are of the video; a list of keyframes alone, such as an empty path, is refused.

    The world is the dataset's own. nerfstudio's viewer works in a world that it centred and scaled: where its
    ``dataparser_transforms.json`` is beside the file, that is undone.

    Args:
        path: the file.
        to_source: [4, 4] float64 from the scene to the dataset's world; None: the file is in the scene's world.
        height, width: pixels of the video where the file has no size.

    Raises:
        UserError: the file is broken, or its cameras are not perspective.
    """
    path = Path(path)
    document = read_json(path, _WAY_OUT)
    entries = document.get("camera_path") if isinstance(document, dict) else None
    if not isinstance(entries, list) or not 0 < len(entries) <= MOST_FRAMES:
        raise UserError(
            f'{path}: expected an object with a list "camera_path" of 1 to {MOST_FRAMES} cameras, as nerfstudio\'s viewer '
            f"writes with Generate Command, got {str(document):.60}; {_WAY_OUT}"
        )
    kind = document.get("camera_type", "perspective")
    if kind != "perspective":
        raise UserError(f'{path}: "camera_type" must be perspective, got {kind!r:.40}; {_WAY_OUT}')
    if document.get("crop"):
        log.warning("%s: its crop box is not used; --mesh_crop cuts the mesh", path)
    height, width = _side(document, "render_height", height, path), _side(document, "render_width", width, path)
    poses, fovs = zip(*(_entry(entry, document, f"{path}, camera {i}") for i, entry in enumerate(entries)), strict=True)
    fps = _within(document.get("fps", DEFAULT_FPS), FPS, str(path), "fps")
    seconds = document.get("seconds")
    if seconds is not None and len(entries) > 1 and number(seconds, str(path), "seconds") > 0:
        fps = min(max(len(entries) / float(seconds), FPS[0]), FPS[1])
    pose = torch.stack(poses)
    pose = _moved(pose, _undo_dataparser(path.with_name(DATAPARSER)))
    if to_source is not None:
        pose = _moved(pose, torch.linalg.inv(to_source))
    distance = pose[:, :3, 3].norm(dim=-1)
    if not (distance <= FAR).all():
        far = int((~(distance <= FAR)).nonzero()[0])
        raise UserError(
            f"{path}, camera {far}: it is {distance[far]:.3g} scene units from the middle of the scene, and {FAR:g} is the "
            "most; give a path in the dataset's own world"
        )
    pose, fovy = pose.float(), torch.tensor(fovs)
    focal = focal_of(fovy, height)
    cx, cy = torch.full_like(focal, width / 2), torch.full_like(focal, height / 2)
    return CameraPath(Views(pose, focal, focal, cx, cy, height, width, *angles_of(pose), fovy), fps)


def _entry(entry: Any, document: dict, where: str) -> tuple[Tensor, float]:
    """Pose [4, 4] and vertical field of view in degrees of a frame."""
    if not isinstance(entry, dict) or "camera_to_world" not in entry:
        raise UserError(f'{where}: expected an object with "camera_to_world", got {entry!r:.60}; {_WAY_OUT}')
    value = entry["camera_to_world"]
    if isinstance(value, list) and len(value) == 16:
        value = [value[i : i + 4] for i in range(0, 16, 4)]
    pose = rigid(matrix(value, (3, 4), where, "camera_to_world"), where, "camera_to_world")
    fov = entry.get("fov", document.get("default_fov"))
    return pose, _within(fov, FOV, where, "fov")


def _within(value: Any, ends: tuple[float, float], where: str, key: str) -> float:
    """A number between two ends."""
    found = number(value, where, key)
    if not ends[0] <= found <= ends[1]:
        raise UserError(f'{where}: "{key}" must be between {ends[0]:g} and {ends[1]:g}, got {found:g}; {_WAY_OUT}')
    return found


def _side(document: dict, key: str, default: int, path: Path) -> int:
    """A side of the video in pixels."""
    return int(_within(document.get(key, default), (1, MAX_SIDE), str(path), key))


def _undo_dataparser(path: Path) -> Tensor:
    """[4, 4] from the world in which nerfstudio trained to the dataset's; the identity where it left no record."""
    undone = torch.eye(4, dtype=torch.float64)
    if not path.is_file():
        return undone
    document = read_json(path, _WAY_OUT)
    if not isinstance(document, dict) or "transform" not in document:
        raise UserError(f'{path}: expected an object with "transform" and "scale", got {document!r:.60}; {_WAY_OUT}')
    placed = rigid(matrix(document["transform"], (3, 4), str(path), "transform"), str(path), "transform")
    placed[:3] *= number(document.get("scale", 1.0), str(path), "scale", positive=True)
    log.info("%s: the camera path beside it is in nerfstudio's own world, which is undone", path)
    return torch.linalg.inv(placed)


def _moved(pose: Tensor, similarity: Tensor) -> Tensor:
    """Poses [I, 4, 4] after a similarity [4, 4] of their world; rotations stay orthonormal."""
    moved = similarity @ pose
    moved[:, :3, :3] /= torch.linalg.det(similarity[:3, :3]).abs() ** (1 / 3)
    return moved
