"""The native implementations: parameter structs as the headers in src/ define them, calls, and autograd functions.

Letters: B views, V vertices, T triangles, H x W pixels, C channels.
"""

import ctypes
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

import extension
from extension import Function

RasterParams = extension.struct(
    "RasterParams",
    "clip faces bary depth triangle nearest grad_bary grad_depth grad_clip",
    "views vertices triangles height width cull_back",
)
InterpolateParams = extension.struct(
    "InterpolateParams",
    "attributes faces bary triangle out grad_out grad_attributes grad_bary",
    "views vertices triangles channels height width shared",
)
AntialiasParams = extension.struct(
    "AntialiasParams",
    "image clip depth triangle faces edges facing smooth crossing shift out grad_out grad_image grad_clip",
    "views vertices triangles height width channels",
)


def run(name: str, kind: type[ctypes.Structure], like: Tensor, **values: Tensor | int | None) -> None:
    """Fill a parameter struct and run a kernel on the device and in the dtype of ``like``."""
    params = extension.fill(kind, **values)
    extension.kernel("rasterizer", name, like.device)(ctypes.byref(params), extension.dtype_code(like))


def rasterize(clip: Tensor, faces: Tensor, height: int, width: int, cull_back: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Weights [B, H, W, 2], depth [B, H, W] and triangle [B, H, W] int32 of what is visible at each pixel."""
    views, vertices = clip.shape[:2]
    bary, depth = clip.new_empty(views, height, width, 2), clip.new_empty(views, height, width)
    triangle = torch.empty(views, height, width, dtype=torch.int32, device=clip.device)
    nearest = torch.empty(triangle.shape, dtype=torch.int64, device=clip.device) if clip.is_cuda else None
    run(
        "rasterize", RasterParams, clip, clip=clip, faces=faces, bary=bary, depth=depth, triangle=triangle,
        nearest=nearest, views=views, vertices=vertices, triangles=len(faces), height=height, width=width,
        cull_back=int(cull_back),
    )  # fmt: skip
    return bary, depth, triangle


def rasterize_backward(clip: Tensor, faces: Tensor, triangle: Tensor, grad_bary: Tensor, grad_depth: Tensor | None) -> Tensor:
    """Gradient of clip [B, V, 4]."""
    grad_clip = torch.zeros_like(clip)
    views, height, width = triangle.shape
    run(
        "rasterize_backward", RasterParams, clip, clip=clip, faces=faces, triangle=triangle, grad_bary=grad_bary,
        grad_depth=grad_depth, grad_clip=grad_clip, views=views, vertices=clip.shape[1], triangles=len(faces),
        height=height, width=width, cull_back=0,
    )  # fmt: skip
    return grad_clip


def _interpolation(attributes: Tensor, triangle: Tensor, faces: Tensor) -> dict[str, int]:
    """The sizes of InterpolateParams."""
    views, height, width = triangle.shape
    sizes = {"views": views, "height": height, "width": width, "vertices": attributes.shape[1]}
    return sizes | {"triangles": len(faces), "channels": attributes.shape[2], "shared": int(len(attributes) == 1)}


def interpolate(attributes: Tensor, bary: Tensor, triangle: Tensor, faces: Tensor) -> Tensor:
    """Attributes [B or 1, V, C] at each pixel, [B, H, W, C]."""
    out = attributes.new_empty(*triangle.shape, attributes.shape[2])
    run(
        "interpolate", InterpolateParams, attributes, attributes=attributes, faces=faces, bary=bary, triangle=triangle,
        out=out, **_interpolation(attributes, triangle, faces),
    )  # fmt: skip
    return out


def interpolate_backward(
    attributes: Tensor, bary: Tensor, triangle: Tensor, faces: Tensor, grad_out: Tensor, needs: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of attributes [B or 1, V, C] and bary [B, H, W, 2], each where it is needed."""
    grad_attributes = torch.zeros_like(attributes) if needs[0] else None
    grad_bary = torch.empty_like(bary) if needs[1] else None
    run(
        "interpolate_backward", InterpolateParams, attributes, attributes=attributes, faces=faces, bary=bary,
        triangle=triangle, grad_out=grad_out, grad_attributes=grad_attributes, grad_bary=grad_bary,
        **_interpolation(attributes, triangle, faces),
    )  # fmt: skip
    return grad_attributes, grad_bary


def _antialiasing(image: Tensor, clip: Tensor, faces: Tensor) -> dict[str, int]:
    """The sizes of AntialiasParams."""
    views, height, width, channels = image.shape
    sizes = {"views": views, "height": height, "width": width, "channels": channels}
    return sizes | {"vertices": clip.shape[1], "triangles": len(faces)}


def antialias(
    image: Tensor, depth: Tensor, triangle: Tensor, clip: Tensor, faces: Tensor, edges: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The blended image [B, H, W, C]; and for the backward crossing and shift, [2, B, H, W] each."""
    out, shift = torch.empty_like(image), image.new_empty(2, *triangle.shape)
    crossing = torch.empty(2, *triangle.shape, dtype=torch.int32, device=image.device)
    facing = torch.empty(len(clip), len(faces), dtype=torch.int8, device=image.device)
    smooth = torch.empty(len(clip), len(faces), 3, dtype=torch.int32, device=image.device)
    run(
        "antialias", AntialiasParams, image, image=image, clip=clip, depth=depth, triangle=triangle, faces=faces,
        edges=edges, facing=facing, smooth=smooth, crossing=crossing, shift=shift, out=out,
        **_antialiasing(image, clip, faces),
    )  # fmt: skip
    return out, crossing, shift


def antialias_backward(
    image: Tensor, clip: Tensor, faces: Tensor, crossing: Tensor, shift: Tensor, grad_out: Tensor, needs_clip: bool
) -> tuple[Tensor, Tensor | None]:
    """Gradients of image [B, H, W, C] and, with ``needs_clip``, of clip [B, V, 4]."""
    grad_image = torch.empty_like(image)
    grad_clip = torch.zeros_like(clip) if needs_clip else None
    run(
        "antialias_backward", AntialiasParams, image, image=image, clip=clip, faces=faces,
        crossing=crossing, shift=shift, grad_out=grad_out, grad_image=grad_image, grad_clip=grad_clip,
        **_antialiasing(image, clip, faces),
    )  # fmt: skip
    return grad_image, grad_clip


def edge_adjacency(faces: Tensor) -> Tensor:
    """The opposite half edge of each half edge of faces [T, 3], [T, 3] int32; on the CPU."""
    vertices = int(faces.max()) + 1
    edges = torch.empty_like(faces)
    extension.kernel("rasterizer", "edge_adjacency", faces.device)(faces, edges, len(faces), vertices)
    return edges


# ---- Autograd functions ----


class Rasterize(Function):
    """The kernels of :func:`rasterizer.rasterize`."""

    @staticmethod
    def forward(
        ctx: Any, clip: Tensor, faces: Tensor, height: int, width: int, cull_back: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """bary [B, H, W, 2], depth [B, H, W] and triangle [B, H, W]."""
        bary, depth, triangle = rasterize(clip, faces, height, width, cull_back)
        ctx.save_for_backward(clip, faces, triangle)
        ctx.mark_non_differentiable(triangle)
        ctx.set_materialize_grads(False)
        return bary, depth, triangle

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_bary: Tensor | None, grad_depth: Tensor | None, _: None
    ) -> tuple[Tensor | None, None, None, None, None]:
        """Gradient of clip."""
        clip, faces, triangle = ctx.saved_tensors
        if grad_bary is None and grad_depth is None:
            return None, None, None, None, None
        grad_bary = clip.new_zeros(*triangle.shape, 2) if grad_bary is None else grad_bary.contiguous()
        grad_depth = None if grad_depth is None else grad_depth.contiguous()
        return rasterize_backward(clip, faces, triangle, grad_bary, grad_depth), None, None, None, None


class Interpolate(Function):
    """The kernels of :func:`rasterizer.interpolate`."""

    @staticmethod
    def forward(ctx: Any, attributes: Tensor, bary: Tensor, triangle: Tensor, faces: Tensor) -> Tensor:
        """[B, H, W, C]."""
        ctx.save_for_backward(attributes, bary, triangle, faces)
        return interpolate(attributes, bary, triangle, faces)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        """Gradients of attributes and bary."""
        attributes, bary, triangle, faces = ctx.saved_tensors
        needs = ctx.needs_input_grad[:2]
        return *interpolate_backward(attributes, bary, triangle, faces, grad_out.contiguous(), needs), None, None


class Antialias(Function):
    """The kernels of :func:`rasterizer.antialias`."""

    @staticmethod
    def forward(ctx: Any, image: Tensor, depth: Tensor, triangle: Tensor, clip: Tensor, faces: Tensor, edges: Tensor) -> Tensor:
        """[B, H, W, C]."""
        out, crossing, shift = antialias(image, depth, triangle, clip, faces, edges)
        ctx.save_for_backward(image, clip, faces, crossing, shift)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor, None, None, Tensor | None, None, None]:
        """Gradients of image and clip."""
        image, clip, faces, crossing, shift = ctx.saved_tensors
        grad_image, grad_clip = antialias_backward(
            image, clip, faces, crossing, shift, grad_out.contiguous(), ctx.needs_input_grad[3]
        )
        return grad_image, None, None, grad_clip, None, None
