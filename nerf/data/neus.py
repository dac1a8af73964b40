"""The layout of NeuS and IDR, in which DTU is passed on: ``image/``, ``mask/`` and matrices in ``cameras_sphere.npz``."""

import zipfile
from pathlib import Path

import torch
from torch import Tensor

from nerf.core.errors import UserError
from nerf.data.frames import Frame, Lens, PhotoFiles, from_opencv, gather, held_out, refuse_without_photographs

CAMERA_FILES = ("cameras_sphere.npz", "cameras.npz")
PICTURES = (".png", ".jpg", ".jpeg")
PIXEL_CENTRE = 0.5  # the format's pixel centres are at whole numbers, ours half a pixel further


def cameras_of(folder: Path) -> Path | None:
    """The file of camera matrices of a folder in this layout, or None if it is another."""
    return next((path for path in (folder / name for name in CAMERA_FILES) if path.is_file()), None)


def read_neus(folder: Path, holdout: int) -> PhotoFiles:
    """A folder whose photograph ``i``, in the order of names, was taken by the camera ``world_mat_i``.

    Masks are the opacity of the object. ``scale_mat_i`` takes the unit ball around the object to the world of the
    cameras; the box is the cube around that ball, and the world remains the data's own.

    Args:
        folder: with ``image`` (or ``images``), perhaps ``mask``, and one of ``CAMERA_FILES``.
        holdout: every so many photographs one is held out.

    Raises:
        UserError: anything missing, broken or of another number than the photographs.
    """
    path = cameras_of(folder)
    matrices = _read_matrices(path)
    images = _pictures(folder / "image") or _pictures(folder / "images")
    if not images:
        refuse_without_photographs(path, None, ())
    masks = _pictures(folder / "mask")
    if masks and len(masks) != len(images):
        raise UserError(f"{folder}: expected a mask for each of {len(images)} photographs, got {len(masks)} in mask")
    scale = [_matrix(matrices, f"scale_mat_{i}", path) for i in range(len(images))] if "scale_mat_0" in matrices else None
    frames = []
    for i, image in enumerate(images):
        world = _matrix(matrices, f"world_mat_{i}", path)
        if scale is not None:  # of all photographs' unit balls the first one's is ours
            world = world @ scale[i] @ torch.linalg.inv(scale[0])
        lens, pose = decompose(world[:3], f"{path}, world_mat_{i}")
        frames.append(Frame(image.name, image, pose, lens, alpha=masks[i] if masks else None))
    box = None if scale is None else (scale[0][:3, 3], torch.linalg.det(scale[0][:3, :3]).abs().item() ** (1 / 3))
    return gather(folder, path, held_out(frames, holdout), (), holdout, box=box)


def _pictures(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in PICTURES)


def _read_matrices(path: Path) -> dict[str, Tensor]:
    """The arrays of an npz file; nothing in it is ever executed."""
    import numpy as np

    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: torch.from_numpy(np.asarray(file[name], np.float64)) for name in file.files}
    except (OSError, ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} cannot be read as arrays of numbers: {error}") from error


def _matrix(matrices: dict[str, Tensor], name: str, path: Path) -> Tensor:
    if name not in matrices:
        raise UserError(f"{path}: there is no {name}; it needs one for each photograph, in the order of their names")
    matrix = matrices[name]
    if matrix.shape != (4, 4) or not matrix.isfinite().all() or torch.linalg.det(matrix[:3, :3]).abs() < 1e-12:
        raise UserError(
            f"{path}: {name} must be 4x4 finite numbers whose left 3x3 can be inverted, got {'x'.join(map(str, matrix.shape))}"
        )
    return matrix


def decompose(projection: Tensor, where: str) -> tuple[Lens, Tensor]:
    """Lens and pose [4, 4] of a projection matrix [3, 4] from the world to pixels, ``K R [I | -c]``.

    K is upper triangular with a positive diagonal and R a rotation (Hartley and Zisserman 2004, sec. 6.2.4). A skew
    between the image's axes is left out.

    Raises:
        UserError: the matrix is of no camera.
    """
    matrix = projection / projection[2, :3].norm()
    if torch.linalg.det(matrix[:, :3]) < 0:
        matrix = -matrix
    backwards = torch.eye(3, dtype=matrix.dtype).flip(0)
    q, r = torch.linalg.qr((backwards @ matrix[:, :3]).T)
    camera, rotation = backwards @ r.T @ backwards, backwards @ q.T
    signs = camera.diagonal().sign()
    camera, rotation = camera * signs, signs[:, None] * rotation
    fx, fy, cx, cy = (camera[i, j].item() for i, j in ((0, 0), (1, 1), (0, 2), (1, 2)))
    if not (fx > 0 and fy > 0 and 0.1 < fx / fy < 10):
        raise UserError(f"{where}: it is no camera's, as the focal lengths would be {fx:g} and {fy:g} pixels")
    centre = -torch.linalg.solve(matrix[:, :3], matrix[:, 3])
    return Lens(fx, fy, cx + PIXEL_CENTRE, cy + PIXEL_CENTRE), from_opencv(rotation, centre)
