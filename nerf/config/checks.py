"""Options that contradict each other, which are refused, and options without effect, which get a warning."""

import math
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from nerf.config.config import OPTIONS, Config, as_typed, mesh_stages
from nerf.config.distillation import METHODS
from nerf.config.limits import PROFILE_WARMUP
from nerf.config.parser import dashed, split_each
from nerf.config.stages import STAGE_KINDS, Stage, StageKind
from nerf.config.surface import SDF_BACKBONES
from nerf.core.errors import UserError
from nerf.core.words import expected_words

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
    _check_wild(config)


def _check_wild(config: Config) -> None:
    """Refuse combinations of what is learned of photographs in the wild that exclude each other, or lack what they need."""
    wild = config.wild
    if config.data.data is None:
        return
    if wild.adapts and mesh_stages(config.stages):
        raise UserError(
            "--wild, --appearance and --occluders need rays, which the mesh stage has none of; leave --dmtet out and export "
            "the mesh of the volume with --save_mesh"
        )
    if wild.appearance != "none" and config.data.exposure:
        raise UserError("--exposure and --appearance both learn the colours of each photograph; give one of them")
    if wild.occluders == "robust" and not wild.patch_grid:
        raise UserError("--occluders robust looks at neighbouring pixels; add --patch_grid 16 or more")
    if wild.mask_size_min > wild.mask_size_max:
        raise UserError(
            f"--mask_size_min must be at most --mask_size_max, got {wild.mask_size_min:g} and {wild.mask_size_max:g}"
        )
    if wild.patch_grid**2 > config.data.num_rays:
        raise UserError(
            f"--num_rays must hold a patch of {wild.patch_grid}x{wild.patch_grid} rays, got {config.data.num_rays}; give "
            f"{wild.patch_grid**2} or more, or a smaller --patch_grid"
        )


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
           "mesh_ply", "mesh_formats", "ground", "export_frame", "texture_from",
           "mesh_crop", "mesh_min_part", "mesh_denoise", "eval_mesh")  # fmt: skip
_PHOTOGRAPHS = ("sfm", "sfm_matching", "sfm_cameras", "sfm_size", "photo_cache", "scene_center", "scene_up", "scene_scale",
                "depth_maps", "depth_unit", "lambda_depth_map", "holdout", "downscale", "data_background", "eval_views",
                "num_rays", "ray_samples", "exposure", "refine_poses", "preset", "wild", "appearance", "occluders",
                "diffuse_share", "patch_grid", "texture_from", "eval_mesh")  # fmt: skip
_GUIDANCE = tuple(flag for flag, (group, _) in OPTIONS.items() if group == "guidance")
_GUIDED = ("radius_range", "fovy_range", "half_size_ratio", "jitter_pose", "uniform_sphere_rate",
           "progressive_view", "latent_iter_ratio", "albedo_iter_ratio", "albedo_rate", "background_textures",
           "min_ambient_ratio", "max_ambient_ratio", "textureless_ratio", "grad_clip_rgb")  # fmt: skip
_NOISED = ("distillation", "guidance_scale", "guidance_rescale", "guidance_weighting", "guidance_anneal", "t_range", "t_anneal",
           "t_anneal_low", "anneal_span", "t_schedule", "debias_gradient", "debias_prompt")  # fmt: skip
_MESH = ("dmtet_reso_scale", "dmtet_iters", "lr_distance", "lr_offset", "coarse_sdf_grids", "lr_coarse_sdf", "tet_grid_size",
         "lambda_mesh_normal", "lambda_mesh_laplacian", "mesh_laplacian", "lambda_mesh_sign")  # fmt: skip
_MARCH = ("max_steps", "dt_gamma", "density_thresh", "update_extra_interval")
_SURFACE = ("preset", "sdf_init", "sdf_radius", "sdf_init_steps", "sdf_gradient", "sdf_taps_reach", "sharpness",
            "sharpness_start", "sharpness_end", "sharpness_lr", "cos_anneal", "colour_hidden", "lambda_eikonal",
            "eikonal_points", "lambda_sparsity", "lambda_off_surface", "sparsity_scale", "lambda_curvature", "curvature",
            "lambda_points")  # fmt: skip
