"""Losses: pure functions from rendered pixels and samples to unweighted scalars.

Each is a sum along a ray and a mean over rays (or pixels), so its value does not change with the image size, the number
of samples or the render path; weights live in the plan. Those of surfaces do not change with the size of the object or
of its triangles. Letters: B images, N rays, M samples, V vertices, T triangles, E edges.
"""

import math

import torch
from torch import Tensor

from nerf.training.mesh_edges import MeshEdges, cotangents, mesh_edges, steep_triangles, triangle_normals

# A vertex has at least this share of the mean vertex area. (Clamping cotangents instead is worse: they no longer cancel, and a
# sphere from marching cubes costs 500 instead of 1.)
_LEAST_AREA = 0.1

FAINT = 1e-2  # opacity below which where a ray ends counts little
MIN_GROUP = 8  # rays of a photograph below which their depths have no correlation that counts
FLAT = 1e-18  # product of two sums of squares below which one of the depths is flat


def image_mse(image: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of two images of one shape, for example [N, 3]. Differentiable."""
    return squared_error(image, target).mean()


def mask_mse(opacity: Tensor, mask: Tensor) -> Tensor:
    """Mean squared error of opacity [N] against the target opacity [N] in [0, 1]. Differentiable."""
    return image_mse(opacity, mask.to(opacity.dtype))


def mask_cross_entropy(opacity: Tensor, mask: Tensor) -> Tensor:
    """Binary cross entropy of opacity [N] and mask [N] in [0, 1], a mean over rays (NeuS, Wang et al. 2021, eq. 17).

    Opacities are clamped to [1e-3, 1 - 1e-3], beyond which the slope is zero. Differentiable.
    """
    p, target = opacity.clamp(1e-3, 1.0 - 1e-3), mask.to(opacity.dtype)
    return -(target * p.log() + (1.0 - target) * (1.0 - p).log()).mean()


HUBER_DELTA = 0.1


def squared_error(image: Tensor, target: Tensor) -> Tensor:
    """Squared errors of colours [N, 3]. Differentiable."""
    if image.shape != target.shape:
        raise ValueError(f"mse: expected two images of one shape, got {list(image.shape)} and {list(target.shape)}")
    return (image - target).square()


def absolute_error(image: Tensor, target: Tensor) -> Tensor:
    """Absolute errors of colours [N, 3]. Differentiable."""
    return (image - target).abs()


def smooth_l1_error(image: Tensor, target: Tensor) -> Tensor:
    """``e^2 / 2`` for errors e below 1 and ``|e| - 1/2`` above, [N, 3], as Instant NeuS trains its NeRF. Differentiable."""
    return torch.nn.functional.smooth_l1_loss(image, target, reduction="none")


def huber_error(image: Tensor, target: Tensor) -> Tensor:
    """``e^2 / 2`` for errors e below d = 0.1 and ``d (|e| - d / 2)`` above, divided by d, [N, 3], so that large errors count as
    in :func:`absolute_error`. Differentiable."""
    return torch.nn.functional.huber_loss(image, target, reduction="none", delta=HUBER_DELTA) / HUBER_DELTA


# --rgb_loss, whose loss is the mean, and --mask_loss
COLOUR_ERRORS = {"mse": squared_error, "l1": absolute_error, "smooth_l1": smooth_l1_error, "huber": huber_error}
MASK_LOSSES = {"mse": mask_mse, "bce": mask_cross_entropy}


def opacity(opacity: Tensor) -> Tensor:
    """Opacity penalty: the mean squared opacity of rays [N], in [0, 1]. Differentiable."""
    return opacity.square().mean()


def entropy(opacity: Tensor) -> Tensor:
    """Binary entropy of each ray's opacity, in bits, a mean over rays: 0 where every ray is clear or opaque, at most 1.

    The entropy of a *ray* and not of its samples: a surface that spreads over many samples is not penalised for the
    number of steps taken through it, and rays that hit nothing count as certain.

    Args:
        opacity: [N] in [0, 1].

    Returns:
        Scalar in [0, 1]. Differentiable; the slope is bounded (17 bits at the ends), zero beyond them.
    """
    p = opacity.clamp(1e-5, 1.0 - 1e-5)
    bits = p * p.log() + (1.0 - p) * (1.0 - p).log()
    return -bits.mean() / math.log(2.0)


def orientation(weights: Tensor, normal: Tensor, direction: Tensor, num_rays: int) -> Tensor:
    """Penalise visible surface that faces away (Ref-NeRF, eq. 11): ``1/N sum_i w_i max(0, n_i . d_i)^2``.

    Args:
        weights: [M] compositing weights; detached, so that the loss turns normals and moves no density.
        normal: [M, 3] unit outward normals.
        direction: [M, 3] unit ray directions, from the camera into the scene.
        num_rays: N, all rays, those without samples included.

    Returns:
        Scalar in [0, 1]. Differentiable in ``normal``.
    """
    away = (normal * direction).sum(-1).clamp(min=0.0)
    return (weights.detach() * away.square()).sum() / num_rays


def normal_smooth_2d(normals: Tensor) -> Tensor:
    """Mean squared difference of neighbouring pixels of normal images [B, C, H, W], down plus across. Differentiable.

    An image one pixel high or wide has no neighbours that way, and that half is zero.
    """
    down = (normals[:, :, 1:] - normals[:, :, :-1]).square()
    across = (normals[:, :, :, 1:] - normals[:, :, :, :-1]).square()
    return sum((d.mean() for d in (down, across) if d.numel()), start=normals.new_zeros(()))


def normal_smooth_3d(normal: Tensor, neighbour: Tensor, weights: Tensor, num_rays: int) -> Tensor:
    """Mean absolute difference between the normals of samples and of points beside them, at visible surfaces.

    ``1/N sum_i w_i mean_c |n_i - n'_i|``: the compositing weights, detached, stand for the visible surface.

    Args:
        normal: [M, 3] normals at the samples.
        neighbour: [M, 3] normals a small random step beside them.
        weights: [M] compositing weights; detached.
        num_rays: N.

    Returns:
        Scalar in [0, 2]. Differentiable in both normals.
    """
    return (weights.detach() * (normal - neighbour).abs().mean(-1)).sum() / num_rays


def depth_pearson(depth: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """One minus the correlation of two depth maps within the mask: invariant to scale and offset, as monocular depth requires.

    Args:
        depth: [N] rendered depth.
        target: [N] the target depth, up to a positive scale and an offset.
        mask: [N] opacity of the target; pixels above 0.5 count.

    Returns:
        Scalar in [0, 2]; 0 if fewer than two pixels count or a map is flat there. Differentiable in ``depth``.
    """
    inside = mask > 0.5
    if int(inside.sum()) < 2:
        return depth.sum() * 0.0
    a, b = depth[inside], target[inside].to(depth.dtype)
    a, b = a - a.mean(), b - b.mean()
    spread = a.square().sum() * b.square().sum()
    if float(spread.detach()) < 1e-18:
        return depth.sum() * 0.0
    return 1.0 - (a * b).sum() / spread.sqrt()


def depth_l1(depth: Tensor, target: Tensor, known: Tensor) -> Tensor:
    """Mean absolute difference of depths where the target is known.

    Args:
        depth: [N] rendered depth, scene units along the ray.
        target: [N] in the same units; any value where it is not known.
        known: [N] bool.

    Returns:
        Scalar in scene units; 0 if nothing is known. Differentiable in ``depth``.
    """
    difference = torch.where(known, (depth - target).abs(), 0.0)
    return difference.sum() / known.sum().clamp(min=1)


def depth_distribution(weights: Tensor, distance: Tensor, ray_index: Tensor, target: Tensor, known: Tensor) -> Tensor:
    """How far from its target depth a ray ends, if it ends: ``sum_i w_i |t_i - d| / sum_i w_i``, a mean weighted by opacity.

    The expected error of the depth, where :func:`depth_l1` is the error of the expected depth: haze on both sides of the target
    does not cancel. Opacities, and with them outlines, are left as they are. (Of the losses of depths along rays it is closest
    to that of Rematas et al. 2022, Urban Radiance Fields, sec. 4.2, without its two widths.)

    Args:
        weights: [M] compositing weights of samples.
        distance: [M] of the samples along their rays, scene units.
        ray_index: [M] int64 in [0, N).
        target: [N] depth along the ray, scene units; any value where it is not known.
        known: [N] bool.

    Returns:
        Scalar in scene units, a mean over the known rays; 0 if nothing is known. Differentiable in ``weights``.
    """
    count = known.to(weights.dtype)
    error = weights * (distance - torch.where(known, target, 0.0)[ray_index]).abs()
    missed, opacity = (torch.zeros_like(count).index_add(0, ray_index, values) for values in (error, weights))
    return (count * opacity.detach() * missed / opacity.clamp(min=FAINT)).sum() / count.sum().clamp(min=1)


def depth_correlation(depth: Tensor, target: Tensor, known: Tensor, group: Tensor, groups: int) -> Tensor:
    """One minus the correlation of depths within each photograph, whose depth map has a scale and an offset of its own.

    What is left of the best affine fit of standardised depths (MonoSDF, Yu et al. 2022, eq. 13, solved in closed form for each
    photograph), with fits of a negative scale as the worst. Photographs of fewer than ``MIN_GROUP`` rays do not count.

    Args:
        depth: [N] rendered depth along the viewing direction.
        target: [N] the target depth, up to a positive scale and an offset for each photograph.
        known: [N] bool: where the target is known.
        group: [N] int64 in [0, groups): photograph of each ray.
        groups: number of photographs.

    Returns:
        Scalar in [0, 2], a mean over the rays that count; 0 if none do. Differentiable in ``depth``.
    """
    weight = known.to(depth.dtype)

    def sums(value: Tensor) -> Tensor:
        return torch.zeros(groups, dtype=depth.dtype, device=depth.device).index_add(0, group, value * weight)

    count = sums(torch.ones_like(depth))
    target = torch.where(known, target, 0.0).to(depth.dtype)
    a, b = (value - (sums(value) / count.clamp(min=1))[group] for value in (depth, target))
    spread = sums(a * a) * sums(b * b)
    counts = (count >= MIN_GROUP) & (spread > FLAT)
    correlation = sums(a * b) / torch.where(counts, spread, 1.0).sqrt()
    rays = torch.where(counts, count, 0.0)
    return ((1.0 - correlation) * rays).sum() / rays.sum().clamp(min=1)


def normal_cosine(normal: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """One minus the mean cosine between rendered and target normals within the mask.

    Args:
        normal: [N, 3] rendered normals, of length at most one (sums along rays; not normalised here, so that a half
            transparent pixel counts half).
        target: [N, 3] unit normals in the same axes.
        mask: [N] opacity of the target; pixels above 0.5 count.

    Returns:
        Scalar in [0, 2]; 0 if no pixel counts. Differentiable in ``normal``.
    """
    inside = mask > 0.5
    away = torch.where(inside, 1.0 - (normal * target.to(normal.dtype)).sum(-1), 0.0)
    return away.sum() / inside.sum().clamp(min=1)


def normal_consistency(vertices: Tensor, faces: Tensor, edges: MeshEdges | None = None) -> Tensor:
    """How much a surface bends at its edges: the mean of ``1 - n_0 . n_1`` over edges that exactly two triangles share.

    Open edges and edges of three or more triangles do not count, nor do those of a sliver (lower than a thousandth of
    its longest edge), whose normal is noise and whose gradient is disproportionate.

    Args:
        vertices: [V, 3].
        faces: [T, 3] integers, oriented alike.
        edges: of this mesh, if they are used more than once; None: found here.

    Returns:
        Scalar in [0, 2]; 0 for a plane and where no edge counts. Differentiable in ``vertices``.
    """
    if len(faces) == 0:
        return vertices.sum() * 0.0
    edges = edges or mesh_edges(vertices, faces)
    if edges.pair.shape[1] == 0:
        return vertices.sum() * 0.0
    a, b = triangle_normals(vertices[faces.long()])[edges.pair]
    a, b = a / a.norm(dim=-1, keepdim=True), b / b.norm(dim=-1, keepdim=True)
    return 0.5 * (a - b).square().sum(-1).mean()  # 1 - a . b of unit vectors, without its cancellation


def laplacian_uniform(vertices: Tensor, faces: Tensor, edges: MeshEdges | None = None) -> Tensor:
    """Mean squared umbrella vector, in units of the mean squared edge.

    The umbrella vector of a vertex leads to the mean of its neighbours (Taubin, 1995, with equal weights). Squared,
    so that the gradient vanishes with the roughness, where that of a mean norm stays constant; in units of an edge
    (detached, so that growing edges gains nothing), so that it means the same at every resolution.

    Args:
        vertices: [V, 3]; those that no triangle uses, and those on open edges, whose ring is open, do not count.
        faces: [T, 3] integers.
        edges: of this mesh, if they are used more than once; None: found here.

    Returns:
        Scalar >= 0; 0 if no vertex counts. Differentiable in ``vertices``.
    """
    if len(faces) == 0:
        return vertices.sum() * 0.0
    edges = edges or mesh_edges(vertices, faces)
    ends, inner = edges.ends, edges.inner
    weight = vertices.new_ones(len(ends))
    degree = _spread(weight, ends, weight.new_zeros(len(vertices)))[inner]
    umbrella = _differences(vertices, ends, weight)[inner] / degree[:, None]
    if len(umbrella) == 0:
        return vertices.sum() * 0.0
    edge = (vertices[ends[:, 0]] - vertices[ends[:, 1]]).detach().square().sum(-1).mean()
    return umbrella.square().sum(-1).mean() / edge.clamp(min=torch.finfo(edge.dtype).tiny)


def laplacian_cotangent(vertices: Tensor, faces: Tensor, edges: MeshEdges | None = None) -> Tensor:
    """Mean squared mean curvature, in units of a sphere's of the same area: 1 for every sphere, 0 for a plane.

    ``A / (4 pi) mean_i H_i^2`` with the mean-curvature vector ``2 H_i n_i = 1 / (2 A_i) sum_j (cot a_ij + cot b_ij)
    (x_i - x_j)`` (Meyer et al. 2003, eq. 8), ``A_i`` a third of the triangles around and the mean weighted by it. Unlike
    the uniform one it does not pull vertices along the surface. Cotangents and areas are detached; a step against the
    gradient is one of bi-Laplacian smoothing, which also shrinks a little.

    Args:
        vertices: [V, 3]; those that no triangle uses, those on open edges, and those at a sliver (an angle below 2.9
            degrees), whose curvature is noise, do not count.
        faces: [T, 3] integers.
        edges: of this mesh, if they are used more than once, made with ``steep=False``; None: found here.

    Returns:
        Scalar >= 0; 0 if no vertex counts. Differentiable in ``vertices``.
    """
    if len(faces) == 0:
        return vertices.sum() * 0.0
    faces = faces.long()
    cotangent, area = cotangents(vertices.detach()[faces])
    # Where it is steep it may be infinite, and the corners do not count anyway.
    cotangent = torch.where(steep_triangles(cotangent)[:, None], 0.0, cotangent)
    edges = edges or mesh_edges(vertices, faces, steep=False)
    ends, inner = edges.ends, edges.inner
    weight = vertices.new_zeros(len(ends)).index_add(0, edges.edge_of, cotangent.reshape(-1))
    if len(inner) == 0:
        return vertices.sum() * 0.0
    own = vertices.new_zeros(len(vertices)).index_add(0, faces.reshape(-1), area.repeat_interleave(3) / 3)[inner]
    own = torch.maximum(own, _LEAST_AREA * own.mean())
    bend = _differences(vertices, ends, weight)[inner]
    return (bend.square().sum(-1) / own).sum() * (area.sum() / own.sum()) / (64.0 * math.pi)


def sdf_sign_entropy(sdf: Tensor, edges: Tensor) -> Tensor:
    """Discourages surface that no image supports: each end of an edge should have the sign of the other end.

    Mean over the edges whose ends differ in sign of ``H(sigmoid(s_i), sign(s_j)) + H(sigmoid(s_j), sign(s_i))``, H the
    binary cross-entropy (Munkberg et al. 2022, eq. 2). Zero counts as positive.

    Args:
        sdf: [V] signed distances at the grid's vertices, in units of the grid's spacing, so that a sigmoid separates near
            from far.
        edges: [E, 2] integers; edges whose ends agree in sign do not count.

    Returns:
        Scalar; 2 ln 2 for distances near zero, more for larger ones, 0 if no edge counts. Differentiable in ``sdf``.
    """
    if len(edges) == 0:
        return sdf.sum() * 0.0
    pair = sdf[edges.long()]
    outside = pair.detach() >= 0
    differ = (outside[:, :1] != outside[:, 1:]).to(pair.dtype)  # a weight, as picking them out would wait for a GPU
    other = outside.flip(1).to(pair.dtype)
    over_all = torch.nn.functional.binary_cross_entropy_with_logits(pair, other, differ)
    count = differ.sum()
    return 2.0 * over_all * (torch.full_like(count, len(edges)) / count.clamp(min=1.0))


def _spread(values: Tensor, ends: Tensor, onto: Tensor) -> Tensor:
    """Add each edge's value [E] to both of its ends in ``onto`` [V]."""
    return onto.index_add(0, ends[:, 0], values).index_add(0, ends[:, 1], values)


def _differences(vertices: Tensor, ends: Tensor, weight: Tensor) -> Tensor:
    """``sum_j w_ij (x_i - x_j)`` over the edges at each vertex, [V, 3]."""
    pull = weight[:, None] * (torch.index_select(vertices, 0, ends[:, 0]) - torch.index_select(vertices, 0, ends[:, 1]))
    return torch.zeros_like(vertices).index_add(0, ends[:, 0], pull).index_add(0, ends[:, 1], -pull)
