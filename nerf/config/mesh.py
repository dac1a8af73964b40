"""The options of the exported mesh beside those of its files; see ``nerf/config/groups.py``."""

from dataclasses import dataclass

from nerf.config.limits import FRACTION
from nerf.config.parser import Group, option


@dataclass(frozen=True)
class MeshConfig(Group):
    """Mesh"""

    mesh_min_part: float = option(
        0.01,
        "keep connected parts whose volume is at least this share of the largest one's (1: the largest alone, 0: all)",
        check=FRACTION,
    )
    eval_mesh: bool = option(
        True, "with --save_mesh: compare renders of the written mesh with the held-out photographs, like those of the field"
    )
