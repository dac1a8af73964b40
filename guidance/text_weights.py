"""Where the weights of SDXL, DeepFloyd IF, CLIP, MVDream and ImageDream are, as ``weights.py`` for SD. Cache first.

``--hf_key`` names the weights of the first model of ``--guidance`` that takes one (Stable Diffusion before all others), and
``--hf_keys NAME=KEY`` those of any. Without a key, the first model of the table that is complete in the cache is taken, else
the first of all is downloaded, since the user asked for it by name.
"""

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from guidance import folders, hub, tokenizers, weights
from guidance.weights import Model, Resolved
from nerf.core.errors import UserError
from nerf.core.files import read_json

if TYPE_CHECKING:
    from nerf.config.config import Config

VAE = "SDXL_vae"  # in --hf_keys: another codec for SDXL
DIFFUSION = ("SD", "SDXL", "IF", "MVDream", "ImageDream")  # models that --hf_key may mean


@dataclass(frozen=True)
class Layout:
    """The files of a model on disk, and which of its kind they are."""

    missing: Callable[[Iterable[str]], str | None]  # files -> the name of what is lacking
    check: Callable[[Path], None]  # refuses a complete folder of another model, by its configs
    wanted: Callable[[list[str]], list[str]]  # files of a hub repository -> those that are downloaded
    probe: str  # a file that tells whether the model is in the Hugging Face cache
    file: bool = False  # whether the original single file is read too


class _UNet(msgspec.Struct):
    in_channels: int = 4
    addition_embed_type: str | None = None
    encoder_hid_dim: int | None = None
    cross_attention_dim: int | list[int] = 1280


class _Encoder(msgspec.Struct):
    d_model: int | None = None


def _check_if(folder: Path) -> None:
    """Refuse a UNet that is not that of DeepFloyd IF's first stage."""
    unet = read_json(folder / "unet/config.json", folders.RESTORE, _UNet)
    encoder = read_json(folder / "text_encoder/config.json", folders.RESTORE, _Encoder)
    if unet.in_channels != 3 or unet.addition_embed_type != "text" or unet.encoder_hid_dim != encoder.d_model:
        raise UserError(
            f"weights: {folder} is not the first stage of DeepFloyd IF: expected a UNet of 3 input channels that takes the "
            f"text of its T5 encoder ({encoder.d_model} channels), and it has {unet.in_channels} and takes "
            f"{unet.encoder_hid_dim}; give IF-I-XL, IF-I-L or IF-I-M"
        )


def _check_sdxl(folder: Path) -> None:
    """Refuse a UNet that is not that of SDXL's base model."""
    unet = read_json(folder / "unet/config.json", folders.RESTORE, _UNet)
    if unet.in_channels != 4 or unet.addition_embed_type != "text_time":
        raise UserError(
            f"weights: {folder} is not SDXL: expected a UNet of 4 input channels with addition_embed_type text_time, and it "
            f"has {unet.in_channels} and {unet.addition_embed_type}; give Stable Diffusion 1.5 and 2.x to --guidance SD"
        )


class _MultiView(msgspec.Struct):
    camera_dim: int | None = None
    ip_dim: int = 0


def _check_multiview(image: bool) -> Callable[[Path], None]:
    """Refuse a UNet that is not that of MVDream, or with ``image`` not that of ImageDream."""

    def check(folder: Path) -> None:
        unet, name = read_json(folder / "unet/config.json", folders.RESTORE, _MultiView), "ImageDream" if image else "MVDream"
        if unet.camera_dim is None or bool(unet.ip_dim) != image:
            raise UserError(
                f"weights: {folder} is not {name}: expected a UNet with camera_dim and {'an' if image else 'no'} ip_dim, and "
                f"it has {unet.camera_dim} and {unet.ip_dim}"
            )

    return check


class _Clip(msgspec.Struct):
    model_type: str = ""


def _check_clip(folder: Path) -> None:
    """Refuse a folder of another model than CLIP."""
    kind = read_json(folder / "config.json", folders.RESTORE, _Clip).model_type
    if kind != "clip":
        raise UserError(f"weights: {folder} holds a model of type {kind!r}, and --guidance clip needs one of type 'clip'")


