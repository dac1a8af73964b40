"""Words that users type: reading numbers, and proposing the known word that an unknown one may mean."""

import difflib
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from nerf.core.errors import UserError

NEAR = 0.75  # similarity in [0, 1] from which a known word is proposed; at difflib's 0.6, unrelated ones are
DASHES = "-\u2010\u2011\u2012\u2013\u2014\u2212"  # also those that word processors make of two hyphens
MOST_PROPOSED = 3
SHORTEST_PART = 3  # letters of a word that is looked for inside longer ones
SHOWN = 80  # characters of a word that a message repeats


def expected_words(words: Iterable[str]) -> str:
    """The end of the sentence "--flag must be ..." for a value that is one of some words: "a, b or c"."""
    *first, last = words
    return f"{', '.join(first)} or {last}" if first else last


def counted(count: int, one: str, many: str | None = None) -> str:
    """ "1 photograph", "3 photographs"; ``many`` where it is not ``one`` with an s, as of "mask is" and "masks are"."""
    return f"{count} {one if count == 1 else many or f'{one}s'}"


def near(word: str, known: Iterable[str], synonyms: Mapping[str, str] | None = None) -> list[str]:
    """The known words that a word may stand for: at most three, none if nothing is near.

    In this order: the same but for case and dashes; a synonym; those that it begins; the most similar one; those that it is
    a part of (as ``resolution`` is of ``mcubes_resolution``).

    Args:
        word: as it was typed.
        known: the words.
        synonyms: other names -> known words, both without dashes.
    """
    plain = _plain(word)
    by_name: dict[str, list[str]] = {}
    for one in known:
        by_name.setdefault(_plain(one), []).append(one)
    if plain in by_name:
        return by_name[plain][:MOST_PROPOSED]
    meant = (synonyms or {}).get(plain)
    if meant in by_name:
        return by_name[str(meant)][:1]
    longer = [name for name in by_name if name.startswith(plain)] if len(plain) >= SHORTEST_PART else []
    if not longer:
        longer = difflib.get_close_matches(plain, list(by_name), n=1, cutoff=NEAR)
    if not longer and len(plain) >= SHORTEST_PART:
        longer = [name for name in by_name if plain in name.split("_")]
    return [by_name[name][0] for name in longer] if len(longer) <= MOST_PROPOSED else []


def _plain(word: str) -> str:
    return word.strip(DASHES).replace("-", "_").lower()


def did_you_mean(word: str, known: Iterable[str], synonyms: Mapping[str, str] | None = None) -> str:
    """``"; did you mean --x?"`` for the words of :func:`near`, or nothing if there are none."""
    found = near(word, known, synonyms)
    return f"; did you mean {expected_words(found)}?" if found else ""


def quoted(word: str) -> str:
    """A word as a message repeats it: in quotes, and cut if it is long."""
    return repr(word if len(word) <= SHOWN else f"{word[:SHOWN]}...")


def whole_number(word: str) -> int:
    """An int, also written as 5e4.

    Raises:
        UserError: the end of the sentence "--flag ...".
    """
    try:
        value = float(word)
        if value != int(value):
            raise ValueError(word)
    except (ValueError, OverflowError):
        raise UserError(f"must be a whole number, got {quoted(word)}") from None
    return int(value)


def number(word: str) -> float:
    """A finite float.

    Raises:
        UserError: the end of the sentence "--flag ...".
    """
    try:
        value = float(word)
    except ValueError:
        point = f"; write {word.replace(',', '.')}" if is_number(word.replace(",", ".")) else ""
        raise UserError(f"must be a number, got {quoted(word)}{point}") from None
    if not math.isfinite(value):
        raise UserError(f"must be a finite number, got {quoted(word)}")
    return value


READERS: dict[type, Callable[[str], Any]] = {int: whole_number, float: number}  # of the words of a command line


def is_number(word: str) -> bool:
    """Whether a word is a number, such as -1e-3 or inf."""
    try:
        float(word)
    except ValueError:
        return False
    return True
