"""Showing a scene in other lights, as options."""

from dataclasses import dataclass

from nerf.config.parser import Group, option
from nerf.core.ranges import between


@dataclass(frozen=True)
class HallucinationConfig(Group):
    """Other lights (of a scene that was trained with --appearance)"""

    hallucinate: tuple[str, ...] = option(
        (),
        "pictures, or folders of them, in whose light the scene is shown: a video for each, a sheet beside the pictures, and a "
        "walk from one light to the next; any picture works, also one of another place",
        path=True,
    )
    light_walk: int = option(30, "frames of the walk from one light to the next (0: none)", check=between(0, 10_000))
