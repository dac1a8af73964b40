"""Guidance: models that give a loss for rendered images. The registry of model families, and what builds those of a run."""

import importlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from guidance.base import Guidance, ImageCondition
    from guidance.weights import Resolved
    from nerf.config.config import Config

log = logging.getLogger("somnia.guidance")

Builder = Callable[["Config", "torch.device", "Resolved | None"], "Guidance"]
"""(frozen options, device of the networks, resolved weights if the family has some) -> a model that is not yet prepared.

Weights are downloaded here if they are remote. A UserError says why they cannot be used.
"""

BuildGuidance = Callable[["Config", str, "Mapping[str, Resolved]", "Sequence[ImageCondition]"], "list[Guidance]"]
"""(frozen options, device, resolved weights, image prompts) -> the prepared models of a run, as :func:`build` makes them."""

# Kind of prompt -> how it is given.
PROMPTS = {"text": '--text "a hamburger"', "image": "--image FILE.png"}


@dataclass(frozen=True)
class Family:
    """What is known of a family of models before one is loaded."""

    build: Builder  # imports its model when it is called: torch and diffusers take seconds
    takes: tuple[str, ...] = ("text",)  # the kinds of prompt that it can use, of PROMPTS; it needs one of them
    requires: tuple[str, ...] = ()  # those of them that it cannot do without
    weights: "Callable[[Config], Resolved] | None" = None  # which weights a run would use; downloads and loads nothing


def _stable_diffusion_weights(config: "Config") -> "Resolved":
    """The weights behind ``--sd_version`` or ``--hf_key``: Stable Diffusion's or the embedded prior's."""
    from guidance import text_weights, tokenizers, weights

    keys = text_weights.keys(config.guidance)
    return weights.resolve(config.guidance.sd_version, keys.get("SD"), config.prompt.text, keys.get(tokenizers.KEY))


def _zero123_weights(config: "Config") -> "Resolved":
    """The weights behind ``--zero123``: those of Zero123 or Stable Zero123, or of the embedded view-conditioned prior."""
    from guidance import zero123_weights

    return zero123_weights.resolve(config.guidance, type(config.guidance).zero123_ckpt)


def _module(module: str, **others: str) -> Builder:
    """The ``build`` of a module, which is imported when it is called; of another one for some kinds of weights."""

    def build(config: "Config", device: "torch.device", resolved: "Resolved | None") -> "Guidance":
        assert resolved is not None, "the family has weights"
        model: Guidance = importlib.import_module(others.get(resolved.kind, module)).build(config, device, resolved)
        return model

    return build


def _text_weights(name: str) -> "Callable[[Config], Resolved]":
    """Which weights of SDXL, DeepFloyd IF, CLIP, MVDream or ImageDream a run would use."""

    def resolve(config: "Config") -> "Resolved":
        from guidance import text_weights

        return text_weights.resolve(config, name)

    return resolve


# Name in --guidance -> family. The values of options that a family has by default are in ``nerf.config.presets``, under its
# name or the kind of its weights.
FAMILIES: dict[str, Family] = {
    "SD": Family(
        _module("guidance.sd_utils", embedded="guidance.prior.guidance"), requires=("text",), weights=_stable_diffusion_weights
    ),
    "zero123": Family(
        _module("guidance.zero123_utils", **{"embedded view": "guidance.prior.view_guidance"}),
        takes=("image",),
        requires=("image",),
        weights=_zero123_weights,
    ),
    "SDXL": Family(_module("guidance.sdxl_utils"), requires=("text",), weights=_text_weights("SDXL")),
    "IF": Family(_module("guidance.if_utils"), requires=("text",), weights=_text_weights("IF")),
    "clip": Family(_module("guidance.clip_utils"), takes=("text", "image"), weights=_text_weights("clip")),
    "MVDream": Family(
        _module("guidance.mvdream_utils", **{"embedded multiview": "guidance.prior.multiview_guidance"}),
        requires=("text",),
        weights=_text_weights("MVDream"),
    ),
    "ImageDream": Family(
        _module("guidance.mvdream_utils"), takes=("image", "text"), requires=("image",), weights=_text_weights("ImageDream")
    ),
}


def check_names(config: "Config") -> tuple[str, ...]:
    """The names of the families that ``--guidance`` asks for, in its order.

    Raises:
        UserError: a family that does not exist or is named twice.
    """
    from nerf.core.errors import UserError
    from nerf.core.words import did_you_mean, expected_words, quoted

    names = config.guidance.guidance
    for name in names:
        if name not in FAMILIES:
            hint = did_you_mean(name, FAMILIES)
            raise UserError(f"--guidance must be {expected_words(FAMILIES)}, got {quoted(name)}{hint}")
        if names.count(name) > 1:
            raise UserError(f"--guidance names {name} twice; each model guides once")
    return names


