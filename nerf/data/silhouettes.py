"""The silhouettes of a folder of photographs with the cameras that saw them, in the data's own world; K photographs.

For judging a written mesh: nothing is normalised, so a mesh exported with ``--export_frame source`` fits.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from nerf.core.errors import UserError
from nerf.data.folder import read_folder
from nerf.data.image_store import decode_image, decode_opacity, has_transparency, read_header

if TYPE_CHECKING:
    from nerf.data.posed_images import Photographs

_HALF = 128  # opacity of 255 from which a pixel belongs to the object
_FLIP = torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=torch.float64))  # OpenGL's camera axes to OpenCV's


@dataclass(frozen=True)
class Silhouette:
    """What one photograph says of where the object is."""

    name: str
    projection: np.ndarray  # [3, 4] from the source's world to pixels times depth, pixel centres at + 0.5
    mask: np.ndarray  # bool [H, W]


def read_silhouettes(folder: str | Path, split: str | None = None, holdout: int = 0) -> list[Silhouette]:
    """The silhouettes of all photographs, or of those of a split ("train", "val", "test"), in the order of the data set.

    Args:
        folder: as for ``--data``; photographs with an alpha channel or with masks of the object.
        split: None: all of them.
        holdout: as ``--holdout``.

    Raises:
        UserError: the folder cannot be read, a photograph is opaque, or its lens distorts.
    """
    dataset = read_folder(folder, holdout)
    from_source = torch.eye(4, dtype=torch.float64)
    if dataset.to_reconstruction is not None:
        from_source = torch.linalg.inv(dataset.to_reconstruction.double())
    chosen = range(len(dataset.frames)) if split is None else dataset.splits[split]
    found = []
    for frame in (dataset.frames[i] for i in chosen):
        if any(frame.intrinsics.distortion) or frame.intrinsics.fisheye:
            raise UserError(
                f"{frame.image}: its lens distorts, so its mask cannot be compared; undistort the photographs first"
            )
        if frame.alpha is None and not has_transparency(frame.image):
            raise UserError(f"{frame.image} is opaque and has no mask of the object, so nothing says where its silhouette is")
        opacity = decode_image(frame.image, "RGBA")[..., 3] if frame.alpha is None else decode_opacity(frame.alpha)
        width, height, _ = read_header(frame.image)
        fx, fy, cx, cy = frame.intrinsics.scaled_to(width, height)
        camera = torch.tensor([[fx, 0, cx, 0], [0, fy, cy, 0], [0, 0, 1, 0]], dtype=torch.float64)
        projection = camera @ _FLIP @ torch.linalg.inv(frame.pose.double()) @ from_source
        found.append(Silhouette(frame.name, projection.numpy(), (opacity >= _HALF).numpy()))
    return found


def silhouette(photos: "Photographs", i: int) -> Tensor | None:
    """The pixels of photograph ``i`` that show the object, bool [H, W]; None if it has neither alpha nor a mask."""
    alpha, valid = photos.alpha(i), photos.valid_mask(i)
    if alpha is None:
        return valid
    return alpha > 0.5 if valid is None else (alpha > 0.5) & valid
