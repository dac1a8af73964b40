"""All that varies with the step, decided in one place: ``plan(step, run, sources) -> StepPlan``.

A plan is a pure function of the step, the options and the seed. Nothing here is remembered from one step to the next, so a
resumed run makes the plans that an uninterrupted one would have made.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from nerf.config.config import Config
from nerf.config.ramps import Weight, weight_at
from nerf.config.wild import WildConfig
from nerf.core.streams import Random, Stream, derived_seed
from nerf.core.structs import Control, Part, RenderSettings, Shading, StepPlan, ViewRequest
from nerf.render.background import background_kind
from nerf.training.sources import RunInfo, Source
from nerf.training.textures import random_textures

# How quickly the regularisers and the encoder's levels come in, as multiples of the training progress.
ENTROPY_RAMP = 2.0
TV_RAMP = 2.0
LEVEL_START, LEVEL_RAMP = 0.25, 2.0
WHITE_BACKGROUND_RATE = 0.3
NORMAL_TERMS = ("orient", "normal_smooth_2d", "normal_smooth_3d", "normal", "prior_normal")  # those that need rendered normals


def plan(step: int, run: RunInfo, sources: Mapping[str, Source]) -> StepPlan:
    """The plan of one training step.

    Args:
        step: 0-based.
        run: the stage of the run.
        sources: name -> source of views, in the order of the parts; each may skip the step.
    """
    config, fraction = run.config, run.fraction(step)
    weights = term_weights(step, run)
    parts = []
    for name, source in sources.items():
        part = source.plan_part(step, run, Random(derived_seed(run.seed, step, name)))
        if part is not None:
            part = _with_normals(part, weights, run)
            parts += [replace(part, shard=shard) for shard in run.shards]
    lr_scale = config.optim.lr_decay**fraction
    random = Random(derived_seed(run.seed, step))
    return StepPlan(step, fraction, tuple(parts), weights, controls(fraction, run), lr_scale, random)


def _with_normals(part: Part, weights: Mapping[str, float], run: RunInfo) -> Part:
    """The part with normals asked for, where some objective looks at them.

    A field's normals serve no objective against photographs; the normals of a surface do.
    """
    wanted = part.shows_object and any(weights.get(name, 0.0) > 0 for name in NORMAL_TERMS)
    wanted |= part.has_targets and run.stage.kind.triangles and weights.get("normal", 0.0) > 0
    return replace(part, settings=replace(part.settings, need_normals=True)) if wanted else part


# Name of a loss term, as in the logs -> its weight, or its ramp over steps. Guidance has its own, see below.
TERM_WEIGHTS: dict[str, Callable[[float, Config], Weight]] = {
    "rgb": lambda fraction, config: config.loss.lambda_rgb,
    "mask": lambda fraction, config: config.loss.lambda_mask,
    "depth": lambda fraction, config: config.loss.lambda_depth,
    "normal": lambda fraction, config: config.loss.lambda_normal,
    "depth_map": lambda fraction, config: 0.0 if config.data.data is None else config.data.lambda_depth_map,
    "prior_depth": lambda fraction, config: config.loss.lambda_prior_depth,
    "prior_normal": lambda fraction, config: config.loss.lambda_prior_normal,
    "opacity": lambda fraction, config: config.loss.lambda_opacity,
    "entropy": lambda fraction, config: config.loss.lambda_entropy,
    "orient": lambda fraction, config: config.loss.lambda_orient,
    "normal_smooth_2d": lambda fraction, config: config.loss.lambda_2d_normal_smooth,
    "normal_smooth_3d": lambda fraction, config: config.loss.lambda_3d_normal_smooth,
    "tv": lambda fraction, config: config.loss.lambda_tv,
    "weight_decay": lambda fraction, config: config.loss.lambda_wd,
    "mesh_normal": lambda fraction, config: config.loss.lambda_mesh_normal,
    "mesh_laplacian": lambda fraction, config: config.loss.lambda_mesh_laplacian,
    "mesh_sign": lambda fraction, config: config.loss.lambda_mesh_sign,
    "eikonal": lambda fraction, config: config.loss.lambda_eikonal,
    "sparsity": lambda fraction, config: config.loss.lambda_sparsity,
    "off_surface": lambda fraction, config: config.loss.lambda_off_surface,
    "curvature": lambda fraction, config: config.loss.lambda_curvature,
    "distortion": lambda fraction, config: config.loss.lambda_distortion,
    "distortion_bg": lambda fraction, config: config.loss.lambda_distortion_bg,
    "points": lambda fraction, config: config.loss.lambda_points,
}
# Terms of photographs in the wild: weights at a step, relative to half the mean squared error of colours.
WILD_WEIGHTS: dict[str, Callable[[int, WildConfig], float]] = {
    "mask_size": lambda step, wild: wild.mask_size_weight(step),
    "mask_digital": lambda step, wild: wild.lambda_mask_digital,
    "appearance_norm": lambda step, wild: wild.lambda_appearance_norm,
    "appearance_match": lambda step, wild: wild.lambda_appearance_match,
    "mode_seeking": lambda step, wild: wild.lambda_mode_seeking,
}
# Terms that come in with the training progress, as a factor of their weights.
TERM_FACTORS: dict[str, Callable[[float, Config], float]] = {
    "depth": lambda fraction, config: fraction,
    "normal": lambda fraction, config: fraction if config.prompt.has_images else 1.0,
    "entropy": lambda fraction, config: min(1.0, ENTROPY_RAMP * fraction),
    "tv": lambda fraction, config: min(1.0, TV_RAMP * fraction),
}


def term_weights(step: int, run: RunInfo) -> dict[str, float]:
    """Weight of every loss term at a step, by the name that the logs show."""
    fraction, config = run.fraction(step), run.config
    weights = {f"sds/{name}": options.lambda_guidance * options.guidance_weights for name, options in run.options_of.items()}
    for name, weight in TERM_WEIGHTS.items():
        factor = TERM_FACTORS[name](fraction, config) if name in TERM_FACTORS else 1.0
        weights[name] = factor * weight_at(weight(fraction, config), step, config.optim.iters)
    for name, wild in WILD_WEIGHTS.items():
        weights[name] = 2.0 * weights["rgb"] * wild(step, config.wild)
    return weights


def controls(fraction: float, run: RunInfo) -> dict[str, Control]:
    """What is asked of each guidance at this point of training."""
    return {model.name: control_at(fraction, run.options_of[model.name], model.options) for model in run.guidances}


def control_at(fraction: float, options: Any, own: Any) -> Control:
    """Diffusion time range and classifier-free guidance scale of one guidance.

    Over ``--anneal_span`` the upper end of the range comes down by the share ``--t_anneal`` of its width, the lower end comes
    down to its place from the share ``--t_anneal_low`` above it, and the scale comes down to 1 by the share
    ``--guidance_anneal`` of the way. A ``--t_schedule`` that falls through the range has it as it is.
    """
    start, end = options.anneal_span
    way = min(max((fraction - start) / (end - start), 0.0), 1.0) if end > start else float(fraction >= end)
    (low, high), scale = options.t_range, options.guidance_scale
    width = high - low
    t_range = (low, high)
    if options.t_schedule == "uniform":
        t_range = (low + options.t_anneal_low * (1.0 - way) * width, high - options.t_anneal * way * width)
    return Control(t_range, scale - options.guidance_anneal * way * (scale - 1.0), own)


def max_level(fraction: float, config: Config) -> float:
    """Fraction of the encoder's levels that is on: few at first with ``--progressive_level`` or ``--level_start``."""
    field = config.field
    if field.level_start:
        more = max(field.levels - field.level_start, 0)
        way = fraction / field.level_span if field.level_span > 0 else 1.0
        return min(field.level_start + math.floor(more * way + 1e-9), field.levels) / field.levels
    return min(1.0, LEVEL_START + LEVEL_RAMP * fraction) if field.progressive_level else 1.0


