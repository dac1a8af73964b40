"""Shading: the colour of a point from albedo, normal and light. M points."""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from nerf.core.structs import SHADINGS, Shading

# The light in which objects are shown to people, in the axes of the camera (x right, y up, z towards it): from the left and a
# little above, so that relief shows, and with the camera, so that no side is dark, the underside from below neither.
SHOW_LIGHT, SHOW_AMBIENT = (-0.4, 0.35, 1.0), 0.4


def diffuse_factor(normal: Tensor, light: Tensor, ambient: float) -> Tensor:
    """Lambert's factor ``ambient + (1 - ambient) * max(0, normal . light)``.

    Args:
        normal: [M, 3] unit outward normals.
        light: [M, 3] or [3] unit directions from the surface to the light.
        ambient: ambient ratio, in [0, 1].

    Returns:
        [M, 1] in [0, 1]; differentiable in ``normal``.
    """
    return ambient + (1.0 - ambient) * (normal * light).sum(-1, keepdim=True).clamp(min=0.0)


def shade(
    shading: Shading, albedo: Tensor, normal: Tensor | None = None, light: Tensor | None = None, ambient: float = 1.0
) -> Tensor:
    """Colour that points emit towards the camera (DreamFusion, eq. 6 and the textureless variant after it).

    Args:
        shading: "albedo" (the colour itself), "lambertian" (lit colour), "textureless" (lit grey) or "normal" (mapped
            from [-1, 1] to [0, 1]).
        albedo: [M, 3] in [0, 1].
        normal: [M, 3] unit outward normals; every shading but "albedo" needs them.
        light: [M, 3] or [3] unit directions to the light; "lambertian" and "textureless" need it.
        ambient: ambient ratio in [0, 1]; at 1 the light does not matter.

    Returns:
        [M, 3] in [0, 1]; differentiable in albedo and normal.

    Raises:
        ValueError: unknown shading, or a missing normal or light.
    """
    if shading not in SHADINGS:
        raise ValueError(f"shade: expected one of {', '.join(SHADINGS)}, got {shading!r}")
    if shading == "albedo":
        return albedo
    if normal is None:
        raise ValueError(f"shade: shading {shading!r} needs normals and got none; render with need_normals")
    if shading == "normal":
        return 0.5 * (normal + 1.0)
    if light is None:
        raise ValueError(f"shade: shading {shading!r} needs a light direction and got none")
    factor = diffuse_factor(normal, light, ambient)
    return albedo * factor if shading == "lambertian" else factor.expand_as(albedo)


def lit(albedo: Tensor, normal: Tensor, light: Tensor, ambient: float) -> Tensor:
    """Lambertian colour [..., 3] of albedo and unit normals [..., 3] under a light of direction [3], of any length."""
    shape = albedo.shape
    return shade("lambertian", albedo.reshape(-1, 3), normal.reshape(-1, 3), normalize(light, dim=0), ambient).reshape(shape)


def show_lights(pose: Tensor) -> Tensor:
    """Unit directions [B, 3] of :data:`SHOW_LIGHT` in the world, for cameras of poses [B, 3 or 4, 4]."""
    return normalize(pose[:, :3, :3] @ torch.tensor(SHOW_LIGHT).to(pose), dim=-1)
