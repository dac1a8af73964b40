"""How prompts are understood: which colour belongs to which part, typing errors, harmless words, and what is refused."""

import itertools

import pytest
import torch

from guidance.prior.captions import COLORS, KIND_NAMES, STACKED, WORDINGS, Caption, knows, parse
from guidance.prior.kinds import BUILDERS, FIRST, SECOND
from guidance.prior.replies import refusal, remarks
from guidance.prior.shapes import canonical, palette
from guidance.prior.spelling import candidates, groups_of, is_known, names_of, nearest
from guidance.prior.vocabulary import HARMLESS, MEANINGS, PARTS
from guidance.prompts import DEFAULT_NEGATIVE

# Prompt, and the caption whose conditioning it has.
UNDERSTOOD = {
    "a house with a red roof": "a white house with a red roof",
    "a house with red roof, blue": "a blue house with a red roof",
    "a duck with an orange beak": "a yellow duck with an orange beak",
    "a duck with a red bill": "a yellow duck with a red beak",
    "a snowman with a red hat": "a white snowman with a red hat",
    "a red hat on a snowman": "a white snowman with a red hat",
    "a house, blue, with a red roof": "a blue house with a red roof",
    "a house painted blue, roof red": "a blue house with a red roof",
    "a house whose roof is red": "a white house with a red roof",
    "a house in blue": "a blue house",
    "a house with white walls and a green roof": "a white house with a green roof",
    "a red house with white walls": "a white house with a red roof",
    "a house with blue walls": "a blue house with a red roof",
    "red, a house": "a red house",
    "a house that is red": "a red house",
    "a red mushroom": "a red mushroom",
    "a red mushroom with a blue stem": "a blue mushroom with a red cap",
    "a purple mushroom with a red cap": "a purple mushroom with a red cap",
    "a mushroom with a purple cap": "a white mushroom with a purple cap",
    "a tree with pink leaves": "a pink tree with a brown trunk",
    "a lamp with a black stand": "a black lamp with a yellow shade",
    "a bed with a red pillow": "a blue bed with a red pillow",
    "a dog with white ears": "a brown dog with white ears",
    "a dog with a white ear": "a brown dog with white ears",
    "an airplane with red wings, white": "a white airplane with red wings",
    "a rocket with a red nose and red fins": "a white rocket with a red nose",
    "a red chair with red legs": "a red chair",
    "a donut with pink icing": "a pink donut",
    "an ice cream cone": "an ice cream",
    "an ice cream with a green scoop": "a green ice cream",
    "a car with wheels and windows": "a car",
    "a hamburger with cheese and lettuce": "a hamburger",
    "a red ball on a blue cylinder": "a red ball on a blue cylinder",
    "a red ball on top of a cylinder": "a red ball on a blue cylinder",
    "a ball on a green cube": "a red ball on a green cube",
    "a ball sitting on a cylinder": "a ball on a cylinder",
    "a cute duck": "a duck",
    "a high quality, detailed 4k DSLR photo of a realistic cartoon duck, shiny": "a duck",
    "a small old wooden table": "a table",
    "a big red car": "a red car",
    "a dark blue car": "a blue car",
    "a car on a white background": "a car",
    "a 3D model of a yellow aeroplane!": "a yellow airplane",
    "A photo of a pink doughnut": "a pink donut",
    "an icecream": "an ice cream",
    "a snow man": "a snowman",
    "a teddy bear, blue": "a blue teddy bear",
    "a duck, a yellow duck": "a yellow duck",
    "1 red mug": "a red mug",
    "a grean chiar": "a green chair",
    "a huose wiht a red rof": "a white house with a red roof",
    "a yelow bottle with a blak cap": "a yellow bottle with a black cap",
    "a tedy bear": "a teddy bear",
    "an umbrela with a red hanlde": "a red umbrella with a red handle",
    "a snowmann with a purpel hat": "a white snowman with a purple hat",
}
# Prompt, what is said, and the prompt that is suggested.
REFUSED = {
    "a car on a table": ("one object, not a car and a table", "a car"),
    "a cube on a ball": ("one object, not a cube and a ball", "a ball on a cube"),
    "a red house, a blue car": ("one object, not a house and a car", "a red house"),
    "a dog house": ("one object, not a dog and a house", "a house"),
    "a table lamp": ("one object, not a table and a lamp", "a lamp"),
    "two cars": ("one object, not several", "a car"),
    "three red mugs": ("one object, not several", "a red mug"),
    "3 mugs": ("one object, not several", "a mug"),
    "a pair of dogs": ("one object, not several", "a dog"),
    "snowmen": ("one object, not several", "a snowman"),
    "a duck and a duck": ("one object, not several", "a duck"),
    "a red and white house": ("one colour, not red and white", "a red house with a white roof"),
    "a red and blue chair": ("one colour, not red and blue", "a red chair"),
    "a house with a red and blue roof": (
        "the roof of a house has one colour, not red and blue",
        "a white house with a red roof",
    ),
    "a red house with a blue roof and white walls": ("two colours, not three", "a white house with a blue roof"),
    "a red and blue ball on a cube": ("the ball has one colour", "a red ball on a blue cube"),
    "a ball on a cube, red": ("say which of the two is red", "a ball on a cube"),
    "a house without a roof": ("cannot leave anything out", "a house"),
    "a house with no windows": ("cannot leave anything out", "a house"),
    "a red car, not blue": ("cannot leave anything out", "a red car"),
    "a car with black wheels": ("the wheels of a car are always black", "a car"),
    "a red car with black wheels": ("the wheels of a car are always black", "a red car"),
    "a house with a blue door and a red roof": ("the door of a house is always brown", "a white house with a red roof"),
    "a blue hamburger": ("colours of its own", "a hamburger"),
    "a car with a hat": ("a car has no hat", "a car"),
    "a house with a red chimney": ("a house has no chimney", "a house"),
    "a duck with a jetpack": ("does not know 'jetpack'", "a duck"),
    "a dog with a white tail": ("the tail of a dog has the colour of the dog", "a dog"),
    "a blue chair with red legs": ("the legs of a chair have the colour of the chair", "a blue chair"),
    "a rocket with green fins": ("the fins of a rocket have the colour of its nose", "a rocket"),
    "a golden duck": ("has no colour 'golden'", "a yellow duck"),
    "a grey house": ("has no colour 'grey'", "a white house"),
    "a red zeppelin": ("does not know 'zeppelin'", "a red airplane"),
    "a zepelin": ("does not know 'zeppelin'", "an airplane"),
    "a cat": ("does not know 'cat'", "a dog"),
    "a light": ("needs an object", "a lamp"),
    "a red bill": ("needs an object", "a yellow duck with a red beak"),
}


