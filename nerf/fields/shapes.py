"""The shape that a signed distance begins with: a sphere, one that is inside out, or the hull of points. M and P points."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nerf.config.groups import FieldConfig
from nerf.core.errors import UserError
from nerf.core.structs import SceneInfo

if TYPE_CHECKING:
    from nerf.fields.signed_distance import SignedDistanceField

FIT_POINTS = 2048  # of a step
FIT_EIKONAL = 0.01  # weight of the gradient's length beside the squared distance
MIN_HULL_POINTS = 30  # of a reconstruction that a hull is made of
HULL_QUANTILE = 0.98  # share of the points nearest to their median that count


@dataclass(frozen=True)
class Shape:
    """A solid by its signed distance [M, 3] -> [M], scene units, negative inside."""

    name: str  # for the log
    distance: Callable[[Tensor], Tensor]


def sphere(radius: float, inside_out: bool = False) -> Shape:
    """A ball around the origin; inside out, everything but the ball, for rooms that are seen from within."""
    sign = -1.0 if inside_out else 1.0
    name = f"a hollow of radius {radius:.3g}" if inside_out else f"a sphere of radius {radius:.3g}"
    return Shape(name, lambda x: sign * (x.norm(dim=-1) - radius))


def hull(points: Tensor) -> Shape:
    """The convex hull of points [P, 3] without strays; outside, a distance that is too small beside edges and corners.

    It is the largest of the signed distances to the planes of the hull's faces, which is exact inside.

    Raises:
        UserError: the points lie in a plane.
    """
    from scipy.spatial import ConvexHull, QhullError  # type: ignore[import-untyped]

    middle = points.median(0).values
    away = (points - middle).norm(dim=-1)
    near = points[away <= away.quantile(HULL_QUANTILE)]
    try:
        planes = torch.from_numpy(ConvexHull(near.cpu().double().numpy()).equations).float()
    except QhullError as error:
        raise UserError(
            f"--sdf_init hull: the {len(near):,} points of the reconstruction lie in a plane, and have no hull; take sphere"
        ) from error
    planes = torch.unique(planes, dim=0)

    def distance(x: Tensor) -> Tensor:
        at = planes.to(x)
        return (x @ at[:, :3].T + at[:, 3]).amax(-1)

    return Shape(f"the hull of {len(near):,} points of the reconstruction", distance)


def first_shape(config: FieldConfig, scene: SceneInfo) -> Shape:
    """The shape that ``--sdf_init`` asks for; without enough points a hull is a sphere, whose name then says why."""
    if config.sdf_init == "hull" and scene.points is not None and len(scene.points) >= MIN_HULL_POINTS:
        return hull(scene.points)
    ball = sphere(config.sdf_radius * scene.bound, config.sdf_init == "inside_out")
    if config.sdf_init != "hull":
        return ball
    count = 0 if scene.points is None else len(scene.points)
    return replace(
        ball, name=f"{ball.name} (--sdf_init hull needs {MIN_HULL_POINTS} points of a reconstruction, and there are {count})"
    )


def fit_shape(
    field: "SignedDistanceField", shape: Shape, steps: int, generator: torch.Generator, points: int = FIT_POINTS
) -> float:
    """Fit a field's distance to a shape by regression on random points of the box; works for any network.

    Args:
        field: its geometry is trained.
        shape: what it is to be.
        steps: of Adam, whose learning rate falls from ``field.fit_rate`` to zero along a cosine.
        generator: on the CPU; places the points.
        points: in a step.

    Returns:
        Mean error of the distance in the last steps, as a share of the bound.
    """
    parameters = field.geometry_parameters()
    device, bound = parameters[0].device, field.bound
    optimizer = torch.optim.Adam(parameters, lr=field.fit_rate, eps=1e-15, fused=True)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    level, error = field.first_level(), 0.0
    for step in range(steps):
        at = ((2 * torch.rand(points, 3, generator=generator) - 1) * bound).to(device)
        sdf, _, gradient = field.trunk_with_gradient(at, level)
        wrong = (sdf - shape.distance(at)) / bound
        loss = wrong.square().mean() + FIT_EIKONAL * (gradient.norm(dim=-1) - 1).square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        falling.step()
        if step == steps - 1:
            error = float(wrong.detach().abs().mean())
    optimizer.zero_grad(set_to_none=True)
    return error
