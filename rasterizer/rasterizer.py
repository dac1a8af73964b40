"""Rasterisation, interpolation and antialiasing of triangle meshes, each differentiable once.

Letters: B views, V vertices, T triangles, H x W pixels, C channels.
"""

import torch
from torch import Tensor

from extension import Arguments, implementation, register
from rasterizer import checks, native, reference
from rasterizer.raster import Raster


def rasterize(clip: Tensor, faces: Tensor, height: int, width: int, cull_back: bool = False) -> Raster:
    """Find the nearest triangle at each pixel centre, with the weights of its corners.

    Both sides of a triangle are visible, unless back faces are culled. A centre on an edge belongs to the triangle of
    which it is a top or left edge, so triangles that share an edge share no pixel and leave none out; at equal depth
    the lowest index is visible. Only what lies in front of the eye and within the near and far planes is drawn;
    triangles may cross those planes. A triangle that is degenerate or has a corner that is not finite draws nothing.
    The decisions are made in float64.

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
        fits = isinstance(size, int) and 0 < size <= checks.MAX_SIZE
        args.require(fits, f"{name} must be a whole number from 1 to {checks.MAX_SIZE}, got {size}")
    if len(clip) == 0 or len(faces) == 0:
        shape = (len(clip), height, width)
        zero = clip.sum() * 0  # keeps the graph, so that a loss of an empty image can be differentiated
        depth = torch.ones(shape, dtype=clip.dtype, device=clip.device) + zero
        triangle = torch.full(shape, -1, dtype=torch.int32, device=clip.device)
        return Raster(torch.zeros(*shape, 2, dtype=clip.dtype, device=clip.device) + zero, depth, triangle)
    return Raster(*implementation("rasterizer.rasterize", clip)(clip, faces, height, width, cull_back))


def interpolate(attributes: Tensor, raster: Raster, faces: Tensor) -> Tensor:
    """Interpolate values that are given at the vertices, at each pixel.

    Args:
        attributes: [B or 1, V, C] in the dtype of the raster (half precision is promoted to it under autocast).
        raster: of :func:`rasterize`.
        faces: [T, 3] as given there.

    Returns:
        [B, H, W, C]; 0 where the raster is empty.

    Differentiable once, in attributes and in ``raster.bary``; sums over pixels as in :func:`rasterize`.
    Reference: :func:`rasterizer.reference.interpolate`.
    """
    args = Arguments("interpolate")
    bary, _, triangle = checks.raster(args, raster)
    attributes = args.floats("attributes", _promoted(attributes, bary), "B or 1", "V", "C")
    faces = checks.triangles(args, faces)
    one_or_all = len(attributes) in (1, len(bary))
    args.require(one_or_all, f"expected attributes of 1 or B = {len(bary)} views, got {len(attributes)}")
    if len(faces) == 0 or bary.numel() == 0 or attributes.numel() == 0:
        return reference.interpolate(attributes, bary, triangle, faces)
    values: Tensor = implementation("rasterizer.interpolate", bary)(attributes, bary, triangle, faces)
    return values


def antialias(image: Tensor, raster: Raster, clip: Tensor, faces: Tensor, edges: Tensor | None = None) -> Tensor:
    """Blend the pixels at silhouettes by the fraction of them that the silhouette cuts off.

    Where neighbouring pixels show different triangles, the mesh is followed from the nearer one to the silhouette edge
    that passes between their centres (an edge with one face, or with two that lie on the same side of it as seen from
    the eye). The pixel in which it passes gets the other's value in proportion to how far from the middle between
    them it passes; so the image is a continuous function of where silhouettes lie. Horizontal pairs first, then vertical
    ones. Every value stays between the smallest and the largest of the image. Geometry thinner than a pixel that covers
    no centre is invisible, and so is a silhouette beyond the centres of the outermost pixels.

    Args:
        image: [B, H, W, C], shaded; in the dtype of clip (half precision is promoted to it under autocast).
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
    image = args.floats("image", _promoted(image, clip), "B", "H", "W", "C")
    faces = checks.triangles(args, faces)
    edges = edge_adjacency(faces) if edges is None else args.integers("edges", edges, torch.int32, "T", 3)
    if len(faces) == 0 or image.numel() == 0:
        return image + clip.sum() * 0
    run = implementation("rasterizer.antialias", clip)
    blended: Tensor = run(image, depth.detach(), triangle, clip, faces, edges)
    return blended


@torch.no_grad()
def edge_adjacency(faces: Tensor) -> Tensor:
    """The opposite half edge of each half edge of a mesh; half edge 3 t + k is the edge of triangle t opposite its corner k.

    Args:
        faces: [T, 3] int32 or int64.

    Returns:
        [T, 3] int32: the opposite half edge; -1 at a boundary (no other triangle has the edge), -2 where several have it.

    Reference: :func:`rasterizer.reference.edge_adjacency`.
    """
    faces = checks.triangles(Arguments("edge_adjacency"), faces)
    if len(faces) == 0:
        return reference.edge_adjacency(faces)
    edges: Tensor = implementation("rasterizer.edge_adjacency", faces)(faces)
    return edges


def _promoted(value: Tensor, like: Tensor) -> Tensor:
    """Half precision promoted to the dtype of ``like`` under autocast, as autocast does for float32 operations."""
    half = isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16)
    return value.to(like.dtype) if half and torch.is_autocast_enabled(value.device.type) else value


register("rasterizer.rasterize", native=native.Rasterize.apply, torch=reference.rasterize)
register("rasterizer.interpolate", native=native.Interpolate.apply, torch=reference.interpolate)
register("rasterizer.antialias", native=native.Antialias.apply, torch=reference.antialias)
# On CUDA half edges are paired by sorting, and torch's sort is a kernel already.
register("rasterizer.edge_adjacency", cpu=native.edge_adjacency, cuda=reference.edge_adjacency, torch=reference.edge_adjacency)
