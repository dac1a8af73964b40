"""What a run learns from, as options (see ``nerf/config/groups.py``): prompts in words and pictures, and photographs."""

from dataclasses import dataclass

from nerf.config.limits import AZIMUTH, MOST, POLAR, POSITIVE_LENGTH, STEPS, WEIGHT
from nerf.config.parser import RUN, Group, option
from nerf.config.photographs import CacheConfig, CorrectionConfig, DepthMapConfig, PlacementConfig, SfmConfig
from nerf.core.ranges import between, each


@dataclass(frozen=True)
class PromptConfig(Group):
    """Prompt"""

    text: str | None = option(None, "the prompt, in quotes", kept=RUN)
    negative: str = option("", "negative prompt", kept=RUN)
    image: tuple[str, ...] = option(
        (),
        "pictures of the object with alpha, as preprocess_image.py writes them: NAME_rgba.png, and NAME_depth.png and "
        "NAME_normal.png beside it where they exist; without --text the guidance is zero123, with it SD and clip",
        kept=RUN,
        path=True,
    )
    image_config: str | None = option(
        None,
        "CSV of pictures, one a line: image, and zero123_weight, radius, polar, azimuth, fovy where they are known",
        kept=RUN,
        path=True,
    )
    ref_radii: tuple[float, ...] = option(
        (), "camera distance of each --image [--default_radius]", check=each(POSITIVE_LENGTH), kept=RUN
    )
    ref_polars: tuple[float, ...] = option((), "polar angle of each --image [--default_polar]", check=each(POLAR), kept=RUN)
    ref_azimuths: tuple[float, ...] = option((), "azimuth of each --image [--default_azimuth]", check=each(AZIMUTH), kept=RUN)
    zero123_ws: tuple[float, ...] = option(
        (), "weight of each --image in zero123 guidance, relative to the others [1]", check=each(WEIGHT), kept=RUN
    )
    known_view_interval: int = option(
        4, "every N-th step renders the views of --image and compares them with the pictures", check=STEPS
    )
    known_view_scale: float = option(1.5, "render size of the known views, as a multiple of --h", check=between(0.0625, 64))
    known_view_noise_scale: float = option(
        2e-3, "standard deviation of the camera noise of the known views, scene units", check=between(0, 1)
    )

    @property
    def has_images(self) -> bool:
        """Whether pictures are given."""
        return bool(self.image) or self.image_config is not None

    @property
    def kinds(self) -> tuple[str, ...]:
        """Which kinds of prompt are given, of "text" and "image"; none in a run without guidance."""
        return (("text",) if self.text is not None else ()) + (("image",) if self.has_images else ())


@dataclass(frozen=True)
class DataConfig(SfmConfig, CacheConfig, PlacementConfig, DepthMapConfig, CorrectionConfig):
    """Posed photographs"""

    data: str | None = option(
        None,
        "folder of photographs: transforms.json, phototourism, COLMAP, NeuS, LLFF, Polycam, Record3D, Metashape or "
        "RealityCapture cameras, or with --sfm plain pictures",
        kept=RUN,
        path=True,
    )
    num_rays: int = option(4096, "random rays per step from the photographs", check=between(1, 2**22))
    ray_samples: int = option(
        0,
        "samples per step that the number of random rays follows, between 1/4 and 16 times --num_rays (0: it stays)",
        check=between(0, 2**26),
    )
    holdout: int = option(
        8, "hold out every N-th photograph for testing if the data has no split (0: none)", check=between(0, MOST), kept=RUN
    )
    downscale: int = option(1, "downscale the photographs by this integer factor on loading", check=between(1, 64), kept=RUN)
    data_background: str = option(
        "random",
        "training background of photographs with alpha; tests use white unless this is black",
        choices=("random", "white", "black"),
    )
