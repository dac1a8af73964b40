"""Where the weights of models that are told the camera are: Zero123, MVDream and ImageDream. Cache first, as in ``weights.py``.

A name stands for folders in diffusers layout on the hub, best first. The original files (``.ckpt``, ``.pt``) are read too,
where the user names one. Stable Zero123 is told the camera in another way than Zero123, and nothing in its files says which of
them it is, so the name of the file or folder decides.
"""

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from guidance import weights
from guidance.diffusion import multiview_parts, zero123_parts
from guidance.weights import Model, Resolved
from nerf.core.errors import UserError

if TYPE_CHECKING:
    import torch

    from guidance.base import Guidance
    from nerf.config.config import Config

MULTIVIEW = ("MVDream", "ImageDream")
STABLE = "stable"  # in the name of Stable Zero123
EMBEDDED_VIEW = Path(weights.prior.WEIGHTS.parent) / "view_weights"
FILES = (".ckpt", ".pt", ".pth", ".bin", ".safetensors")

# Name -> model; the first that is complete in the cache is taken. Licences as their model pages gave them; look there again.
MODELS: dict[str, Model] = {
    "stable-zero123": Model(
        "Stable Zero123",
        ("ashawkey/stable-zero123-diffusers", "kxic/stable-zero123"),
        (),
        2.9,
        "Stability AI Non-Commercial Research Community License",
    ),
    "zero123-xl": Model(
        "Zero123-XL",
        ("ashawkey/zero123-xl-diffusers", "kxic/zero123-xl", "bennyguo/zero123-xl-diffusers"),
        (),
        2.9,
        "MIT",
    ),
    "zero123": Model("Zero123", ("kxic/zero123-165000", "kxic/zero123-105000"), ("bennyguo/zero123-diffusers",), 2.9, "MIT"),
    "MVDream": Model(
        "MVDream", ("ashawkey/mvdream-sd2.1-diffusers",), (), 2.6, "Open RAIL, see the model page of MVDream/MVDream"
    ),
    "ImageDream": Model(
        "ImageDream", ("ashawkey/imagedream-ipmv-diffusers",), (), 3.9, "see the model page of Peng-Wang/ImageDream"
    ),
}
ZERO123 = ("stable-zero123", "zero123-xl", "zero123")  # in the order in which "auto" looks for them


def _missing_multiview(name: str) -> Callable[[Iterable[str]], str | None]:
    """What a folder of MVDream or ImageDream lacks."""
    return lambda files: multiview_parts.missing(list(files), name == "ImageDream")


def _missing(name: str) -> Callable[[Iterable[str]], str | None]:
    """What a folder of a model of the table lacks."""
    return _missing_multiview(name) if name in MULTIVIEW else lambda files: zero123_parts.missing(list(files))


def _from_cache(name: str) -> Resolved | None:
    """Weights of a model of the table that are complete in the cache."""
    model = MODELS[name]
    for hub_id in (*model.mirrors, *model.withdrawn):
        folder = weights.cached(hub_id, _missing(name))
        if folder is not None:
            sentence = f"guidance: {model.name} from the cache ({hub_id})"
            return Resolved(str(folder), kind_of(name, hub_id), sentence, model.licence)
    return None


def kind_of(name: str, source: str) -> str:
    """The kind of weights: the name of a multi-view model, else zero123 or stable zero123 by the name of file or folder."""
    if name in MULTIVIEW:
        return name
    path = Path(source)
    if path.parent.name == "snapshots":  # of the cache, where a hash is the name of the folder
        path = path.parent.parent
    return "stable zero123" if STABLE in path.name.lower() else "zero123"


def _named(name: str, key: str, flag: str) -> Resolved:
    """The weights that the user names: a folder, a file, a name of the table, or a hub id with an optional @revision.

    Raises:
        UserError: there is nothing of that name.
    """
    known = {one.lower(): one for one in MODELS if (one in MULTIVIEW) == (name in MULTIVIEW)}
    path = Path(os.path.expanduser(key))
    if path.exists() or key.startswith((".", "/", "~")) or path.suffix in FILES:
        if not path.exists():
            raise UserError(f"{flag} {key}: no such folder or file; give one that exists, or leave the flag out")
        if path.is_dir():
            lacks = _missing(name)(weights.files_of(path))
            if lacks is not None:
                raise UserError(f"{flag}: the folder {path} lacks {lacks}; it is not one of {name}")
        return Resolved(str(path), kind_of(name, os.path.realpath(path)), f"guidance: the weights in {path} ({flag})")
    if key.lower() in known:
        model = MODELS[known[key.lower()]]
        found = _from_cache(known[key.lower()])
        if found is not None:
            return found
        first, *others = model.mirrors
        licence = model.licence
        words = f"{model.name} from {first} ({model.gigabytes} GB, licence {licence})"
    elif key.count("/") == 1:
        cached = weights.cached(key, _missing(name))
        if cached is not None:
            return Resolved(str(cached), kind_of(name, key), f"guidance: {key} from the cache ({flag})")
        first, others, licence, words = key, [], Resolved.licence, key
    else:
        raise UserError(f"{flag} {key}: no such folder or file, and no name among {', '.join(known.values())}")
    if weights.offline():
        raise UserError(
            f"{flag} {key} is not complete in the Hugging Face cache, and the environment says offline "
            f"({', '.join(weights.OFFLINE_VARIABLES)}); give a local folder or file, or unset the variable"
        )
    sentence = f"guidance: downloading {words}"
    return Resolved(first, kind_of(name, first), sentence, licence, remote=True, alternatives=tuple(others))


