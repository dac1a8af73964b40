"""The vocabulary of the embedded prior: kinds of object, colours, captions, and the parser of prompts."""

import difflib
import functools
import random
import re
import zlib
from dataclasses import dataclass, field

COLORS: dict[str, tuple[float, float, float]] = {
    "red": (0.83, 0.10, 0.10),
    "orange": (0.95, 0.50, 0.08),
    "yellow": (0.96, 0.83, 0.12),
    "green": (0.13, 0.58, 0.19),
    "blue": (0.12, 0.28, 0.82),
    "purple": (0.52, 0.15, 0.66),
    "pink": (0.96, 0.53, 0.70),
    "brown": (0.45, 0.27, 0.13),
    "white": (0.94, 0.94, 0.92),
    "black": (0.10, 0.10, 0.11),
}


@dataclass(frozen=True)
class Wording:
    """How captions describe a kind.

    Attributes:
        default: colour names of the two colour slots where the caption names none.
        single: which slot (0 or 1) takes the colour of "a red <kind>"; the other keeps its default. None: both take it.
        part: words after "with" for "a <first> <kind> with <a second part>", "" if the kind has no such phrase.
        plain: whether the kind has fixed colours.
    """

    default: tuple[str, str]
    single: int | None = 0
    part: str = ""
    plain: bool = False


WORDINGS: dict[str, Wording] = {
    "mushroom": Wording(("white", "red"), 1, "a {} cap"),
    "tree": Wording(("green", "brown"), 0, "a {} trunk"),
    "snowman": Wording(("white", "black"), 0, "a {} hat"),
    "rocket": Wording(("white", "red"), 0, "a {} nose"),
    "lamp": Wording(("brown", "yellow"), 1, "a {} shade"),
    "hamburger": Wording(("brown", "brown"), plain=True),
    "chair": Wording(("brown", "brown"), None),
    "table": Wording(("brown", "brown"), None),
    "mug": Wording(("white", "white"), None),
    "car": Wording(("red", "red"), None, "a {} roof"),
    "house": Wording(("white", "red"), 0, "a {} roof"),
    "airplane": Wording(("white", "white"), None, "{} wings"),
    "dog": Wording(("brown", "brown"), None, "{} ears"),
    "boat": Wording(("red", "white"), 0, "a {} cabin"),
    "cube": Wording(("red", "red"), None),
    "ball": Wording(("red", "red"), None),
    "cone": Wording(("orange", "orange"), None),
    "cylinder": Wording(("blue", "blue"), None),
    "pyramid": Wording(("yellow", "yellow"), None),
    "donut": Wording(("pink", "brown"), 0),
    "bottle": Wording(("green", "white"), 0, "a {} cap"),
    "bed": Wording(("blue", "white"), 0, "a {} pillow"),
    "sofa": Wording(("red", "red"), None),
    "cactus": Wording(("green", "brown"), 0, "a {} pot"),
    "ice cream": Wording(("pink", "brown"), 0),
    "teddy bear": Wording(("brown", "brown"), None),
    "duck": Wording(("yellow", "orange"), 0, "a {} beak"),
    "umbrella": Wording(("red", "brown"), 0, "a {} handle"),
}
TOPS = ("ball", "cone", "cube", "pyramid")
BASES = ("cylinder", "cube")
STACKED = {f"{top} on {base}": (top, base) for top in TOPS for base in BASES}
KIND_NAMES: tuple[str, ...] = (*WORDINGS, *STACKED)

