"""The options of the exported mesh beside those of its files; see ``nerf/config/groups.py``."""

from dataclasses import dataclass

from nerf.config.limits import FAR, FRACTION
from nerf.config.parser import Group, option
from nerf.core.ranges import Check, between

CORNER = between(-FAR * 1e8, FAR * 1e8)  # a coordinate of the crop box


@dataclass(frozen=True)
class MeshConfig(Group):
    """Mesh"""

    mesh_min_part: float = option(
        0.01,
        "keep connected parts whose volume is at least this share of the largest one's (1: the largest alone, 0: all)",
        check=FRACTION,
    )
    mesh_crop: tuple[float, float, float, float, float, float] | None = option(
        None,
        "box that the exported mesh is cut to, x0 y0 z0 x1 y1 z1 in the coordinates of the exported file (see --export_frame)",
        check=Check(
            lambda v: (
                len(v) == 6 and all(map(CORNER.holds, v)) and all(low < high for low, high in zip(v[:3], v[3:], strict=True))
            ),
            f"six numbers x0 y0 z0 x1 y1 z1 with x0 < x1, y0 < y1 and z0 < z1, each {CORNER.expected}",
            f"each {CORNER.span}",
            CORNER.low,
            CORNER.high,
        ),
    )
    mesh_formats: tuple[str, ...] = option(
        ("obj", "glb"),
        "formats of the mesh; OBJ and GLB are always written, PLY has vertex colours, STL the shape alone",
        choices=("obj", "glb", "ply", "stl"),
    )
    fill_hidden: bool = option(
        False,
        "fill the hollows of a field that the cameras of guidance do not see (--theta_range, --phi_range), where nothing has "
        "been learned: caves that open downwards, and pockets behind cracks",
    )
    mesh_denoise: float = option(
        0.0,
        "length in scene units over which bumps of the mesh are smoothed while edges stay (bilateral normal filter; 0: none)",
        check=between(0, 10),
    )
    ground: bool = option(
        False,
        "put the lowest point of the mesh at y = 0 of its files, and make a flat base even; else it is not moved",
    )
    texture_from: str = option(
        "auto",
        "what the texture shows after --data: the photographs, projected onto the mesh, or the field's diffuse colour; auto: "
        "the photographs, unless prompts guide the run as well or each has a light of its own (--appearance, --occluders)",
        choices=("auto", "photographs", "field"),
    )
    eval_mesh: bool = option(
        True, "with --save_mesh: compare renders of the written mesh with the held-out photographs, like those of the field"
    )
