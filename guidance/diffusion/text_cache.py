"""Text embeddings on disk, by model and prompt, so that an encoder of many gigabytes is read once for a prompt.

A file holds the embeddings of one prompt, as safetensors. Its name is a hash of what they depend on: the encoder's config and
tokenizer, its weights (sizes and samples of the files, which are too large to be hashed as a whole at every start), how it is
read, the dtype, and the prompt. It is in SOMNIA_TEXT_CACHE, or ``somnia/text`` in the user's cache folder, and may be deleted.
"""

import hashlib
import logging
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from nerf.core.checksums import checksum
from nerf.core.files import cache_folder, write_atomically

log = logging.getLogger("somnia.guidance")

FORMAT = b"2"  # of the cache; another one does not find the files of this
SAMPLES, SAMPLE_BYTES = 64, 1 << 14  # of a weights file: evenly spaced, both ends included
LARGEST_WHOLE = 1 << 22  # bytes of a file that is hashed as a whole: configs and tokenizers


def folder() -> Path:
    """Where embeddings are stored; it need not exist."""
    return cache_folder("text", "SOMNIA_TEXT_CACHE")


def identity(files: Iterable[Path]) -> str:
    """A hash of some files, by name, size and content; of large ones, samples of the content.

    Raises:
        OSError: a file cannot be read.
    """
    digest = hashlib.sha256(FORMAT)
    for path in sorted(files, key=lambda p: (p.parent.name, p.name)):
        size = path.stat().st_size
        digest.update(repr((path.parent.name, path.name, size)).encode())
        with path.open("rb") as file:
            if size <= LARGEST_WHOLE:
                digest.update(file.read())
                continue
            for i in range(SAMPLES):
                file.seek((size - SAMPLE_BYTES) * i // (SAMPLES - 1))
                digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()


def key(model: str, dtype: torch.dtype, prompt: str) -> str:
    """The name under which the embeddings of a prompt are stored.

    Args:
        model: what identifies the encoder and how it is read, of :func:`identity`.
        dtype: of the embeddings.
        prompt: as the encoder reads it.
    """
    return hashlib.sha256(repr((model, str(dtype), prompt)).encode()).hexdigest()


def load(name: str, tensors: Iterable[str]) -> dict[str, Tensor] | None:
    """The embeddings stored under a name, on the CPU; None if there are none, or if the file is damaged.

    Args:
        name: of :func:`key`.
        tensors: names of the tensors that it must hold.
    """
    path = folder() / f"{name}.safetensors"
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            sums, found = file.metadata() or {}, {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        log.warning("guidance: the stored text embeddings in %s cannot be read (%s); they are computed again", path, error)
        return None
    whole = set(found) == set(tensors) and all(sums.get(key) == str(checksum(value)) for key, value in found.items())
    return found if whole else None


def store(name: str, embeddings: dict[str, Tensor]) -> None:
    """Store the embeddings of a prompt; where nothing can be written, they are computed again next time."""
    tensors = {key: value.detach().cpu().contiguous() for key, value in embeddings.items()}
    try:
        sums = {key: str(checksum(value)) for key, value in tensors.items()}
        write_atomically(folder() / f"{name}.safetensors", lambda path: save_file(tensors, path, sums))
    except (OSError, SafetensorError) as error:
        log.warning("guidance: text embeddings cannot be stored in %s (%s); they are computed in every run", folder(), error)
