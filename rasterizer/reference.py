"""Every operation in plain torch: any device, with torch's own derivatives.

The kernels are tested against these, and they are what backend torch runs. The formulas and the order of
operations are those of src/raster_math.h and src/antialias_math.h, where they are explained; all in float64.
Letters: B views, V vertices, T triangles, H x W pixels, C channels, M pairs of a triangle and a pixel, P pairs of pixels.
"""

import torch
from torch import Tensor

_ROUNDING, _DEPTH_SLACK = 1e-14, 1e-10  # kRounding and kDepthSlack of src/raster_math.h
_PAIRS_AT_ONCE = 1 << 21  # of a triangle and a pixel; bounds the memory to a few hundred MB
_LONGEST_WALK = 24  # kLongestWalk of src/antialias_math.h
_MARGIN = 1e-6  # pixels by which a triangle's box is enlarged, so that rounding loses no pixel


def rasterize(clip: Tensor, faces: Tensor, height: int, width: int, cull_back: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """bary [B, H, W, 2], depth [B, H, W] and triangle [B, H, W]; twin of :func:`rasterizer.rasterize`."""
    with torch.no_grad():
        triangle = torch.stack([_nearest(view.double(), faces.long(), height, width, cull_back) for view in clip])
    pixel = (triangle.flatten() >= 0).nonzero()[:, 0]
    shown = triangle.flatten()[pixel].long()
    corner = clip.double()[(pixel // (height * width))[:, None], faces.long()[shown]]  # [M, 3, 4]
    x, y = _centres(pixel % (height * width), height, width)
    e = _values(_lines(corner), x, y)
    bary = e[:, :2] / e.sum(1, keepdim=True)
    depth = (e * corner[..., 2]).sum(1) / (e * corner[..., 3]).sum(1)
    all_bary, all_depth = clip.new_zeros(triangle.numel(), 2), clip.new_ones(triangle.numel())
    all_bary = all_bary.index_put((pixel,), bary.to(clip.dtype))
    all_depth = all_depth.index_put((pixel,), depth.to(clip.dtype))
    return all_bary.view(*triangle.shape, 2), all_depth.view(triangle.shape), triangle


def interpolate(attributes: Tensor, bary: Tensor, triangle: Tensor, faces: Tensor) -> Tensor:
    """[B, H, W, C]; twin of :func:`rasterizer.interpolate`."""
    pixel = (triangle.flatten() >= 0).nonzero()[:, 0]
    view = torch.zeros_like(pixel) if len(attributes) == 1 else pixel // triangle[0].numel()
    corner = faces.long()[triangle.flatten()[pixel].long()]  # [M, 3]
    first = bary.reshape(-1, 2)[pixel]
    weight = torch.cat([first, 1 - first.sum(1, keepdim=True)], 1)
    terms = [weight[:, k, None] * attributes[view, corner[:, k]] for k in range(3)]
    values = terms[0] + terms[1] + terms[2]
    out = attributes.new_zeros(triangle.numel(), attributes.shape[2]) + 0 * (attributes.sum() + bary.sum())
    return out.index_put((pixel,), values).view(*triangle.shape, -1)


def antialias(image: Tensor, depth: Tensor, triangle: Tensor, clip: Tensor, faces: Tensor, edges: Tensor) -> Tensor:
    """[B, H, W, C]; twin of :func:`rasterizer.antialias`."""
    flat, faces, edges = image.flatten(0, 2), faces.long(), edges.long().flatten()
    for axis in (0, 1):
        with torch.no_grad():
            owner, other, half_edge = _crossings(depth, triangle, clip.double(), faces, edges, axis)
        flat = _blend(flat, owner, other, half_edge, clip, faces, triangle.shape)
    return flat.view(image.shape)


def edge_adjacency(faces: Tensor) -> Tensor:
    """[T, 3] int32; twin of :func:`rasterizer.edge_adjacency`."""
    if len(faces) == 0:
        return faces.new_zeros(0, 3, dtype=torch.int32)
    start, end = faces.long().roll(-1, 1).reshape(-1), faces.long().roll(-2, 1).reshape(-1)  # of the edge opposite corner k
    key, half_edge = ((torch.minimum(start, end) << 31) + torch.maximum(start, end)).sort(stable=True)
    # Whether the one before has the same edge, and the one before that; nothing here depends on a size that has to be read.
    no = torch.zeros(2, dtype=torch.bool, device=key.device)
    follows = torch.cat([no[:1], key[1:] == key[:-1]])
    third = torch.cat([no[:1], follows[:-1]]) & follows
    leads = torch.cat([follows[1:], no[:1]])
    crowded = third | torch.cat([third[1:], no[:1]]) | torch.cat([third[2:], no])
    partner = torch.where(follows, half_edge.roll(1), half_edge.roll(-1))
    other = torch.where(crowded, -2, torch.where(follows | leads, partner, -1))
    return torch.empty_like(other).index_put((half_edge,), other).view(-1, 3).int()


# ---- lines and pixels ----


def _centres(in_view: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """NDC of pixel centres, counted along rows from the top left."""
    column, row = in_view % width, in_view // width
    return (2 * column + 1 - width).double() / width, (height - 1 - 2 * row).double() / height


def _line(p: Tensor, q: Tensor) -> Tensor:
    """[..., 3] the line through two corners [..., 4]."""
    a = p[..., 1] * q[..., 3] - p[..., 3] * q[..., 1]
    b = p[..., 3] * q[..., 0] - p[..., 0] * q[..., 3]
    return torch.stack([a, b, p[..., 0] * q[..., 1] - p[..., 1] * q[..., 0]], -1)


def _lines(corner: Tensor) -> Tensor:
    """[M, 3, 3] the lines opposite each corner of [M, 3, 4]."""
    return _line(corner[:, [1, 2, 0]], corner[:, [2, 0, 1]])


def _values(line: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """[..., K] values of lines [..., K, 3] at points [...]."""
    return line[..., 0] * x[..., None] + (line[..., 1] * y[..., None] + line[..., 2])


def _volume(corner: Tensor, line: Tensor) -> Tensor:
    """[M] corner 0 times the line opposite it."""
    p, q = corner[:, 0], line[:, 0]
    return p[:, 0] * q[:, 0] + (p[:, 1] * q[:, 1] + p[:, 3] * q[:, 2])


# ---- visibility ----


def _nearest(clip: Tensor, faces: Tensor, height: int, width: int, cull_back: bool) -> Tensor:
    """[H, W] int32 the nearest triangle of one view [V, 4]: every triangle against the pixels of its box, in pieces."""
    corner = clip[faces]
    line = _lines(corner)
    volume = _volume(corner, line)
    low, high = _boxes(corner, height, width)
    size = (high - low + 1).clamp(min=0)
    usable = ((volume > 0) if cull_back else (volume != 0)) & volume.isfinite()
    area = torch.where(usable, size[:, 0] * size[:, 1], 0)
    best = torch.full((height * width,), torch.inf, dtype=torch.float64, device=clip.device)
    triangle = torch.full((height * width,), -1, dtype=torch.int64, device=clip.device)
    start = 0
    ends = area.cumsum(0)
    while start < len(faces):
        done = 0 if start == 0 else int(ends[start - 1])
        end = max(start + 1, int(torch.searchsorted(ends, done + _PAIRS_AT_ONCE, right=True)))
        t = torch.arange(start, end, device=clip.device).repeat_interleave(area[start:end])
        place = torch.arange(len(t), device=clip.device) - (ends - area)[t] + done
        pixel = (low[t, 1] + place // size[t, 0]) * width + low[t, 0] + place % size[t, 0]
        z, covered = _covered(corner[t], line[t], volume[t], pixel, height, width)
        t, pixel, z = t[covered], pixel[covered], z[covered]
        nearer = best.scatter_reduce(0, pixel, z, "amin")
        winner = z == nearer[pixel]
        index = torch.full_like(triangle, len(faces)).scatter_reduce(0, pixel[winner], t[winner], "amin")
        triangle = torch.where(nearer < best, index, triangle)
        best, start = nearer, end
    return triangle.view(height, width).int()


def _boxes(corner: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """First and last column and row, [T, 2] each, of the pixel centres that triangles [T, 3, 4] may cover."""
    w = corner[..., 3]
    size = torch.tensor([width, height], dtype=torch.float64, device=corner.device)
    place = torch.stack([corner[..., 0] / w + 1, 1 - corner[..., 1] / w], -1) * 0.5 * size - 0.5
    low = (place.amin(1) - _MARGIN).ceil().nan_to_num(0).clamp(min=torch.zeros_like(size), max=size)
    high = (place.amax(1) + _MARGIN).floor().nan_to_num(-1).clamp(min=-torch.ones_like(size), max=size - 1)
    front = w > 0
    crosses = (front.any(1) & ~front.all(1))[:, None]
    low = torch.where(crosses, 0, low)
    high = torch.where(crosses, size - 1, high)
    high = torch.where(front.any(1)[:, None], high, -1)
    return low.long(), high.long()


def _covered(corner: Tensor, line: Tensor, volume: Tensor, pixel: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """z/w [M] of triangles [M, 3, 4] at pixels, and whether each is covered there, [M] bool."""
    x, y = _centres(pixel, height, width)
    share = (corner[..., 2] * (1 / volume)[:, None])[..., None]
    plane = line[:, 0] * share[:, 0] + line[:, 1] * share[:, 1] + line[:, 2] * share[:, 2]
    z = _values(plane[:, None], x, y)[:, 0]
    sign = volume.sign()[:, None]
    line = line * sign[..., None]
    value, slack = _values(line, x, y), _ROUNDING * line.abs().sum(-1)
    relative = corner[..., :2] - torch.stack([x, y], -1)[:, None] * corner[..., 3:]
    p, q = relative[:, [1, 2, 0]], relative[:, [2, 0, 1]]
    closely = sign * (p[..., 0] * q[..., 1] - p[..., 1] * q[..., 0])
    owned = (line[..., 0] > 0) | ((line[..., 0] == 0) & (line[..., 1] < 0))
    inside = (value > slack) | ((value >= -slack) & ((closely > 0) | ((closely == 0) & owned)))
    return z, inside.all(1) & (z.abs() <= 1 + _DEPTH_SLACK)


# ---- silhouettes ----


def _crossings(
    depth: Tensor, triangle: Tensor, clip: Tensor, faces: Tensor, edges: Tensor, axis: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs of neighbours along an axis with a silhouette between them: owner [P], other [P], half edge [P]."""
    views, height, width = triangle.shape
    pixel = torch.arange(triangle.numel(), device=triangle.device).view(triangle.shape)
    first = (pixel[:, :, :-1] if axis == 0 else pixel[:, :-1]).flatten()
    second = (pixel[:, :, 1:] if axis == 0 else pixel[:, 1:]).flatten()
    triangle, depth = triangle.flatten().long(), depth.flatten()
    differ = triangle[first] != triangle[second]
    first, second = first[differ], second[differ]
    t, s = triangle[first], triangle[second]
    forward = (t >= 0) & ((s < 0) | (depth[first] <= depth[second]))
    owner, other = torch.where(forward, first, second), torch.where(forward, second, first)
    silhouettes, line = _silhouettes(clip, faces, edges)
    joined = _joined(owner // (height * width), triangle[owner], triangle[other], silhouettes, edges)
    owner, other, t, s = (v[~joined] for v in (owner, other, t, s))
    found = _walk(owner, other, triangle, line, silhouettes, edges, (height, width))
    again = (found == -2) & (t >= 0) & (s >= 0)
    turned = _walk(other[again], owner[again], triangle, line, silhouettes, edges, (height, width))
    owner[again], other[again] = other[again], owner[again]
    found[again] = turned
    slope = line.flatten(1, 2)[owner // (height * width), found.clamp(min=0)].abs()
    steep = slope[:, 0] * height >= slope[:, 1] * width
    keep = (found >= 0) & (steep if axis == 0 else ~steep)
    return owner[keep], other[keep], found[keep]


def _silhouettes(clip: Tensor, faces: Tensor, edges: Tensor) -> tuple[Tensor, Tensor]:
    """Which half edges are silhouettes, [B, 3 T] bool, and lines [B, T, 3, 3] that are positive inside."""
    corner = clip[:, faces].flatten(0, 1)
    line = _lines(corner)
    facing = _volume(corner, line).sign().nan_to_num(0)
    line = (line * facing[:, None, None]).view(len(clip), len(faces), 3, 3)
    facing = facing.view(len(clip), -1).repeat_interleave(3, 1)  # of each half edge's triangle
    start, end = faces[:, [1, 2, 0]].flatten(), faces[:, [2, 0, 1]].flatten()
    other = edges.clamp(min=0)
    same = facing * facing[:, other]
    alike = torch.where(start == end[other], same <= 0, same >= 0)
    return alike | (edges < 0), line


def _joined(view: Tensor, t: Tensor, s: Tensor, silhouettes: Tensor, edges: Tensor) -> Tensor:
    """Whether triangles t [P] and s [P] share an edge that is no silhouette, or each shares one with a third, [P] bool."""
    smooth = torch.where(silhouettes, -1, edges).view(len(silhouettes), -1, 3)  # [B, T, 3] half edges
    first = smooth[view, t.clamp(min=0)]  # [P, 3]
    second = smooth[view[:, None], first.clamp(min=0) // 3]  # [P, 3, 3]
    second = torch.where(first[..., None] >= 0, second, -1)
    reached = torch.cat([first, second.flatten(1)], 1)
    return ((reached >= 0) & (reached // 3 == s[:, None])).any(1) & (t >= 0)


def _walk(
    start: Tensor, end: Tensor, triangle: Tensor, line: Tensor, silhouettes: Tensor, edges: Tensor, size: tuple[int, int]
) -> Tensor:
    """The silhouette between pixels, [P]: a half edge; -1 there is none; -2 what is seen at the end lies in front."""
    found = torch.full_like(start, -1)
    at = (triangle[start] >= 0).nonzero()[:, 0]
    view, current, entry = start[at] // (size[0] * size[1]), triangle[start[at]], torch.full_like(at, -1)
    for _ in range(_LONGEST_WALK):
        if len(at) == 0:
            break
        here = line[view, current]
        first = _values(here, *_centres(start[at] % (size[0] * size[1]), *size))
        second = _values(here, *_centres(end[at] % (size[0] * size[1]), *size))
        leaves = (second <= 0) & (first > second) & (torch.arange(3, device=at.device) != entry[:, None])
        where, out = torch.where(leaves, first / (first - second), torch.inf).min(1)
        half_edge = 3 * current + out
        covered, silhouette = where.isinf(), silhouettes[view, half_edge]
        found[at] = torch.where(covered, -2, torch.where(silhouette, half_edge, -1))
        onward = ~covered & ~silhouette
        onward &= edges[half_edge].clamp(min=0) // 3 != triangle[end[at]]
        at, view, half_edge = at[onward], view[onward], edges[half_edge[onward]]
        current, entry = half_edge // 3, half_edge % 3
    return found


def _blend(
    flat: Tensor, owner: Tensor, other: Tensor, half_edge: Tensor, clip: Tensor, faces: Tensor, shape: torch.Size
) -> Tensor:
    """Blend pairs of pixels in an image [B H W, C]."""
    views, height, width = shape
    t, k = half_edge // 3, half_edge % 3
    view, size = owner // (height * width), height * width
    line = _line(clip.double()[view, faces[t, (k + 1) % 3]], clip.double()[view, faces[t, (k + 2) % 3]])[:, None]
    at_owner = _values(line, *_centres(owner % size, height, width))
    at_other = _values(line, *_centres(other % size, height, width))
    shift = ((at_owner / (at_owner - at_other)).clamp(0, 1) - 0.5).to(flat.dtype)
    target = torch.where(shift[:, 0] > 0, other, owner)
    return flat.index_add(0, target, shift * (flat[owner] - flat[other]))
