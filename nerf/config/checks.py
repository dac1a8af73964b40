"""Options that contradict each other, which are refused, and options without effect, which get a warning."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from nerf.config.config import OPTIONS, Config, as_typed, mesh_stages
from nerf.config.limits import PROFILE_WARMUP
from nerf.config.parser import dashed, split_each
from nerf.config.stages import STAGE_KINDS, Stage
from nerf.core.errors import UserError

TEXELS_PER_TRIANGLE = 2  # below it, most triangles have no colour of their own


def check_counts(config: Config) -> None:
    """Refuse options that belong to each guidance model and have neither one value nor one for each."""
    models = config.guidance.guidance
    for flag, (_, option) in OPTIONS.items():
        each = option.metadata["each"]
        given = len(split_each(config.value(flag), each)) if each else 1
        if given not in (1, len(models)):
            words = "values" if each == 1 else f"groups of {each} values"
            raise UserError(
                f"{dashed(flag)} gives {given} {words}, and --guidance {' '.join(models)} names {len(models)}; give one for "
                "all of them, or one for each in that order"
            )


def check_numbers(config: Config, stages: Iterable[Stage] = ()) -> None:
    """Refuse values that contradict each other once the presets have filled theirs.

    Args:
        config: the options of the run.
        stages: its stages, each with its own options.

    Raises:
        UserError: which, and how to change them.
    """
    grid = config.field
    for name, of_stage in [("", config), *((f" in stage {stage.name}", stage.config) for stage in stages)]:
        start, end = of_stage.span
        if not start < end:
            ends = "--exp_end_iter" if of_stage.schedule.exp_end_iter is not None else "the number of steps"
            raise UserError(f"--exp_start_iter must be below {ends}{name}, got {start} and {end}")
    if grid.base_resolution > grid.finest_resolution:
        raise UserError(
            f"--grid_finest must be at least --grid_coarsest, got {grid.finest_resolution} and {grid.base_resolution}"
        )
    _check_near(config)


def check_background(config: Config) -> None:
    """Refuse a background model that contradicts the sign of ``--bg_radius``, if the user gave both.

    Raises:
        UserError: it does.
    """
    kind, radius = config.field.background, config.field.bg_radius
    if config.asked("background") and config.asked("bg_radius") and kind == ("constant" if radius > 0 else "network"):
        other = "a network" if radius > 0 else "a constant background"
        raise UserError(
            f"--background {kind} and --bg_radius {radius:g}, which means {other}, contradict each other; leave one of them out"
        )


def check_stages(config: Config) -> None:
    """Refuse options of the mesh stage in a run without it, or in one that has the stage before it too."""
    mesh, has_mesh = config.dmtet, bool(mesh_stages(config.stages))
    if mesh.init_with and not has_mesh:
        raise UserError("--init_with is for the mesh stage; add --dmtet, or give a NeRF's checkpoint with --ckpt")
    if mesh.init_up[-1] == mesh.init_front[-1]:
        raise UserError(
            f"--init_up {mesh.init_up} and --init_front {mesh.init_front} are the same axis; give two that are perpendicular, "
            "such as --init_up z --init_front=-y"
        )
    if mesh.lock_geo and not has_mesh:
        raise UserError("--lock_geo freezes the geometry of a mesh, and this run has no mesh stage; add --dmtet")
    if mesh.init_with and STAGE_KINDS[config.stages[0]].starts_from is None:
        raise UserError(
            f"--init_with and --stages {','.join(config.stages)} contradict each other: the mesh of both stages starts from "
            "their own NeRF; leave --init_with out, or train the mesh alone with --dmtet"
        )


def _check_near(config: Config) -> None:
    """Refuse a near plane behind everything that the random cameras can see."""
    camera, near = config.camera, config.render.min_near
    farthest = camera.radius_range[1] + math.sqrt(3.0) * config.field.bound
    if config.prompt.text is not None and not camera.jitter_pose and near >= farthest:
        raise UserError(
            f"--min_near must be below {farthest:g}, where the box ends for cameras at --radius_range "
            f"{camera.radius_range[0]:g} {camera.radius_range[1]:g}, got {near:g}"
        )


@dataclass(frozen=True)
class Idle:
    """Flags without effect in some runs."""

    flags: tuple[str, ...]
    where: Callable[[Config], bool]
    why: str  # the end of "--flag has no effect ..."


_EXPORT = ("decimate_target", "decimate_error", "texture_size", "texture_supersample", "normal_map", "roughness", "metallic",
           "mesh_ply", "export_frame")  # fmt: skip
_GUIDANCE = tuple(flag for flag, (group, _) in OPTIONS.items() if group == "guidance")
_OCCUPANCY = ("max_steps", "dt_gamma", "density_thresh", "update_extra_interval", "grid_size")
_GRID = ("grid_levels", "grid_features", "grid_coarsest", "grid_finest", "grid_log2", "layers")
IDLE = (
    Idle(_EXPORT, lambda c: not c.output.save_mesh, "without --save_mesh"),
    Idle(("num_rays", "holdout", "downscale", "data_background"), lambda c: c.data.data is None, "without --data"),
    Idle(("negative", *_GUIDANCE), lambda c: not c.prompt.kinds, "without a prompt (--text)"),
    Idle(
        ("lambda_orient", "lambda_2d_normal_smooth", "lambda_3d_normal_smooth"),
        lambda c: not c.prompt.kinds,
        "on photographs, which are compared without the field's normals",
    ),
    Idle(
        ("dmtet_reso_scale", "dmtet_iters", "lr_distance", "lr_offset", "lr_coarse_sdf"),
        lambda c: not mesh_stages(c.stages),
        "without a mesh stage (--dmtet, or --stages nerf,dmtet)",
    ),
    Idle(
        ("tet_grid_size", "coarse_sdf_grids", "lr_distance", "lr_offset", "decimate_target", "decimate_error", "normal_map"),
        lambda c: c.painted,
        "with --lock_geo and a mesh file, whose triangles stay as they are",
    ),
    Idle(("init_up", "init_front"), lambda c: c.data.data is not None, "with --data, whose poses say where the mesh lies"),
    Idle(("lr_coarse_sdf",), lambda c: not c.dmtet.coarse_sdf_grids, "without --coarse_sdf_grids"),
    Idle(("jitter_center", "jitter_target", "jitter_up"), lambda c: not c.camera.jitter_pose, "without --jitter_pose"),
    Idle(("progressive_view_init_ratio",), lambda c: not c.camera.progressive_view, "without --progressive_view"),
    Idle(("negative_w", "front_decay_factor", "side_decay_factor"), lambda c: not c.guidance.perpneg, "without --perpneg"),
    Idle(("save_guidance_interval",), lambda c: not c.guidance.save_guidance, "without --save_guidance"),
    Idle(_OCCUPANCY, lambda c: not c.render.cuda_ray, "without --cuda_ray"),
    Idle(("num_steps", "upsample_steps"), lambda c: c.render.cuda_ray, "with --cuda_ray"),
    Idle(_GRID, lambda c: c.field.backbone == "vanilla", "with --backbone vanilla"),
)


def warnings(config: Config, stages: Iterable[Stage]) -> list[str]:
    """Lines for the log about options of a run that have no effect, or will be regretted at its end.

    Args:
        config: the options of the run.
        stages: its stages, each with its own options; a flag that has an effect in one of them is not named.
    """
    every, lines = [stage.config for stage in stages] or [config], []
    for idle in IDLE:
        typed = [flag for flag in idle.flags if config.asked(flag) and config.value(flag) is not False]
        if typed and config.trains and all(idle.where(each) for each in every):
            verb = "has" if len(typed) == 1 else "have"
            lines.append(f"warning: {', '.join(map(dashed, typed))} {verb} no effect {idle.why}")
    return [*lines, *_small_texture(config), *_short_profile(config, every)]


def _short_profile(config: Config, every: Iterable[Config]) -> list[str]:
    """A profile of a stage that has no steps after those that only warm up."""
    if not (config.runtime.profile and config.trains) or any(one.optim.iters > PROFILE_WARMUP for one in every):
        return []
    return [
        f"warning: --profile {config.runtime.profile} will record nothing, as the first {PROFILE_WARMUP} steps only warm up; "
        "give more --iters"
    ]


def _small_texture(config: Config) -> list[str]:
    """A texture with hardly a texel for each triangle: noticed before the training, not after it."""
    output = config.output
    texels, triangles = output.texture_size**2, output.decimate_target
    if config.painted or not output.save_mesh or texels >= TEXELS_PER_TRIANGLE * triangles:
        return []
    return [
        f"warning: {as_typed('texture_size', output.texture_size)} is {texels:,} texels for {triangles:,} triangles at most; "
        "raise it or lower --decimate_target, or the mesh may have no room for its colours"
    ]
