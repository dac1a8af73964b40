"""CLIP's tokenizer for checkpoints in one file, which do not hold it: beside it, in a folder, in the cache, or of the hub.

All models with a text encoder of CLIP or OpenCLIP have the same one.
"""

import os
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from guidance import folders, hub, weights
from nerf.core.errors import UserError

KEY = "tokenizer"  # in --hf_keys
PUBLISHED = ("openai/clip-vit-large-patch14",)  # where it is downloaded from
FURTHER = ("openai/clip-vit-base-patch16", "openai/clip-vit-base-patch32", "stabilityai/stable-diffusion-xl-base-1.0")
FILES = ("vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
WANTED = "the folder tokenizer/ of Stable Diffusion or CLIP (vocab.json and merges.txt)"


def _inside(folder: Path) -> tuple[Path, str] | None:
    """(folder, subfolder) of the tokenizer in a folder or its ``tokenizer/``; None if there is none."""
    files = set(folders.files_of(folder))
    if folders.missing_part(files, ("tokenizer",)) is None:
        return folder, "tokenizer"
    return (folder, ".") if any(set(names) <= files for names in folders.TOKENIZERS[:2]) else None


def _lacks(subfolder: str, files: Iterable[str]) -> str | None:
    """What a repository with these files lacks of a tokenizer in that subfolder."""
    names = {f"{'' if subfolder == '.' else f'{subfolder}/'}{name}" for name in folders.TOKENIZERS[0]}
    return next(iter(sorted(names - set(files))), None)


def cached(ids: Iterable[str]) -> tuple[Path, str] | None:
    """(folder, subfolder) of the tokenizer of the first of some repositories that has it in the cache."""
    for hub_id in ids:
        for probe, subfolder in (("tokenizer/vocab.json", "tokenizer"), ("vocab.json", ".")):
            folder = weights.cached(hub_id, partial(_lacks, subfolder), probe)
            if folder is not None:
                return folder, subfolder
    return None


def beside(path: Path) -> tuple[Path, str] | None:
    """(folder, subfolder) of the ``tokenizer/`` beside a file."""
    lacks = folders.missing_part(folders.files_of(path.parent), ("tokenizer",))
    return (path.parent, "tokenizer") if lacks is None else None


def find(path: Path, key: str | None = None) -> tuple[Path, str] | None:
    """(folder, subfolder) of the tokenizer for a file on this machine; None if it must be downloaded.

    Args:
        path: the file.
        key: a folder that holds the tokenizer's files or a ``tokenizer/``, or a hub id; None: beside the file, else that of
            any model in the cache.

    Raises:
        UserError: the folder holds none, or nothing may be downloaded.
    """
    if key is not None:
        folder = Path(os.path.expanduser(key))
        if folder.exists() or key.startswith((".", "/", "~")) or key.count("/") != 1:
            found = _inside(folder) if folder.is_dir() else None
            if found is None:
                raise UserError(f"--hf_keys {KEY}={key} is no folder with CLIP's tokenizer; give {WANTED}")
            return found
        found = cached([key])
    else:
        known = (one for model in weights.MODELS.values() for one in model.ids)
        found = beside(path) or cached([*known, *PUBLISHED, *FURTHER])
    if found is None:
        which = key or "CLIP's"
        weights.check_online(
            f"weights: {path} holds no tokenizer, and {which} is not on this machine",
            f"put {WANTED} beside it, give --hf_keys {KEY}=FOLDER, or unset the variable",
        )
    return found


def fetch(path: Path, key: str | None = None) -> tuple[Path, str]:
    """The tokenizer that :func:`find` finds, else it is downloaded (2 MB).

    Raises:
        UserError: it is nowhere.
    """
    found = find(path, key)
    if found is not None:
        return found
    folder = hub.download(PUBLISHED if key is None else (key,), _download, f"--hf_keys {KEY}=FOLDER")
    found = _inside(folder)
    if found is None:
        raise UserError(f"weights: {key or PUBLISHED[0]} holds no tokenizer of CLIP; give --hf_keys {KEY}=FOLDER with {WANTED}")
    return found


def _download(hub_id: str) -> Path:
    """Download the tokenizer's files of a repository; raises what the network, the hub and the disk raise."""
    return hub.fetch(hub.repository(hub_id), [*FILES, *(f"tokenizer/{name}" for name in FILES)])
