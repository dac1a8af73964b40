"""The captions among which the true one must be found: a list in a text file, one a line. K captions."""

from collections.abc import Sequence
from pathlib import Path

from nerf.core.errors import UserError
from nerf.core.files import read_text
from nerf.core.words import counted

MOST = 100_000


def normalised(caption: str) -> str:
    """The form in which captions are compared: small letters, single spaces, no dot or comma at the end."""
    return " ".join(caption.lower().split()).strip(" .,")


def read_captions(path: Path) -> list[str]:
    """The captions of a file; empty lines and those that begin with # are left out, and a caption that occurs again is.

    Raises:
        UserError: it cannot be read, or holds fewer than two captions.
    """
    lines = [line.strip() for line in read_text(path, "give a text file with a caption on each line").splitlines()]
    found = {normalised(line): line for line in reversed(lines) if normalised(line) and not line.startswith("#")}
    if not 2 <= len(found) <= MOST:
        raise UserError(f"{path} holds {counted(len(found), 'caption')}, and 2 to {MOST:,} are needed; write one on each line")
    return list(reversed(found.values()))


def pool_of(captions: Sequence[str], prompt: str) -> tuple[list[str], int]:
    """The captions with a run's own prompt among them, which is added behind them if it is not there, and its index."""
    known = [normalised(caption) for caption in captions]
    if normalised(prompt) in known:
        return list(captions), known.index(normalised(prompt))
    return [*captions, prompt], len(captions)
