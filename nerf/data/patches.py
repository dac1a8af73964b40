"""Patches of photographs as regular grids of pixels over a scaled and shifted part of each (Ha-NeRF, sec. 4.4). P patches.

Places are computed in float64 and pixels are int64: single precision cannot tell neighbouring pixels of late photographs apart.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from nerf.data.image_store import ImageStore, resample


@dataclass(frozen=True)
class GridPatches:
    """P patches of S x S pixels."""

    image: Tensor  # [P] int64
    column: Tensor  # [P, S, S] int64
    row: Tensor  # [P, S, S] int64

    def flat(self) -> tuple[Tensor, Tensor, Tensor]:
        """Image, column and row [P S S] of the pixels, patch by patch and row by row."""
        return self.image.repeat_interleave(self.column[0].numel()), self.column.reshape(-1), self.row.reshape(-1)


def grid_patches(store: ImageStore, image: Tensor, size: int, least: float, generator: torch.Generator) -> GridPatches:
    """Patches of some photographs, each over a part that keeps its shape and lies anywhere in it.

    The part spans a share of both sides that is uniform between ``least`` and 1, yet no less than ``size`` pixels where the
    photograph has them, so that no pixel is drawn twice; of smaller photographs they are.

    Args:
        store: the photographs.
        image: [P] int64 of each patch.
        size: S, pixels along a side of a patch.
        least: smallest share of a side, in (0, 1]; 0: neighbouring pixels.
        generator: on the device of the photographs.
    """
    device = image.device
    draw = torch.rand(3, len(image), generator=generator, device=device, dtype=torch.float64)
    scale = least + (1.0 - least) * draw[0] if least > 0 else torch.zeros_like(draw[0])
    step = torch.arange(size, device=device, dtype=torch.float64) / max(size - 1, 1)

    def places(side: Tensor, where: Tensor) -> Tensor:
        """Pixels [P, S] along a side [P] of the photographs."""
        last = (side - 1).double()
        span = (scale * last).maximum(last.clamp(max=float(size - 1)))
        first = (where * ((last - span).floor() + 1.0)).floor()
        return (first[:, None] + (step * span[:, None]).round()).long()

    column, row = places(store.width[image], draw[1]), places(store.height[image], draw[2])
    return GridPatches(image, column[:, None, :].expand(-1, size, -1), row[:, :, None].expand(-1, -1, size))


def small_picture(image: Tensor, side: int) -> Tensor:
    """A picture [H, W, 3] in [0, 1] as [3, h, w] with a longer side of ``side`` pixels at most; its proportions stay."""
    height, width = image.shape[:2]
    share = min(1.0, side / max(height, width))
    size = max(round(height * share), 1), max(round(width * share), 1)
    return resample(image.permute(2, 0, 1), *size).clamp(0.0, 1.0)
