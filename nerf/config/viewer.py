"""The options of the viewer; see ``nerf/config/groups.py``."""

from dataclasses import dataclass

from nerf.config.limits import AZIMUTH, POLAR
from nerf.config.parser import Group, option
from nerf.core.ranges import between


@dataclass(frozen=True)
class GuiConfig(Group):
    """GUI"""

    gui: bool = option(False, "open the window of the viewer: --viewer desktop")
    viewer: str = option(
        "none",
        "look at the scene while it trains, or with --test without training: in a window, or in a browser",
        choices=("none", "desktop", "web"),
    )
    radius: float = option(5.0, "camera distance in the viewer", check=between(1e-3, 1e4))
    fovy: float = option(20.0, "vertical field of view in the viewer", check=between(1, 120))
    light_theta: float = option(60.0, "polar angle of the light in the viewer", check=POLAR)
    light_phi: float = option(0.0, "azimuth of the light in the viewer", check=AZIMUTH)
    max_spp: int = option(1, "maximum samples per pixel in the viewer", check=between(1, 4096))
    viewer_host: str = option(
        "127.0.0.1",
        "address that --viewer web listens at; any but this machine's own (127.0.0.1, localhost) has a token in its URL",
    )
    viewer_port: int = option(8080, "port of --viewer web (0: any that is free)", check=between(0, 65535))
