"""Checkpoints of Stable Diffusion and SDXL in one file, as the weights of a run; the file is looked at, nothing is loaded."""

from pathlib import Path

from guidance import tokenizers
from guidance.diffusion.checkpoint_kinds import FAMILIES, version_of
from guidance.diffusion.single_file import TensorFile
from guidance.weights import Resolved

LONGEST = 200  # characters of the licence that a file gives itself
KINDS = {"SD": "sd", "SDXL": "SDXL"}  # model of --guidance -> kind of its weights
assert set(KINDS) == FAMILIES


def resolve(path: Path, family: str, flag: str, tokenizer: str | None = None) -> Resolved:
    """The weights in a file.

    Args:
        path: the file.
        family: model of --guidance that it was given to, of :data:`KINDS`.
        flag: by which it was given, for the log.
        tokenizer: see :func:`guidance.tokenizers.find`.

    Raises:
        UserError: it is damaged or something else, or there is no tokenizer for it.
    """
    file = TensorFile(path)
    version = version_of(file, family)
    tokenizers.find(path, tokenizer)
    licence = " ".join(file.metadata.get("modelspec.license", "").split())[:LONGEST]
    sentence = f"guidance: {version.name} in the file {path} ({flag})"
    title = f"{path.name} ({version.name})"
    return Resolved(str(path), KINDS[family], sentence, licence or Resolved.licence, title=title)