_DENSITY = ("density_activation", "density_bias", "blob_density", "blob_radius", "normals", "mesh_threshold")
_APPEARANCE = ("appearance_size", "appearance_scope", "shown_light", "lambda_appearance_norm", "lambda_mode_seeking")
_MASK = ("mask_vector", "mask_hidden", "mask_octaves", "mask_size_max", "mask_size_min", "mask_size_decay",
         "lambda_mask_digital")  # fmt: skip
_GRID = ("grid_levels", "grid_features", "grid_coarsest", "grid_finest", "grid_log2", "layers")


def _other_method(name: str) -> Callable[[Config], bool]:
    """Whether the method of distillation is another one of this program; one that was registered may read any option."""
    return lambda c: c.guidance.distillation in METHODS and c.guidance.distillation != name


def _only_meshes(config: Config) -> bool:
    """Whether no stage of a run marches rays through a field."""
    return mesh_stages(config.stages) == config.stages


def _embedded_alone(config: Config) -> bool:
    """Whether the embedded prior of prompts in words is all that guides."""
    guidance = config.guidance
    return guidance.guidance == ("SD",) and guidance.hf_key is None and guidance.sd_version == "embedded"


# A flag is named once, for the first reason that applies.
IDLE = (
    Idle(_EXPORT, lambda c: not c.output.save_mesh, "without --save_mesh"),
    Idle(("fill_hidden",), lambda c: not c.output.save_mesh and not mesh_stages(c.stages), "without --save_mesh"),
    Idle(_PHOTOGRAPHS, lambda c: c.data.data is None, "without --data"),
    Idle(("sfm_matching", "sfm_cameras", "sfm_size"), lambda c: not c.data.sfm, "without --sfm"),
    Idle(("light_walk",), lambda c: not c.lights.hallucinate, "without --hallucinate"),
    Idle(("exposure", "refine_poses"), _only_meshes, "in the mesh stage"),
    Idle(_APPEARANCE, lambda c: c.wild.appearance == "none", "without --appearance"),
    Idle(
        ("appearance_side", "lambda_appearance_match"),
        lambda c: c.wild.appearance != "encoder",
        "without --appearance encoder",
    ),
    Idle(_MASK, lambda c: c.wild.occluders != "mask", "without --occluders mask"),
    Idle(("robust_quantile",), lambda c: c.wild.occluders != "robust", "without --occluders robust"),
    Idle(("occluders_start",), lambda c: c.wild.occluders == "none", "without --occluders"),
    Idle(
        ("patch_scale", "patch_scale_decay", "lambda_appearance_match", "lambda_mode_seeking"),
        lambda c: not c.wild.patch_grid,
        "without --patch_grid",
    ),
    Idle(("negative", *_GUIDANCE), lambda c: not c.prompt.kinds, "without a prompt (--text)"),
    Idle(_GUIDED, lambda c: not c.prompt.kinds, "without a prompt (--text or --image)"),
    Idle(
        ("theta_range", "phi_range"),
        lambda c: not c.prompt.kinds and not c.mesh.fill_hidden,
        "without a prompt (--text or --image) or --fill_hidden",
    ),
    Idle(("negative",), lambda c: c.prompt.text is None, "without --text"),
    Idle(("lambda_prior_depth", "lambda_prior_normal"), lambda c: c.prompt.text is None, "without --text"),
    Idle(
        ("lambda_orient", "lambda_2d_normal_smooth", "lambda_3d_normal_smooth"),
        lambda c: not c.prompt.kinds,
        "on photographs, which are compared without the field's normals",
    ),
    Idle(
        ("batch_size", "w", "h"),
        lambda c: not c.prompt.kinds and not mesh_stages(c.stages),
        "on photographs, of which a step takes --num_rays",
    ),
    Idle(
        ("known_view_interval", "known_view_scale", "known_view_noise_scale", "lambda_depth"),
        lambda c: not c.prompt.has_images,
        "without --image",
    ),
    Idle(
        ("lambda_rgb", "lambda_mask", "lambda_normal"),
        lambda c: not c.prompt.has_images and c.data.data is None,
        "without --image or --data",
    ),
    Idle(_MESH, lambda c: not mesh_stages(c.stages), "without a mesh stage (--dmtet, or --stages nerf,dmtet)"),
    Idle(
        (
            "tet_grid_size",
            "coarse_sdf_grids",
            "lr_distance",
            "lr_offset",
            "decimate_target",
            "decimate_error",
            "normal_map",
            "texture_from",
            "mesh_denoise",
        ),  # fmt: skip
        lambda c: c.painted,
        "with --lock_geo and a mesh file, whose triangles stay as they are",
    ),
    Idle(("init_up", "init_front"), lambda c: c.data.data is not None, "with --data, whose poses say where the mesh lies"),
    Idle(("lr_coarse_sdf",), lambda c: not c.dmtet.coarse_sdf_grids, "without --coarse_sdf_grids"),
    Idle(("jitter_center", "jitter_target", "jitter_up"), lambda c: not c.camera.jitter_pose, "without --jitter_pose"),
    Idle(("progressive_view_init_ratio",), lambda c: not c.camera.progressive_view, "without --progressive_view"),
    Idle(("negative_w", "front_decay_factor", "side_decay_factor"), lambda c: not c.guidance.perpneg, "without --perpneg"),
    Idle(("radius", "fovy", "light_theta", "light_phi", "max_spp"), lambda c: c.gui.viewer == "none", "without --viewer"),
    Idle(("save_guidance_interval",), lambda c: not c.guidance.save_guidance, "without --save_guidance"),
    Idle(("sd_version",), lambda c: "SD" not in c.guidance.guidance, "without SD in --guidance"),
    Idle(("sd_version",), lambda c: c.guidance.hf_key is not None, "with --hf_key"),
    Idle(
        ("zero123", "zero123_ckpt", "zero123_grad_scale", "zero123_ws"),
        lambda c: "zero123" not in c.guidance.guidance,
        "without zero123 in --guidance",
    ),
    Idle(("prediction_type",), lambda c: not {"SD", "SDXL"} & set(c.guidance.guidance), "without SD or SDXL in --guidance"),
    Idle(("clip_crops",), lambda c: "clip" not in c.guidance.guidance, "without clip in --guidance"),
    Idle(_NOISED, lambda c: c.guidance.guidance == ("clip",), "with --guidance clip, which adds no noise"),
    Idle(("lora_rank", "lora_lr"), _other_method("vsd"), "without --distillation vsd"),
    Idle(("csd_negative",), _other_method("csd"), "without --distillation csd"),
    Idle(("ism_interval", "ism_stride"), _other_method("ism"), "without --distillation ism"),
    Idle(("sdi_steps", "sdi_scale", "sdi_eta"), _other_method("sdi"), "without --distillation sdi"),
    Idle(("angle_front", "angle_overhead"), _embedded_alone, "with the embedded prior, which is given the camera and no words"),
    Idle(("num_rays", "ray_samples", *_MARCH, "num_steps", "upsample_steps"), _only_meshes, "in the mesh stage"),
    Idle((*_MARCH, "grid_size"), lambda c: not c.render.cuda_ray, "without --cuda_ray"),
    Idle(("num_steps", "upsample_steps"), lambda c: c.render.cuda_ray, "with --cuda_ray"),
    Idle(_GRID, lambda c: c.field.backbone == "vanilla", "with --backbone vanilla"),
    Idle((*_GRID, "hidden"), lambda c: c.field.backbone == "sdf_vanilla", "with --backbone sdf_vanilla"),
    Idle(_SURFACE, lambda c: c.field.backbone not in SDF_BACKBONES, "without a signed distance (--backbone sdf)"),
    Idle(_DENSITY, lambda c: c.field.backbone in SDF_BACKBONES, "with a signed distance"),
    Idle(
        ("background_lr", "background_bias"),
        lambda c: c.field.background not in ("auto", "contracted") or c.data.data is None,
        "without --data or without a contracted background (--background contracted)",
    ),
    Idle(("bg_radius",), lambda c: c.field.background == "contracted", "with --background contracted"),
    Idle(("sharpness_end",), lambda c: c.field.sharpness != "scheduled", "without --sharpness scheduled"),
    Idle(("viewer_host", "viewer_port"), lambda c: c.gui.viewer != "web", "without --viewer web"),
)


