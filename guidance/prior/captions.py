"""The captions of the embedded prior: a kind and its colours in words, which are held out, and how a prompt becomes one."""

import functools
import random
import re
import zlib
from dataclasses import dataclass, field

from guidance.prior.grammar import read
from guidance.prior.vocabulary import COLORS, KIND_NAMES, STACK_COLORS, STACKED, WORDINGS

# The benchmark. None of these combinations is trained, except for the hamburger, which has no colour.
BENCHMARK_PROMPTS: tuple[tuple[str, str], ...] = (
    ("a purple mushroom", "symmetric"),
    ("a pink tree", "symmetric"),
    ("a blue snowman", "symmetric"),
    ("a green rocket", "symmetric"),
    ("a red ball on a blue cylinder", "symmetric"),
    ("a green cone on a yellow cylinder", "symmetric"),
    ("an orange lamp", "symmetric"),
    ("a hamburger", "symmetric"),
    ("an orange chair", "view"),
    ("a purple table", "view"),
    ("a yellow mug", "view"),
    ("a pink car", "view"),
    ("a green house with a yellow roof", "view"),
    ("a red airplane", "view"),
    ("a blue dog", "view"),
    ("a purple boat", "view"),
)


@dataclass(frozen=True)
class Caption:
    """A kind and the colours that are named: none, one, or two."""

    kind: str
    colors: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The caption, for example "a blue house with a red roof"."""
        if self.kind in STACKED:
            top, base = STACKED[self.kind]
            words = self.colors or ("", "")
            return f"{_noun(words[0], top)} on {_noun(words[1], base)}"
        head = _noun(self.colors[0] if self.colors else "", self.kind)
        if len(self.colors) < 2:
            return head
        return f"{head} with {_article(WORDINGS[self.kind].part.format(self.colors[1]))}"

    @property
    def said(self) -> str:
        """Kind and colours as they are shown, those that were not named included: "a house, white, with a red roof"."""
        if self.kind in STACKED:
            return Caption(self.kind, self.slots).text
        wording, noun, (first, second) = WORDINGS[self.kind], _noun("", self.kind), self.slots
        if wording.plain:
            return f"{noun}, in its own colours"
        if wording.part:
            return f"{noun}, {first}, with {_article(wording.part.format(second))}"
        return f"{noun}, {self.slots[wording.single or 0]}"

    @property
    def slots(self) -> tuple[str, str]:
        """Colour names of slots 0 and 1, with defaults filled in."""
        if len(self.colors) == 2:
            return (self.colors[0], self.colors[1])
        if self.kind in STACKED:
            return STACK_COLORS
        wording = WORDINGS[self.kind]
        if not self.colors or wording.plain:
            return wording.default
        if wording.single is None:
            return (self.colors[0], self.colors[0])
        slots = list(wording.default)
        slots[wording.single] = self.colors[0]
        return (slots[0], slots[1])


@dataclass(frozen=True)
class Parsed:
    """A prompt as it is understood.

    Attributes:
        text: the input of the text encoder: the canonical caption, or the known words where there is none.
        caption: kind and colours, or None if there is no known kind or something that cannot be had.
        unknown: each modifier outside the vocabulary, with the known words nearest to it; the object can be had without it.
        ignored: harmless words.
        mended: mistyped word -> what it was read as.
        problems: what would change the object and cannot be had, a clause each.
        nearest: a caption near the prompt, without the problems; None where no object is near.
    """

    text: str
    caption: Caption | None
    unknown: dict[str, list[str]] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    mended: dict[str, str] = field(default_factory=dict)
    problems: tuple[str, ...] = ()
    nearest: Caption | None = None

    @property
    def understood(self) -> str:
        """What was understood, in words: "a house, white, with a red roof"; empty without a caption."""
        return "" if self.caption is None else self.caption.said


def _article(phrase: str) -> str:
    """ "a" becomes "an" before a vowel."""
    return re.sub(r"\ba (?=[aeiou])", "an ", phrase)


def _noun(color: str, noun: str) -> str:
    """A noun phrase with article and, if given, colour."""
    return _article(" ".join(word for word in ("a", color, noun) if word))


def vocabulary() -> list[str]:
    """Every word that occurs in captions, sorted."""
    words = {"a", "an", "on", "with", *COLORS}
    for kind in KIND_NAMES:
        words.update(kind.split())
    for wording in WORDINGS.values():
        words.update(wording.part.replace("{}", "").split())
    return sorted(words)


def is_held_out(caption: Caption) -> bool:
    """Whether this combination of kind and colours is excluded from training.

    Held out are the 16 benchmark prompts and, by a hash of kind and slot colours, about one combination in eight. The
    appearance decides, so "a white mushroom with a purple cap" is held out together with "a purple mushroom".
    """
    if not caption.colors:
        return False
    key = (caption.kind, *caption.slots)
    return key in _benchmark_keys() or zlib.crc32(" ".join(key).encode()) % 8 == 0


@functools.cache
def _benchmark_keys() -> frozenset[tuple[str, ...]]:
    """Kind and slot colours of the benchmark prompts that name a colour."""
    captions = [parse(prompt).caption for prompt, _ in BENCHMARK_PROMPTS]
    return frozenset((c.kind, *c.slots) for c in captions if c is not None and c.colors)


def random_caption(kind: str, rng: random.Random) -> Caption:
    """A caption of the training distribution: 12 % without colours, half of the rest in two parts where the kind has them."""
    names = list(COLORS)
    while True:
        if kind in STACKED:
            count = 2
        elif WORDINGS[kind].plain or rng.random() < 0.12:
            count = 0
        else:
            count = 2 if WORDINGS[kind].part and rng.random() < 0.5 else 1
        caption = Caption(kind, tuple(rng.choice(names) for _ in range(count)))
        if not is_held_out(caption):
            return caption


def parse(prompt: str) -> Parsed:
    """Understand a prompt; see :mod:`guidance.prior.grammar`.

    Args:
        prompt: free text; case, punctuation and harmless words do not matter.
    """
    reading = read(prompt)
    named = Caption(reading.kind, reading.colors) if reading.kind else None
    caption = None if reading.problems else named
    text = " ".join(reading.known) if caption is None else caption.text
    mended = {**reading.mended}
    return Parsed(text, caption, reading.unknown, tuple(reading.ignored), mended, tuple(reading.problems), named)


def knows(prompt: str) -> bool:
    """Whether the prior can serve this prompt: it names a known kind, and nothing that cannot be had."""
    parsed = parse(prompt)
    return parsed.caption is not None and not parsed.unknown
