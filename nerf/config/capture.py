"""Options of what a capture leaves open: the exposure of each photograph, and its exact pose."""

from dataclasses import dataclass

from nerf.config.parser import RUN, Group, option


@dataclass(frozen=True)
class CaptureConfig(Group):
    """What photographs leave open"""

    exposure: bool = option(
        False, "learn an affine colour for each photograph; views without one have the mean of all exposures", kept=RUN
    )
    refine_poses: bool = option(
        False, "correct the poses of the photographs while training, coarse to fine (--progressive_level)", kept=RUN
    )