# Spellings that are replaced.
SPELLINGS = {"aeroplane": "airplane", "doughnut": "donut", "icecream": "ice cream", "teddybear": "teddy bear"}
# Words of similar meaning: only suggested, never replaced, as a jet is not the airplane that the prior would generate.
MEANINGS: dict[str, str] = {
    "airplane": "plane jet aircraft airliner biplane glider helicopter drone zeppelin airship bird",
    "ball": "sphere globe orb football planet moon",
    "bed": "cot bunk mattress crib",
    "boat": "ship yacht sailboat ferry canoe vessel raft submarine steamer",
    "bottle": "flask vase jar jug carafe",
    "cactus": "succulent plant",
    "car": "auto automobile truck van bus taxi jeep vehicle tractor pickup wagon limousine",
    "chair": "seat stool armchair throne bench",
    "cube": "box block dice crate brick",
    "cylinder": "tube can barrel drum pillar column",
    "dog": "puppy hound cat kitten wolf fox horse pony cow sheep pig lion tiger animal",
    "donut": "bagel ring torus",
    "duck": "duckling bird goose swan chicken hen penguin",
    "hamburger": "burger cheeseburger sandwich bun",
    "house": "cottage hut home building barn castle villa shed church",
    "ice cream": "gelato sundae cornet",
    "lamp": "light lantern torch chandelier",
    "mug": "cup teacup tankard beaker goblet",
    "mushroom": "toadstool fungus",
    "pyramid": "tetrahedron",
    "rocket": "spaceship spacecraft missile shuttle",
    "sofa": "couch settee armchair bench",
    "table": "desk counter bench",
    "teddy bear": "bear teddy panda koala plush",
    "tree": "pine fir oak palm spruce birch bush plant",
    "umbrella": "parasol sunshade",
    "red": "crimson scarlet ruby",
    "orange": "amber",
    "yellow": "gold golden",
    "green": "lime olive emerald teal turquoise",
    "blue": "navy azure cyan teal turquoise",
    "purple": "violet lilac magenta",
    "pink": "rose magenta",
    "brown": "beige tan wooden",
    "white": "ivory silver grey gray beige",
    "black": "dark grey gray",
}
SIMILARITY = 0.7  # difflib ratio from which two words count as spelled alike: a typing error or a plural, not a rhyme
FILLERS = {"a", "an", "the", "with", "on", "and", "of", "photo", "picture", "render", "3d", "model", "toy", "its"}

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
    def slots(self) -> tuple[str, str]:
        """Colour names of slots 0 and 1, with defaults filled in."""
        if len(self.colors) == 2:
            return (self.colors[0], self.colors[1])
        if self.kind in STACKED:
            return ("red", "blue")
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
    """A parsed prompt.

    Attributes:
        text: the input of the text encoder (spellings unified, unknown words left out).
        caption: kind and colours, or None if no kind was recognised.
        unknown: each word outside the vocabulary, with the known words nearest to it in meaning and spelling; an empty list
            where there is no near match.
    """

    text: str
    caption: Caption | None
    unknown: dict[str, list[str]] = field(default_factory=dict)


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


def _known_words() -> set[str]:
    """The words of the vocabulary, with kinds of two words as one word each."""
    pieces = {word for kind in WORDINGS if " " in kind for word in kind.split()}
    return set(vocabulary()) - pieces | set(WORDINGS)


def nearest(word: str, count: int = 3) -> list[str]:
    """Known words near to an unknown one, the nearest first: by meaning, then by spelling.

    A word spelled like one of similar meaning counts too, so that "zepelin" gives the suggestions of "zeppelin".
    """
    meaning: dict[str, list[str]] = {}
    for known, words in MEANINGS.items():
        for near in words.split():
            meaning.setdefault(near, []).append(known)
    meaning |= {spelling: [known] for spelling, known in SPELLINGS.items()}
    names = _known_words() - {"a", "an", "on", "with"}
    alike = difflib.get_close_matches(word, sorted(names | set(meaning)), n=count, cutoff=SIMILARITY)
    found = [known for near in (word, *alike) for known in ([near] if near in names else meaning.get(near, []))]
    return list(dict.fromkeys(found))[:count]


def _split(prompt: str) -> tuple[list[str], dict[str, list[str]]]:
    """The known words of a prompt, spellings unified; and the unknown ones with suggestions."""
    known = _known_words()
    text = re.sub(r"[^a-z0-9]+", " ", prompt.lower())
    for kind in WORDINGS:
        if " " in kind:
            text = text.replace(kind, kind.replace(" ", "_"))
    words: list[str] = []
    unknown: dict[str, list[str]] = {}
    for word in text.split():
        word = SPELLINGS.get(word, word).replace("_", " ")
        if word in known:
            words.append(word)
        elif word not in FILLERS:
            unknown[word] = nearest(word)
    return words, unknown


def parse(prompt: str) -> Parsed:
    """Parse a prompt.

    Args:
        prompt: free text; case, punctuation and filler words do not matter.

    Returns:
        :class:`Parsed`. If a kind is recognised, ``text`` is the canonical caption that the model was trained on.
    """
    words, unknown = _split(prompt)
    nouns = [word for word in words if word in WORDINGS]
    colors = tuple(word for word in words if word in COLORS)
    if not nouns:
        return Parsed(" ".join(words), None, unknown)
    if "on" in words and " on ".join(nouns[:2]) in STACKED:
        caption = Caption(" on ".join(nouns[:2]), colors[:2] if len(colors) > 1 else ())
    else:
        wording = WORDINGS[nouns[0]]
        limit = 0 if wording.plain else 2 if wording.part and "with" in words else 1
        caption = Caption(nouns[0], colors[:limit])
    return Parsed(caption.text, caption, unknown)


def knows(prompt: str) -> bool:
    """Whether the prior can serve this prompt: it names a known kind and has no unknown word."""
    parsed = parse(prompt)
    return parsed.caption is not None and not parsed.unknown
