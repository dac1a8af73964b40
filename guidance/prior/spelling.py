"""Which known word a mistyped one stands for, and which known words are near an unknown one in meaning."""

import functools

from guidance.prior.vocabulary import (
    BESIDE,
    COLORS,
    COUNTS,
    GLUE,
    HARMLESS,
    MEANINGS,
    NEGATIONS,
    ON,
    PARTS,
    PLURALS,
    REAL_WORDS,
    SHADES,
    SPELLINGS,
    STACKED,
    SURROUNDINGS,
    WITH,
    WORDINGS,
    Parts,
)

_KEYS = {  # letter -> row and place of its key
    letter: (row, column + 0.5 * row)
    for row, keys in enumerate(("qwertyuiop", "asdfghjkl", "zxcvbnm"))
    for column, letter in enumerate(keys)
}
_VOWELS = set("aeiouy")
_SHORT, _LONG = 4, 8  # letters of a known word: below the first only swapped letters are mended, from the second on two errors


def names_of(group: str) -> list[list[str]]:
    """The names of each of the parts in a text of :class:`Parts`."""
    return [part.split() for part in group.split(",") if part.strip()]


def groups_of(parts: Parts) -> list[str]:
    """All texts of a :class:`Parts`."""
    return [parts.first, parts.second, parts.with_first, parts.with_second, *(parts.fixed or {}).values()]


@functools.cache
def part_words() -> dict[str, str]:
    """Each word for a part, in singular or plural, and the word of :data:`PARTS` that it is."""
    words = [name for parts in PARTS.values() for group in groups_of(parts) for part in names_of(group) for name in part]
    found: dict[str, str] = {}
    for word in words:
        found |= {word[:-1] if word.endswith("s") and not word.endswith("ss") else word + "s": word}
    return found | {word: word for word in words}


@functools.cache
def plurals() -> dict[str, str]:
    """Each kind in the plural, and the kind."""
    return {kind + ("es" if kind.endswith("x") else "s"): kind for kind in WORDINGS} | PLURALS


@functools.cache
def meanings() -> dict[str, list[str]]:
    """Each word that is known by its meaning alone, and the kinds or colours that are near it, the nearest first."""
    found: dict[str, list[str]] = {}
    for known, words in MEANINGS.items():
        for near in words.split():
            found.setdefault(near, []).append(known)
    return found


@functools.cache
def _ranked() -> tuple[frozenset[str], ...]:
    """What a mistyped word may stand for, in the order in which it is looked up.

    The words that decide are before harmless ones and those of similar meaning. Of the parts only the usual names are here, and
    of the other words few and long ones: a real word that is not known must not be taken for a mistyped one.
    """
    usual = {part[0] for parts in PARTS.values() for group in groups_of(parts) for part in names_of(group)}
    deciding = {*COLORS, *usual, *SPELLINGS, "with", "without", "and", *(word for kind in WORDINGS for word in kind.split())}
    return frozenset(deciding), *(frozenset(w for w in words if len(w) > _SHORT) for words in (HARMLESS, meanings()))


@functools.cache
def _known() -> frozenset[str]:
    """All words that are understood."""
    kinds = {*(word for kind in WORDINGS for word in kind.split()), *plurals()}
    glue = {*GLUE, *WITH, *ON, *BESIDE, *NEGATIONS, *COUNTS, *HARMLESS, *SURROUNDINGS, *SHADES}
    return frozenset({*COLORS, *part_words(), *SPELLINGS, *meanings(), *kinds, *glue})


def is_known(word: str) -> bool:
    """Whether a word is understood as it is."""
    return word in _known()


