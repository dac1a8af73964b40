"""The options of the viewer; see ``nerf/config/groups.py``."""

from dataclasses import dataclass

from nerf.config.parser import Group, option


@dataclass(frozen=True)
class GuiConfig(Group):
    """GUI"""

    gui: bool = option(False, "open the viewer", unbuilt="the viewer")
    radius: float = option(5.0, "camera distance in the viewer", unbuilt="the viewer")
    fovy: float = option(20.0, "vertical field of view in the viewer", unbuilt="the viewer")
    light_theta: float = option(60.0, "polar angle of the light in the viewer", unbuilt="the viewer")
    light_phi: float = option(0.0, "azimuth of the light in the viewer", unbuilt="the viewer")
    max_spp: int = option(1, "maximum samples per pixel in the viewer", unbuilt="the viewer")
