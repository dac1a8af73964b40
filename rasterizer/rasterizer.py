"""Rasterisation, interpolation and antialiasing on every rung, each differentiable once.

Letters: B views, V vertices, T triangles, H x W pixels, C channels.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from extension import Arguments, on_torch
from rasterizer import checks, native, reference


@dataclass(frozen=True)
class Raster:
    """What each pixel sees of a mesh."""

    bary: Tensor  # [B, H, W, 2] perspective-correct weights of corners 0 and 1 (corner 2 has 1 - u - v); 0 where empty
    depth: Tensor  # [B, H, W] NDC z in [-1, 1]; 1 where empty
    triangle: Tensor  # [B, H, W] int32 index of the nearest triangle, -1 where there is none


def rasterize(clip: Tensor, faces: Tensor, height: int, width: int, cull_back: bool = False) -> Raster:
    """Find the nearest triangle at each pixel centre, with the weights of its corners.

    Both sides of a triangle are seen, unless back faces are culled. A centre on an edge belongs to the triangle of
    which it is a top or left edge, so triangles that share an edge share no pixel and leave none out; at equal depth
    the lowest index is seen. Only what lies in front of the eye and within the near and far planes is drawn; triangles
    may cross those planes. A triangle without extent, or with a corner that is not finite, draws nothing. The decisions
    are made in float64.

    Args:
        clip: [B, V, 4] positions in OpenGL's clip space, float32 or float64; never half precision, whatever autocast
            does elsewhere: half a pixel in 512 is lost there.
        faces: [T, 3] int32 or int64, indices in [0, V). Checked on the CPU.
        height, width: of the image, pixels.
        cull_back: draw only triangles that turn counter-clockwise as seen: half the work for a closed surface from
            outside, and the same picture of it.

    Returns:
        A :class:`Raster`; V = 0 or T = 0 give an empty one.

    Differentiable once: bary and depth in clip (which pixels a triangle covers is not; see :func:`antialias`). On CUDA
    the last bits of the gradient depend on the order of atomic additions; on the CPU they do not depend on the number
    of threads. Source: Olano and Greer 1997 (homogeneous edge functions). Reference:
    :func:`rasterizer.reference.rasterize`.
    """
    args = Arguments("rasterize")
    clip = args.floats("clip", clip, "B", "V", 4)
    faces = checks.triangles(args, faces)
    for name, size in (("height", height), ("width", width)):
        fits = isinstance(size, int) and 0 < size < 2**15
        args.require(fits, f"{name} must be a whole number from 1 to 32767, got {size}")
    if len(clip) == 0 or len(faces) == 0:
        shape = (len(clip), height, width)
        nothing = clip.sum() * 0  # so that a loss of an empty image still has a graph
        depth = torch.ones(shape, dtype=clip.dtype, device=clip.device) + nothing
        triangle = torch.full(shape, -1, dtype=torch.int32, device=clip.device)
        return Raster(torch.zeros(*shape, 2, dtype=clip.dtype, device=clip.device) + nothing, depth, triangle)
    if on_torch(clip):
        return Raster(*reference.rasterize(clip, faces, height, width, cull_back))
    return Raster(*_Rasterize.apply(clip, faces, height, width, cull_back))


def interpolate(attributes: Tensor, raster: Raster, faces: Tensor) -> Tensor:
    """What each pixel sees of values that are given at the vertices.

    Args:
        attributes: [B or 1, V, C] in the dtype of the raster (half precision is raised to it under autocast).
        raster: of :func:`rasterize`.
        faces: [T, 3] as given there.

    Returns:
        [B, H, W, C]; 0 where the raster is empty.

    Differentiable once, in attributes and in ``raster.bary``; sums over pixels as in :func:`rasterize`.
    Reference: :func:`rasterizer.reference.interpolate`.
    """
    args = Arguments("interpolate")
    bary, _, triangle = checks.raster(args, raster)
    attributes = args.floats("attributes", _raised(attributes, bary), "B or 1", "V", "C")
    faces = checks.triangles(args, faces)
    one_or_all = len(attributes) in (1, len(bary))
    args.require(one_or_all, f"expected attributes of 1 or B = {len(bary)} views, got {len(attributes)}")
    if on_torch(bary) or len(faces) == 0 or bary.numel() == 0 or attributes.numel() == 0:
        return reference.interpolate(attributes, bary, triangle, faces)
    return _Interpolate.apply(attributes, bary, triangle, faces)


def antialias(image: Tensor, raster: Raster, clip: Tensor, faces: Tensor, edges: Tensor | None = None) -> Tensor:
    """Blend the pixels at silhouettes by how much of them the silhouette cuts off.

    Where neighbouring pixels show different triangles, the mesh is followed from the nearer one to the silhouette edge
    that passes between their centres (an edge with one face, or with two that lie on the same side of it as seen from
    the eye). The pixel in which it passes gets the other's value in proportion to how far from the middle between
    them it passes; so the image depends continuously on where silhouettes lie. Horizontal pairs first, then vertical
    ones. Every value stays between the smallest and the largest of the image. What is thinner than a pixel and covers no
    centre is not seen, nor is a silhouette beyond the centres of the outermost pixels.

    Args:
        image: [B, H, W, C], shaded; in the dtype of clip (half precision is raised to it under autocast).
        raster: of :func:`rasterize`.
        clip, faces: as given there.
        edges: of :func:`edge_adjacency`, if the faces are used more than once; None: found here.

    Returns:
        [B, H, W, C].

    Differentiable once, in image and in clip (x, y and w of the ends of silhouette edges). Source: Laine et al. 2020,
    section 3.6. Reference: :func:`rasterizer.reference.antialias`.
    """
    args = Arguments("antialias")
    clip = args.floats("clip", clip, "B", "V", 4)
    _, depth, triangle = checks.raster(args, raster)
    image = args.floats("image", _raised(image, clip), "B", "H", "W", "C")
    faces = checks.triangles(args, faces)
    edges = edge_adjacency(faces) if edges is None else args.integers("edges", edges, torch.int32, "T", 3)
    if len(faces) == 0 or image.numel() == 0:
        return image + clip.sum() * 0
    if on_torch(clip):
        return reference.antialias(image, depth.detach(), triangle, clip, faces, edges)
    return _Antialias.apply(image, clip, depth.detach(), triangle, faces, edges)


@torch.no_grad()
def edge_adjacency(faces: Tensor) -> Tensor:
    """Which half edges of a mesh belong together; half edge 3 t + k is the edge of triangle t opposite its corner k.

    Args:
        faces: [T, 3] int32 or int64.

    Returns:
        [T, 3] int32: the other half of each half edge; -1 where no other triangle has the edge, -2 where several have.

    Reference: :func:`rasterizer.reference.edge_adjacency`.
    """
    faces = checks.triangles(Arguments("edge_adjacency"), faces)
    if faces.device.type != "cpu" or on_torch(faces) or len(faces) == 0:
        return reference.edge_adjacency(faces)
    return native.edge_adjacency(faces, int(faces.max()) + 1)


def _raised(value: Tensor, like: Tensor) -> Tensor:
    """Half precision raised to the dtype of ``like`` under autocast, as autocast does for float32 operations."""
    half = isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16)
    return value.to(like.dtype) if half and torch.is_autocast_enabled(value.device.type) else value


class _Rasterize(torch.autograd.Function):
    """The kernels of rasterize."""

    @staticmethod
    def forward(ctx, clip, faces, height, width, cull_back):
        bary, depth, triangle = native.rasterize(clip, faces, height, width, cull_back)
        ctx.save_for_backward(clip, faces, triangle)
        ctx.mark_non_differentiable(triangle)
        ctx.set_materialize_grads(False)
        return bary, depth, triangle

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_bary, grad_depth, _):
        clip, faces, triangle = ctx.saved_tensors
        if grad_bary is None and grad_depth is None:
            return None, None, None, None, None
        grad_bary = clip.new_zeros(*triangle.shape, 2) if grad_bary is None else grad_bary.contiguous()
        grad_depth = None if grad_depth is None else grad_depth.contiguous()
        return native.rasterize_backward(clip, faces, triangle, grad_bary, grad_depth), None, None, None, None


class _Interpolate(torch.autograd.Function):
    """The kernels of interpolate."""

    @staticmethod
    def forward(ctx, attributes, bary, triangle, faces):
        ctx.save_for_backward(attributes, bary, triangle, faces)
        return native.interpolate(attributes, bary, triangle, faces)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_out):
        grads = native.interpolate_backward(*ctx.saved_tensors, grad_out.contiguous(), ctx.needs_input_grad[:2])
        return *grads, None, None


class _Antialias(torch.autograd.Function):
    """The kernels of antialias."""

    @staticmethod
    def forward(ctx, image, clip, depth, triangle, faces, edges):
        out, crossing, shift = native.antialias(image, depth, triangle, clip, faces, edges)
        ctx.save_for_backward(image, clip, faces, crossing, shift)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_out):
        grads = native.antialias_backward(*ctx.saved_tensors, grad_out.contiguous(), ctx.needs_input_grad[1])
        return *grads, None, None, None, None
