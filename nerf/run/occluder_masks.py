"""What was taken for occluders in the training photographs, as pictures: white where a photograph does not teach.

Of ``--occluders mask`` the learned mask, of ``--occluders robust`` the pixels whose errors stand out in the finished scene.
H rows, W columns.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from nerf.core import images
from nerf.core.progress import track
from nerf.core.structs import RenderSettings
from nerf.data.frames import same_path
from nerf.data.posed_images import Photographs
from nerf.provider import PhotographSource, evenly
from nerf.renderer import NeRFRenderer
from nerf.run.distributed import main_only
from nerf.training.objective import Objective
from nerf.training.objectives import KnownView
from nerf.training.occluders import MaskNetwork, Occluders, RobustTrimming, robust_weight
from nerf.training.sources import Source

PIXELS = 20_000_000  # of learned masks that are written; evenly chosen photographs of a larger set
RENDERED, RENDERED_PIXELS = 20, 4_000_000  # photographs whose errors are rendered, and their pixels: half a minute of two cores


@main_only(dict)
def write(
    objectives: Mapping[str, Objective], sources: Mapping[str, Source], model: NeRFRenderer, folder: Path
) -> dict[str, Any]:
    """Write ``PHOTOGRAPH.png`` for the training photographs into a folder, where a run finds occluders.

    Returns:
        For ``result.json``: "masks", how many were written, and "masked", the mean share of a photograph that they cover.
        Nothing where the run finds no occluders.
    """
    known, source = objectives.get("known_view"), sources.get("photos")
    if not isinstance(known, KnownView) or known.occluders is None or not isinstance(source, PhotographSource):
        return {}
    photos, shares = source.photographs, []
    for i in track(_chosen(known.occluders, photos), "writing the masks of photographs"):
        mask = mask_of(known.occluders, photos, i, model)
        images.write_png(folder / f"{file_name(photos.names[i])}.png", images.to_uint8(mask[..., None].expand(-1, -1, 3)))
        shares.append(float(mask.mean()))
    return {"masks": len(shares), "masked": sum(shares) / len(shares)}


def file_name(name: str) -> str:
    """A photograph's name in one word, without its suffix: ``train_r_3`` of ``./train/r_3.png``."""
    return same_path(Path(same_path(name)).with_suffix("")).replace("/", "_").lstrip(".")


def _chosen(occluders: Occluders, photos: Photographs) -> list[int]:
    """The photographs whose masks are written."""
    pixels = sum(math.prod(size) for size in photos.sizes())
    learned = isinstance(occluders, MaskNetwork)
    most = max(1, (PIXELS if learned else RENDERED_PIXELS) * len(photos) // pixels)
    return evenly(len(photos), most if learned else min(most, RENDERED))


@torch.no_grad()
def mask_of(occluders: Occluders, photos: Photographs, i: int, model: NeRFRenderer) -> Tensor:
    """What stands before the scene in training photograph ``i``, [H, W] in [0, 1].

    Args:
        occluders: of the run.
        photos: the training photographs.
        i: which of them.
        model: renders the photograph where only its errors tell.
    """
    height, width = photos.store.size(i)
    index = photos.image_index[i]
    if isinstance(occluders, MaskNetwork):
        return occluders.picture(int(index), height, width)
    assert isinstance(occluders, RobustTrimming), "there is no other kind"
    batch, _ = photos.eval_batch(i)
    settings = RenderSettings(training=False, background=photos.background, view_dependent=True)
    if model.appearance is not None:
        settings = replace(settings, appearance=model.appearance.of_photographs(index[None])[0])
    assert batch.rgb is not None, "a photograph has colours"
    error = (model.render(batch.rays, settings).image - batch.rgb).square().mean(-1).reshape(1, height, width)
    side = max(height, width)
    square = functional.pad(error[None], (0, side - width, 0, side - height), mode="replicate")[0]
    threshold = float(np.quantile(error.cpu().numpy(), occluders.quantile))  # torch's has a limit of pixels
    return 1 - robust_weight(square, threshold)[0, :height, :width]
