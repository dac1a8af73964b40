"""What all render paths share: the interface, rays against the box, colours of samples. N rays, M samples, B views."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nerf.core.errors import UserError
from nerf.core.shading import shade
from nerf.core.streams import Stream
from nerf.core.structs import FieldOutput, Points, Rays, RenderSettings, Samples, SurfaceState
from nerf.fields.base import Field
from nerf.mesh.tetrahedra import Surface

# Share of the rays of a view-dependent training batch that are shaded by their albedo alone, so that the diffuse colour,
# which export bakes and guidance looks at, is the best one that does not depend on the view.
DIFFUSE_SHARE = 1.0 / 16.0


@dataclass(frozen=True)
class Trace:
    """N rays through a field, before the background is put behind them."""

    color: Tensor  # [N, 3] sum of weight * colour
    opacity: Tensor  # [N]
    depth: Tensor  # [N] sum of weight * t
    normal: Tensor | None  # [N, 3] sum of weight * unit normal
    samples: Samples | None = None  # the three below: training only
    weights: Tensor | None = None  # [M]
    field: FieldOutput | None = None  # at the samples
    surface: SurfaceState | None = None  # of a path that has triangles; training only


class RenderPath(nn.Module, ABC):
    """A way to choose samples along rays and to add them up.

    Attributes:
        whole_images: it can only render rays that are whole images, all of them at once.
    """

    whole_images = False

    @abstractmethod
    def trace(self, field: Field, rays: Rays, settings: RenderSettings) -> Trace:
        """Render N rays, perturbed if ``settings.training``. Differentiable in the field's parameters."""

    def update(self, field: Field, generator: torch.Generator) -> None:
        """Look at the field again, for paths that remember where it is empty. Nothing to do for the others."""

    def param_groups(self) -> list[dict]:
        """Parameters of the path's own, with their learning rates; most have none."""
        return []

    def surface(self) -> Surface | None:
        """The triangles that the path shows, None for one that shows a density."""
        return None


def check_rays(rays: Rays) -> None:
    """Refuse rays that no path can render.

    Raises:
        ValueError: wrong shapes, or directions that are not of unit length (looked at on the CPU only).
    """
    n = rays.origins.shape[0]
    if rays.origins.shape != (n, 3) or rays.directions.shape != (n, 3):
        got = f"{list(rays.origins.shape)} and {list(rays.directions.shape)}"
        raise ValueError(f"render: expected origins [N, 3] and directions [N, 3], got {got}")
    if rays.view_index.shape != (n,):
        raise ValueError(f"render: expected view_index [{n}], got {list(rays.view_index.shape)}")
    if n and rays.directions.device.type == "cpu":
        off = float((rays.directions.detach().square().sum(-1) - 1.0).abs().max())
        if not off < 1e-3:
            raise ValueError(
                f"render: directions must have unit length, got one whose squared length is off by {off:.3g}; "
                "normalise them (depth is measured along unit rays)"
            )


def box(bound: float, like: Tensor) -> Tensor:
    """The box [-bound, bound]^3 as the six numbers that :func:`raymarching.near_far_from_aabb` takes."""
    corner = torch.full((3,), bound, device=like.device, dtype=like.dtype)  # made there: no copy to wait for
    return torch.cat([-corner, corner])


def points_at(samples: Samples, rays: Rays, settings: RenderSettings) -> Points:
    """The samples as points a field can be asked about, with what it may need to know of their rays."""
    return points_on(samples.positions, samples.ray_index, rays, settings)


def points_on(positions: Tensor, ray_index: Tensor, rays: Rays, settings: RenderSettings) -> Points:
    """Positions [M, 3], each on the ray of its index [M], as points a field can be asked about."""
    return Points(
        positions,
        rays.directions[ray_index] if settings.view_dependent else None,
        None if rays.image_index is None else rays.image_index[ray_index],
        None if rays.uv is None else rays.uv[ray_index],
    )


def lights(rays: Rays, settings: RenderSettings) -> Tensor:
    """Unit direction to the light for every ray [N, 3]: the light of its view, else towards the camera.

    Raises:
        ValueError: there are lights for fewer views than the rays belong to.
    """
    if settings.light is None:
        return -rays.directions
    light = settings.light.to(rays.directions)
    if light.ndim == 1:
        return light.expand(len(rays), 3)
    if rays.shape is not None and light.shape[0] < rays.shape[0]:
        raise ValueError(f"render: expected a light for each of {rays.shape[0]} views, got {light.shape[0]}")
    return light[rays.view_index]


def diffuse_rays(rays: Rays, settings: RenderSettings) -> Tensor | None:
    """Which rays [N] (bool) show the diffuse colour although the colours are view-dependent; None if none does."""
    if not (settings.training and settings.view_dependent):
        return None
    generator = settings.random.generator(Stream.DIFFUSE_RAYS, rays.origins.device)
    return torch.rand(len(rays), generator=generator, device=rays.origins.device) < DIFFUSE_SHARE


def sample_colours(output: FieldOutput, rays: Rays, settings: RenderSettings, ray_index: Tensor) -> Tensor:
    """Colour [M, 3] that each sample sends to its camera, under the shading that is asked for.

    Raises:
        UserError: view-dependent colour with a shading other than albedo: its light is in the photographs already.
    """
    if settings.shading == "albedo" and not settings.view_dependent:
        return output.albedo
    if settings.view_dependent:
        if settings.shading != "albedo":
            raise UserError(f"view-dependent colour: expected shading 'albedo', got {settings.shading!r}")
        diffuse = diffuse_rays(rays, settings)
        if diffuse is None:
            return output.rgb
        return torch.where(diffuse[ray_index, None], output.albedo, output.rgb)
    light = None if settings.shading == "normal" else lights(rays, settings)[ray_index]
    return shade(settings.shading, output.albedo, output.normal, light, settings.ambient)


def sample_values(output: FieldOutput, rays: Rays, settings: RenderSettings, ray_index: Tensor) -> Tensor:
    """What is blended along the rays: colour [M, 3], and behind it the normal [M, 3] where normals are computed."""
    colours = sample_colours(output, rays, settings, ray_index)
    return colours if output.normal is None else torch.cat([colours, output.normal], dim=-1)
