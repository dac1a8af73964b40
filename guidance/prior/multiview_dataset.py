"""The training set of the multi-view prior: four linked renders of one object, a quarter turn apart.

As :mod:`guidance.prior.dataset`, with the four views of each object in a shard one after the other, at one polar angle, radius
and field of view. G groups of V = 4 views.

``python -m guidance.prior.multiview_dataset --shards 0:80`` writes shards; several processes may share the work.
"""

import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from guidance.diffusion.multiview import LINKED
from guidance.prior import GRID_SIZE, dataset
from guidance.prior.camera import condition, look_at, random_cameras, ray_map
from nerf.core.script import run

DATA = Path("local/prior/multiview")
OBJECTS = 64  # of a shard
FIRST_SEED = 2_000_000  # of the shards; the other training sets and the held-out objects have other seeds
ONE_BACKGROUND = 0.4  # of the groups has one background for all views
QUARTER = 90.0  # degrees between linked views


def linked_cameras(count: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Cameras of ``count`` = G groups, each [4 G], as :func:`guidance.prior.camera.random_cameras` draws the first of each."""
    cameras = {name: value.repeat_interleave(LINKED) for name, value in random_cameras(count, generator).items()}
    cameras["azimuth"] = (cameras["azimuth"] + QUARTER * torch.arange(LINKED).repeat(count)) % 360
    return cameras


def write_shard(number: int, folder: Path = DATA, objects: int = OBJECTS) -> Path:
    """Render shard ``number``, four linked renders each of ``objects`` objects, and write it unless it exists."""
    return dataset.draw_shard(number, folder, objects, FIRST_SEED + number, LINKED, linked_cameras)


@dataclass
class LinkedBatch:
    """Inputs and targets of G groups of four linked views; the views of a group follow each other."""

    image: Tensor  # [4 G, 3, 64, 64] in [-1, 1], the target
    degraded: Tensor  # like the image; what noise is added to
    polar: Tensor  # [4 G] degrees
    azimuth: Tensor  # [4 G] degrees
    camera: Tensor  # [4 G, 8]
    ray: Tensor  # [4 G, 13, 8, 8]
    captions: list[str]  # of each group
    weight: Tensor  # [G] of the squared error


class LinkedLoader(dataset.Loader):
    """Random groups of linked views from all shards in a folder; see :class:`guidance.prior.dataset.Loader`."""

    def groups(self, size: int) -> LinkedBatch:
        """A random batch of ``size`` = G groups: one caption and ambient light for each, a light for each view."""
        self._next()
        kinds = self._kinds(size)
        places = [self._place(kind) for kind in kinds]
        rows = self._rows([(path, row - row % LINKED + view) for path, row in places for view in range(LINKED)])
        captions, palettes = self._colours(kinds)
        layers = self._lit(rows, palettes.repeat_interleave(LINKED, 0), LINKED)
        image = dataset.over(layers, self._linked_backgrounds(size)) * 2 - 1
        first, mirrored = self._augment(rows["azimuth"][None, ::LINKED], kinds)
        quarter = torch.where(mirrored.flatten(), -QUARTER, QUARTER)  # the views of a mirrored object go round the other way
        azimuth = (first[0][:, None] + quarter[:, None] * torch.arange(LINKED)).flatten()
        image = torch.where(mirrored.repeat_interleave(LINKED, 0), image.flip(-1), image)
        polar, radius, fovy = rows["polar"], rows["radius"], rows["fovy"]
        camera = condition(polar, azimuth, radius, fovy)
        ray = ray_map(look_at(polar, azimuth, radius), fovy, GRID_SIZE)
        words = [caption.text for caption in captions]
        return LinkedBatch(image, image, polar, azimuth, camera, ray, words, self._emphasis(kinds))

    def _linked_backgrounds(self, size: int) -> Tensor:
        """Background colours [4 G, 3]: one for a group, or one for each of its views, as guided training draws them."""
        common = self._backgrounds(size).repeat_interleave(LINKED, 0)
        one = (self._uniform(size, 1) < ONE_BACKGROUND).repeat_interleave(LINKED, 0)
        return torch.where(one, common, self._backgrounds(LINKED * size))


if __name__ == "__main__":
    sys.exit(run(partial(dataset.main, write_shard, DATA)))
