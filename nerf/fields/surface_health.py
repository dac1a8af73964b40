"""What goes wrong with a surface that is learned, seen from its signed distance: sentences with what to try. M points."""

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from nerf.fields.signed_distance import SignedDistanceField

SIDE = 24  # points along a side of the box that are looked at
EMPTY_SHARE = 1e-4  # of the box inside, below which there is no surface: less than a cube of a twentieth of its side
WALL_SHARE = 0.5  # of the walls of the box on the wrong side of the surface, above which it is inside out
STILL = 5e-3  # mean distance from the first shape near its surface, as a share of the bound, below which it has not moved
BLUNTED = 0.9  # times the first sharpness, below which it has fallen
SETTLED = 0.3  # share of the run after which a surface is judged


@torch.no_grad()
def surface_troubles(field: "SignedDistanceField", fraction: float) -> list[str]:
    """What is wrong with a surface at this training progress in [0, 1]; nothing before :data:`SETTLED` of it."""
    if fraction < SETTLED:
        return []
    device = next(field.parameters()).device
    line = torch.linspace(-0.999, 0.999, SIDE, device=device) * field.bound
    at = torch.stack(torch.meshgrid(line, line, line, indexing="ij"), -1).reshape(-1, 3)
    sdf, found = field.distance(at), []
    wall = at.abs().amax(-1) > 0.99 * field.bound
    outward = field.config.sdf_init != "inside_out"
    solid_walls = float((sdf[wall] < 0).float().mean())
    if float((sdf < 0).float().mean()) < EMPTY_SHARE:
        found.append(
            "the surface is empty: no point of the box is inside it; try a larger --sdf_radius, a smaller --lr, or look "
            "whether the masks are inverted"
        )
    elif (solid_walls > WALL_SHARE) if outward else (solid_walls < 1.0 - WALL_SHARE):
        wrong = solid_walls if outward else 1.0 - solid_walls
        other = "inside_out, for a room that is seen from within" if outward else "sphere, for an object seen from outside"
        found.append(
            f"the surface is inside out: {100 * wrong:.0f} % of the walls of the box are on the wrong side of it; look "
            f"whether the masks are inverted, or begin with --sdf_init {other}"
        )
    first = field.shape.distance(at)
    near = first.abs() < 0.1 * field.bound
    if bool(near.any()) and float((sdf - first)[near].abs().mean()) < STILL * field.bound:
        found.append(
            f"the surface still is {field.shape.name}, with which it began; try a larger --lr, a --sdf_radius nearer to the "
            "object's size, or a background model where there are no masks (--background)"
        )
    sharpness = float(field.sharpness)
    if not field.scheduled and sharpness < BLUNTED * field.config.sharpness_start:
        found.append(
            f"the sharpness is {sharpness:.3g}, below its start of {field.config.sharpness_start:g}: the photographs "
            "contradict one another, or the surface has to explain what is behind the object; look at the poses and masks, "
            "without masks try --background contracted and a smaller box (--scene_scale seen), or else a smaller --lr or "
            "--sharpness scheduled"
        )
    return found
