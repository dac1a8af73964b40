"""What a prompt for the embedded prior is answered: what was understood, ignored or mended, or why it is refused."""

import re

from guidance.prior import captions
from guidance.prior.grammar import joined
from guidance.prior.vocabulary import BASES, COLORS, TOPS, WORDINGS
from nerf.core.errors import UserError

DOCUMENTED = "docs/prior.md lists what the embedded prior knows"


def vocabulary() -> str:
    """The kinds and colours, for messages."""
    stacks = f"a {' or '.join(TOPS)} on a {' or '.join(BASES)}"
    return f"kinds: {', '.join(WORDINGS)}, {stacks}; colours: {', '.join(COLORS)}"


def remarks(parsed: captions.Parsed) -> list[str]:
    """Lines for the log: what was understood, which harmless words were ignored, and what was mended."""
    lines = [f"understood as: {parsed.understood}"]
    if parsed.mended:
        lines.append("read " + joined([f"{typed!r} as {meant!r}" for typed, meant in parsed.mended.items()]))
    if parsed.ignored:
        lines.append(f"ignored, as it changes nothing: {', '.join(dict.fromkeys(parsed.ignored))}")
    if parsed.unknown:
        lines.append(f"left out, as the embedded prior does not know it: {_named(parsed.unknown)}")
    return lines


def refusal(text: str, strict: bool) -> str:
    """Why a prompt is refused, the nearest prompt that works, and what the prior knows; empty if it is not.

    Args:
        text: the prompt.
        strict: refuse modifiers outside the vocabulary too, without which the object can be had.
    """
    parsed = captions.parse(text)
    if parsed.problems:
        why = re.sub("^it ", "the embedded prior ", parsed.problems[0])
    elif strict and parsed.unknown:
        why = f"the embedded prior does not know {_named(parsed.unknown)}"
    else:
        return ""
    near = "" if parsed.nearest is None else f'; try --text "{parsed.nearest.text}"'
    if parsed.problems:
        way = DOCUMENTED if near else f"it knows {vocabulary()}"
    else:
        way = f"--sd_version embedded leaves {joined(list(map(repr, parsed.unknown)))} out"
    return f"--text {text!r}: {why}{near}; {way}"


def check(text: str, strict: bool, further: str = "") -> captions.Parsed:
    """Understand a prompt.

    Args:
        text: the prompt.
        strict: see :func:`refusal`.
        further: another way out, for the end of the sentence.

    Raises:
        UserError: it is refused.
    """
    found = refusal(text, strict)
    if found:
        raise UserError(found + (f"; {further}" if further else ""))
    return captions.parse(text)


def _named(unknown: dict[str, list[str]]) -> str:
    """Unknown words, each with the known ones near it."""
    return ", ".join(f"{word!r} (nearest: {', '.join(near)})" if near else repr(word) for word, near in unknown.items())
