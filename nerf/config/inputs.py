"""The options that say what a run learns from: prompts, and photographs. See ``nerf/config/groups.py``."""

from dataclasses import dataclass

from nerf.config.limits import LENGTH, MOST, STEPS
from nerf.config.parser import RUN, Group, option
from nerf.core.ranges import above, between

KNOWN = "training from image prompts"


@dataclass(frozen=True)
class PromptConfig(Group):
    """Prompt"""

    text: str | None = option(None, "the prompt, in quotes", kept=RUN)
    negative: str = option("", "negative prompt", kept=RUN)
    image: str | None = option(None, "image prompt, RGBA", unbuilt=KNOWN, path=True)
    image_config: str | None = option(None, "CSV of several image prompts", unbuilt=KNOWN, path=True)
    known_view_interval: int = option(4, "train the view of --image in every N-th step", check=STEPS, unbuilt=KNOWN)
    known_view_scale: float = option(
        1.5, "render size of the known view, as a multiple of --w and --h", check=above(0, 64), unbuilt=KNOWN
    )
    known_view_noise_scale: float = option(
        2e-3, "standard deviation of the camera noise of the known view", check=LENGTH, unbuilt=KNOWN
    )

    @property
    def kinds(self) -> tuple[str, ...]:
        """Which kinds of prompt are given, of "text" and "image"; none in a run without guidance."""
        images = self.image is not None or self.image_config is not None
        return (("text",) if self.text is not None else ()) + (("image",) if images else ())


@dataclass(frozen=True)
class DataConfig(Group):
    """Posed photographs"""

    data: str | None = option(
        None, "folder of posed photographs: transforms.json, a COLMAP model or NeuS cameras", kept=RUN, path=True
    )
    num_rays: int = option(4096, "random rays per step from the photographs", check=between(1, 2**22))
    holdout: int = option(
        8, "hold out every N-th photograph for testing if the data has no split (0: none)", check=between(0, MOST), kept=RUN
    )
    downscale: int = option(1, "downscale the photographs by this integer factor on loading", check=between(1, 64), kept=RUN)
    data_background: str = option(
        "random",
        "training background of photographs with alpha; tests use white unless this is black",
        choices=("random", "white", "black"),
    )
