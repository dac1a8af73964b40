"""The result of rasterisation. Letters: B views, H x W pixels."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Raster:
    """Which triangle is visible at each pixel of an image, and where on it."""

    bary: Tensor  # [B, H, W, 2] perspective-correct weights of corners 0 and 1 (corner 2 has 1 - u - v); 0 where empty
    depth: Tensor  # [B, H, W] NDC z in [-1, 1]; 1 where empty
    triangle: Tensor  # [B, H, W] int32 index of the nearest triangle, -1 where there is none