def less_memory(stage: StageKind, config: Config) -> str:
    """The flags that lower the memory of a training step of a stage and have an effect in this run: "lower --w or --h"."""
    idle = {flag for one in IDLE if one.where(config) for flag in one.flags}
    offload = "" if "vram_O" in idle or config.guidance.vram_O else ", or add --vram_O"
    return f"lower {expected_words(dashed(flag) for flag in stage.memory if flag not in idle)}{offload}"


FOR_GPU = ("fp16", "tf32", "cudnn_benchmark")


def gpu_warnings(config: Config, device: str) -> list[str]:
    """A line for the log about options that the user gave and that have no effect on this device."""
    typed = [flag for flag in FOR_GPU if config.asked(flag) and config.value(flag)]
    return _no_effect(typed, f"on {device}, only on a GPU") if typed and not device.startswith("cuda") else []


def _no_effect(flags: list[str], why: str) -> list[str]:
    """The warning about some flags, if there are any."""
    verb = "has" if len(flags) == 1 else "have"
    return [f"warning: {', '.join(map(dashed, flags))} {verb} no effect {why}"] if flags else []


def warnings(config: Config, stages: Iterable[Stage]) -> list[str]:
    """Lines for the log about options of a run that have no effect, or will be regretted at its end.

    Args:
        config: the options of the run.
        stages: its stages, each with its own options; a flag that has an effect in one of them is not named.
    """
    stages = list(stages)
    every, lines, named = [stage.config for stage in stages] or [config], [], set[str]()
    for idle in IDLE if config.trains else ():
        if all(idle.where(each) for each in every):
            typed = [flag for flag in idle.flags if config.asked(flag) and config.value(flag) is not False]
            lines += _no_effect([flag for flag in typed if flag not in named], idle.why)
            named |= set(typed)
    return [
        *lines,
        *_idle_keys(config, named),
        *_small_texture(config),
        *_short_profile(config, stages),
        *_many_threads(config),
    ]


