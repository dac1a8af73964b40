"""How photographs are read, as options: finding cameras, placing the scene, depth maps, and what is learned of each one."""

from dataclasses import dataclass

from nerf.config.limits import AXES, SIZE, WEIGHT
from nerf.config.parser import RUN, Group, option
from nerf.core.ranges import Check, above
from nerf.core.words import is_number

SCALE_WORDS = ("auto", "cameras", "nearest", "points", "seen")  # of --scene_scale beside a number
HALF_SIDE = above(0, 1e12)  # of the scene box, in units of the dataset
SCENE_SCALE = Check(
    lambda v: v in SCALE_WORDS or (is_number(v) and HALF_SIDE.holds(float(v))),
    f"{', '.join(SCALE_WORDS)}, or half the side of the scene's box in units of the dataset (a number {HALF_SIDE.expected})",
)


@dataclass(frozen=True)
class SfmConfig(Group):
    """Structure from motion: part of the options of photographs."""

    sfm: bool = option(
        False,
        "find the cameras of a folder of plain pictures by structure from motion (pycolmap, extra [sfm]) and keep them in "
        "its sparse/0; a folder that has cameras already is used as it is",
    )
    sfm_matching: str = option(
        "auto",
        "pictures that are compared: exhaustive is every pair, sequential the next ones by name, as of a video; auto is "
        "sequential from 200 pictures on",
        choices=("auto", "exhaustive", "sequential"),
    )
    sfm_cameras: str = option(
        "auto",
        "single: one lens and zoom for all pictures; each: one for each picture; auto is single where all have the same size",
        choices=("auto", "single", "each"),
    )
    sfm_size: int = option(1600, "longer side to which pictures are reduced when features are looked for", check=SIZE)


@dataclass(frozen=True)
class PlacementConfig(Group):
    """Scene normalisation: part of the options of photographs."""

    scene_center: str = option(
        "auto",
        "centre of the scene's box: cameras (mean position), axes (point nearest to all view axes) or points (median of the "
        "sparse points); auto is described in docs/photographs.md",
        choices=("auto", "cameras", "axes", "points"),
        kept=RUN,
    )
    scene_up: str = option(
        "auto",
        "up direction of the dataset's world: cameras (mean of their up vectors), plane (normal of the main plane of the "
        "sparse points, by RANSAC) or an axis, as --scene_up=-y; auto: as the format says, else cameras, snapped to near axes",
        choices=("auto", "cameras", "plane", *AXES),
        kept=RUN,
    )
    scene_scale: str = option(
        "auto",
        "size of the scene's box: cameras (holds all), nearest (the distance of the nearest camera from the centre), points "
        "(holds 98 % of the sparse points), seen (what cameras that look inwards see around the centre, where that is smaller "
        "and the dataset does not prescribe its box), or half its side in units of the dataset",
        check=SCENE_SCALE,
        kept=RUN,
    )


@dataclass(frozen=True)
class CacheConfig(Group):
    """Decoded photographs: part of the options of photographs."""

    photo_cache: str = option(
        "auto",
        "where decoded photographs are kept as bytes for later runs: a folder, or off; auto is the user's cache folder, for "
        "sets of more than 128 MiB",
        path=True,
    )


@dataclass(frozen=True)
class DepthMapConfig(Group):
    """Depth maps: part of the options of photographs."""

    depth_maps: str = option(
        "auto",
        "depth maps of the photographs: metric, relative (up to a scale and an offset for each photograph), off; auto is "
        "relative where the dataset's unit of its depth maps is not known",
        choices=("auto", "metric", "relative", "off"),
    )
    depth_unit: float = option(
        0.001, "units of the dataset for each level of 16-bit depth maps, as millimetres in metres", check=above(0, 1e6)
    )
    lambda_depth_map: float = option(0.1, "loss weight of the photographs' depth maps (0: off)", check=WEIGHT)


@dataclass(frozen=True)
class CorrectionConfig(Group):
    """What is learned of each photograph beside the scene: part of the options of photographs."""

    exposure: bool = option(
        False, "learn an affine colour for each photograph; views without one have the mean of all exposures", kept=RUN
    )
    refine_poses: bool = option(
        False, "correct the poses of the photographs while training, coarse to fine (--progressive_level)", kept=RUN
    )
