"""The format of NeuS and IDR, in which DTU is distributed: ``image/``, ``mask/`` and matrices in ``cameras_sphere.npz``."""

import io
import re
import zipfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nerf.core.errors import UserError
from nerf.core.files import read_bytes, reading
from nerf.data.frames import (
    Frame,
    Intrinsics,
    ParsedDataset,
    ReadOptions,
    list_pictures,
    make_dataset,
    pose_from_opencv,
    raise_no_images,
    split_by_holdout,
)

CAMERA_FILES = ("cameras_sphere.npz", "cameras.npz")
MATRIX_FILE = re.compile(r"((?:world|scale)_mat_\d+)\.npy")  # in the archive
SIMILARITY_TOLERANCE = 1e-3  # of a scale matrix, relative to its scale: float32 rounding stays far below it
LARGEST_MATRIX = 1 << 16  # bytes of 4x4 numbers with their header
_WAY_OUT = "export the cameras again"
PIXEL_CENTRE = 0.5  # the format has pixel centres at integer coordinates, this program at integer + 0.5
MIN_DETERMINANT = 1e-12  # of a matrix's left 3x3; below it the matrix counts as singular
MAX_ASPECT = 10.0  # of a pixel, fx / fy or its inverse; a larger one means that the matrix is no camera's


def find_camera_file(folder: Path) -> Path | None:
    """The file of camera matrices of a folder in this format, or None if it is in another format."""
    return next((path for path in (folder / name for name in CAMERA_FILES) if path.is_file()), None)


def read_neus(folder: Path, cameras: Path, options: ReadOptions) -> ParsedDataset:
    """Read a folder in which the i-th photograph, sorted by name, has the projection matrix ``world_mat_i``.

    Masks are the alpha of the object. ``scale_mat_i`` maps the unit sphere around the object to the world of the cameras;
    the scene box is the cube around that sphere, and poses stay in the dataset's own world.

    Args:
        folder: contains ``image`` (or ``images``) and optionally ``mask`` (or ``masks``).
        cameras: the npz file of the matrices, see :func:`find_camera_file`.
        options: how many photographs are held out.

    Raises:
        UserError: a file is missing or broken, or the numbers of photographs, masks and matrices differ.
    """
    matrices = _read_matrices(cameras)
    images = list_pictures(folder / "image") or list_pictures(folder / "images")
    if not images:
        raise_no_images(cameras, None, ())
    masks = list_pictures(folder / "mask") or list_pictures(folder / "masks")
    if masks and len(masks) != len(images):
        raise UserError(
            f"{folder}: expected one mask for each of {len(images)} photographs, got {len(masks)} in mask; add the missing "
            "ones, or remove the folder"
        )
    _check_count(matrices, images, cameras)
    scale = (
        [_scale_matrix(matrices, f"scale_mat_{i}", cameras) for i in range(len(images))] if "scale_mat_0" in matrices else None
    )
    frames = []
    for i, image in enumerate(images):
        world = _matrix(matrices, f"world_mat_{i}", cameras)
        with reading(f"{cameras}, world_mat_{i}", _WAY_OUT):  # a matrix may be singular after rounding
            if scale is not None:  # bring every camera to the world in which the first unit sphere is given
                world = world @ scale[i] @ torch.linalg.inv(scale[0])
            intrinsics, pose = decompose_projection(world[:3], f"{cameras}, world_mat_{i}")
        frames.append(Frame(image.name, image, pose, intrinsics, alpha=masks[i] if masks else None))
    box = None if scale is None else (scale[0][:3, 3], torch.linalg.det(scale[0][:3, :3]).abs().item() ** (1 / 3))
    return make_dataset(folder, cameras, split_by_holdout(frames, options.holdout), (), box=box)


def _read_matrices(path: Path) -> dict[str, Tensor]:
    """The matrices of an npz file as float64; nothing else in it is read, and pickled objects are never executed."""
    found = {}
    with reading(path, _WAY_OUT), zipfile.ZipFile(io.BytesIO(read_bytes(path, _WAY_OUT))) as archive:
        for entry in archive.infolist():
            if (name := MATRIX_FILE.fullmatch(entry.filename)) is None:
                continue
            if entry.file_size > LARGEST_MATRIX:
                raise UserError(f"{path}: {name[1]} must be 4x4 numbers, got {entry.file_size} bytes; {_WAY_OUT}")
            array = np.lib.format.read_array(io.BytesIO(archive.read(entry)), allow_pickle=False)
            if array.dtype.kind not in "fiu":
                raise UserError(f"{path}: {name[1]} must be 4x4 numbers, got {array.dtype}; {_WAY_OUT}")
            found[name[1]] = torch.from_numpy(array.astype(np.float64))
    return found


