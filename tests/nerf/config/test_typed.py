"""Reading a command line: what was typed comes through, and what cannot be meant is one sentence that says so."""

import shlex

import pytest

from nerf.config.config import OPTIONS, parse
from nerf.config.parser import dashed, kind_of
from nerf.config.typed import SYNONYMS
from nerf.core.errors import UserError

TEXT = ["--text", "a cone"]
SWITCHES = [flag for flag, (_, field) in OPTIONS.items() if kind_of(field).scalar is bool]
VALUES = [flag for flag, (_, field) in OPTIONS.items() if kind_of(field).scalar is not bool]


def refusal(*words):
    """The sentence with which a command line is refused."""
    with pytest.raises(UserError) as caught:
        parse([*TEXT, *words])
    return str(caught.value)


@pytest.mark.parametrize("flag", SWITCHES)
def test_a_switch_takes_no_value(flag):
    assert refusal(f"{dashed(flag)}=1") == f"{dashed(flag)} takes no value, got '1'; give {dashed(flag)} or --no_{flag}"
    assert f"{dashed(flag)} takes no value; --no_{flag} is its opposite" in refusal(dashed(flag), "1")


@pytest.mark.parametrize("flag", VALUES)
def test_a_flag_without_its_value_is_said_with_an_example_that_works(flag):
    name = dashed(flag)
    sentence = refusal(name)
    assert sentence.startswith(f"{name} needs ") and f", as in {name} " in sentence
    example = shlex.split(sentence.split(f", as in {name} ")[1])
    assert parse([*TEXT, name, *example]).asked(flag)
    assert refusal(name, "--test") == sentence


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("-O3", "unknown flag -O3; did you mean -O or -O2?"),
        ("--O", "unknown flag --O; did you mean -O?"),
        ("-o", "unknown flag -o; did you mean -O?"),
        ("-iters 5", "unknown flag -iters; did you mean --iters?"),
        ("\u2014iters 5", "unknown flag \u2014iters; did you mean --iters?"),
        ("--batch-size 2", "unknown flag --batch-size; did you mean --batch_size?"),
        ("--Iters 2", "unknown flag --Iters; did you mean --iters?"),
        ("--no_fp61", "unknown flag --no_fp61; did you mean --no_fp16?"),
        ("--no_iters", "unknown flag --no_iters; --iters is no switch: leave it out"),
        ("--height 5", "unknown flag --height; did you mean --h?"),
        ("--prompt x", "unknown flag --prompt; did you mean --text?"),
        ("--resolution 5", "unknown flag --resolution; did you mean --mcubes_resolution?"),
        ("--mcubes 5", "unknown flag --mcubes; did you mean --mcubes_resolution?"),
        ("--grid_f 5", "unknown flag --grid_f; did you mean --grid_features or --grid_finest?"),
        ("--lambda 5", "unknown flag --lambda; see --help"),
        ("--hallo", "unknown flag --hallo; see --help"),
        ("--healing", "unknown flag --healing; see --help"),
        ("--helpp", "unknown flag --helpp; did you mean --help?"),
        ("--", "unexpected word '--' after the value of --text"),
        ("--iters 5 6", "unexpected word '6': --iters takes one number; leave the word out"),
        ("--iters=", "--iters must be a whole number, got ''"),
        ("--iters 0x10", "--iters must be a whole number, got '0x10'"),
        ("--lr 0,001", "--lr must be a number, got '0,001'; write 0.001"),
        ("--lr one", "--lr must be a number, got 'one'"),
        ("--radius_range 3", "--radius_range takes two numbers, as in --radius_range 3 3.5, got '3'"),
        ("--radius_range 3 4 5", "--radius_range takes two numbers, as in --radius_range 3 3.5, got '3 4 5'"),
        ("--radius_range 3,x", "--radius_range must be a number, got 'x'"),
        ("--stages=", "--stages is empty; give a value, as in --stages nerf, or leave the flag out"),
        ("--stages nerf,", "--stages is empty"),
        ("--stages nerv", "--stages must be nerf or dmtet, got 'nerv'; did you mean nerf?"),
        ("--hf_key=", "--hf_key is empty; give a value"),
        ("--ckpt=", "--ckpt is empty; give a value, as in --ckpt latest"),
        ("--sd_version 1.4", "--sd_version must be auto, embedded, 1.5, 2.0 or 2.1, got '1.4'"),
        ("--workspace -dash", "a value that begins with a dash is written --workspace=VALUE, as --workspace=-dash"),
    ],
)
def test_what_cannot_be_meant_is_one_sentence(words, sentence):
    assert refusal(*words.split()).startswith(sentence) or sentence in refusal(*words.split())


def test_a_flag_and_its_value_in_one_word_are_said_to_be_two():
    assert "are two words: write --negative 'blurry mess'" in refusal("--negative blurry mess")


def test_the_first_word_follows_no_flag():
    with pytest.raises(UserError, match="unexpected word 'train'; every value follows its flag"):
        parse(["train", *TEXT])


def test_a_long_word_is_cut():
    assert len(refusal("--iters", "x" * 10_000)) < 200
    assert len(refusal("--" + "x" * 10_000)) < 200


@pytest.mark.parametrize(
    ("words", "value"),
    [
        ("--radius_range 3,3.5", (3.0, 3.5)),
        ("--radius_range=3,3.5", (3.0, 3.5)),
        ("--radius_range 3, 3.5", (3.0, 3.5)),
        ("--phi_range -90,90", (-90.0, 90.0)),
        ("--phi_range -1e-1 90", (-0.1, 90.0)),
        ("--guidance SD", ("SD",)),
        ("--negative - --iters 4", "-"),
        ("--negative=-x", "-x"),
        ("--negative -5", "-5"),
        ("--negative a=b", "a=b"),
        ("--lr 1 --lr 2", 2.0),
        ("--decimate_target -5", -5),
        ("--no_O", False),
    ],
)
def test_what_can_be_meant_is_read(words, value):
    flag = words.split()[0].split("=")[0].removeprefix("--").removeprefix("no_")
    assert parse([*TEXT, *words.split()]).value(flag) == value


def test_a_value_of_several_words_may_begin_with_a_dash():
    assert parse(["--text", "- a cone", "--negative", "-no -O"]).prompt.text == "- a cone"


def test_an_error_in_a_file_of_flags_names_the_file(tmp_path):
    (tmp_path / "run.args").write_text("--itres 3")
    path = tmp_path / "run.args"
    assert refusal("--file", str(path)) == f"--file {path}: unknown flag --itres; did you mean --iters?"
    assert refusal("--file") == "--file needs a value, as in --file run.args"


def test_every_synonym_stands_for_a_flag():
    assert set(SYNONYMS.values()) <= set(OPTIONS) and not set(SYNONYMS) & set(OPTIONS)
