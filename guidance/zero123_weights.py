"""Where the weights of Zero123 are: logical name -> folder or file, cache first, as ``weights.py`` for Stable Diffusion.

A name stands for folders in diffusers layout on the hub, best first. The original ``.ckpt`` is read too, where the user names
one. Stable Zero123 is told the camera in another way than Zero123, and nothing in its files says which of them it is, so the
name of the file or folder decides.
"""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from guidance import folders, hub, prior, weights
from guidance.diffusion import zero123_parts
from guidance.weights import Model, Resolved
from nerf.core.errors import UserError

STABLE = "stable"  # in the name of Stable Zero123
EMBEDDED = prior.VIEW_WEIGHTS  # the view-conditioned prior that ships with the program
FILES = (".ckpt", ".pt", ".pth", ".bin", ".safetensors")
# Kind of weights -> name in exported files.
TITLES = {
    "zero123": "Zero123",
    "stable zero123": "Stable Zero123",
    "embedded view": "the embedded view-conditioned prior",
}
# Name -> model, in the order in which "auto" looks for them. Licences as their model pages gave them; look there again.
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
}


def kind_of(source: str) -> str:
    """The kind of weights, "zero123" or "stable zero123", by the name of their file, folder or repository."""
    path = Path(source)
    if path.parent.name == "snapshots":  # of the cache, where a hash is the name of the folder
        path = path.parent.parent
    return "stable zero123" if STABLE in path.name.lower() else "zero123"


def _resolved(source: str, kind: str, sentence: str, key: str, **further: Any) -> Resolved:
    """Weights that the user names by ``key``, with the title and the licence of the table where it is there."""
    return Resolved(source, kind, sentence, **weights.origin(key, MODELS.values(), TITLES[kind]), **further)


def _from_cache(name: str) -> Resolved | None:
    """Weights of a model of the table that are complete in the cache."""
    kind = kind_of(name)
    return weights.from_cache(MODELS[name], kind, name, zero123_parts.missing)


def _named(key: str, flag: str) -> Resolved:
    """The weights that the user names: a folder, a file, a name of the table, or a hub id with an optional @revision.

    Raises:
        UserError: there is nothing of that name.
    """
    path = Path(os.path.expanduser(key))
    if path.exists() or key.startswith((".", "/", "~")) or path.suffix in FILES:
        if not path.exists():
            raise UserError(f"{flag} {key}: no such folder or file; give one that exists, or leave the flag out")
        lacks = zero123_parts.missing(folders.files_of(path)) if path.is_dir() else None
        if lacks is not None:
            raise UserError(f"{flag}: the folder {path} lacks {lacks}; it is not one of Zero123")
        return _resolved(str(path), kind_of(os.path.realpath(path)), f"guidance: the weights in {path} ({flag})", str(path))
    return _from_table(key.lower(), flag) if key.lower() in MODELS else _from_hub(key, flag)


def _from_table(name: str, flag: str) -> Resolved:
    """A model of the table: from the cache, else it will be downloaded."""
    found, kind = _from_cache(name), kind_of(name)
    if found is None:
        _check_online(f"{flag} {name}")
    return found or weights.to_download(MODELS[name], kind, name)


def _from_hub(key: str, flag: str) -> Resolved:
    """A repository of the hub: from the cache, else it will be downloaded."""
    if key.count("/") != 1:
        raise UserError(
            f"{flag} {key}: no such folder or file, and no name among {', '.join(MODELS)}; give one of these, "
            "embedded, a folder, a .ckpt or a hub id"
        )
    folder = weights.cached(key, zero123_parts.missing)
    if folder is not None:
        return _resolved(str(folder), kind_of(key), f"guidance: {key} from the cache ({flag})", key)
    _check_online(f"{flag} {key}")
    return _resolved(key, kind_of(key), f"guidance: downloading {key} ({flag})", key, remote=True)


def _check_online(what: str) -> None:
    """Refuse what must be downloaded where the environment forbids the network."""
    weights.check_online(
        f"{what} is not complete in the Hugging Face cache", "give a local folder or file, or unset the variable"
    )


def resolve(options: Any, default_ckpt: str) -> Resolved:
    """The weights that ``--zero123`` names; "auto" takes those on this machine, else the embedded view-conditioned prior.

    Args:
        options: the guidance group of the flags.
        default_ckpt: the value of ``--zero123_ckpt`` that need not exist.

    Raises:
        UserError: there are none of that name.
    """
    if options.zero123 == "embedded":
        return _embedded("--zero123 embedded")
    if options.zero123 != "auto":
        return _named(options.zero123, "--zero123")
    if options.zero123_ckpt != default_ckpt or Path(options.zero123_ckpt).exists():
        return _named(options.zero123_ckpt, "--zero123_ckpt")
    found = (_from_cache(name) for name in MODELS)
    return next((one for one in found if one is not None), None) or _embedded("no weights of Zero123 on this machine")


def _embedded(why: str) -> Resolved:
    """The view-conditioned prior that ships with the program.

    Raises:
        UserError: its weights are missing.
    """
    if not EMBEDDED.is_dir():
        names = ", ".join(f"{name} ({model.licence})" for name, model in MODELS.items())
        raise UserError(
            f"--zero123: {why}, and there is no embedded view-conditioned prior at {EMBEDDED}; give --zero123 FOLDER, "
            f"FILE.ckpt, or a name to download: {names}"
        )
    sentence = f"guidance: the embedded view-conditioned prior ({why})"
    title = TITLES["embedded view"]
    return Resolved(str(EMBEDDED), "embedded view", sentence, "Apache-2.0", version="embedded", title=title)


def fetch(resolved: Resolved) -> Path:
    """The local folder or file of resolved weights; downloads them if they are remote.

    Raises:
        UserError: no mirror could be reached or holds a complete model.
    """
    if not resolved.remote:
        return Path(resolved.source)
    ids = (resolved.source, *resolved.alternatives)
    return hub.download_model(ids, zero123_parts.missing, wanted, "--zero123 FOLDER")


def wanted(files: Iterable[str]) -> list[str]:
    """What is downloaded of a repository with these files."""
    have, names = list(files), ["model_index.json", "scheduler/scheduler_config.json"]
    for part in (*zero123_parts.PARTS, *zero123_parts.PROJECTIONS):
        found = folders.weight_files(have, part)
        names += [f"{part}/config.json", *found] if found else []
    return names
