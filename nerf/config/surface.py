"""Options of fields that are a signed distance (``--backbone sdf`` and ``sdf_vanilla``), and of the losses on them."""

from dataclasses import dataclass

from nerf.config.limits import FRACTION, MOST
from nerf.config.parser import RUN, Group, option
from nerf.core.ranges import above, between

SDF_BACKBONES = ("sdf", "sdf_vanilla")
SURFACE_PRESETS = ("neus", "neus-unmasked", "neuralangelo")
SHARPNESS = above(0, 1e6)  # per scene unit


@dataclass(frozen=True)
class SurfaceConfig(Group):
    """Signed distance: part of the options of the field."""

    preset: str = option(
        "auto",
        "recipe of --backbone sdf on photographs; auto: neus where they have masks or alpha, else neus-unmasked",
        choices=("auto", *SURFACE_PRESETS),
        kept=RUN,
    )
    sdf_init: str = option(
        "auto",
        "shape that a signed distance begins with: a sphere, an inside_out one for rooms seen from within, or the hull of the "
        "reconstruction's points; auto: a sphere",
        choices=("auto", "sphere", "inside_out", "hull"),
    )
    sdf_radius: float = option(0.5, "radius of that sphere, as a share of --bound", check=between(0.01, 2))
    sdf_init_steps: int = option(300, "steps of fitting that shape before training", check=between(0, MOST))
    sdf_gradient: str = option(
        "auto",
        "gradient of a signed distance: analytic, or finite differences of 4 (tetrahedron) or 6 points around; auto: analytic",
        choices=("auto", "analytic", "taps4", "taps6"),
    )
    sdf_taps_reach: float = option(
        1.0, "distance of those points, in cells of the finest level that is on", check=above(0, 100)
    )
    sharpness: str = option(
        "learned",
        "inverse width of the surface, per scene unit: learned, or scheduled from --sharpness_start to --sharpness_end",
        choices=("learned", "scheduled"),
        kept=RUN,
    )
    sharpness_start: float = option(20.0, "sharpness at the first step", check=SHARPNESS)
    sharpness_end: float = option(600.0, "sharpness at the last step, if it is scheduled", check=SHARPNESS)
    sharpness_lr: float = option(
        1.0,
        "learning rate of a tenth of the sharpness's logarithm, as a multiple of --lr",
        check=between(0, 1e3),
    )
    cos_anneal: float = option(
        0.0, "fraction of the run over which surfaces that face away become transparent (0: at once)", check=FRACTION
    )
    level_start: int = option(
        0, "levels of the hash grid that are on at the start, with a signed distance (0: all)", check=between(0, 32)
    )
    level_span: float = option(0.5, "fraction of the run over which the other levels come on, one by one", check=FRACTION)
    colour_hidden: int = option(64, "hidden width of the colour network of a signed distance", check=between(1, 4096), kept=RUN)
