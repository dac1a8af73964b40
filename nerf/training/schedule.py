"""All that varies with the step, decided in one place: ``plan(step, config, ...) -> StepPlan``.

A plan is a pure function of the step, the options and the seed. Nothing here is remembered from one step to the next, so a
resumed run makes the plans that an uninterrupted one would have made.
"""

import hashlib
from dataclasses import replace

import torch

from nerf.config.config import Config
from nerf.core.structs import Part, StepPlan

# How quickly the regularisers and the encoder's levels come in, as multiples of the training progress.
ENTROPY_RAMP = 2.0
TV_RAMP = 2.0
LEVEL_START, LEVEL_RAMP = 0.25, 2.0
WHITE_BACKGROUND_RATE = 0.3


def derived_seed(seed: int, *path: int | str) -> int:
    """An independent 62-bit seed for each ``path`` (say step, part number) under one run seed."""
    digest = hashlib.blake2b(repr((seed, *path)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 2


def progress(step: int, config: Config) -> float:
    """Training progress of a step in [0, 1], between ``--exp_start_iter`` and ``--exp_end_iter`` where they are given."""
    start, end = config.span
    return min(max((step - start) / max(end - start, 1), 0.0), 1.0)


def plan(step: int, config: Config, sources: tuple[str, ...], spaces: tuple[str, ...] = ("rgb",)) -> StepPlan:
    """The plan of one training step.

    Args:
        step: 0-based.
        config: the frozen options.
        sources: which sources of views this run has, of "guided" and "photos".
        spaces: the image spaces every guidance accepts; latent warm-up needs "latent" among them.
    """
    fraction = progress(step, config)
    parts = []
    for number, source in enumerate(sources):
        seed = derived_seed(config.runtime.seed, step, number)
        if source == "guided":
            parts.append(_guided_part(fraction, config, spaces, seed))
        elif source == "photos":
            parts.append(_photo_part(fraction, config, seed))
        else:
            raise ValueError(f"plan: unknown source of views {source!r}; known are 'guided' and 'photos'")
    weights = term_weights(fraction, config)
    if any(weights.get(name, 0) > 0 for name in ("orient", "normal_smooth_2d", "normal")):
        known = config.dmtet.dmtet and weights["normal"] > 0
        parts = [replace(part, need_normals=True) if known else with_normals(part) for part in parts]
    lr_scale = config.optim.lr_decay**fraction
    return StepPlan(step, fraction, tuple(parts), weights, _t_range(fraction, config), lr_scale)


def with_normals(part: Part) -> Part:
    """The part with normals asked for, unless its colours are photographs, where a field's normals serve no objective."""
    return part if part.source == "photos" else replace(part, need_normals=True)


def term_weights(fraction: float, config: Config) -> dict[str, float]:
    """Weight of every loss term at this point of training; the names are those in the logs."""
    loss = config.loss
    return {
        "sds": config.guidance.lambda_guidance,
        "rgb": loss.lambda_rgb,
        "mask": loss.lambda_mask,
        "depth": loss.lambda_depth * fraction,
        "normal": loss.lambda_normal,
        "opacity": loss.lambda_opacity,
        "entropy": loss.lambda_entropy * min(1.0, ENTROPY_RAMP * fraction),
        "orient": loss.lambda_orient,
        "normal_smooth_2d": loss.lambda_2d_normal_smooth,
        "normal_smooth_3d": loss.lambda_3d_normal_smooth,
        "tv": loss.lambda_tv * min(1.0, TV_RAMP * fraction),
        "weight_decay": loss.lambda_wd,
        "mesh_normal": loss.lambda_mesh_normal,
        "mesh_laplacian": loss.lambda_mesh_laplacian,
        "mesh_sign": loss.lambda_mesh_sign,
    }


def _t_range(fraction: float, config: Config) -> tuple[float, float]:
    """Diffusion time range; its upper end comes down by the share ``--t_anneal`` of its width over the run."""
    low, high = config.guidance.t_range
    return low, high - config.guidance.t_anneal * fraction * (high - low)


def _guidance_scale(fraction: float, config: Config) -> float:
    """Classifier-free guidance scale; it comes down to 1 by the share ``--guidance_anneal`` of the way over the run."""
    scale = config.guidance.guidance_scale
    return scale - config.guidance.guidance_anneal * fraction * (scale - 1.0)


def _max_level(fraction: float, config: Config) -> float:
    return min(1.0, LEVEL_START + LEVEL_RAMP * fraction) if config.field.progressive_level else 1.0


def _size(fraction: float, config: Config) -> tuple[int, int]:
    """Render size (height, width): half of it during the first ``--half_size_ratio`` of training."""
    camera = config.camera
    halve = 2 if fraction < camera.half_size_ratio else 1
    return max(camera.h // halve, 1), max(camera.w // halve, 1)


def _guided_part(fraction: float, config: Config, spaces: tuple[str, ...], seed: int) -> Part:
    """Shading, light and background of the views that guidance looks at (the mode ladder of the peer's train_step)."""
    schedule, views = config.schedule, config.camera.batch_size
    rng = torch.Generator().manual_seed(seed)
    draw = torch.rand(4, generator=rng).tolist()
    height, width = _size(fraction, config)
    common = dict(source="guided", fraction=fraction, num_views=views, height=height, width=width, seed=seed)
    common |= {"max_level": _max_level(fraction, config), "guidance_scale": _guidance_scale(fraction, config),
               "prior_detail": config.guidance.prior_detail}  # fmt: skip
    if fraction < schedule.latent_iter_ratio and "latent" in spaces:
        return Part(**common, shading="normal", space="latent")
    if fraction < schedule.albedo_iter_ratio or draw[3] < schedule.albedo_rate:
        shading, ambient = "albedo", 1.0
    else:
        ambient = schedule.min_ambient_ratio + (1.0 - schedule.min_ambient_ratio) * draw[0]
        shading = "textureless" if draw[1] < schedule.textureless_ratio else "lambertian"
    background = None
    if config.field.bg_radius <= 0 or draw[2] > 0.5:
        background = torch.rand(views, 3, generator=rng)
        background[torch.rand(views, generator=rng) < WHITE_BACKGROUND_RATE] = 1.0
    return Part(**common, shading=shading, ambient=ambient, background=background)


def _photo_part(fraction: float, config: Config, seed: int) -> Part:
    """Random rays over all photographs, or whole ones in the mesh stage, coloured by the view-dependent head."""
    part = Part(source="photos", fraction=fraction, seed=seed, view_dependent=True, max_level=_max_level(fraction, config))
    if not config.dmtet.dmtet:
        return replace(part, num_rays=config.data.num_rays)
    camera = config.camera
    return replace(part, num_views=camera.batch_size, height=camera.h, width=camera.w)
