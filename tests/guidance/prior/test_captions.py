"""Captions, and which combinations of kind and colours are held out."""

import random

import pytest

from guidance.prior.captions import (
    BENCHMARK_PROMPTS,
    COLORS,
    KIND_NAMES,
    Caption,
    is_held_out,
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