def _missing_clip(files: Iterable[str]) -> str | None:
    """What a folder lacks to be CLIP: one network and a byte-pair tokenizer, all in the folder itself."""
    have = set(files)
    if "config.json" not in have:
        return "config.json"
    if folders.weight_file(have, ".") is None:
        return "the weights (model.safetensors)"
    whole = {"vocab.json", "merges.txt"} <= have or "tokenizer.json" in have
    return None if whole else "the tokenizer (vocab.json and merges.txt, or tokenizer.json)"


def _missing_vae(files: Iterable[str]) -> str | None:
    """What a folder lacks to be a codec."""
    have = set(files)
    if "config.json" not in have:
        return "config.json"
    return None if folders.weight_file(have, ".") is not None else "the weights (diffusion_pytorch_model.safetensors)"


def _flat(files: list[str]) -> list[str]:
    """What is downloaded of a repository of one network."""
    return ["*.json", "merges.txt", *folders.weight_files(files, ".")]


def _folders(parts: tuple[str, ...], check: Callable[[Path], None], file: bool = False) -> Layout:
    """The layout of a diffusers folder with some parts."""

    def wanted(files: list[str]) -> list[str]:
        names = ["model_index.json", *(f"{part}/*" for part in parts if part.startswith("tokenizer"))]
        names += [f"{part}/{'scheduler_config' if part == 'scheduler' else 'config'}.json" for part in parts]
        return [*names, *folders.weight_files(files, *parts)]

    return Layout(lambda files: folders.missing_part(files, parts), check, wanted, "unet/config.json", file)


