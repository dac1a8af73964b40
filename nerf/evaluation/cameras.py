"""The cameras that runs are judged by: a circle, and the viewpoints of an icosphere. B or V views.

World: +Y up, front = +Z = azimuth 0; degrees.
"""

import math
from dataclasses import replace

import torch
from torch import Tensor

from nerf.core.cameras import centred_views, look_at, orbit
from nerf.core.structs import Views

POLAR, RADIUS, FOVY = 70.0, 3.2, 24.0  # of the circle: inside the range that the embedded prior was trained with
ICOSPHERE_RADIUS = 2.2  # of T3Bench, for an object in the unit ball
ICOSPHERE_FOVS = (60.0, 45.0, 36.0, 30.0, 24.0)  # degrees, of T3Bench
ICOSPHERE_LEVEL = 2  # subdivisions, of T3Bench: 162 viewpoints


def circle(count: int, size: int, polar: float = POLAR, radius: float = RADIUS, fovy: float = FOVY) -> Views:
    """B = ``count`` cameras at equal steps of azimuth around the origin, the first in front, square pictures of ``size``."""
    return orbit(polar, torch.arange(count) * 360.0 / count, radius, fovy, size, size)


def turned(views: Views, degrees: float) -> Views:
    """The same cameras farther round the vertical."""
    return orbit(views.polar, views.azimuth + degrees, views.radius, views.fovy, views.height, views.width)


def icosphere(level: int = ICOSPHERE_LEVEL) -> tuple[Tensor, list[list[int]]]:
    """Evenly spread directions: the vertices of an icosahedron whose triangles are split into four ``level`` times.

    Returns:
        Unit vectors [V, 3] with V = 10 * 4^level + 2, and for each the indices of those that it shares an edge with: six, five
        at the twelve corners of the icosahedron.
    """
    golden = (1 + math.sqrt(5)) / 2
    corners = [(0.0, a, b) for a in (1, -1) for b in (golden, -golden)]
    points = [corner[-k:] + corner[:-k] for k in range(3) for corner in corners]
    vertices = torch.nn.functional.normalize(torch.tensor(points, dtype=torch.float64), dim=1)
    distance = torch.cdist(vertices, vertices)
    beside = (distance < 1.01 * distance[distance > 0.01].min()) & (distance > 0.01)
    n = len(vertices)
    faces = [(a, b, c) for a in range(n) for b in range(a) for c in range(b) if beside[a, b] and beside[b, c] and beside[a, c]]
    for _ in range(level):
        vertices, faces = _split(vertices, faces)
    edges = {frozenset(pair) for a, b, c in faces for pair in ((a, b), (b, c), (c, a))}
    neighbours: list[list[int]] = [[] for _ in vertices]
    for a, b in sorted(tuple(sorted(edge)) for edge in edges):
        neighbours[a].append(b)
        neighbours[b].append(a)
    return vertices.float(), neighbours


def _split(vertices: Tensor, faces: list[tuple[int, int, int]]) -> tuple[Tensor, list[tuple[int, int, int]]]:
    """Unit vectors [V, 3] and triangles with a new vertex in the middle of every edge, on the sphere."""
    middle: dict[frozenset[int], int] = {}

    def between(a: int, b: int) -> int:
        return middle.setdefault(frozenset((a, b)), len(vertices) + len(middle))

    split = []
    for a, b, c in faces:
        ab, bc, ca = between(a, b), between(b, c), between(c, a)
        split += [(a, ab, ca), (ab, b, bc), (ca, bc, c), (ab, bc, ca)]
    ends = torch.tensor([sorted(edge) for edge in middle])
    added = torch.nn.functional.normalize(vertices[ends].mean(1), dim=1)
    return torch.cat([vertices, added]), split


def icosphere_views(directions: Tensor, fovy: float, size: int, radius: float = ICOSPHERE_RADIUS) -> Views:
    """A square camera in each direction [V, 3] that looks at the origin."""
    pose = look_at(directions * radius)
    views = centred_views(pose, torch.full((len(directions),), fovy), size, size)
    return replace(views, radius=torch.full_like(views.radius, radius))