@pytest.mark.parametrize("prompt", UNDERSTOOD)
def test_a_prompt_is_understood_as_the_caption_that_says_the_same(prompt):
    parsed = parse(prompt)
    assert parsed.text == UNDERSTOOD[prompt] and parse(parsed.text).caption == parsed.caption and knows(prompt), parsed


@pytest.mark.parametrize("prompt", REFUSED)
def test_what_cannot_be_had_is_refused_with_the_nearest_prompt_that_works_first(prompt):
    why, near = REFUSED[prompt]
    said = refusal(prompt, strict=False)
    assert why in said and said.index(why) < said.index(f'; try --text "{near}"; docs/prior.md'), said
    assert knows(near) and not knows(prompt) and len(said) < 200 and "\n" not in said


def every_caption():
    """Every caption that the vocabulary has."""
    for kind in KIND_NAMES:
        pairs = kind in STACKED or bool(WORDINGS[kind].part)
        counts = (0,) if kind not in STACKED and WORDINGS[kind].plain else (0, 2) if kind in STACKED else (0, 1, 2)[: 2 + pairs]
        for count in counts:
            yield from (Caption(kind, colors) for colors in itertools.product(COLORS, repeat=count))


def test_every_caption_gives_its_own_text_and_so_the_same_conditioning_bit_for_bit():
    captions = list(every_caption())
    assert len(captions) > 2000
    for caption in captions:
        parsed = parse(caption.text)
        assert (parsed.text, parsed.caption) == (caption.text, caption) and knows(caption.text)
        assert not (parsed.ignored or parsed.mended or parsed.unknown or parsed.problems)


def test_the_usual_negative_prompt_names_nothing_that_the_prior_knows():
    assert parse(DEFAULT_NEGATIVE).text == "" and parse("a red car, blue").text == "red car blue"