def zero123(options: Any) -> Resolved:
    """The weights that ``--zero123`` names; "auto" takes those on this machine, else the embedded view-conditioned prior.

    Args:
        options: the guidance group of the flags.

    Raises:
        UserError: there are none of that name.
    """
    key, flag = options.zero123, "--zero123"
    if key == "embedded":
        return _embedded("--zero123 embedded")
    if key != "auto":
        return _named("zero123", key, flag)
    given = Path(options.zero123_ckpt)
    if given.exists() or options.zero123_ckpt != type(options).zero123_ckpt:
        return _named("zero123", options.zero123_ckpt, "--zero123_ckpt")
    for name in ZERO123:
        found = _from_cache(name)
        if found is not None:
            return found
    return _embedded("no weights of Zero123 on this machine")


def _embedded(why: str) -> Resolved:
    """The view-conditioned prior that ships with the program.

    Raises:
        UserError: its weights are missing.
    """
    if not EMBEDDED_VIEW.is_dir():
        names = ", ".join(f"{name} ({MODELS[name].licence})" for name in ZERO123)
        raise UserError(
            f"--zero123: {why}, and there is no embedded view-conditioned prior at {EMBEDDED_VIEW}; give --zero123 FOLDER, "
            f"FILE.ckpt, or a name to download: {names}"
        )
    sentence = f"guidance: the embedded view-conditioned prior ({why})"
    return Resolved(str(EMBEDDED_VIEW), "embedded view", sentence, "Apache-2.0")


def embedded(config: "Config", device: "torch.device", resolved: Resolved) -> "Guidance":
    """Build the embedded view-conditioned prior.

    Raises:
        UserError: this version has none.
    """
    import importlib

    try:
        module = importlib.import_module("guidance.prior.view_guidance")
    except ImportError:
        raise UserError("this version has no embedded view-conditioned prior; give --zero123 FOLDER or FILE.ckpt") from None
    model: Guidance = module.build(config, device, resolved)
    return model


def multiview(name: str, options: Any) -> Resolved:
    """The weights of MVDream or ImageDream: those of ``--hf_key``, unless that is for Stable Diffusion; else the cache's.

    Args:
        name: of the guidance.
        options: the guidance group of the flags.

    Raises:
        UserError: there are none on this machine, and downloading is not possible.
    """
    if options.hf_key is not None and "SD" not in options.guidance:
        return _named(name, options.hf_key, "--hf_key")
    return _named(name, name, f"--guidance {name}:")


def fetch(resolved: Resolved) -> Path:
    """The local folder or file of resolved weights; downloads them if they are remote.

    Raises:
        UserError: no mirror could be reached or holds a complete model.
    """
    if not resolved.remote:
        return Path(resolved.source)
    name = resolved.kind if resolved.kind in MULTIVIEW else "zero123"
    flag = "--hf_key FOLDER" if name in MULTIVIEW else "--zero123 FOLDER"
    return weights.download((resolved.source, *resolved.alternatives), lambda hub_id: _download(hub_id, name), flag)


def _download(hub_id: str, name: str) -> Path:
    """Download what is used of a hub repository."""
    from huggingface_hub import list_repo_files, snapshot_download

    repository, _, revision = hub_id.partition("@")
    files = list_repo_files(repository, revision=revision or None)
    lacks = _missing(name)(files)
    if lacks is not None:
        raise ValueError(f"the repository lacks {lacks}")
    wanted = ["model_index.json", "tokenizer/*", "*/config.json", "*/*_config.json"]
    for part in weights.STEMS:
        best = weights.weight_file(files, part)
        wanted += [best, *(weights.shards_of(best, files) or ())] if best is not None else []
    return Path(snapshot_download(repository, revision=revision or None, allow_patterns=wanted))
