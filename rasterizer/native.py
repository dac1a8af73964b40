"""The C side of the kernels: parameter structs as the headers in src/ define them, and the calls."""

import ctypes

import torch
from torch import Tensor

import extension

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
    """Weights [B, H, W, 2], depth [B, H, W] and triangle [B, H, W] int32 of what each pixel sees."""
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
    """What each pixel sees of the attributes, [B, H, W, C]."""
    out = attributes.new_empty(*triangle.shape, attributes.shape[2])
    run(
        "interpolate", InterpolateParams, attributes, attributes=attributes, faces=faces, bary=bary, triangle=triangle,
        out=out, **_interpolation(attributes, triangle, faces),
    )  # fmt: skip
    return out


def interpolate_backward(
    attributes: Tensor, bary: Tensor, triangle: Tensor, faces: Tensor, grad_out: Tensor, needs: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of attributes and bary, each where it is needed."""
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
    image: Tensor, clip: Tensor, faces: Tensor, crossing: Tensor, shift: Tensor, grad_out: Tensor, to_clip: bool
) -> tuple[Tensor, Tensor | None]:
    """Gradients of image and, if needed, clip."""
    grad_image = torch.empty_like(image)
    grad_clip = torch.zeros_like(clip) if to_clip else None
    run(
        "antialias_backward", AntialiasParams, image, image=image, clip=clip, faces=faces,
        crossing=crossing, shift=shift, grad_out=grad_out, grad_image=grad_image, grad_clip=grad_clip,
        **_antialiasing(image, clip, faces),
    )  # fmt: skip
    return grad_image, grad_clip


def edge_adjacency(faces: Tensor, vertices: int) -> Tensor:
    """The other half of each half edge, [T, 3] int32; on the CPU."""
    edges = torch.empty_like(faces)
    extension.kernel("rasterizer", "edge_adjacency", faces.device)(faces, edges, len(faces), vertices)
    return edges
