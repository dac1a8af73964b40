"""Proposals are near words or none; numbers are read as they were meant."""

import string

import pytest

from nerf.core.errors import UserError
from nerf.core.words import counted, expected_words, near, number, whole_number

KNOWN = ["--iters", "--text", "--help", "--mcubes_resolution", "--w", "--h", "--grid_size"]


@pytest.mark.parametrize(
    ("word", "proposed"),
    [
        ("--itres", ["--iters"]),
        ("\u2013\u2013iters", ["--iters"]),
        ("--ITERS", ["--iters"]),
        ("--grid-size", ["--grid_size"]),
        ("--resolution", ["--mcubes_resolution"]),
        ("--hello", []),
        ("--xyz", []),
        ("--z", []),
        ("--", []),
        ("", []),
    ],
)
def test_only_near_words_are_proposed(word, proposed):
    assert near(word, KNOWN) == proposed


@pytest.mark.parametrize("letter", string.ascii_lowercase)
def test_random_words_propose_nothing(letter):
    assert near(f"--{letter * 6}", KNOWN) == []


def test_a_synonym_is_proposed_where_it_is_known():
    assert near("--prompt", KNOWN, {"prompt": "text"}) == ["--text"]
    assert near("--prompt", ["--w"], {"prompt": "text"}) == []


def test_more_than_three_words_are_none():
    assert near("--grid", [f"--grid_{c}" for c in "abc"]) == ["--grid_a", "--grid_b", "--grid_c"]
    assert near("--grid", [f"--grid_{c}" for c in "abcd"]) == []


def test_words_are_joined_as_in_a_sentence():
    assert [expected_words(list("abc"[:n])) for n in (1, 2, 3)] == ["a", "a or b", "a, b or c"]


@pytest.mark.parametrize(("word", "value"), [("5e3", 5000), ("-7", -7), ("1.0", 1)])
def test_whole_numbers(word, value):
    assert whole_number(word) == value and isinstance(whole_number(word), int)


@pytest.mark.parametrize("read", [number, whole_number])
@pytest.mark.parametrize("word", ["", "x", "nan", "inf", "-inf", "1e999", "9" * 5000, "1 2"])
def test_what_is_no_number_is_refused(read, word):
    with pytest.raises(UserError, match="must be a .*number, got"):
        read(word)


def test_what_is_counted_is_singular_or_plural():
    assert [counted(n, "photograph") for n in (0, 1, 2)] == ["0 photographs", "1 photograph", "2 photographs"]
    assert [counted(n, "mask is", "masks are") for n in (1, 2)] == ["1 mask is", "2 masks are"]