def _size(fraction: float, config: Config) -> tuple[int, int]:
    """Render size (height, width): half of it during the first ``--half_size_ratio`` of training."""
    camera = config.camera
    halve = 2 if fraction < camera.half_size_ratio else 1
    return max(camera.h // halve, 1), max(camera.w // halve, 1)


def guided_part(source: str, step: int, run: RunInfo, random: Random) -> Part:
    """Size, shading and background of the views that guidance is evaluated on (the modes of DreamFusion, sec. 3.2)."""
    config, fraction = run.config, run.fraction(step)
    schedule, views = config.schedule, config.camera.batch_size
    rng = random.generator(Stream.SCHEDULE)
    draw = torch.rand(4, generator=rng).tolist()
    height, width = _size(fraction, config)
    request = ViewRequest(source, num_views=views, height=height, width=width, fraction=fraction, random=random)
    settings = RenderSettings(source, fraction=fraction, max_level=max_level(fraction, config), random=random)
    if fraction < schedule.latent_iter_ratio and "latent" in run.spaces:
        return Part(request, replace(settings, shading="normal", space="latent"), guided=True)
    shading: Shading = "albedo"
    ambient = 1.0
    if not (fraction < schedule.albedo_iter_ratio or draw[3] < schedule.albedo_rate):
        darkest, brightest = schedule.min_ambient_ratio, max(schedule.min_ambient_ratio, schedule.max_ambient_ratio)
        ambient = darkest + (brightest - darkest) * draw[0]
        shading = "textureless" if draw[1] < schedule.textureless_ratio else "lambertian"
    background = None
    if background_kind(config.field, run.scene) == "constant" or draw[2] > 0.5:
        background = torch.rand(views, 3, generator=rng)
        background[torch.rand(views, generator=rng) < WHITE_BACKGROUND_RATE] = 1.0
        background = _with_textures(background, height, width, schedule.background_textures, random)
    return Part(request, replace(settings, shading=shading, ambient=ambient, background=background), guided=True)


def _with_textures(colours: Tensor, height: int, width: int, rate: float, random: Random) -> Tensor:
    """Backgrounds of whole views: [B, 3] colours, or in a share of the steps [B H W, 3] textures in place of them."""
    rng = random.generator(Stream.BACKGROUND_TEXTURES)
    if float(torch.rand((), generator=rng)) >= rate:
        return colours
    return random_textures(len(colours), height, width, rng)


def is_known_view_step(step: int, run: RunInfo) -> bool:
    """Whether a step looks at the views of the image prompts: every ``--known_view_interval``-th, all without guidance."""
    if not run.config.prompt.has_images:
        return False
    return not run.guidances or (step + 1) % run.config.prompt.known_view_interval == 0


def known_view_part(source: str, step: int, run: RunInfo, random: Random, count: int) -> Part:
    """Whole views of image prompts, whose size does not depend on the phase of the random views.

    Args:
        source: name.
        step: 0-based.
        run: the stage.
        random: of the part.
        count: image prompts that there are; a step looks at ``--batch_size`` of them at most.
    """
    config, fraction = run.config, run.fraction(step)
    side = known_side(config)
    views = min(count, config.camera.batch_size)
    request = ViewRequest(source, num_views=views, height=side, width=side, fraction=fraction, random=random)
    settings = RenderSettings(source, fraction=fraction, max_level=max_level(fraction, config), random=random)
    return Part(request, settings, has_targets=True, known_view=True)


def known_side(config: Config) -> int:
    """Height and width, in pixels, at which the views of image prompts are rendered."""
    return max(round(config.camera.h * config.prompt.known_view_scale), 1)


def photo_part(source: str, step: int, run: RunInfo, random: Random, num_rays: int | None = None) -> Part:
    """Random rays or patches of photographs, or whole ones where a surface is rasterised, by the view-dependent head.

    ``num_rays``: how many; None: ``--num_rays``.
    """
    config, fraction = run.config, run.fraction(step)
    request = ViewRequest(source, fraction=fraction, random=random)
    if run.stage.kind.photo_layout == "image":
        camera = config.camera
        request = replace(request, num_views=camera.batch_size, height=camera.h, width=camera.w)
    else:
        request = replace(request, layout="rays", num_rays=num_rays or config.data.num_rays)
        if config.wild.patch_grid:
            side = config.wild.patch_grid
            request = replace(request, layout="patches", patch_size=side, patch_scale=config.wild.least_scale(step))
            request = replace(request, num_rays=max(request.num_rays, side**2))
    level = max_level(fraction, config)
    share = config.wild.diffuse_share
    settings = RenderSettings(
        source, fraction=fraction, view_dependent=True, diffuse_share=share, max_level=level, random=random
    )
    return Part(request, settings, has_targets=True)
