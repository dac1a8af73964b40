"""NeRFRenderer: field + render path + background, and the factory that builds all three. N rays, M points."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from nerf.config.config import Config
from nerf.config.groups import FieldConfig
from nerf.config.parser import check_choice
from nerf.config.stages import Stage
from nerf.core.progress import track
from nerf.core.structs import AppearanceCodes, LevelSet, Rays, RenderOutput, RenderSettings, SceneInfo, join_records
from nerf.fields import tcnn
from nerf.fields.appearance import Appearance
from nerf.fields.base import Field
from nerf.mesh.tetrahedra import Surface
from nerf.network import VanillaField
from nerf.network_grid import GridField
from nerf.network_grid_taichi import TaichiField
from nerf.network_grid_taichi import check_device as check_taichi
from nerf.network_grid_tcnn import TcnnField
from nerf.network_sdf import SdfField
from nerf.network_sdf_vanilla import VanillaSdfField
from nerf.render.accelerated import AcceleratedPath
from nerf.render.background import Background, Behind, ConstantBackground, NetworkBackground, background_kind, chosen_color
from nerf.render.base import RenderPath, box, check_rays, mask_gradients, points_at, recolored_sum
from nerf.render.contracted import ContractedBackground, field_options
from nerf.render.dmtet import DMTetPath
from nerf.render.plain import PlainPath
from nerf.render.triangles import FixedMeshPath
from raymarching import near_far_from_aabb

# Rays at once outside training, where --max_ray_batch does not say. A GPU needs many samples at a time, and each chunk costs it
# a few waits: 2^21 samples with 64 hidden units take about 1.5 GB (computed, not measured). That is 2^18 rays of the
# accelerated path, so that a frame of 800 x 800 is 3 chunks and not 157.
RAY_BATCH, GPU_SAMPLES = 4096, 1 << 21


class NeRFRenderer(nn.Module):
    """Renders rays; everything a render depends on is in its state dict, the occupancy grid included.

    Args:
        field: geometry and colour of the object.
        background: colour behind the object, where the render settings do not prescribe one.
        path: how the field is sampled along rays.
        max_ray_batch: rays rendered at once in evaluation; 0: as many as suit the device and the path.
        appearance: of the photographs, whose light colours depend on; None: they depend on none.
    """

    def __init__(
        self,
        field: Field,
        background: Background,
        path: RenderPath,
        max_ray_batch: int = 0,
        appearance: Appearance | None = None,
    ):
        super().__init__()
        self.field, self.background, self.path = field, background, path
        self.max_ray_batch, self.appearance = max_ray_batch, appearance

    @property
    def bound(self) -> float:
        """Half the edge of the object's box, scene units."""
        return self.field.bound

    def render(self, rays: Rays, settings: RenderSettings) -> RenderOutput:
        """Render N rays.

        Args:
            rays: unit directions; whole images or not.
            settings: shading, lights, background and levels, and whether this is training (perturbed samples, a trace
                for the regularisers) or evaluation (centred samples, in chunks of rays).

        Returns:
            See :class:`RenderOutput`. Training is differentiable in the parameters of field, background and path,
            evaluation is not. Where a path had to drop samples, all gradients of the output are zero.

        Raises:
            ValueError: rays, lights or backgrounds of the wrong shape.
        """
        check_rays(rays)
        rays = self._seen(rays, settings)
        with torch.set_grad_enabled(settings.training and torch.is_grad_enabled()):
            behind = None if settings.background is None else chosen_color(settings.background, rays)
            size = self.ray_batch(rays.origins.device)
            if settings.training or self.path.whole_images or len(rays) <= size:
                return self._render(rays, behind, settings)
            chunks = []
            for i in track(range(0, len(rays), size), "rendering a view"):
                chosen = slice(i, i + size)
                chunks.append(self._render(rays[chosen], None if behind is None else behind[chosen], settings))
            return replace(join_records(chunks, torch.cat), shape=rays.shape)

    def _seen(self, rays: Rays, settings: RenderSettings) -> Rays:
        """The rays with their appearance: the given one, in training that of their photographs, else the shown one."""
        if self.appearance is None or rays.appearance is not None:
            return rays
        if settings.appearance is not None:
            given = settings.appearance.to(rays.directions)
            codes = AppearanceCodes(given[None]) if given.ndim == 1 else AppearanceCodes(given, rays.view_index)
            return replace(rays, appearance=codes)
        if settings.training and rays.image_index is not None:
            return replace(rays, appearance=self.appearance.codes(rays))
        return replace(rays, appearance=self._shown())

    def _shown(self) -> AppearanceCodes | None:
        """The appearance in which the scene is shown."""
        return None if self.appearance is None else AppearanceCodes(self.appearance.shown()[None])

    def ray_batch(self, device: torch.device) -> int:
        """Rays that are rendered at once in evaluation on this device."""
        if self.max_ray_batch or device.type == "cpu":
            return self.max_ray_batch or RAY_BATCH
        return max(RAY_BATCH, GPU_SAMPLES // self.path.samples_per_ray)

    def _render(self, rays: Rays, behind: Tensor | None, settings: RenderSettings) -> RenderOutput:
        """Render N rays at once over the colours ``behind`` [N, 3], or over the background model."""
        sums = self.path.render(self.field, rays, settings)
        back = self._render_background(rays, settings, sums.opacity.detach()) if behind is None else Behind(color=behind)
        output = RenderOutput(
            image=sums.color + (1.0 - sums.opacity)[:, None] * back.color,
            opacity=sums.opacity,
            depth=sums.depth,
            normal=sums.normal,
            background=back.color,
            behind_opacity=back.opacity,
            behind_depth=back.depth,
            behind_trace=back.trace,
            extras=sums.extras,
            appearance=rays.appearance if settings.training else None,
            trace=sums.trace,
            surface=sums.surface,
            shape=rays.shape,
        )
        return output if sums.fits is None else mask_gradients(output, sums.fits)

    def _render_background(self, rays: Rays, settings: RenderSettings, front: Tensor) -> Behind:
        """The background model behind a scene of opacity ``front`` [N]."""
        _, far = near_far_from_aabb(rays.origins, rays.directions, box(self.bound, rays.origins), min_near=0.0)
        near = torch.where(far.isfinite(), far, torch.zeros_like(far))
        if rays.near is not None:
            near = torch.maximum(near, rays.near.to(near))
        return self.background.behind(rays, near, settings, front)

    def recolored(self, rays: Rays, out: RenderOutput, settings: RenderSettings) -> Tensor:
        """Colours [N, 3] of a training render in another appearance; see :func:`nerf.render.base.recolored_sum`.

        Args:
            rays: the N rays, in the other appearance.
            out: what was rendered of them, with its trace.
            settings: of that render.

        Raises:
            ValueError: the render has no trace.
        """
        if out.trace is None:
            raise ValueError("NeRFRenderer.recolored: expected a render in training, which has a trace")
        behind = out.background
        if settings.background is None:
            behind = self.background.recolored(rays, out.behind_trace, settings)
        return recolored_sum(self.field, out.trace, points_at(out.trace.samples, rays), rays, settings, behind)

    def begin_step(self, fraction: float) -> None:
        """Set what follows the training progress in [0, 1] and is no parameter; before the first part of every step."""
        self.field.begin_step(fraction)

    def update_occupancy(self, generator: torch.Generator) -> None:
        """Refresh the occupancy grids of path and background, every ``--update_extra_interval`` steps from step 0 on."""
        self.path.update(self.field, generator)
        self.background.update(generator)

    def level_set(self, threshold: float) -> LevelSet:
        """The field's surface with all encoder levels active, for mesh extraction; see :meth:`Field.level_set`."""
        return self.field.level_set(threshold)

    def albedo(self, positions: Tensor) -> Tensor:
        """Diffuse colour [M, 3] in [0, 1] at positions [M, 3], without gradients, for baking textures."""
        with torch.no_grad():
            return self.field.albedo(positions, self._shown())

    def surface(self) -> Surface | None:
        """The current triangles of a mesh stage, without gradients; None where the object is a volume."""
        with torch.no_grad():
            return self.path.surface()

    def with_path(self, path: RenderPath) -> "NeRFRenderer":
        """The same field, background and appearance, rendered along another path; the weights are shared."""
        return NeRFRenderer(self.field, self.background, path, self.max_ray_batch, self.appearance)

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        """Optimiser groups (params, lr, name) of field, background and path.

        Args:
            lr: base learning rate of field and background; paths have rates of their own.
        """
        groups = self.field.param_groups(lr) + self.background.param_groups(lr) + self.path.param_groups()
        return groups if self.appearance is None else groups + self.appearance.param_groups(lr)


def make_dmtet_path(config: Config, field: Field) -> RenderPath:
    """The mesh path: marching tetrahedra, rasterised, or the triangles of a mesh file that is painted."""
    render, mesh = config.render, config.dmtet
    if config.painted:
        return FixedMeshPath(field.bound, render.min_near)
    rates = {"distance": mesh.lr_distance, "offset": mesh.lr_offset, "coarse_sdf": mesh.lr_coarse_sdf}
    return DMTetPath(field.bound, mesh.tet_grid_size, render.min_near, rates, mesh.lock_geo, mesh.coarse_sdf_grids)


def make_volume_path(config: Config, field: Field) -> RenderPath:
    """The path that samples along rays: accelerated with ``--cuda_ray`` or ``--taichi_ray``, plain otherwise."""
    render = config.render
    if render.cuda_ray:
        return AcceleratedPath(
            field.bound,
            render.grid_size,
            config.field.density_thresh,
            render.max_steps,
            render.dt_gamma,
            render.min_near,
            backend="taichi" if render.taichi_ray else None,
        )
    return PlainPath(render.num_steps, render.upsample_steps, render.min_near)


# What a model is built from, by name: --backbone, --background, and StageKind.render_path.
FIELDS: dict[str, Callable[[FieldConfig, SceneInfo], Field]] = {
    "grid": GridField,
    "vanilla": VanillaField,
    "grid_tcnn": TcnnField,
    "grid_taichi": TaichiField,
    "sdf": SdfField,
    "sdf_vanilla": VanillaSdfField,
}
# What a backbone needs of the machine, if anything: called with the name of the device, it refuses one that will not do.
FIELD_NEEDS: dict[str, Callable[[str], None]] = {"grid_tcnn": tcnn.check_device, "grid_taichi": check_taichi}
BACKGROUNDS: dict[str, Callable[[FieldConfig, SceneInfo], Background]] = {
    "constant": lambda config, scene: ConstantBackground(),
    "network": lambda config, scene: NetworkBackground(appearance=scene.appearance),
    "contracted": lambda config, scene: ContractedBackground(
        GridField(field_options(config), SceneInfo(appearance=scene.appearance, local_light=scene.local_light)),
        scene.bound,
        config.background_lr,
    ),
}
PATHS: dict[str, Callable[[Config, Field], RenderPath]] = {"volume": make_volume_path, "dmtet": make_dmtet_path}


def check_names(config: FieldConfig) -> None:
    """Refuse a backbone or a background that is not registered.

    Raises:
        UserError: with the names that are.
    """
    check_choice("--backbone", config.backbone, FIELDS)
    if config.background != "auto":
        check_choice("--background", config.background, ("auto", *BACKGROUNDS))


def check_machine(config: FieldConfig, device: str) -> None:
    """Refuse a backbone that this machine cannot run.

    Args:
        device: name of the one that computes.

    Raises:
        UserError: with what it needs, and what to take instead.
    """
    FIELD_NEEDS.get(config.backbone, lambda device: None)(device)


def build_model(stage: Stage, scene: SceneInfo) -> NeRFRenderer:
    """Build field, background and path of a stage by their names in ``FIELDS``, ``BACKGROUNDS`` and ``PATHS``.

    Args:
        stage: with its options.
        scene: what is known about the scene before training.

    Raises:
        UserError: there is no such backbone or background.
    """
    config = stage.config
    options, background, wild = config.field, background_kind(config.field, scene), config.wild
    if scene.pictures is not None and wild.appearance != "none":
        scene = replace(scene, appearance=wild.appearance_size, local_light=wild.appearance_scope == "local")
    check_names(options)
    behind = BACKGROUNDS[background](options, scene)
    field = FIELDS[options.backbone](options, scene)
    path = PATHS[stage.kind.render_path](config, field)
    if scene.coverage is not None and not config.prompt.kinds:  # guidance sees what photographs do not
        path.cull(scene.coverage)
        behind.cull(scene.coverage)
    appearance = Appearance(wild, scene) if scene.appearance else None
    return NeRFRenderer(field, behind, path, config.render.max_ray_batch, appearance)