def _matrix(matrices: dict[str, Tensor], name: str, path: Path) -> Tensor:
    """The matrix [4, 4] of that name, checked to be finite and invertible in its left 3x3."""
    if name not in matrices:
        raise UserError(f"{path}: there is no {name}; expected one for each photograph, in the order of their names")
    matrix = matrices[name]
    if matrix.shape != (4, 4) or not matrix.isfinite().all() or torch.linalg.det(matrix[:3, :3]).abs() < MIN_DETERMINANT:
        raise UserError(
            f"{path}: {name} must be 4x4 finite numbers whose left 3x3 is invertible, got {'x'.join(map(str, matrix.shape))}"
        )
    return matrix


def _check_count(matrices: dict[str, Tensor], images: list[Path], path: Path) -> None:
    """Refuse more matrices than photographs: they are matched by their order, so one that was removed shifts all others."""
    count = sum(name.startswith("world_mat_") for name in matrices)
    if count > len(images):
        raise UserError(
            f"{path}: it has {count} matrices world_mat_i for {len(images)} photographs in {images[0].parent}, and they are "
            "matched by their order; put the missing photographs back, or export the cameras of these"
        )


def _scale_matrix(matrices: dict[str, Tensor], name: str, path: Path) -> Tensor:
    """:func:`_matrix` of a scale matrix, checked to be a similarity: a rotation times a positive scale, and an offset."""
    matrix = _matrix(matrices, name, path)
    linear, last = matrix[:3, :3], torch.tensor([0.0, 0.0, 0.0, 1.0], dtype=torch.float64)
    cube = torch.linalg.det(linear).item()
    square = linear.T @ linear
    even = (square / abs(cube) ** (2 / 3) - torch.eye(3, dtype=torch.float64)).abs().max() <= SIMILARITY_TOLERANCE
    if cube < 0 or not even or not torch.equal(matrix[3], last):
        raise UserError(
            f"{path}: {name} must scale all axes alike, without a reflection, and have 0, 0, 0, 1 as its last row; {_WAY_OUT}"
        )
    return matrix


def decompose_projection(projection: Tensor, where: str) -> tuple[Intrinsics, Tensor]:
    """Intrinsics and camera-to-world pose [4, 4] of a projection matrix ``K R [I | -c]`` from world to pixels.

    K is upper triangular with a positive diagonal and R a rotation (RQ decomposition; Hartley and Zisserman 2004,
    sec. 6.2.4). A skew of the pixel axes is ignored.

    Args:
        projection: [3, 4] float64, of any scale and sign.
        where: file and name of the matrix, for error messages.

    Raises:
        UserError: the matrix is not a camera's projection.
    """
    matrix = projection / projection[2, :3].norm()
    if torch.linalg.det(matrix[:, :3]) < 0:
        matrix = -matrix
    exchange = torch.eye(3, dtype=matrix.dtype).flip(0)  # reverses rows or columns: RQ by means of QR
    q, r = torch.linalg.qr((exchange @ matrix[:, :3]).T)
    camera, rotation = exchange @ r.T @ exchange, exchange @ q.T
    signs = camera.diagonal().sign()
    camera, rotation = camera * signs, signs[:, None] * rotation
    fx, fy, cx, cy = (camera[i, j].item() for i, j in ((0, 0), (1, 1), (0, 2), (1, 2)))
    if not (fx > 0 and fy > 0 and 1 / MAX_ASPECT < fx / fy < MAX_ASPECT):
        raise UserError(
            f"{where}: not the projection matrix of a camera, as its focal lengths would be {fx:g} and {fy:g} pixels; "
            "export the cameras again"
        )
    centre = -torch.linalg.solve(matrix[:, :3], matrix[:, 3])
    return Intrinsics(fx, fy, cx + PIXEL_CENTRE, cy + PIXEL_CENTRE), pose_from_opencv(rotation, centre)
