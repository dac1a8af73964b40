"""The edges of a triangle mesh, found once for all losses that need them. V vertices, T triangles, E edges.

Half-edge 3 t + k leads from corner k of triangle t to the next. The sizes of the results depend on the mesh; a GPU is waited
for once, for all of them.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from nerf.core.transfer import counts, indices_of

# A triangle whose doubled area is below this share of its longest edge squared has no reliable normal.
SLIVER = 1e-3
# Triangles with an angle below 2.9 degrees are left out of the curvature.
STEEPEST_COTANGENT = 20.0


@dataclass(frozen=True, eq=False)
class MeshEdges:
    """What the losses of a surface need to know of its edges."""

    ends: Tensor  # [E, 2] int64, lower index first
    edge_of: Tensor  # [3 T] int64, the edge of each half-edge
    pair: Tensor  # [2, P] int64, the two triangles at each edge that exactly two share, if neither is a sliver
    inner: Tensor  # [V'] int64, vertices that some edge uses and no open edge does


@torch.no_grad()
def mesh_edges(vertices: Tensor, faces: Tensor, steep: bool = True) -> MeshEdges:
    """The edges of triangles, on their device.

    Args:
        vertices: [V, 3].
        faces: [T, 3] integers, at least one.
        steep: whether corners of triangles with a very small angle (:func:`steep_triangles`) may count as inner vertices.
    """
    faces, num = faces.long(), len(vertices)
    start, end = faces.reshape(-1), faces.roll(-1, 1).reshape(-1)
    key, order = torch.sort(torch.minimum(start, end) * num + torch.maximum(start, end), stable=True)
    # Half-edges of one edge follow each other; is the place, and are the two behind it, the first of an edge?
    yes = torch.ones(2, dtype=torch.bool, device=key.device)
    first = torch.cat([yes[:1], key[1:] != key[:-1]])
    second, third = torch.cat([first[1:], yes[:1]]), torch.cat([first[2:], yes])
    corners = vertices.detach()[faces]
    normal, longest = triangle_normals(corners), (corners - corners.roll(-1, 1)).square().sum(-1).amax(-1)
    sound = (normal.norm(dim=-1) > SLIVER * longest)[order // 3]
    is_pair = first & ~second & third & sound & sound.roll(-1)
    left_out = torch.zeros(num, dtype=torch.int32, device=key.device)
    for each_end in (key // num, key % num):
        left_out = left_out.index_add(0, each_end, (first & second).int())  # the ends of open edges
    if not steep:
        left_out = left_out.index_add(0, start, steep_triangles(cotangents(corners)[0]).int().repeat_interleave(3))
    used = torch.zeros(num, dtype=torch.bool, device=key.device)
    used[start] = True
    is_inner = used & (left_out == 0)
    num_edges, num_pairs, num_inner = counts(first, is_pair, is_inner)
    at, both = key[indices_of(first, num_edges)], indices_of(is_pair, num_pairs)
    edge_of = torch.empty_like(order)
    edge_of[order] = first.cumsum(0) - 1
    pair = torch.stack([order[both], order[both + 1]]) // 3
    return MeshEdges(torch.stack([at // num, at % num], dim=1), edge_of, pair, indices_of(is_inner, num_inner))


def triangle_normals(corners: Tensor) -> Tensor:
    """Normals [T, 3] of triangles [T, 3, 3], as long as twice their area. Differentiable."""
    return torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])


def cotangents(corners: Tensor) -> tuple[Tensor, Tensor]:
    """Cotangents [T, 3] of the angle opposite half-edge k, and areas [T], of triangles [T, 3, 3]."""
    to_next, to_last = corners.roll(-1, 1) - corners, corners.roll(1, 1) - corners
    doubled = torch.linalg.cross(to_next[:, 0], to_last[:, 0]).norm(dim=-1)
    at_corner = (to_next * to_last).sum(-1) / doubled.clamp(min=torch.finfo(doubled.dtype).tiny)[:, None]
    return at_corner.roll(1, 1), 0.5 * doubled  # half-edge k lies opposite corner k + 2


def steep_triangles(cotangent: Tensor) -> Tensor:
    """Triangles [T] bool with an angle whose cotangent, of [T, 3], is too steep for the curvature."""
    return (cotangent.abs() > STEEPEST_COTANGENT).any(dim=1)
