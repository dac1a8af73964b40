"""How a dataset is placed in the scene box, from its cameras, sizes of photographs and points."""

import math
from dataclasses import replace

import torch

from nerf.config.photographs import PlacementConfig
from nerf.core.errors import UserError
from nerf.core.progress import track
from nerf.data.frames import ASPECT_TOLERANCE, Frame, ParsedDataset
from nerf.data.image_store import SIDEWAYS, exif_orientation, read_header
from nerf.data.normalize import SceneNormalization, normalize_scene, warn_of_poses
from nerf.data.probe import marks_object

WIDEST = math.radians(80.0)  # half a field of view that counts for the size of an object


def scaled_intrinsics(frame: Frame, width: int, height: int) -> tuple[float, float, float, float]:
    """fx, fy, cx, cy in pixels of the image file, before downscaling.

    Raises:
        UserError: the file has another shape than the one that the cameras are for.
    """
    try:
        return frame.intrinsics.scaled_to(width, height)
    except UserError as error:
        raise UserError(f"photograph {frame.image}: {error}") from error


def orientation_of(frame: Frame) -> int:
    """The EXIF orientation by which a photograph is turned to fit its camera; 1: it is used as it is stored.

    COLMAP looks at pictures as they are stored. Other programs turn them first, as EXIF says; then the camera of one that was
    held upright is higher than wide, and only that tells. So a photograph is turned where its camera has the size of the turned
    one and not that of the stored one.
    """
    camera, (width, height, _) = frame.intrinsics, read_header(frame.image)
    if camera.width is None or camera.height is None or _fits(camera.width / camera.height, width / height):
        return 1
    orientation = exif_orientation(frame.image)
    return orientation if orientation in SIDEWAYS and _fits(camera.width / camera.height, height / width) else 1


def _fits(aspect: float, other: float) -> bool:
    return abs(aspect / other - 1) <= ASPECT_TOLERANCE


def choose_normalization(
    dataset: ParsedDataset, bound: float, options: PlacementConfig | None = None, wild: bool = False
) -> SceneNormalization:
    """The scene normalisation of a dataset, from its training photographs; see :func:`nerf.data.normalize.normalize_scene`.

    Args:
        dataset: as it was read.
        bound: half the side of the normalised box.
        options: of the flags of the placement.
        wild: a box around the points of a reconstruction, or a given one, does not hold all that the photographs show, as the
            sky has no points.
    """
    training = [dataset.frames[i] for i in dataset.splits["train"]]
    angles, orientation = [], []
    for frame in track(training, "reading the sizes of photographs"):
        width, height, _ = read_header(frame.image)
        turn = orientation_of(frame)
        width, height = (height, width) if turn in SIDEWAYS else (width, height)
        fx, fy, _, _ = scaled_intrinsics(frame, width, height)
        lens = frame.intrinsics
        angles.append(min(max(lens.half_angle(fx, width), lens.half_angle(fy, height)), WIDEST))
        orientation.append(exif_orientation(frame.image) if turn == 1 else 1)  # else it is upright now
    poses = torch.stack([frame.pose for frame in training])
    warn_of_poses(poses)
    half_fov = torch.tensor(angles, dtype=torch.float64)
    found = normalize_scene(
        poses,
        half_fov,
        dataset.box,
        marks_object(dataset),
        bound,
        dataset.points,
        dataset.limit,
        dataset.up,
        torch.tensor(orientation),
        options or PlacementConfig(),
    )
    beyond = (dataset.open_air and found.kind != "object") or (wild and found.kind in ("points", "given"))
    return replace(found, unbounded=True) if beyond else found
