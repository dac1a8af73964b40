"""The vocabulary: captions and their parser, held-out combinations, and unknown words."""

import random

import pytest

from guidance.prior.captions import (
    BENCHMARK_PROMPTS,
    COLORS,
    KIND_NAMES,
    MEANINGS,
    WORDINGS,
    Caption,
    is_held_out,
    knows,
    nearest,
    parse,
    random_caption,
    vocabulary,
)


def test_there_are_enough_kinds_and_colours():
    assert len(KIND_NAMES) >= 24 and len(COLORS) == 10


@pytest.mark.parametrize("kind", KIND_NAMES)
def test_parsing_a_caption_gives_the_caption_back(kind):
    rng = random.Random(kind)
    for _ in range(10):
        caption = random_caption(kind, rng)
        parsed = parse(caption.text)
        assert parsed.caption == caption and parsed.text == caption.text and not parsed.unknown


def test_every_word_of_a_caption_is_in_the_vocabulary():
    words = set(vocabulary())
    rng = random.Random(0)
    for kind in KIND_NAMES:
        assert set(random_caption(kind, rng).text.split()) <= words


@pytest.mark.parametrize("prompt", [prompt for prompt, _ in BENCHMARK_PROMPTS])
def test_benchmark_prompts_are_understood_and_never_trained_when_they_name_a_colour(prompt):
    parsed = parse(prompt)
    assert parsed.text == prompt
    assert is_held_out(parsed.caption) == bool(parsed.caption.colors)


def test_training_captions_never_look_like_a_held_out_one():
    rng = random.Random(1)
    captions = [random_caption("mushroom", rng) for _ in range(300)]
    assert not any(is_held_out(c) for c in captions)
    assert ("white", "purple") not in {c.slots for c in captions}


def test_another_order_of_words_that_looks_the_same_is_held_out_too():
    assert is_held_out(Caption("mushroom", ("purple",))) and is_held_out(Caption("mushroom", ("white", "purple")))


def test_two_part_phrases_put_each_colour_in_its_place():
    assert parse("a blue house with a red roof").caption.slots == ("blue", "red")
    assert parse("a green cone on a yellow cylinder").caption == Caption("cone on cylinder", ("green", "yellow"))


def test_other_spellings_are_replaced_and_fillers_left_out():
    assert parse("A photo of a yellow aeroplane!").text == "a yellow airplane"
    assert parse("an icecream").text == "an ice cream" and knows("a pink doughnut")


@pytest.mark.parametrize("word, known", [
    ("zeppelin", "airplane"), ("jet", "airplane"), ("cup", "mug"), ("truck", "car"), ("auto", "car"),
    ("cottage", "house"), ("puppy", "dog"), ("ship", "boat"), ("burger", "hamburger"), ("pine", "tree"),
    ("bear", "teddy bear"), ("couch", "sofa"), ("crimson", "red"), ("zepelin", "airplane"), ("hauses", "house"),
    ("ballon", "ball"), ("bred", "red"),
])  # fmt: skip
def test_for_a_word_of_similar_meaning_or_spelling_a_known_one_is_suggested(word, known):
    parsed = parse(f"a {word}")
    assert known in parsed.unknown[word] and parsed.caption is None and not knows(f"a {word}")


def test_words_of_similar_meaning_are_suggested_before_words_of_similar_spelling():
    assert nearest("cat")[0] == "dog" and nearest("grey")[:2] == ["white", "black"]


def test_a_word_without_a_near_match_gets_no_suggestion():
    assert nearest("quantum") == [] and parse("a quantum chair").unknown == {"quantum": []}


def test_every_word_of_similar_meaning_is_unknown_and_suggests_a_known_one():
    for known, words in MEANINGS.items():
        assert known in COLORS or known in WORDINGS
        for word in words.split():
            assert known in nearest(word) and word in parse(word).unknown


def test_an_unknown_word_is_named_with_suggestions():
    parsed = parse("a grean chiar")
    assert parsed.unknown["grean"][0] == "green" and parsed.unknown["chiar"][0] == "chair"
    assert not knows("a grean chiar") and knows("a green chair")


def test_a_prompt_without_a_known_kind_has_no_caption():
    assert parse("a quantum of solace").caption is None and not knows("red")