def candidates(word: str) -> list[str]:
    """The known words that a mistyped one may stand for, sorted; none for a word of its own meaning.

    What counts as a typing error: two letters swapped, one left out or doubled; in kinds, colours and parts of five letters and
    more also a vowel for another and a key beside the right one. The first letter is right, or swapped with the second. Known
    words of eight letters and more may have two errors, those of three only swapped letters.
    """
    if word in REAL_WORDS or not word.isalpha() or is_known(word):
        return []
    for rank, words in enumerate(_ranked()):
        errors = {known: _errors(word, known, rank == 0) for known in words}
        fewest = min((count for count in errors.values() if count is not None), default=None)
        if fewest is not None:
            return sorted(known for known, count in errors.items() if count == fewest)
    return []


def nearest(word: str, count: int = 3) -> list[str]:
    """Kinds and colours near an unknown word, the nearest first: by meaning, also of what it may be a mistyping of."""
    near: list[str] = []
    for one in (word, *candidates(word)):
        near += [one] if one in COLORS or one in WORDINGS else [SPELLINGS[one]] if one in SPELLINGS else meanings().get(one, [])
    return list(dict.fromkeys(near))[:count]


def _errors(typed: str, known: str, loosely: bool) -> int | None:
    """How many typing errors make ``typed`` of ``known``; None if it is not a plausible mistyping.

    Args:
        typed, known: the words.
        loosely: one letter may stand for another.
    """
    limit = 2 if len(known) >= _LONG else 1
    if abs(len(typed) - len(known)) > limit or (typed[0] != known[0] and typed[:2] != known[1::-1]):
        return None
    if len(known) < _SHORT:
        return 1 if len(typed) == len(known) and typed in _swapped(known) else None
    found = _distance(typed, known, loosely and len(known) > _SHORT)
    return found if found <= limit else None


def _swapped(word: str) -> list[str]:
    """A word with each pair of neighbouring letters swapped."""
    return [word[:i] + word[i + 1] + word[i] + word[i + 2 :] for i in range(len(word) - 1)]


def _distance(typed: str, known: str, loosely: bool) -> int:
    """Fewest edits that count as typing errors (optimal string alignment); 99 if there is no such sequence."""
    rows = [[0] * (len(known) + 1) for _ in range(len(typed) + 1)]
    for i in range(len(typed) + 1):
        for j in range(len(known) + 1):
            best = 0 if i == j == 0 else 99
            if j:
                best = min(best, rows[i][j - 1] + 1)  # a letter left out
            if i and _extra(typed, i - 1, loosely):
                best = min(best, rows[i - 1][j] + 1)
            if i and j and typed[i - 1] == known[j - 1]:
                best = min(best, rows[i - 1][j - 1])
            elif i and j and loosely and _confused(typed[i - 1], known[j - 1]):
                best = min(best, rows[i - 1][j - 1] + 1)
            if i > 1 and j > 1 and typed[i - 2 : i] == known[j - 2 : j][::-1]:
                best = min(best, rows[i - 2][j - 2] + 1)
            rows[i][j] = best
    return rows[-1][-1]


def _confused(typed: str, meant: str) -> bool:
    """Whether one letter is typed for another: vowels, or neighbours on the keyboard."""
    return {typed, meant} <= _VOWELS or _beside(typed, meant)


def _extra(typed: str, at: int, loosely: bool) -> bool:
    """Whether a letter may be one too many: doubled, or ``loosely`` beside its neighbour on the keyboard."""
    around = [typed[k] for k in (at - 1, at + 1) if 0 <= k < len(typed)]
    return typed[at] in around or (loosely and any(_beside(typed[at], other) for other in around))


def _beside(a: str, b: str) -> bool:
    """Whether two letters are neighbours on the keyboard."""
    if a not in _KEYS or b not in _KEYS:
        return False
    (row, column), (other_row, other_column) = _KEYS[a], _KEYS[b]
    return a != b and abs(row - other_row) <= 1 and abs(column - other_column) <= 1


def known_stack(kinds: list[str]) -> str:
    """The stack that two kinds make, the upper one first; empty if the prior knows no such."""
    name = " on ".join(kinds)
    return name if name in STACKED else ""
