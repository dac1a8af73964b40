"""Guidance: models that give a loss for rendered images. The registry of model families, and what builds those of a run."""

import importlib
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from guidance.base import Guidance, ImageCondition
    from guidance.weights import Resolved
    from nerf.config.config import Config

log = logging.getLogger("somnia.guidance")

Builder = Callable[["Config", "torch.device", "Resolved | None"], "Guidance"]
"""(options, device, resolved weights of ``--sd_version``, if any) -> a model that is loaded and not yet prepared."""


def _stable_diffusion(config: "Config", device: "torch.device", resolved: "Resolved | None") -> "Guidance":
    """Stable Diffusion, or the embedded prior if those are the weights that the run uses."""
    from guidance import weights

    if resolved is None:
        resolved = weights.resolve(config.guidance.sd_version, config.guidance.hf_key, config.prompt.text)
    log.info(resolved.sentence)
    module = {"sd": "guidance.sd_utils", "embedded": "guidance.prior.guidance"}[resolved.kind]
    model: Guidance = importlib.import_module(module).build(config, device, resolved)
    return model


# Name in --guidance -> builder. Builders import their model when they are called: torch and diffusers take seconds.
FAMILIES: dict[str, Builder] = {"SD": _stable_diffusion}


def family_names(config: "Config") -> tuple[str, ...]:
    """The names of the families that ``--guidance`` asks for, in its order.

    Raises:
        UserError: a family that does not exist or is named twice.
    """
    from nerf.core.errors import UserError

    names = config.guidance.guidance
    if config.guidance.IF:
        names = tuple("IF" if name == "SD" else name for name in names)
    for name in names:
        if name not in FAMILIES:
            raise UserError(f"--guidance {name} is not known or not built yet; use --guidance {' or '.join(FAMILIES)}")
        if names.count(name) > 1:
            raise UserError(f"--guidance names {name} twice; each model guides once")
    return names


def build(
    config: "Config",
    device: "torch.device | str",
    resolved: "Resolved | None" = None,
    images: "tuple[ImageCondition, ...]" = (),
) -> "list[Guidance]":
    """The guidance models of a run in the order of ``--guidance``, prepared.

    Args:
        config: the frozen options.
        device: where the models run.
        resolved: the weights behind ``--sd_version``, if the caller resolved them already (presets depend on them).
        images: the image prompts.

    Returns:
        Models with distinct names.

    Raises:
        UserError: a family that does not exist or is named twice, no usable weights, or a prompt, an image size or a flag
            that a model cannot take.
    """
    import torch

    from guidance.base import Conditions
    from nerf.core.errors import UserError

    camera, names = config.camera, family_names(config)
    models = [FAMILIES[name](config, torch.device(device), resolved) for name in names]
    for name, model in zip(names, models, strict=True):
        assert model.name == name, (model.name, name)  # loss terms and checkpoints are keyed by it
        if model.requirements().square and camera.w != camera.h:
            raise UserError(
                f"--w and --h must be equal, as guidance {name} takes square images with these weights, got "
                f"{camera.w} and {camera.h}"
            )
        model.stage_options(config.guidance)  # refuses flags that the model cannot serve, before anything takes time
        model.prepare(Conditions(config.prompt.text, config.prompt.negative, images))
    return models
