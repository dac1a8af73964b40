"""NeRFRenderer: field + render path + background, and the factory that builds all three. N rays, M points."""

from collections.abc import Callable
from dataclasses import fields

import torch
from torch import Tensor, nn

from nerf.config.config import Config
from nerf.config.stages import Stage
from nerf.core.errors import UserError
from nerf.core.structs import Rays, RenderOutput, RenderSettings, SceneInfo
from nerf.fields.base import Field
from nerf.mesh.tetrahedra import Surface
from nerf.network import VanillaField
from nerf.network_grid import GridField
from nerf.render.accelerated import AcceleratedPath
from nerf.render.background import Background, ConstantBackground, NetworkBackground, chosen_color
from nerf.render.base import RenderPath, Trace, check_rays
from nerf.render.dmtet import DMTetPath
from nerf.render.plain import PlainPath

BACKBONES: dict[str, type[Field]] = {"grid": GridField, "vanilla": VanillaField}


class NeRFRenderer(nn.Module):
    """Turns rays into pixels; everything it knows is in its state dict, the occupancy grid included.

    Args:
        field: what is at a point.
        background: what is behind everything, where the settings do not say it.
        path: how samples are chosen.
        max_ray_batch: rays rendered at once in evaluation.
    """

    def __init__(self, field: Field, background: Background, path: RenderPath, max_ray_batch: int = 4096):
        super().__init__()
        self.field, self.background, self.path = field, background, path
        self.max_ray_batch = max_ray_batch

    @property
    def bound(self) -> float:
        """Half the edge of the box the field lives in, scene units."""
        return self.field.bound

    def render(self, rays: Rays, settings: RenderSettings) -> RenderOutput:
        """Render N rays.

        Args:
            rays: unit directions; whole images or not.
            settings: shading, light, background, level, and whether this is training (perturbed samples, kept for the
                regularisers) or evaluation (middle of the steps, in chunks of rays).

        Returns:
            See :class:`RenderOutput`. Training is differentiable in the parameters of field and background, evaluation
            is not.
        """
        check_rays(rays)
        with torch.set_grad_enabled(settings.training and torch.is_grad_enabled()):
            return self._render(rays, settings)

    def _render(self, rays: Rays, settings: RenderSettings) -> RenderOutput:
        if settings.background is not None:
            behind = chosen_color(settings.background, rays)
        else:
            behind = self.background.color(rays, settings)
        if settings.training or self.path.whole_images or len(rays) <= self.max_ray_batch:
            trace = self.path.trace(self.field, rays, settings)
        else:
            trace = self._in_chunks(rays, settings)
        image = trace.color + (1.0 - trace.opacity)[:, None] * behind
        return RenderOutput(
            image,
            trace.opacity,
            trace.depth,
            trace.normal,
            behind,
            trace.samples,
            trace.weights,
            trace.field,
            rays.shape,
            trace.surface,
        )

    def _in_chunks(self, rays: Rays, settings: RenderSettings) -> Trace:
        """The rays of an evaluation, so many at a time."""
        starts = range(0, len(rays), self.max_ray_batch)
        traces = [self.path.trace(self.field, rays[i : i + self.max_ray_batch], settings) for i in starts]

        def joined(name: str) -> Tensor | None:
            pieces = [getattr(trace, name) for trace in traces]
            return None if pieces[0] is None else torch.cat(pieces)

        names = [f.name for f in fields(Trace) if f.name not in ("samples", "weights", "field", "surface")]
        return Trace(**{name: joined(name) for name in names})

    def update_occupancy(self, generator: torch.Generator) -> None:
        """Let the path look at the field again (every ``--update_extra_interval`` steps, from step 0 on)."""
        self.path.update(self.field, generator)

    def density(self, positions: Tensor) -> Tensor:
        """Density [M] at positions [M, 3], all levels on, without gradients: what export extracts the surface from."""
        with torch.no_grad():
            return self.field.density(positions)

    def albedo(self, positions: Tensor) -> Tensor:
        """Diffuse colour [M, 3] in [0, 1] at positions [M, 3], without gradients: what export bakes."""
        with torch.no_grad():
            return self.field.albedo(positions)

    def surface(self) -> Surface | None:
        """The triangles of a mesh stage as they are now, without gradients; None where the object is a density."""
        with torch.no_grad():
            return self.path.surface()

    def param_groups(self, lr: float) -> list[dict]:
        """Parameters of field, background and path with their learning rates, as an optimiser wants them."""
        return self.field.param_groups(lr) + self.background.param_groups(lr) + self.path.param_groups()


def make_dmtet_path(config: Config, field: Field) -> RenderPath:
    """Triangles of a tetrahedral grid, rasterised."""
    render, mesh = config.render, config.dmtet
    rates = {"distance": mesh.lr_distance, "offset": mesh.lr_offset, "lattices": mesh.lr_coarse_sdf}
    return DMTetPath(field.bound, mesh.tet_grid_size, render.min_near, rates, mesh.lock_geo, mesh.coarse_sdf_grids)


def make_volume_path(config: Config, field: Field) -> RenderPath:
    """Samples along rays: accelerated with ``--cuda_ray``, else plain."""
    render = config.render
    if render.cuda_ray:
        return AcceleratedPath(
            field.bound,
            render.grid_size,
            config.field.density_thresh,
            render.max_steps,
            render.dt_gamma,
            render.min_near,
        )
    return PlainPath(render.num_steps, render.upsample_steps, render.min_near)


PATHS: dict[str, Callable[[Config, Field], RenderPath]] = {"volume": make_volume_path, "dmtet": make_dmtet_path}


def build_model(stage: Stage, scene: SceneInfo) -> NeRFRenderer:
    """Field, path and background of a stage.

    Args:
        stage: with its options.
        scene: what is known of the scene before training.

    Raises:
        UserError: a backbone that does not exist.
    """
    config = stage.config
    backbone = config.field.backbone
    if backbone not in BACKBONES:
        raise UserError(f"--backbone must be one of {', '.join(BACKBONES)}, got {backbone!r}")
    background = NetworkBackground() if config.field.bg_radius > 0 else ConstantBackground()
    field = BACKBONES[backbone](config.field)
    path = PATHS[stage.kind.render_path](config, field)
    return NeRFRenderer(field, background, path, config.render.max_ray_batch)
