"""What all render paths share: the interface, rays against the box, colours of samples. N rays, M samples, B views."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nerf.core.coverage import Coverage
from nerf.core.errors import UserError
from nerf.core.shading import shade
from nerf.core.streams import Stream
from nerf.core.structs import (
    FieldOutput,
    Points,
    Rays,
    Record,
    RenderSettings,
    Samples,
    SurfaceState,
    Trace,
    join_records,
)
from nerf.fields.base import Field
from nerf.mesh.source import SourceMesh
from nerf.mesh.tetrahedra import Surface
from raymarching import near_far_from_aabb


@dataclass(frozen=True, kw_only=True)
class RaySums:
    """N rays composited through a field, before the background is added."""

    color: Tensor  # [N, 3] sum of weight * colour
    opacity: Tensor  # [N] sum of the weights
    depth: Tensor  # [N] sum of weight * t
    normal: Tensor | None = None  # [N, 3] sum of weight * unit normal
    extras: dict[str, Tensor] = field(default_factory=dict)  # name -> [N, C] sum of weight * extra output, or of the path
    trace: Trace | None = None  # training only, and only where rays are sampled
    surface: SurfaceState | None = None  # training only, and only where triangles are rasterised
    fits: Tensor | None = None  # bool [], on the device: no sample was dropped for lack of buffer space; None: none can be


class RenderPath(nn.Module, ABC):
    """A way to sample a field along rays, or to rasterise it.

    Attributes:
        whole_images: the path can only render rays that are whole images, all of them at once.
        samples_per_ray: samples of a ray that evaluation holds in memory at once; how many rays fit depends on it.
    """

    whole_images = False
    samples_per_ray = 64

    @abstractmethod
    def render(self, field: Field, rays: Rays, settings: RenderSettings) -> RaySums:
        """Composite N rays through the field.

        Args:
            field: evaluated at the samples.
            rays: N rays; unit directions.
            settings: with ``training``, samples are perturbed and a trace of them is returned.

        Returns:
            Sums along the rays; in training differentiable in the parameters of the field and of the path.
        """

    def update(self, field: Field, generator: torch.Generator) -> None:
        """Refresh what the path remembers about the field, such as its empty cells. By default nothing."""

    def cull(self, coverage: Coverage) -> None:
        """Leave out, from now on, what no photograph or one alone sees. By default nothing."""

    def affordable_rays(self, num_rays: int) -> int:
        """How many of ``num_rays`` random rays the next training part may have, 1 at least. By default all."""
        return num_rays

    def param_groups(self) -> list[dict[str, Any]]:
        """Optimiser groups (params, lr, name) of the path's own parameters. By default none."""
        return []

    def surface_extent(self, bound: float, density: float) -> float:
        """Half the side of a box around the origin, ``bound`` at most, outside of which the field has no such density."""
        return bound

    def surface(self) -> Surface | None:
        """The triangles that the path rasterises; None for a path that renders a volume."""
        return None

    def painted(self) -> tuple[SourceMesh, np.ndarray] | None:
        """The mesh of a file that is rendered unchanged, and the matrix [4, 4] from its space to the box. By default None."""
        return None

    def make_room(self, state: Mapping[str, Any]) -> None:
        """Take the shapes of a state that will be loaded, where they depend on what the path began with. By default nothing."""


def check_rays(rays: Rays) -> None:
    """Refuse N rays that no path can render.

    Raises:
        ValueError: wrong shapes, or directions that are not of unit length (checked on the CPU only).
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
    """The box [-bound, bound]^3 as [6] corner coordinates, the format of :func:`raymarching.near_far_from_aabb`.

    Device and dtype are those of ``like``.
    """
    corner = torch.full((3,), bound, device=like.device, dtype=like.dtype)  # filled on the device: no copy, no host sync
    return torch.cat([-corner, corner])


def near_far(rays: Rays, bound: float, settings: RenderSettings, min_near: float) -> tuple[Tensor, Tensor]:
    """Where N rays enter and leave :func:`shown_box`, [N] each, no nearer than ``min_near`` and their own near planes.

    Both are infinite where a ray has no part in the box; see :func:`raymarching.near_far_from_aabb`.
    """
    near, far = near_far_from_aabb(rays.origins, rays.directions, shown_box(bound, settings, rays.origins), min_near)
    if rays.near is None:
        return near, far
    near = torch.maximum(near, rays.near.to(near))
    hit = ~(near >= far)  # what is NaN stays so
    return torch.where(hit, near, torch.inf), torch.where(hit, far, torch.inf)


def shown_box(bound: float, settings: RenderSettings, like: Tensor) -> Tensor:
    """The part [6] of the box [-bound, bound]^3 that the settings show; see :func:`box`. Rays miss one without a volume."""
    whole = box(bound, like)
    if settings.crop is None:
        return whole
    crop = settings.crop.to(whole)
    low = torch.maximum(whole[:3], crop[:3])
    return torch.cat([low, torch.maximum(low, torch.minimum(whole[3:], crop[3:]))])


def points_at(samples: Samples, rays: Rays) -> Points:
    """M samples of N rays as points to query a field at; differentiable in origins and directions of the rays."""
    positions, index = samples.positions, samples.ray_index
    if rays.origins.requires_grad or rays.directions.requires_grad:
        positions = rays.origins[index] + samples.t[:, None] * rays.directions[index]
    return points_on(positions, index, rays)


def points_on(positions: Tensor, ray_index: Tensor, rays: Rays) -> Points:
    """Positions [M, 3] on the rays of index [M] as points to query a field at, with the attributes of their rays."""
    return Points(
        positions=positions,
        directions=rays.directions[ray_index],
        image_index=None if rays.image_index is None else rays.image_index[ray_index],
        uv=None if rays.uv is None else rays.uv[ray_index],
        appearance=None if rays.appearance is None else rays.appearance[ray_index],
    )


def lights(rays: Rays, settings: RenderSettings) -> Tensor:
    """Unit direction to the light for every ray [N, 3]: the light of its view, or the direction to the camera.

    Raises:
        ValueError: there are fewer lights than views.
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
    """Which rays (bool [N]) of a view-dependent training part show the diffuse colour; None if there are none.

    They make the diffuse colour, which export bakes and guidance sees, the best approximation that does not depend on the view;
    and the light of photographs what is explained by their appearance, not by the direction that each of them looks in.
    """
    if not (settings.training and settings.view_dependent):
        return None
    generator = settings.random.generator(Stream.DIFFUSE_RAYS, rays.origins.device)
    return torch.rand(len(rays), generator=generator, device=rays.origins.device) < settings.diffuse_share