def test_the_parts_are_those_of_the_materials():
    for kind, (_, build, _) in BUILDERS.items():
        shape = canonical(Caption(kind))
        one = torch.zeros(1)
        found = {material for material, _ in build(type("P", (), shape.proportions), one, one, one)}
        if kind in STACKED:
            continue
        parts = PARTS[kind]
        assert bool(parts.second) == (SECOND in found) == bool(WORDINGS[kind].part), kind
        assert bool(parts.fixed) == any(material > SECOND for material in found), kind
        assert not (parts.first or parts.with_first) or FIRST in found, kind
        names = [name for group in groups_of(parts) for part in names_of(group) for name in part]
        assert len(names) == len(set(names)) or kind in ("rocket",), kind


def test_a_colour_bound_to_a_part_colours_that_part_alone():
    plain, roof, walls = (palette(parse(f"a house{words}").caption) for words in ("", " with a blue roof", " with blue walls"))
    assert torch.equal(roof[FIRST], plain[FIRST]) and not torch.equal(roof[SECOND], plain[SECOND])
    assert torch.equal(walls[SECOND], plain[SECOND]) and not torch.equal(walls[FIRST], plain[FIRST])


@pytest.mark.parametrize(("prompt", "said"), [
    ("a house with a red roof", "a house, white, with a red roof"),
    ("a house", "a house, white, with a red roof"),
    ("a purple mushroom", "a mushroom, white, with a purple cap"),
    ("a dog", "a dog, brown, with brown ears"),
    ("a chair", "a chair, brown"),
    ("a hamburger", "a hamburger, in its own colours"),
    ("a ball on a cube", "a red ball on a blue cube"),
])  # fmt: skip
def test_what_was_understood_names_every_colour(prompt, said):
    assert parse(prompt).understood == said and remarks(parse(prompt)) == [f"understood as: {said}"]


def test_harmless_words_and_typing_errors_are_said():
    parsed = parse("a cute, cute grean chiar, 4k")
    assert parsed.ignored == ("cute", "cute", "4k") and parsed.mended == {"grean": "green", "chiar": "chair"}
    assert remarks(parsed)[1:] == ["read 'grean' as 'green' and 'chiar' as 'chair'", "ignored, as it changes nothing: cute, 4k"]


@pytest.mark.parametrize("word", [
    "cute", "cat", "mouse", "pocket", "goat", "while", "block", "battle", "brawn", "bat", "choir", "racket", "wins", "had",
    "set", "lap", "stack", "should", "share", "many", "man", "sample", "planet", "horse", "quantum", "free", "cable", "bone",
    "tube",
])  # fmt: skip
def test_a_word_of_its_own_is_not_taken_for_a_mistyped_one(word):
    assert candidates(word) == []


def test_a_word_that_may_be_two_is_not_mended():
    assert candidates("bea") == ["beak", "bear"] and parse("a duck with a red bea").mended == {}
    assert not knows("a duck with a red bea") and parse("an aerplane").mended == {"aerplane": "airplane"}


def test_no_silly_neighbours_are_suggested():
    assert nearest("cute") == nearest("quantum") == nearest("mouse") == []


def test_words_of_similar_meaning_are_known_but_never_served():
    for known, words in MEANINGS.items():
        assert known in COLORS or known in WORDINGS
        for word in words.split():
            assert is_known(word) and known in nearest(word)
            assert not knows(f"a {word}") or word in HARMLESS, word


@pytest.mark.parametrize("word", sorted(HARMLESS))
def test_harmless_words_change_nothing(word):
    parsed = parse(f"a {word} house with a red roof")
    assert parsed.text == "a white house with a red roof" and parsed.ignored == (word,) and knows(f"{word} house")


def test_a_modifier_outside_the_vocabulary_can_be_left_out_but_is_not_known():
    parsed = parse("a quantum pine tree")
    assert parsed.text == "a tree" and parsed.unknown == {"quantum": [], "pine": ["tree"]} and not knows("a quantum tree")
    assert refusal("a quantum tree", strict=False) == ""
    assert refusal("a quantum tree", strict=True).endswith("try --text \"a tree\"; --sd_version embedded leaves 'quantum' out")


def test_a_prompt_without_any_object_is_told_the_vocabulary():
    assert "it knows kinds: mushroom" in refusal("red", strict=False) and not knows("red")
    assert "does not know 'quantum'; it knows kinds" in refusal("a quantum of solace", strict=False)
