"""How a prompt is understood: which colour belongs to which part, what is ignored, and what cannot be had.

A colour before a noun belongs to that noun ("a blue house with a red roof"); one that follows without a noun, or after a comma,
belongs to the noun before it, or to the whole ("a house, blue").
"""

import re
from dataclasses import dataclass, field

from guidance.prior.spelling import (
    candidates,
    groups_of,
    is_known,
    known_stack,
    meanings,
    names_of,
    nearest,
    part_words,
    plurals,
)
from guidance.prior.vocabulary import (
    BESIDE,
    COLORS,
    COUNTS,
    GLUE,
    HARMLESS,
    NEGATIONS,
    ON,
    PARTS,
    SHADES,
    SPELLINGS,
    STACK_COLORS,
    STACKED,
    SURROUNDINGS,
    WITH,
    WORDINGS,
)

COMMA = ","
SEVERAL = "it makes one object, not several"


@dataclass
class Noun:
    """A noun and the colours that belong to it."""

    word: str
    colors: list[str]
    before: str = ""  # what joins a kind to the kind before it: "on", another preposition, "and", or "" for nothing


@dataclass
class Reading:
    """What was read.

    Attributes:
        kind, colors: as of :class:`guidance.prior.captions.Caption`; without what cannot be had. No kind: none was named.
        ignored: harmless words, in their order.
        mended: mistyped word -> what it was read as.
        unknown: modifier outside the vocabulary -> the known words near it; the object can be had without it.
        problems: what cannot be had, a clause each.
        known: the words of the vocabulary, in their order.
    """

    kind: str = ""
    colors: tuple[str, ...] = ()
    ignored: list[str] = field(default_factory=list)
    mended: dict[str, str] = field(default_factory=dict)
    unknown: dict[str, list[str]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    known: list[str] = field(default_factory=list)


def read(prompt: str) -> Reading:
    """Understand a prompt; case and punctuation other than commas do not matter."""
    reading = Reading()
    words = _words(prompt, reading)
    scan = _Scan(words, reading)
    scan.run()
    _resolve(scan, reading)
    return reading


def joined(words: list[str]) -> str:
    """Words as a list in a sentence, the last after "and"."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 2 else words)


def with_article(noun: str) -> str:
    """A noun phrase after "a" or "an"."""
    return f"{'an' if noun[:1] in tuple('aeiou') else 'a'} {noun}"


def _words(prompt: str, reading: Reading) -> list[str]:
    """The words and commas of a prompt, spellings unified and typing errors mended."""
    text = re.sub(r"['’]s\b", " ", prompt.lower())
    text = re.sub(r"on top of", "on", re.sub(r"[,;:.()]+", " , ", text))
    text = re.sub(r"[^\w,&]+|_", " ", text)
    for kind in (kind for kind in WORDINGS if " " in kind):
        text = re.sub(rf"\b{kind.replace(' ', ' +')}(?=s?\b)", kind.replace(" ", "_"), text)
    found = []
    for word in text.replace(COMMA, f" {COMMA} ").split():
        word = SPELLINGS.get(word, word).replace("_", " ")
        if word != COMMA and not is_known(word) and word not in WORDINGS:
            near = {SPELLINGS.get(part_words().get(one, one), part_words().get(one, one)) for one in candidates(word)}
            if len(near) == 1:
                reading.mended[word] = word = near.pop()
        found.append(word)
    return _in_pairs(found)


def _in_pairs(words: list[str]) -> list[str]:
    """The words with each kind that was written as two words in one place, as "teddy bear" and "snow man"."""
    found: list[str] = []
    for word in words:
        pair = [" ".join([*found[-1:], word]), "".join([*found[-1:], word])]
        kind = next((one for one in pair if one in WORDINGS and found and word not in WORDINGS), "")
        if kind:
            found[-1] = kind
        else:
            found.append(word)
    return found


class _Scan:
    """One pass over the words, which binds each colour to its noun."""

    def __init__(self, words: list[str], reading: Reading) -> None:
        self.words, self.reading = words, reading
        self.kinds: list[Noun] = []
        self.parts: list[Noun] = []
        self.foreign: list[Noun] = []  # nouns that are not known
        self.whole: list[str] = []  # colours that belong to the object
        self.pending: list[str] = []  # colours that wait for their noun
        self.last: Noun | None = None  # noun of this phrase
        self.link = ""  # preposition or conjunction since the last kind

    def run(self) -> None:
        """Read all words."""
        skipping: list[str] | None = None  # what follows a negation, up to the end of its phrase
        for at, word in enumerate(self.words):
            if skipping is not None and word != COMMA and word not in WITH:
                skipping.append(word)
                continue
            if skipping is not None:
                self._deny(skipping)
                skipping = None
            if word in NEGATIONS:
                skipping = [word]
                continue
            self._take(word, at)
        if skipping is not None:
            self._deny(skipping)
        self._flush()

    def _problem(self, text: str) -> None:
        """Note what cannot be had, once."""
        if text not in self.reading.problems:
            self.reading.problems.append(text)

    def _deny(self, words: list[str]) -> None:
        """What follows a negation cannot be had."""
        self._problem(f"it cannot leave anything out ({' '.join(words)!r})")

    def _take(self, word: str, at: int) -> None:
        """Read a word."""
        if word in COLORS or word in WORDINGS or word in part_words():
            self.reading.known.append(word)
        if word in COLORS:
            self.pending.append(word)
        elif word in WORDINGS and not self._is_part(word):
            self._kind(word)
        elif word in part_words() or word in WORDINGS:
            self._noun(self.parts, part_words()[word])
        elif word == COMMA or word in WITH:
            self._flush()
            self.last, self.link = None, COMMA if word == COMMA else "with"
        elif word in ON or word in BESIDE:
            self._flush()
            self.link = "on" if word in ON else word
        elif word in ("and", "&"):
            self.link = "and"
        elif word in plurals():
            self._problem(SEVERAL)
            self._kind(plurals()[word])
        elif word in COUNTS or word.isdigit() and int(word) != 1:
            self._problem(SEVERAL)
        else:
            self._other(word, at)

    def _other(self, word: str, at: int) -> None:
        """Read a word that is no noun or colour of the prior's."""
        if word in SURROUNDINGS:
            self.pending = []
            self.reading.ignored.append(word)
        elif word in GLUE or word.isdigit():
            return
        elif word in SHADES and self._before_colour(at) or word in HARMLESS:
            self.reading.ignored.append(word)
        else:
            self._unknown(word, at)

    def _unknown(self, word: str, at: int) -> None:
        """Read a word outside the vocabulary: a modifier of a noun that follows, a colour, or a noun of its own."""
        near = nearest(word)
        modifies = any(self._is_noun(follower) for follower in self._phrase(at))
        if near and near[0] in COLORS:
            self._problem(f"it has no colour {word!r}")
            self.pending.append(near[0])
        elif modifies and (word not in meanings() or any(kind in self.words for kind in near)):
            self.reading.unknown[word] = near or candidates(word)
        elif modifies:
            self._problem(f"it does not know {word!r}")
        else:
            self._noun(self.foreign, word)

    def _phrase(self, at: int) -> list[str]:
        """The words that follow in the same phrase."""
        rest = self.words[at + 1 :]
        end = next((i for i, w in enumerate(rest) if w in (COMMA, "and", "&", "of") or w in WITH | ON | BESIDE), len(rest))
        return rest[:end]

    def _is_noun(self, word: str) -> bool:
        return word in WORDINGS or word in part_words() or word in plurals()

    def _before_colour(self, at: int) -> bool:
        follower = self.words[at + 1] if at + 1 < len(self.words) else ""
        return follower in COLORS or bool(nearest(follower)) and nearest(follower)[0] in COLORS

    def _is_part(self, word: str) -> bool:
        """Whether the name of a kind is that of a part here, as the cone of an ice cream."""
        if not self.kinds or self.link == "on":
            return False
        return any(word in part for group in groups_of(PARTS[self.kinds[0].word]) for part in names_of(group))

    def _kind(self, word: str) -> None:
        """Read the noun of an object."""
        joint = self.link if self.kinds else ""
        self.link = ""
        self._noun(self.kinds, word)
        self.kinds[-1].before = joint

    def _noun(self, nouns: list[Noun], word: str) -> None:
        """A noun takes the colours that wait."""
        self.last = Noun(word, self.pending)
        self.pending = []
        nouns.append(self.last)

    def _flush(self) -> None:
        """Give colours without a noun after them to the noun before them in the phrase, else to the whole."""
        if self.pending and (self.last is not None or self.kinds):
            (self.whole if self.last is None else self.last.colors).extend(self.pending)
            self.pending = []


def _resolve(scan: _Scan, reading: Reading) -> None:
    """Decide on the kind and the colours of its parts."""
    head = _head(scan, reading)
    for noun in scan.foreign:
        reading.problems.append(_lacks(noun.word, head))
    if not head:
        _without_kind(scan, reading)
        return
    reading.kind = head
    if head in STACKED:
        _stack(scan, reading)
        return
    own = [color for noun in scan.kinds if noun.word == head for color in noun.colors]
    whole = list(dict.fromkeys([*own, *scan.whole, *scan.pending]))
    if WORDINGS[head].plain and whole:
        reading.problems.append(f"{with_article(head)} has colours of its own")
        whole = []
    slots = _Slots(head, whole, reading)
    for part in scan.parts:
        slots.add(part)
    reading.colors = slots.composed()


def _lacks(word: str, kind: str) -> str:
    near = nearest(word)
    return f"it does not know {word!r}" + (f" (nearest: {', '.join(near)})" if near and not kind else "")


def _head(scan: _Scan, reading: Reading) -> str:
    """The kind that the prompt is about; empty if it names none."""
    all_names = [noun.word for noun in scan.kinds]
    names = list(dict.fromkeys(all_names))
    if len(all_names) == 2 and scan.kinds[1].before == "on" and known_stack(all_names):
        return known_stack(all_names)
    if not names:
        return ""
    if len(names) == 1:
        if any(noun.before not in ("", COMMA) for noun in scan.kinds[1:]) and SEVERAL not in reading.problems:
            reading.problems.append(SEVERAL)
        return names[0]
    reading.problems.append(f"it makes one object, not {joined([with_article(name) for name in names])}")
    if known_stack(names[::-1]) and len(scan.kinds) == 2:
        scan.kinds.reverse()
        return known_stack(names[::-1])
    compound = scan.kinds[1].before == "" and not scan.kinds[0].colors
    return names[1] if compound else names[0]


def _without_kind(scan: _Scan, reading: Reading) -> None:
    """Name the object that is nearest where none is known: by its meaning, or by a part that only some kinds have."""
    for noun in [*scan.foreign, *scan.parts]:
        near = [known for word in (noun.word, noun.word.removesuffix("s")) for known in nearest(word) if known in WORDINGS]
        if near:
            whole = list(dict.fromkeys([*noun.colors, *scan.whole, *scan.pending]))
            reading.kind = near[0]
            reading.colors = () if WORDINGS[near[0]].plain else tuple(whole[:1])
            break
    if not reading.problems:
        reading.problems.append("it needs an object")
    if reading.kind or not scan.parts:
        return
    part = scan.parts[0]
    for kind, parts in PARTS.items():
        if part.word in parts.second.split() and WORDINGS[kind].part:
            slots = _Slots(kind, [], reading)
            slots.add(part)
            reading.kind, reading.colors = kind, slots.composed()
            return


def _stack(scan: _Scan, reading: Reading) -> None:
    """The colours of a stack, each by its own noun."""
    found = []
    for noun in scan.kinds:
        colors = list(dict.fromkeys(noun.colors))
        if len(colors) > 1:
            reading.problems.append(f"the {noun.word} has one colour, not {joined(colors)}")
        found.append(colors[:1])
    if scan.whole or scan.pending:
        reading.problems.append(f"say which of the two is {joined(scan.whole + scan.pending)}")
    for part in scan.parts:
        reading.problems.append(f"{with_article(reading.kind)} has no {part.word}")
    if any(found):
        reading.colors = tuple((color or [usual])[0] for color, usual in zip(found, STACK_COLORS, strict=True))


class _Slots:
    """Binds the colours of parts to the two colours that the prior is told.

    Args:
        kind: not a stack.
        whole: colours of the object.
        reading: takes the problems.
    """

    def __init__(self, kind: str, whole: list[str], reading: Reading) -> None:
        self.kind, self.parts, self.reading = kind, PARTS[kind], reading
        self.whole = whole[0] if whole else ""
        self.slots = ["", ""]
        self.shared: list[tuple[int, str, str]] = []  # slot, part and colour of what cannot have a colour by itself
        if len(whole) > 1:
            self._problem(f"{with_article(kind)} has one colour, not {joined(whole)}")
            if WORDINGS[kind].part:
                self.slots[1] = whole[1]  # of the nearest prompt

    def _problem(self, text: str) -> None:
        self.reading.problems.append(text)

    def add(self, noun: Noun) -> None:
        """A part that was named, with its colours."""
        colors = list(dict.fromkeys(noun.colors))
        if len(colors) > 1:
            self._problem(f"the {noun.word} of {with_article(self.kind)} has one colour, not {joined(colors)}")
        color = colors[0] if colors else ""
        for colour, group in (self.parts.fixed or {}).items():
            if any(noun.word in names for names in names_of(group)):
                if color:
                    verb = "are" if noun.word.endswith("s") else "is"
                    self._problem(f"the {noun.word} of {with_article(self.kind)} {verb} always {colour}")
                return
        for slot, group in enumerate((self.parts.first, self.parts.second)):
            if noun.word in group.split():
                self._set(slot, noun.word, color)
                return
        for slot, group in enumerate((self.parts.with_first, self.parts.with_second)):
            if any(noun.word in names for names in names_of(group)):
                self.shared += [(slot, noun.word, color)] if color else []
                return
        self._problem(f"{with_article(self.kind)} has no {noun.word}")

    def _set(self, slot: int, part: str, color: str) -> None:
        if color and self.slots[slot] not in ("", color):
            self._problem(f"the {part} of {with_article(self.kind)} has one colour, not {joined([self.slots[slot], color])}")
        self.slots[slot] = self.slots[slot] or color

    def composed(self) -> tuple[str, ...]:
        """The colours of the caption."""
        wording = WORDINGS[self.kind]
        if not wording.part:
            both = [color for color in dict.fromkeys((self.whole, *self.slots)) if color]
            if len(both) > 1:
                self._problem(f"{with_article(self.kind)} has one colour, not {joined(both)}")
            colors = tuple(both[:1])
        elif self.whole and all(self.slots):
            if self.whole not in self.slots:
                self._problem(f"the parts of {with_article(self.kind)} have two colours, not three")
            colors = tuple(self.slots)
        elif any(self.slots):
            rest = [self.whole or usual for usual in wording.default]
            colors = tuple(color or other for color, other in zip(self.slots, rest, strict=True))
        else:
            colors = (self.whole,) if self.whole else ()
        self._check_shared(colors)
        return colors

    def _check_shared(self, colors: tuple[str, ...]) -> None:
        """Refuse a colour of a part that has that of another."""
        for slot, part, color in self.shared:
            shown = colors[slot] if len(colors) == 2 else (colors or ("",))[0]
            if color != shown:
                owner = (self.parts.first, self.parts.second)[slot].split()
                of = f"its {owner[0]}" if slot and owner else f"the {self.kind}"
                verb = "have" if part.endswith("s") else "has"
                self._problem(f"the {part} of {with_article(self.kind)} {verb} the colour of {of}")