def sample_colours(output: FieldOutput, rays: Rays, settings: RenderSettings, ray_index: Tensor) -> Tensor:
    """Colour [M, 3] that each sample emits towards its camera under the shading of the settings. Differentiable.

    Args:
        output: of the field at M samples.
        rays: N rays.
        settings: shading, lights and view dependence.
        ray_index: [M] int64, the ray of each sample.

    Raises:
        UserError: view-dependent colour with a shading other than albedo (the photographs include the light already).
        ValueError: the field did not compute a colour or a normal that the shading needs.
    """
    albedo = output.require("albedo")
    if settings.view_dependent:
        if settings.shading != "albedo":
            raise UserError(f"view-dependent colour: expected shading 'albedo', got {settings.shading!r}")
        diffuse, rgb = diffuse_rays(rays, settings), output.require("rgb")
        return rgb if diffuse is None else torch.where(diffuse[ray_index, None], albedo, rgb)
    if settings.shading == "albedo":
        return albedo
    light = None if settings.shading == "normal" else lights(rays, settings)[ray_index]
    return shade(settings.shading, albedo, output.normal, light, settings.ambient)


def recolored_sum(field: Field, trace: Trace, points: Points, rays: Rays, settings: RenderSettings, behind: Tensor) -> Tensor:
    """Colours [N, 3] of rendered rays in another appearance, over colours ``behind`` them [N, 3].

    Weights are those of the render, without gradients: an appearance moves no geometry. Differentiable in what colours alone
    depend on, in the appearance and in ``behind``.

    Args:
        field: whose samples they are.
        trace: of the render.
        points: the M samples, in the other appearance.
        rays: N rays, in it too.
        settings: of the render.
        behind: [N, 3].
    """
    index, weights = trace.samples.ray_index, trace.weights.detach()
    colours = sample_colours(field.recolored(trace.field, points, settings), rays, settings, index)
    sums = torch.zeros_like(behind).index_add(0, index, weights[:, None] * colours)
    opacity = torch.zeros_like(behind[:, 0]).index_add(0, index, weights)
    return sums + (1.0 - opacity)[:, None] * behind


def sample_values(output: FieldOutput, rays: Rays, settings: RenderSettings, ray_index: Tensor) -> Tensor:
    """Everything that is composited along the rays, side by side, [M, C]; see :func:`split_values`.

    Colour [M, 3], then the normal [M, 3] if the field computed one, then the extra outputs. The compositing kernels take
    up to 16 channels in all. Arguments as for :func:`sample_colours`.
    """
    values = [sample_colours(output, rays, settings, ray_index)]
    if output.normal is not None:
        values.append(output.normal)
    values += output.extras.values()
    return values[0] if len(values) == 1 else torch.cat(values, dim=-1)


def split_values(sums: Tensor, output: FieldOutput) -> tuple[Tensor, Tensor | None, dict[str, Tensor]]:
    """Take apart the sums [N, C] of what :func:`sample_values` made of ``output``.

    Returns:
        Colour [N, 3], normal [N, 3] or None, and the extra outputs, name -> [N, C].
    """
    end = 3 if output.normal is None else 6
    return sums[:, :3], None if output.normal is None else sums[:, 3:6], split_extras(sums[:, end:], output)


def split_extras(sums: Tensor, output: FieldOutput) -> dict[str, Tensor]:
    """Take apart the sums [N, C] of the extra outputs of ``output``, name -> [N, C of that output]."""
    if not output.extras:
        return {}
    parts = sums.split([value.shape[1] for value in output.extras.values()], dim=-1)
    return dict(zip(output.extras, parts, strict=True))


def mask_gradients(record: Record, keep: Tensor) -> Record:
    """A record with the same values whose gradients are zero unless ``keep`` holds.

    Args:
        record: any of the records of :mod:`nerf.core.structs`; every tensor that requires a gradient is masked, whatever
            its name.
        keep: bool [], on the device of the tensors. It is not read on the host.
    """

    def masked(values: list[Tensor]) -> Tensor:
        (value,) = values
        return _MaskedGradient.apply(value, keep) if value.requires_grad else value

    return join_records([record], masked)


class _MaskedGradient(torch.autograd.Function):
    """The identity, with a gradient that is zero (even where it is NaN) unless ``keep`` holds."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, keep: Tensor) -> Tensor:
        ctx.save_for_backward(keep)
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (keep,), (grad,) = ctx.saved_tensors, grads
        return torch.where(keep, grad, torch.zeros_like(grad)), None
