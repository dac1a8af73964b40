"""The options of the viewer; see ``nerf/config/groups.py``."""

from dataclasses import dataclass

from nerf.config.limits import AZIMUTH, FOV, POLAR, POSITIVE_LENGTH
from nerf.config.parser import Group, option
from nerf.core.ranges import between


@dataclass(frozen=True)
class GuiConfig(Group):
    """GUI"""

    gui: bool = option(False, "open the viewer", unbuilt="the viewer")
    radius: float = option(5.0, "camera distance in the viewer", check=POSITIVE_LENGTH, unbuilt="the viewer")
    fovy: float = option(20.0, "vertical field of view in the viewer", check=FOV, unbuilt="the viewer")
    light_theta: float = option(60.0, "polar angle of the light in the viewer", check=POLAR, unbuilt="the viewer")
    light_phi: float = option(0.0, "azimuth of the light in the viewer", check=AZIMUTH, unbuilt="the viewer")
    max_spp: int = option(1, "maximum samples per pixel in the viewer", check=between(1, 4096), unbuilt="the viewer")