def check_prompts(config: "Config") -> None:
    """Check that the prompts of a run are those that its families need, before anything is loaded.

    Raises:
        UserError: a family does not exist, is named twice, or lacks a prompt.
    """
    from nerf.core.errors import UserError
    from nerf.core.words import expected_words

    given = config.prompt.kinds
    for name in check_names(config):
        family = FAMILIES[name]
        missing = [PROMPTS[kind] for kind in family.requires if kind not in given]
        if not missing and not set(family.takes) & set(given):
            missing = [" or ".join(PROMPTS[kind] for kind in family.takes)]
        if missing:
            others = [n for n, f in FAMILIES.items() if set(f.requires) <= set(given) and set(f.takes) & set(given)]
            way_out = f", or choose another --guidance ({expected_words(others)})" if others else ""
            raise UserError(f"--guidance {name} needs a prompt of another kind: give {' and '.join(missing)}{way_out}")


def choose_weights(config: "Config") -> "dict[str, Resolved]":
    """Guidance model -> the weights that it will use, for those that have some; nothing is downloaded or loaded.

    Raises:
        UserError: a family does not exist or lacks a prompt, or there are no weights for it on this machine.
    """
    check_prompts(config)
    families = {name: FAMILIES[name].weights for name in config.guidance.guidance}
    return {name: choose(config) for name, choose in families.items() if choose is not None}


def notes(resolved: "Mapping[str, Resolved]") -> dict[str, str]:
    """What exported files say about the weights that guided a run: their names, their licences, and both in one sentence."""
    licences = {weights.title: weights.licence for weights in resolved.values()}
    each = [f"{title}: {licence}" for title, licence in licences.items()]
    return {
        "guidance": ", ".join(licences),
        "licence of the weights": "; ".join(licences.values() if len(licences) == 1 else each),
        "copyright": f"Made with the weights of {'; '.join(f'{title} (licence: {licences[title]})' for title in licences)}",
    }


def build(
    config: "Config",
    device: "torch.device | str",
    resolved: "Mapping[str, Resolved] | None" = None,
    images: "Sequence[ImageCondition]" = (),
) -> "list[Guidance]":
    """The guidance models of a run in the order of ``--guidance``, prepared.

    Args:
        config: the frozen options.
        device: where the models run.
        resolved: what :func:`choose_weights` returned, if the caller has it already (presets depend on it).
        images: the image prompts.

    Returns:
        Models with distinct names.

    Raises:
        UserError: see :func:`load` and :func:`prepare`.
    """
    models = load(config, device, resolved)
    prepare(models, config, images)
    return models


def load(config: "Config", device: "torch.device | str", resolved: "Mapping[str, Resolved] | None" = None) -> "list[Guidance]":
    """The guidance models of a run without its prompts; see :func:`build`.

    Raises:
        UserError: a family that does not exist, is named twice or lacks a prompt, or no usable weights.
    """
    import torch

    names = check_names(config)
    found = choose_weights(config) if resolved is None else resolved
    for weights in found.values():
        log.info(weights.sentence)
    models = [FAMILIES[name].build(config, torch.device(device), found.get(name)) for name in names]
    if config.guidance.compile_guidance != "none":
        from guidance.diffusion.loader import compile_network

        for network in (network for model in models for network in model.denoisers()):
            compile_network(network, config.guidance.compile_guidance, torch.device(device))
    for name, model in zip(names, models, strict=True):
        assert model.name == name, (model.name, name)  # loss terms and checkpoints are keyed by it
    return models


def prepare(models: "Sequence[Guidance]", config: "Config", images: "Sequence[ImageCondition]" = ()) -> None:
    """Give loaded models the prompts of a run, in place of those that they had.

    Args:
        models: what :func:`load` returned for options of the same kind.
        config: the frozen options of the run.
        images: its image prompts.

    Raises:
        UserError: a prompt, an image size or a flag that a model cannot take.
    """
    from guidance.base import Conditions
    from nerf.core.errors import UserError

    camera = config.camera
    for model in models:
        if model.requirements().square and camera.w != camera.h:
            raise UserError(
                f"--w and --h must be equal, as guidance {model.name} takes square images with these weights, got "
                f"{camera.w} and {camera.h}"
            )
        model.stage_options(config.guidance.of(model.name))  # refuses flags that it cannot serve, before anything takes time
        model.prepare(Conditions(config.prompt.text, config.prompt.negative, tuple(images)))