IF_PARTS = ("unet", "text_encoder", "tokenizer", "scheduler")
SDXL_PARTS = ("unet", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler")
LAYOUTS: dict[str, Layout] = {
    "IF": _folders(IF_PARTS, _check_if),
    "SDXL": _folders(SDXL_PARTS, _check_sdxl),
    "clip": Layout(_missing_clip, _check_clip, _flat, "config.json"),
    "MVDream": _folders(folders.PARTS, _check_multiview(False), file=True),
    "ImageDream": _folders((*folders.PARTS, "image_encoder"), _check_multiview(True), file=True),
    VAE: Layout(_missing_vae, lambda folder: None, _flat, "config.json"),
}
# Model of --guidance, or codec of --hf_keys -> what is published; licences as their model pages gave them, look there again.
MODELS: dict[str, Model] = {
    "IF": Model(
        "DeepFloyd IF",
        ("DeepFloyd/IF-I-XL-v1.0",),
        ("DeepFloyd/IF-I-L-v1.0", "DeepFloyd/IF-I-M-v1.0"),
        18.2,
        "DeepFloyd IF License (research, not commercial)",
        gated=True,
    ),
    "SDXL": Model("SDXL", ("stabilityai/stable-diffusion-xl-base-1.0",), (), 6.9, "CreativeML Open RAIL++-M"),
    "clip": Model(
        "CLIP",
        ("openai/clip-vit-base-patch16",),
        ("openai/clip-vit-large-patch14", "openai/clip-vit-base-patch32"),
        0.6,
        "MIT",
    ),
    "MVDream": Model(
        "MVDream", ("ashawkey/mvdream-sd2.1-diffusers",), (), 2.6, "Open RAIL, see the model page of MVDream/MVDream"
    ),
    "ImageDream": Model(
        "ImageDream", ("ashawkey/imagedream-ipmv-diffusers",), (), 3.9, "Open RAIL, see the model page of Peng-Wang/ImageDream"
    ),
    VAE: Model("SDXL's VAE for half precision", ("madebyollin/sdxl-vae-fp16-fix",), (), 0.3, "MIT"),
}


def keys(options: Any) -> dict[str, str]:
    """Guidance model -> its weights, as the user names them: ``--hf_keys`` and ``--hf_key``.

    Args:
        options: the guidance group of the flags.

    Raises:
        UserError: a word is no NAME=KEY, or names a model twice or one that takes no key.
    """
    found: dict[str, str] = {}
    for word in options.hf_keys:
        name, equals, key = word.partition("=")
        known = (*DIFFUSION, "clip", VAE, tokenizers.KEY)
        if not equals or not key or name not in known:
            raise UserError(
                f"--hf_keys must be NAME=FOLDER, NAME=FILE or NAME=HUB_ID, with a name of {', '.join(known)}, got {word!r}"
            )
        if name in found:
            raise UserError(f"--hf_keys names {name} twice; give it one folder, file or hub id")
        found[name] = key
    diffusion = [name for name in ("SD", *options.guidance) if name in options.guidance and name in DIFFUSION]
    if options.hf_key is not None and diffusion:
        found.setdefault(diffusion[0], options.hf_key)
    return found


def resolve(config: "Config", name: str) -> Resolved:
    """Decide which weights a model of :data:`MODELS` uses, without touching the network.

    Raises:
        UserError: the named ones do not exist, or there are none and the environment says offline.
    """
    key = keys(config.guidance).get(name)
    if key is not None:
        path = Path(os.path.expanduser(key))
        if name == "SDXL" and path.is_file():
            from guidance import original_weights  # it imports torch

            return original_weights.resolve(path, name, f"--hf_keys {name}", keys(config.guidance).get(tokenizers.KEY))
        return from_key(name, key)
    if name == "MVDream" and config.guidance.mvdream == "embedded":
        return weights.embedded_multiview(config.prompt.text, "--mvdream embedded")
    model, layout = MODELS[name], LAYOUTS[name]
    found = weights.from_cache(model, name, missing=layout.missing, probe=layout.probe)
    if found is None:
        weights.check_online(
            f"--guidance {name}: {model.name} is not in the Hugging Face cache",
            f"unset the variable, or give --hf_keys {name}=FOLDER" + (" or --mvdream embedded" if name == "MVDream" else ""),
        )
    return found or weights.to_download(model, name)


def from_key(name: str, key: str, flag: str = "") -> Resolved:
    """The weights that a folder or a hub id, with an optional @revision, names.

    Args:
        name: of the model, in :data:`LAYOUTS`.
        key: what the user typed.
        flag: and where; "": in ``--hf_keys``.

    Raises:
        UserError: there are none.
    """
    path, layout = Path(os.path.expanduser(key)), LAYOUTS[name]
    known = weights.origin(path if path.exists() else key, [MODELS[name]], MODELS[name].name)
    if path.exists() or key.startswith((".", "/", "~")) or key.count("/") != 1:
        if not (layout.file and path.is_file()):
            check_folder(path, name)
        return Resolved(str(path), name, f"guidance: the weights of {name} in {path}", **known)
    folder = weights.cached(key, layout.missing, layout.probe)
    if folder is not None:
        layout.check(folder)
        return Resolved(str(folder), name, f"guidance: {key} from the cache", **known)
    weights.check_online(
        f"{f'{flag} ' if flag else f'--hf_keys {name}='}{key}: neither a folder nor complete in the Hugging Face cache",
        "give a local folder, or unset the variable",
    )
    return Resolved(key, name, f"guidance: downloading {key}", remote=True, **known)


def check_folder(folder: Path, name: str) -> None:
    """Refuse a folder that is not complete, or of another model.

    Raises:
        UserError: what is lacking or wrong.
    """
    if not folder.is_dir():
        raise UserError(f"weights: expected a folder of {name}, and {folder} is not a folder; give one, or a hub id")
    lacks = LAYOUTS[name].missing(folders.files_of(folder))
    if lacks is not None:
        raise UserError(f"weights: {folder} lacks {lacks}; it is not a folder of {name}, or not complete: {folders.RESTORE}")
    LAYOUTS[name].check(folder)


def fetch(resolved: Resolved, flag: str = "") -> Path:
    """The local, complete folder of resolved weights; downloads them if they are remote.

    Args:
        resolved: the weights.
        flag: that takes a folder of them; "": ``--hf_keys``.

    Raises:
        UserError: no mirror could be reached or holds a complete model.
    """
    if not resolved.remote:
        return Path(resolved.source)
    name, ids = resolved.kind, (resolved.source, *resolved.alternatives)
    layout = LAYOUTS[name]
    folder = hub.download_model(ids, layout.missing, layout.wanted, f"{flag} FOLDER" if flag else f"--hf_keys {name}=FOLDER")
    check_folder(folder, name)
    return folder


def codec(options: Any) -> Path | None:
    """The folder of the codec that ``--hf_keys SDXL_vae=KEY`` names, downloaded if need be; None: SDXL's own.

    Raises:
        UserError: there is none.
    """
    key = keys(options).get(VAE)
    return None if key is None else fetch(from_key(VAE, key))
