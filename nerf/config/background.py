"""Options of the background: what stands behind the object along each ray."""

from dataclasses import dataclass

from nerf.config.limits import FAR
from nerf.config.parser import RUN, Group, option
from nerf.core.ranges import between


@dataclass(frozen=True)
class BackgroundConfig(Group):
    """Background: part of the options of the field."""

    background: str = option(
        "auto",
        "background model: one colour, a network of the ray direction, or a contracted scene around the box; auto is the last "
        "for photographs that show more than the box holds, else follows --bg_radius",
        choices=("auto", "constant", "network", "contracted"),
        extensible=True,
        kept=RUN,
    )
    bg_radius: float = option(
        1.4, "above 0: a background network; 0 or less: a constant background", check=between(-FAR, FAR), kept=RUN
    )
    background_lr: float = option(
        0.1, "learning rate of a contracted background, as a multiple of that of the scene in front", check=between(0, 1e3)
    )
    background_bias: float = option(
        -4.0,
        "bias of the raw density of a contracted background, before its activation, at initialisation",
        check=between(-100, 100),
        kept=RUN,
    )
