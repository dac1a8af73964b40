"""The files of a folder of weights in diffusers layout: which are a part's best weights, and what is missing."""

import re
from collections.abc import Iterable
from pathlib import Path

from guidance.prior.description import FILE

PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
STEMS = {
    "unet": ("diffusion_pytorch_model",),
    "vae": ("diffusion_pytorch_model",),
    "text_encoder": ("model", "pytorch_model"),
    "image_encoder": ("model", "pytorch_model"),
    "text_encoder_2": ("model", "pytorch_model"),
    ".": ("model", "pytorch_model", "diffusion_pytorch_model"),  # a model of one network, in the folder itself
    "detail": ("diffusion_pytorch_model",),
    "geometry": ("diffusion_pytorch_model",),
    "encoder": ("model",),  # of the reference image, in a view-conditioned embedded prior
    "cc_projection": ("diffusion_pytorch_model",),
    "clip_camera_projection": ("diffusion_pytorch_model",),
}
# Half precision and safetensors first. A file in shards is named by its index; diffusers puts the variant at two places.
_ENDINGS = (
    ".fp16.safetensors",
    ".safetensors.index.fp16.json",
    ".fp16.safetensors.index.json",
    ".safetensors",
    ".safetensors.index.json",
    ".fp16.bin",
    ".bin.index.fp16.json",
    ".bin",
    ".bin.index.json",
)
# Files of which one group makes a tokenizer: byte pairs, any kind, T5's (which needs the package sentencepiece).
TOKENIZERS = (("vocab.json", "merges.txt"), ("tokenizer.json",), ("spiece.model",))
RESTORE = "restore or download it again"


def weight_file(files: Iterable[str], part: str) -> str | None:
    """The best weight file of a part among paths relative to the folder: half precision and safetensors first."""
    have = set(files)
    inside = "" if part == "." else f"{part}/"
    wanted = (f"{inside}{stem}{ending}" for ending in _ENDINGS for stem in STEMS[part])
    return next((name for name in wanted if name in have and shards_of(name, have) != []), None)


def shards_of(name: str, files: Iterable[str]) -> list[str] | None:
    """The shards that the index file ``name`` stands for: all of them, or none if one is missing; None if it is no index.

    They are named STEM-00001-of-00007.safetensors, with the variant, if any, at the end of STEM.
    """
    if ".index." not in name:
        return None
    stem, kind = name.split(".")[0], "safetensors" if ".safetensors" in name else "bin"
    variant = ".fp16" if ".fp16." in name else ""
    pattern = re.compile(re.escape(stem + variant) + r"-(\d{5})-of-(\d{5})\." + kind)
    found = [(int(m[1]), int(m[2]), m[0]) for m in map(pattern.fullmatch, files) if m]
    count = found[0][1] if found else 0
    whole = {(number, count) for number in range(1, count + 1)} == {(number, of) for number, of, _ in found}
    return [file for *_, file in sorted(found)] if whole else []


def weight_files(files: Iterable[str], *parts: str) -> list[str]:
    """The best weight file of each part that has one, with the shards that it stands for."""
    have = set(files)
    best = [name for name in (weight_file(have, part) for part in parts if part in STEMS) if name is not None]
    return [file for name in best for file in (name, *(shards_of(name, have) or ()))]


def parts_of(files: Iterable[str]) -> tuple[str, ...]:
    """The parts required of a diffusers folder with these files: an embedded prior has no vae and may have more networks."""
    have = list(files)
    if FILE not in have:
        return PARTS
    if any(name.startswith("encoder/") for name in have):  # view-conditioned: it reads images, and no text
        return ("unet", "encoder", "scheduler")
    more = [part for part in ("detail", "geometry") if any(name.startswith(f"{part}/") for name in have)]
    return (*(part for part in PARTS if part != "vae"), *more)


def missing_part(files: Iterable[str], parts: Iterable[str] | None = None) -> str | None:
    """The name of what a diffusers folder lacks; None if it is complete.

    transformers creates a dummy tokenizer for a folder without one, so this is checked before anything is loaded.

    Args:
        files: of the folder, relative to it.
        parts: that it must have; None: those of :func:`parts_of`.
    """
    have = set(files)
    for part in parts_of(have) if parts is None else parts:
        if part.startswith("tokenizer"):
            if not any({f"{part}/{name}" for name in names} <= have for names in TOKENIZERS):
                return f"{part}/ ({' or '.join(' and '.join(names) for names in TOKENIZERS)})"
            continue
        config = f"{part}/{'scheduler_config' if part == 'scheduler' else 'config'}.json"
        if config not in have:
            return config
        if part in STEMS and weight_file(have, part) is None:
            return f"the weights in {part}/ ({STEMS[part][0]}.safetensors)"
    return None


def files_of(folder: Path) -> list[str]:
    """Non-empty files one level below ``folder``, relative, with forward slashes; and those in it."""
    found = [*folder.glob("*"), *folder.glob("*/*")]
    return [f.relative_to(folder).as_posix() for f in found if f.is_file() and f.stat().st_size > 0]
