"""The up direction of a scene: from its cameras, as their photographs are shown, or from the main plane of its points.

I photographs, P points.
"""

import torch
from torch import Tensor

from nerf.core.errors import UserError

MIN_MEAN_UP = 0.3  # length of the mean up vector below which the cameras do not agree on an up direction; +Z is used then
UP_SNAP_DEGREES = 25.0  # a mean up vector closer than this to an axis of the dataset means that axis
AGREES_AS_WELL = 1e-3  # difference of two mean up vectors' lengths below which both explain the cameras equally well
# EXIF orientation -> the axis of the stored picture, 0 right and 1 up, and its sign, that is up where the picture is shown.
SHOWN_UP = {1: (1, 1.0), 3: (1, -1.0), 6: (0, -1.0), 8: (0, 1.0)}
PLANE_TRIALS = 500  # triples of points; with a plane of a fifth of all points one in 125 triples lies in it
PLANE_THICKNESS = 0.01  # of the median distance of the points from their middle: a point nearer to a plane lies in it
PLANE_POINTS = 20_000  # points that are looked at
MIN_PLANE_SHARE = 0.1  # of the points that the main plane must hold


def camera_ups(pose: Tensor, orientation: Tensor | None) -> Tensor:
    """The up vectors [I, 3] of cameras as their photographs are shown; mirrored orientations count as 1."""
    if orientation is None:
        return pose[:, :3, 1]
    shown = [SHOWN_UP.get(int(value), SHOWN_UP[1]) for value in orientation]
    return torch.stack([sign * one[:3, axis] for one, (axis, sign) in zip(pose, shown, strict=True)])


def mean_up(pose: Tensor, orientation: Tensor | None = None) -> Tensor | None:
    """The mean up direction [3] of the cameras, unit length; None if they do not agree.

    Programs differ in whether they turn a photograph as its EXIF orientation says before they look for its camera, or leave
    the tag in place after they turned the pixels. So the tag is believed where the cameras then agree at least as well.

    Args:
        pose: [I, 4, 4] camera-to-world.
        orientation: [I] EXIF orientations 1 to 8 of the photographs, or None.
    """
    shown, stored = camera_ups(pose, orientation).mean(0), camera_ups(pose, None).mean(0)
    mean = shown if shown.norm() >= stored.norm() - AGREES_AS_WELL else stored
    return mean / mean.norm() if mean.norm() >= MIN_MEAN_UP else None


def estimate_up(pose: Tensor, orientation: Tensor | None = None) -> Tensor:
    """The unit up direction [3] of a scene: the mean up vector of its cameras, snapped to a coordinate axis near it."""
    mean = mean_up(pose, orientation)
    if mean is None:
        return torch.tensor([0.0, 0.0, 1.0], dtype=pose.dtype)
    largest = mean.abs().argmax()
    axis = torch.zeros_like(mean)
    axis[largest] = mean[largest].sign()
    return axis if torch.rad2deg(torch.acos((mean @ axis).clamp(-1, 1))) < UP_SNAP_DEGREES else mean


def main_plane(points: Tensor, seed: int = 0) -> tuple[Tensor, Tensor, float]:
    """The plane that holds the most points (RANSAC; Fischler and Bolles 1981), fitted to them by least squares.

    Args:
        points: [P, 3] float64, at least three.
        seed: of the triples; the same seed gives the same plane.

    Returns:
        A point of it [3], its unit normal [3] of any sign, and the share of the points that lie in it.
    """
    generator = torch.Generator().manual_seed(seed)
    if len(points) > PLANE_POINTS:
        points = points[torch.randperm(len(points), generator=generator)[:PLANE_POINTS]]
    middle = points.median(0).values
    thickness = PLANE_THICKNESS * (points - middle).norm(dim=-1).median()
    triples = points[torch.randint(len(points), (PLANE_TRIALS, 3), generator=generator)]
    normals = torch.linalg.cross(triples[:, 1] - triples[:, 0], triples[:, 2] - triples[:, 0])
    lengths = normals.norm(dim=-1, keepdim=True)
    normals = torch.where(lengths > 0, normals / lengths.clamp(min=torch.finfo(points.dtype).tiny), 0.0)
    offsets = (normals * triples[:, 0]).sum(-1)
    held = torch.stack(
        [
            ((points @ n - o).abs() <= thickness).sum() if n.any() else torch.tensor(0)
            for n, o in zip(normals, offsets, strict=True)
        ]
    )
    best = int(held.argmax())
    inside = points[(points @ normals[best] - offsets[best]).abs() <= thickness]
    centre = inside.mean(0)
    normal = torch.linalg.svd(inside - centre, full_matrices=False)[2][2]
    return centre, normal, len(inside) / len(points)


def plane_up(pose: Tensor, points: Tensor | None, orientation: Tensor | None = None) -> Tensor:
    """The normal [3] of the main plane of a point cloud, on the side that the cameras call up, or else on which they stand.

    Raises:
        UserError: there are no points, or none of their planes holds a share of them that counts.
    """
    if points is None or len(points) < 3:
        raise UserError(
            "--scene_up plane needs the sparse points of a reconstruction, and the dataset has none; choose another"
        )
    centre, normal, share = main_plane(points)
    if share < MIN_PLANE_SHARE:
        raise UserError(
            f"--scene_up plane finds no plane: the best one holds {100 * share:.0f} % of the sparse points, and "
            f"{100 * MIN_PLANE_SHARE:.0f} % are expected; choose cameras, or an axis"
        )
    mean = mean_up(pose, orientation)
    side = normal @ (mean if mean is not None else (pose[:, :3, 3] - centre).median(0).values)
    return normal if side >= 0 else -normal
