"""Argument checks that several operations share. Letters: B views, V vertices, T triangles, H x W pixels."""

import torch
from torch import Tensor

from extension import Arguments
from rasterizer.raster import Raster

MAX_INDEX = 2**31 - 1  # of int32; half edges are numbered 3 t + k, triangles t
MAX_SIZE = 2**15 - 1  # pixels along a side; pixel indices of a view then fit int32


def triangles(arguments: Arguments, faces: Tensor) -> Tensor:
    """Check vertex indices [T, 3] int32 or int64; on the CPU also that each lies in [0, V) of the tensors before it.

    Returns int32.

    Raises:
        TypeError, ValueError: not a tensor, another dtype or shape, too many triangles, or an index out of range.
    """
    faces = arguments.integers("faces", faces, (torch.int32, torch.int64), "T", 3)
    arguments.require(len(faces) <= MAX_INDEX // 3, f"expected fewer than 2^31 / 3 triangles, got {len(faces)}")
    if faces.device.type == "cpu" and faces.numel():
        low, high = (int(x) for x in faces.aminmax())
        vertices = arguments.sizes.get("V")
        known = "" if vertices is None else f" with V = {vertices}"
        fits = low >= 0 and high < (MAX_INDEX if vertices is None else vertices)
        arguments.require(fits, f"faces must lie in [0, V){known}, got values from {low} to {high}")
    return faces.int()


def raster(arguments: Arguments, given: Raster) -> tuple[Tensor, Tensor, Tensor]:
    """Check a raster against the B, H and W of the tensors before it.

    Returns bary [B, H, W, 2], depth [B, H, W] and triangle [B, H, W], contiguous.

    Raises:
        TypeError, ValueError: a tensor of another dtype, shape or device.
    """
    bary = arguments.floats("raster.bary", given.bary, "B", "H", "W", 2)
    depth = arguments.floats("raster.depth", given.depth, "B", "H", "W")
    return bary, depth, arguments.integers("raster.triangle", given.triangle, torch.int32, "B", "H", "W")
