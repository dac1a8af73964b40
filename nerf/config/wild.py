"""Photographs in the wild, as options: what each one looks like, and what stands in front of the scene in some of them."""

import math
from dataclasses import dataclass

from nerf.config.limits import FRACTION, WEIGHT
from nerf.config.parser import RUN, Group, option
from nerf.core.ranges import between

WIDTH = between(1, 4096)
LARGEST_SCALE = 0.9  # of a patch while its scale is annealed


@dataclass(frozen=True)
class WildConfig(Group):
    """Photographs in the wild (weights are relative to half the mean squared error of colours, as in Ha-NeRF)"""

    wild: bool = option(
        False,
        "photographs of many cameras, days and passers-by: turns on --appearance encoder, --occluders mask, --patch_grid 16 "
        "and --diffuse_share 0.5",
        kept=RUN,
    )
    appearance: str = option(
        "none",
        "vector of each photograph that colours depend on: encoder makes it of the whole picture (Ha-NeRF), embedding learns "
        "it (NeRF-W), none",
        choices=("encoder", "embedding", "none"),
        kept=RUN,
    )
    appearance_size: int = option(48, "numbers of that vector", check=WIDTH, kept=RUN)
    appearance_side: int = option(
        32, "longer side to which a photograph is reduced for the encoder, pixels", check=between(16, 1024), kept=RUN
    )
    appearance_scope: str = option(
        "global",
        "global: one change of all colours of a photograph, as of exposure, white balance and hour; local: it depends on the "
        "place as well, as of sun and shadow, and is made up where a photograph does not look",
        choices=("global", "local"),
        kept=RUN,
    )
    shown_light: str = option(
        "0", "training photograph in whose light videos, tests and meshes are shown: its file name, or an index from 0"
    )
    lambda_appearance_norm: float = option(1e-5, "mean square of the vectors of the photographs", check=WEIGHT)
    lambda_appearance_match: float = option(
        1e-3, "the vector of a patch that is rendered in another light is the vector of that light", check=WEIGHT
    )
    lambda_mode_seeking: float = option(1e-6, "inverse of how much colours change with the vector (mode seeking)", check=WEIGHT)
    diffuse_share: float = option(
        0.0625,
        "share of the rays of photographs that are compared by their diffuse colour: what depends on the direction does not "
        "explain the light of photographs then, each of which looks in one of its own",
        check=FRACTION,
    )
    occluders: str = option(
        "none",
        "what passes before the scene: mask learns which pixels of each photograph it covers (Ha-NeRF), robust leaves out "
        "patches of large errors (RobustNeRF), none",
        choices=("mask", "robust", "none"),
        kept=RUN,
    )
    mask_vector: int = option(128, "numbers of the vector of each photograph that its mask depends on", check=WIDTH, kept=RUN)
    mask_hidden: int = option(64, "hidden width of the mask network", check=WIDTH, kept=RUN)
    mask_octaves: int = option(10, "frequencies of the pixel position in it", check=between(0, 16), kept=RUN)
    mask_size_max: float = option(5e-2, "weight of the mean square of masks at the first step", check=WEIGHT)
    mask_size_min: float = option(6e-3, "least weight of it: max(min, max exp(-decay step))", check=WEIGHT)
    mask_size_decay: float = option(1e-3, "decay of it", check=between(0, 1))
    lambda_mask_digital: float = option(0.0, "masks are 0 or 1: mean of 1 / ((M - 1/2)^2 + 0.02)", check=WEIGHT)
    robust_quantile: float = option(
        0.8, "share of the pixels of a step whose error, measured by those of the step before, makes no outlier", check=FRACTION
    )
    occluders_start: float = option(
        0.0, "share of the training during which nothing is left out yet, as everything is wrong at first", check=FRACTION
    )
    patch_grid: int = option(
        0,
        "rays along a side of square patches, each a regular grid over a part of one photograph; 0: single rays",
        check=between(0, 256),
    )
    patch_scale: float = option(
        0.5, "smallest share of a photograph's sides that a patch spans; 0: neighbouring pixels", check=between(0, 1)
    )
    patch_scale_decay: float = option(
        0.0, "that share falls from 0.9 with exp(-decay step) to --patch_scale (0: at once)", check=between(0, 1)
    )

    @property
    def adapts(self) -> bool:
        """Whether anything is learned of a photograph beside the scene."""
        return self.appearance != "none" or self.occluders != "none"

    def least_scale(self, step: int) -> float:
        """Smallest share of a photograph's sides that a patch of this step spans; 0: neighbouring pixels."""
        if self.patch_scale_decay <= 0 or self.patch_scale == 0:
            return self.patch_scale
        return min(max(math.exp(-step * self.patch_scale_decay), self.patch_scale), max(LARGEST_SCALE, self.patch_scale))

    def mask_size_weight(self, step: int) -> float:
        """Weight of the mean square of masks at a step (Ha-NeRF, sec. 4.2)."""
        return max(self.mask_size_min, self.mask_size_max * math.exp(-self.mask_size_decay * step))