def _many_threads(config: Config) -> list[str]:
    """More threads than this machine can run at once."""
    threads, cores = config.runtime.threads, os.cpu_count() or 1
    if threads <= cores:
        return []
    return [
        f"warning: --threads {threads} is more than the {cores} cores of this machine, which makes a run slower; "
        "leave it out to have one thread for each core"
    ]


def _idle_keys(config: Config, named: set[str]) -> list[str]:
    """Weights of models that do not guide; ``SDXL_vae`` names a part of SDXL."""
    guidance = config.guidance
    if not (config.trains and config.asked("hf_keys")) or "hf_keys" in named:
        return []
    models = {word: word.partition("=")[0].removesuffix("_vae") for word in guidance.hf_keys}
    return [
        f"warning: --hf_keys {word} has no effect without {model} in --guidance"
        for word, model in models.items()
        if model not in guidance.guidance and model != "tokenizer"
    ]


def _short_profile(config: Config, stages: list[Stage]) -> list[str]:
    """A profile of a stage that has no steps after those that only warm up."""
    if not (config.runtime.profile and config.trains) or any(one.config.optim.iters > PROFILE_WARMUP for one in stages):
        return []
    flags = dict.fromkeys(stage.steps_flag for stage in stages)
    return [
        f"warning: --profile {config.runtime.profile} will record nothing, as the first {PROFILE_WARMUP} steps only warm up; "
        f"give more {' or '.join(flags)}"
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
