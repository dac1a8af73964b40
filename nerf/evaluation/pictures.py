"""Pictures of a finished mesh, and of a true shape, as a scorer sees them. B views, S pixels a side."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from guidance.diffusion.codecs import resized
from guidance.prior.camera import of_views
from guidance.prior.render import unlit
from guidance.prior.shapes import Shape
from nerf.core.structs import Views
from nerf.run.mesh_evaluation import TexturedMesh, render

SUPERSAMPLE = 3  # rays a side of each pixel of a true shape, as of a mesh
MARGIN = 1.1  # side of a crop around the object, in sides of the square around it
MIN_NEAR = 0.01  # scene units
BALL = 0.5  # radius of the ball that a fitted mesh fills: what a guided run does
LARGEST_BALL = 0.62  # beyond this radius a mesh does not come from a guided run
BACKGROUNDS = {"white": 1.0, "grey": 0.5, "black": 0.0}
CROPS = ("none", "object")
FITS = ("auto", "always", "never")


@dataclass(frozen=True)
class Look:
    """What changes the figures of CLIP by a factor of two, and is therefore printed with them."""

    size: int = 64  # S
    background: str = "white"
    crop: str = "none"  # "object": the square around what the mesh covers, with a margin, resized to S

    def __post_init__(self) -> None:
        if self.size < 1 or self.background not in BACKGROUNDS or self.crop not in CROPS:
            raise ValueError(f"Look: expected a size of 1 or more, {'|'.join(BACKGROUNDS)} and {'|'.join(CROPS)}, got {self}")

    def over(self, colour: Tensor, coverage: Tensor) -> Tensor:
        """Premultiplied colour [H, W, 3] with coverage [H, W] as a picture [3, S, S] in [0, 1]."""
        picture = (colour + (1 - coverage[..., None]) * BACKGROUNDS[self.background]).clamp(0, 1).permute(2, 0, 1)
        if self.crop == "object":
            picture = _cropped(picture, coverage)
        return resized(picture[None], self.size, self.size)[0]


def _cropped(picture: Tensor, coverage: Tensor) -> Tensor:
    """The square of a picture [3, H, W] around what is covered [H, W], grown by a margin; all of it where nothing is."""
    rows, columns = (coverage > 0).nonzero().unbind(1)
    if len(rows) == 0:
        return picture
    height, width = coverage.shape
    centre = (float(rows.min() + rows.max() + 1) / 2, float(columns.min() + columns.max() + 1) / 2)
    extent = max(int(rows.max() - rows.min()), int(columns.max() - columns.min())) + 1
    side = min(max(round(MARGIN * extent), 1), height, width)
    top, left = (min(max(round(c - side / 2), 0), most - side) for c, most in zip(centre, (height, width), strict=True))
    return picture[:, top : top + side, left : left + side]


def reach(mesh: TexturedMesh) -> float:
    """Distance from the origin of the farthest vertex, scene units."""
    return float(mesh.vertices.norm(dim=1).max())


def placed(mesh: TexturedMesh, fit: str) -> tuple[TexturedMesh, bool]:
    """A mesh where the cameras look: as it is, or moved to the origin and scaled into the ball that guided runs fill.

    Args:
        mesh: in the box that is trained in.
        fit: "always", "never", or "auto": where it does not lie in that ball.

    Returns:
        The mesh, and whether it was moved.
    """
    if fit not in FITS:
        raise ValueError(f"placed: expected fit as one of {', '.join(FITS)}, got {fit!r}")
    if fit == "never" or (fit == "auto" and reach(mesh) <= LARGEST_BALL):
        return mesh, False
    return in_ball(mesh, BALL, 0.5 * (mesh.vertices.min(0).values + mesh.vertices.max(0).values)), True


def in_ball(mesh: TexturedMesh, radius: float, centre: Tensor) -> TexturedMesh:
    """A mesh with ``centre`` [3] at the origin, and its farthest vertex at a distance of ``radius``."""
    vertices = mesh.vertices - centre
    return replace(mesh, vertices=vertices * (radius / vertices.norm(dim=1).max().clamp(min=1e-12)))


def unit_ball(mesh: TexturedMesh) -> TexturedMesh:
    """A mesh as T3Bench places it: the mean of its vertices at the origin, the farthest at a distance of 1."""
    return in_ball(mesh, 1.0, mesh.vertices.mean(0))


def of_mesh(mesh: TexturedMesh, views: Views, look: Look) -> Tensor:
    """A mesh, unlit, at B cameras: [B, 3, S, S] in [0, 1]."""
    bound = max(reach(mesh), 1e-6)
    rendered = (render(mesh, views[i], MIN_NEAR, bound) for i in range(len(views)))
    return torch.stack([look.over(*one) for one in rendered])


def of_shape(shape: Shape, views: Views, look: Look) -> Tensor:
    """A true shape of the embedded prior, unlit, at B cameras of an orbit: [B, 3, S, S] in [0, 1]."""
    layers, _ = unlit(shape, of_views(views), views.height, SUPERSAMPLE)
    return torch.stack([look.over(one[..., :3], one[..., 3]) for one in layers.movedim(1, -1)])
