"""Checks at the door that several functions of the folder share: triangles, and a raster."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from extension import Arguments

if TYPE_CHECKING:
    from rasterizer.rasterizer import Raster


def triangles(arguments: Arguments, faces: Tensor) -> Tensor:
    """Check vertex indices [T, 3] int32 or int64; on the CPU also that each lies in [0, V) of the tensors before it.

    Returns int32.

    Raises:
        TypeError, ValueError: no tensor, another dtype or shape, too many triangles, or an index out of range.
    """
    faces = arguments.integers("faces", faces, (torch.int32, torch.int64), "T", 3)
    arguments.require(len(faces) < 2**31 // 3, f"expected fewer than 2^31 / 3 triangles, got {len(faces)}")
    if faces.device.type == "cpu" and faces.numel():
        low, high = (int(x) for x in faces.aminmax())
        vertices = arguments.sizes.get("V")
        known = "" if vertices is None else f" with V = {vertices}"
        fits = low >= 0 and high < (2**31 - 1 if vertices is None else vertices)
        arguments.require(fits, f"faces must lie in [0, V){known}, got values from {low} to {high}")
    return faces.int()


def raster(arguments: Arguments, given: "Raster") -> tuple[Tensor, Tensor, Tensor]:
    """Check a raster against the B, H and W of the tensors before it; its bary, depth and triangle, contiguous.

    Raises:
        TypeError, ValueError: a tensor of another dtype, shape or device.
    """
    bary = arguments.floats("raster.bary", given.bary, "B", "H", "W", 2)
    depth = arguments.floats("raster.depth", given.depth, "B", "H", "W")
    return bary, depth, arguments.integers("raster.triangle", given.triangle, torch.int32, "B", "H", "W")
