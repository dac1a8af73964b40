"""The training set of the view-conditioned prior: pairs of renders of one object, a reference and a target.

As :mod:`guidance.prior.dataset`, with several views of each object in a shard. Both renders of a pair have the object's
proportions and colours; light and background are drawn for each. B pairs, V views of an object.

``python -m guidance.prior.view_dataset --shards 0:70`` writes shards; several processes may share the work.
"""

import math
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, avg_pool2d, grid_sample

from guidance.prior import dataset
from guidance.prior.camera import random_cameras
from guidance.prior.captions import STACKED, WORDINGS, Caption
from guidance.prior.shapes import KINDS
from nerf.core.script import run

DATA = Path("local/prior/views")
VIEWS = 6  # renders of an object
OBJECTS = 64  # of a shard
FRONT_VIEWS = 2  # of these renders are near the front, which is what people photograph
FRONT_SPREAD = 30.0  # degrees, standard deviation of their azimuth
FRONT_SHARE = 0.55  # of the references is near the front
FIRST_SEED = 1_000_000  # of the shards; the shards of the text-conditioned prior and the held-out objects have other seeds
ZOOMED_SHARE = 0.3  # of the pairs shows the object in another size and height than its family's
ZOOM = (0.85, 1.2)
RAISED = 0.06  # scene units, the largest change of height
POLAR_ERROR = 4.0  # degrees, standard deviation of the error in every second reference's polar angle: users guess it


def write_shard(number: int, folder: Path = DATA, objects: int = OBJECTS) -> Path:
    """Render shard ``number``, :data:`VIEWS` renders each of ``objects`` objects, and write it unless it exists."""
    return dataset.draw_shard(number, folder, objects, FIRST_SEED + number, VIEWS, _cameras)


def _cameras(objects: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Cameras of :data:`VIEWS` renders of each object, the first :data:`FRONT_VIEWS` of them near its front."""
    cameras = random_cameras(objects * VIEWS, generator)
    near = FRONT_SPREAD * torch.randn(objects, FRONT_VIEWS, generator=generator)
    cameras["azimuth"].view(objects, VIEWS)[:, :FRONT_VIEWS] = near % 360
    return cameras


def appearance(caption: Caption) -> Caption:
    """The caption that names every colour of an object which can be named: one caption for all that look alike."""
    if caption.kind in STACKED:
        return Caption(caption.kind, caption.slots)
    wording = WORDINGS[caption.kind]
    if wording.plain:
        return Caption(caption.kind)
    return Caption(caption.kind, caption.slots if wording.part else (caption.slots[wording.single or 0],))


@dataclass
class PairBatch:
    """Inputs and targets of B pairs. Azimuths are in the object's own frame, 0 = its front."""

    image: Tensor  # [B, 3, 64, 64] in [-1, 1], the target view
    degraded: Tensor  # like the image; what noise is added to
    target: dict[str, Tensor]  # polar, azimuth, radius, fovy, each [B]
    reference: Tensor  # [B, 4, 64, 64] in [-1, 1]: colour over white, coverage
    source: dict[str, Tensor]  # the reference's camera; its azimuth is what a user cannot know
    captions: list[str]
    oriented: Tensor  # bool [B], whether the kind has a front
    weight: Tensor  # [B] of the squared error


def placed(layers: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Layers [B, 4, S, S] zoomed about the image centre by ``scale`` [B], then moved up by ``shift`` [B] half image heights."""
    theta = torch.zeros(len(layers), 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = 1 / scale
    theta[:, 1, 2] = shift / scale
    grid = affine_grid(theta, list(layers.shape), align_corners=False)
    return grid_sample(layers, grid, align_corners=False)


def packable(layers: Tensor) -> Tensor:
    """A reference [B, 4, H, W] in [-1, 1] of layers [B, 4, 2H, 2W]: colour over white, coverage."""
    white = dataset.over(layers, torch.ones(len(layers), 3))
    return torch.cat([white, avg_pool2d(layers[:, 3:], 2)], 1) * 2 - 1


class PairLoader(dataset.Loader):
    """Random pairs from all shards in a folder; see :class:`guidance.prior.dataset.Loader`."""

    def _reference_row(self, row: int) -> int:
        """Another view of the object that a row shows, often one near the front."""
        first = row - row % VIEWS
        near = [i for i in range(first, first + FRONT_VIEWS) if i != row]
        if self.rng.random() < FRONT_SHARE:
            return self.rng.choice(near)
        return self.rng.choice([i for i in range(first, first + VIEWS) if i != row])

    def _pick_pairs(self, size: int) -> tuple[dict[str, Tensor], dict[str, Tensor], list[str]]:
        """``size`` random targets and their references, each tensor [size, ...], and the kinds."""
        kinds = self._kinds(size)
        places = [self._place(kind) for kind in kinds]
        references = [(path, self._reference_row(row)) for path, row in places]
        return self._rows(places), self._rows(references), kinds

    def pairs(self, size: int) -> PairBatch:
        """A random batch of pairs."""
        self._next()
        targets, references, kinds = self._pick_pairs(size)
        captions, palettes = self._colours(kinds)
        layers, background = self._lit(targets, palettes), self._backgrounds(size)
        shown = self._lit(references, palettes)
        azimuths, mirrored = self._augment(torch.stack([targets["azimuth"], references["azimuth"]]), kinds)
        layers, shown = (torch.where(mirrored, part.flip(-1), part) for part in (layers, shown))
        layers, shown = self._place_objects(layers, targets, shown, references)
        image = dataset.over(layers, background) * 2 - 1
        target = {name: targets[name] for name in ("polar", "radius", "fovy")} | {"azimuth": azimuths[0]}
        source = {name: references[name] for name in ("polar", "radius", "fovy")} | {"azimuth": azimuths[1]}
        wrong = POLAR_ERROR * torch.randn(size, generator=self.generator)
        source["polar"] = source["polar"] + torch.where(self._uniform(size) < 0.5, wrong, 0.0)
        oriented = torch.tensor([KINDS[kind].symmetry != "round" for kind in kinds])
        words = [appearance(caption).text for caption in captions]
        return PairBatch(image, image, target, packable(shown), source, words, oriented, self._emphasis(kinds))

    def _place_objects(
        self, layers: Tensor, targets: dict[str, Tensor], shown: Tensor, references: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Both views of some objects in another size and height (to first order, as for a distant camera)."""
        size = len(layers)
        chosen = self._uniform(size) < ZOOMED_SHARE
        scale = torch.where(chosen, ZOOM[0] + (ZOOM[1] - ZOOM[0]) * self._uniform(size), 1.0)
        height = torch.where(chosen, RAISED * (2 * self._uniform(size) - 1), 0.0)
        if not chosen.any():
            return layers, shown
        views = []
        for part, camera in ((layers, targets), (shown, references)):
            extent = camera["radius"] * torch.tan(camera["fovy"] * (math.pi / 360))
            part = part.clone()
            shift = height * torch.sin(torch.deg2rad(camera["polar"])) / extent
            part[chosen] = placed(part[chosen], scale[chosen], shift[chosen])
            views.append(part)
        return views[0], views[1]


if __name__ == "__main__":
    sys.exit(run(partial(dataset.main, write_shard, DATA)))
