"""How the views and rays of a step are divided among processes. B views in G groups, N rays, W shards.

Every process draws the whole part from the seed of the run, and keeps its share of it: together they look at the views and rays
that a single process would have looked at. What is drawn for a share itself (offsets of samples, timesteps and noise of
guidance) has a stream of random numbers of its own.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor

from nerf.config.config import Config
from nerf.core.errors import UserError
from nerf.core.streams import Random, derived_seed
from nerf.core.structs import Batch, Part, Rays, Shard
from nerf.core.words import counted

OF_RAYS = ("rgb", "mask", "depth", "normal", "depth_map", "depth_cosine", "valid")  # what a batch knows of each ray


def bounds(count: int, shard: Shard) -> tuple[int, int]:
    """The first of ``count`` things that belong to a shard, and the one after its last; shards differ by one at most."""
    return count * shard.index // shard.count, count * (shard.index + 1) // shard.count


def affordable(part: Part, fits: Callable[[int], int]) -> Part:
    """A part with as many random rays as the processes have room for, all together.

    Args:
        part: as it was planned.
        fits: rays that a process should render -> those that it has room for.
    """
    if part.request.layout != "rays":
        return part
    rays, count = part.request.num_rays, part.shard.count
    return replace(part, request=replace(part.request, num_rays=min(rays, count * fits(math.ceil(rays / count)))))


def check_views(config: Config, count: int) -> None:
    """Refuse a run whose steps have fewer views than there are processes, before anything is written.

    Views that stay together are counted when they are drawn (:func:`take`).

    Args:
        config: the options of a run.
        count: processes.

    Raises:
        UserError: it has.
    """
    views = config.camera.batch_size
    if config.trains and config.prompt.kinds and views < count:
        raise UserError(_too_few("image", views, 1, count))


def take(part: Part, batch: Batch, linked: int = 1) -> tuple[Part, Batch, float]:
    """The share of a part: its views as a whole, its patches as a whole, or its rays.

    Views of image prompts, of which there is often one alone, are rendered by every process if they are fewer than these.

    Args:
        part: as it was planned.
        batch: of the whole part.
        linked: views that stay together.

    Returns:
        Part and batch of the share, and how much of the whole it is: the loss of the whole is the sum of those of the shares,
        each times this. All as they came where there is a single shard.

    Raises:
        UserError: there is not enough for every shard.
    """
    if part.shard.count == 1:
        return part, batch, 1.0
    rays, shape = len(batch.rays), batch.rays.shape
    views = 0 if batch.views is None else len(batch.views)
    unit = linked * (rays // views) if views else (1 if shape is None else shape[1] * shape[2])  # rays that stay together
    groups = rays // unit
    if groups < part.shard.count and part.known_view:
        return part, batch, 1 / part.shard.count
    if groups < part.shard.count:
        raise UserError(_too_few(part.request.layout, groups, linked, part.shard.count))
    first, last = bounds(groups, part.shard)
    here = slice(first * unit, last * unit)
    seen = slice(first * linked, last * linked)
    behind = partial(_behind, rays=rays, here=here, seen=seen)
    known: dict[str, Any] = {name: getattr(batch, name) for name in OF_RAYS}
    known = {name: None if value is None else value[here] for name, value in known.items()}
    known |= {
        "views": None if batch.views is None else batch.views[seen],
        "light": None if batch.light is None else batch.light[seen],
    }
    taken = replace(batch, rays=_rays(batch, here, seen), background=behind(batch.background), **known)
    random = Random(derived_seed(part.random.seed, "shard", part.shard.index, part.shard.count))
    request = replace(part.request, random=random, num_rays=len(taken.rays) if part.request.num_rays else 0)
    if views:
        request = replace(request, num_views=len(taken.views or ()))
    settings = replace(part.settings, random=random, background=behind(part.settings.background))
    return replace(part, request=request, settings=settings), taken, (last - first) / groups


def _too_few(layout: str, groups: int, linked: int, count: int) -> str:
    """Why a part cannot be divided among ``count`` processes, and what to do."""
    if layout == "image":
        what = (
            counted(groups, "view") if linked == 1 else counted(groups, f"group of {linked} views", f"groups of {linked} views")
        )
        return (
            f"{count} processes share the {what} of a step, so some would have none; give a --batch_size of at least "
            f"{count * linked}, or start fewer processes"
        )
    return f"{count} processes share the {groups} {layout} of a step; give a larger --num_rays, or start fewer processes"


def _behind(background: Tensor | None, rays: int, here: slice, seen: slice) -> Tensor | None:
    """The share of a background: one colour [3] for all, or colours of N rays or of B views."""
    if background is None or background.ndim == 1:
        return background
    return background[here] if len(background) == rays else background[seen]


def _rays(batch: Batch, here: slice, seen: slice) -> Rays:
    """The rays of a share, whose views are counted from its first."""
    rays = batch.rays
    taken = rays[here]
    if batch.views is not None:
        taken = replace(taken, view_index=taken.view_index - seen.start)
    pixels = math.prod(rays.shape[1:]) if rays.shape is not None else 1
    shape = None if rays.shape is None else (len(taken) // pixels, *rays.shape[1:])
    cameras = None if rays.views is None else rays.views[seen]
    images = None if rays.patch_images is None else rays.patch_images[here.start // pixels : here.stop // pixels]
    return replace(taken, shape=shape, views=cameras, patch_images=images)
