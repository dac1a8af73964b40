"""Sphere tracing of batches of shapes to material ids, camera-space normals and relief. S shapes of one kind, M live rays."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from guidance.prior.camera import look_at, rays
from guidance.prior.shapes import BOUND, EMPTY, Shape, distances

MAX_STEPS = 56
HIT = 1.5e-3
STRIDE = 0.95
NORMAL_STEP = 2e-3


class Seen(NamedTuple):
    """What cameras see of S shapes, in images of H x H pixels with F x F rays in each."""

    material: Tensor  # [S, H F, H F] uint8, EMPTY for background
    normal: Tensor  # [S, H, H, 3] in camera axes, of the mean over the hits of a pixel; zero where there is none
    relief: Tensor  # [S, H, H] how much nearer than the origin a surface is, scene units: radius - distance along the ray


def _entry(origins: Tensor, directions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Distances [M] at which rays enter and leave the ball of radius BOUND, and which rays intersect it, bool [M]."""
    along = -(origins * directions).sum(-1)
    closest = (origins + along[:, None] * directions).square().sum(-1)
    half = (BOUND**2 - closest).clamp(min=0).sqrt()
    return along - half, along + half, closest < BOUND**2


def trace(
    kind: str, proportions: dict[str, Tensor], origins: Tensor, directions: Tensor, shape_index: Tensor
) -> tuple[Tensor, Tensor]:
    """First intersections of rays with shapes of one kind.

    Args:
        kind: of all shapes.
        proportions: each [S].
        origins, directions: [M, 3], unit directions.
        shape_index: [M] int64, the shape that each ray is traced against.

    Returns:
        distance along each ray [M] (inf where nothing is hit) and material [M] uint8 (EMPTY where nothing is hit).
    """
    hit_t = torch.full_like(origins[:, 0], torch.inf)
    material = torch.full_like(shape_index, EMPTY, dtype=torch.uint8)
    t, far, meets = _entry(origins, directions)
    live = meets.nonzero()[:, 0]
    t, far, o, d = t[live], far[live], origins[live], directions[live]
    p = {name: value[shape_index[live]] for name, value in proportions.items()}
    for step in range(MAX_STEPS):
        if live.numel() == 0:
            break
        distance, slot = distances(kind, p, o + t[:, None] * d)
        done = distance < HIT
        hit_t[live[done]] = t[done]
        material[live[done]] = slot[done]
        t = t + distance.clamp(min=HIT) * STRIDE
        keep = ~done & (t < far)
        if step % 3 == 2 or step < 2:
            live, t, far, o, d = live[keep], t[keep], far[keep], o[keep], d[keep]
            p = {name: value[keep] for name, value in p.items()}
        else:
            t = torch.where(keep, t, far + 1)
    return hit_t, material


def normals(kind: str, proportions: dict[str, Tensor], points: Tensor) -> Tensor:
    """Outward unit normals [M, 3] at points [M, 3] by finite differences over a tetrahedron; proportions are [M]."""
    corners = torch.tensor([[1.0, -1, -1], [-1, -1, 1], [-1, 1, -1], [1, 1, 1]])
    total = torch.zeros_like(points)
    for corner in corners:
        total += corner * distances(kind, proportions, points + NORMAL_STEP * corner)[0][:, None]
    return total / total.norm(dim=-1, keepdim=True).clamp(min=1e-9)


@torch.no_grad()
def render(kind: str, proportions: dict[str, Tensor], cameras: dict[str, Tensor], size: int, supersample: int = 2) -> Seen:
    """Render material ids, normals and relief.

    Args:
        kind: of all shapes.
        proportions: each [S].
        cameras: ``polar``, ``azimuth``, ``radius``, ``fovy``, each [S], see :mod:`guidance.prior.camera`.
        size: pixels a side.
        supersample: rays a side of each pixel.

    Returns:
        What is seen; relief is a mean over the hits of a pixel, and zero where there is none.
    """
    count, fine = len(cameras["polar"]), size * supersample
    pose = look_at(cameras["polar"], cameras["azimuth"], cameras["radius"])
    origin, direction = rays(pose, cameras["fovy"], fine)
    index = torch.arange(count).repeat_interleave(fine * fine)
    directions = direction.reshape(-1, 3)
    origins = origin[index]
    t, material = trace(kind, proportions, origins, directions, index)
    hit = torch.isfinite(t).nonzero()[:, 0]
    points = origins[hit] + t[hit, None] * directions[hit]
    world = normals(kind, {k: v[index[hit]] for k, v in proportions.items()}, points)
    local = torch.einsum("mi,mij->mj", world, pose[index[hit], :, :3])
    nearer = cameras["radius"][index[hit]] - t[hit]
    image = torch.zeros(count * fine * fine, 5)
    image[hit] = torch.cat([local, nearer[:, None], torch.ones_like(nearer)[:, None]], -1)
    image = image.reshape(count, size, supersample, size, supersample, 5).mean((2, 4))
    normal = image[..., :3] / image[..., :3].norm(dim=-1, keepdim=True).clamp(min=1e-6)
    return Seen(material.reshape(count, fine, fine), normal, image[..., 3] / image[..., 4].clamp(min=1e-6))


def views_of(shape: Shape, cameras: dict[str, Tensor], size: int, supersample: int = 2) -> Seen:
    """What B cameras see of one shape; see :func:`render`."""
    count = len(cameras["polar"])
    return render(shape.kind, {n: torch.full((count,), v) for n, v in shape.proportions.items()}, cameras, size, supersample)


def unlit(shape: Shape, cameras: dict[str, Tensor], size: int, supersample: int = 2) -> tuple[Tensor, Tensor]:
    """Views of one shape without light.

    Args:
        shape: in its own frame.
        cameras, size, supersample: see :func:`render`; B cameras.

    Returns:
        Colour times coverage, then coverage, [B, 4, size, size]; and normals [B, size, size, 3] as those of :func:`render`.
    """
    seen = views_of(shape, cameras, size, supersample)
    solid = (seen.material != EMPTY).float()[..., None]
    layers = torch.cat([shape.palette[seen.material.long()] * solid, solid], -1).movedim(-1, 1)
    return avg_pool2d(layers, supersample), seen.normal
