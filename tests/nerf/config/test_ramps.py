"""Weights that are constant or change over steps: one way to write them."""

import json

import pytest

from nerf.config.config import Config, from_json, parse, to_json, with_values
from nerf.config.ramps import parse_ramp, weight_at
from nerf.config.stages import NERF, Stage
from nerf.core.errors import UserError
from nerf.training.schedule import term_weights
from nerf.training.sources import RunInfo


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("0:0.1:500", {0: 0.0, 250: 0.05, 500: 0.1, 900: 0.1}),
        ("1:0:100:300", {0: 1.0, 100: 1.0, 200: 0.5, 300: 0.0, 999: 0.0}),
        ("0:2:50%", {0: 0.0, 250: 1.0, 500: 2.0, 999: 2.0}),
        ("0:2:10%:20%", {99: 0.0, 150: 1.0, 200: 2.0}),
        ("3:5:0", {0: 5.0, 10: 5.0}),
        ("1e-3:1e-4:1e2", {0: 1e-3, 100: 1e-4}),
    ],
)
def test_a_ramp_is_linear_between_its_ends(word, expected):
    assert {step: weight_at(word, step, 1000) for step in expected} == pytest.approx(expected)


def test_a_number_is_constant():
    assert weight_at(0.25, 0, 10) == weight_at(0.25, 9, 10) == 0.25


@pytest.mark.parametrize(
    "word", ["1:2", "1:2:3:4:5", "a:1:10", "0:1:x", "-1:0:10", "0:1:-5", "0:1:120%", "0:inf:5", "::", "0:1:2.5"]
)
def test_another_word_is_refused_with_the_forms(word):
    with pytest.raises(UserError, match="FROM:TO:STEPS"):
        parse_ramp(word)
    with pytest.raises(UserError, match="--lambda_mask must be a number, FROM:TO:STEPS"):
        parse(["--text", "x", f"--lambda_mask={word}"])


@pytest.mark.parametrize("word", ["0:1:50%:10%", "0:1:300:100"])
def test_a_ramp_that_ends_before_it_begins_is_refused(word):
    with pytest.raises(UserError, match="with FIRST not after LAST"):
        parse_ramp(word)
    with pytest.raises(UserError, match="--lambda_mask must be .* with FIRST not after LAST, got "):
        parse(["--text", "x", f"--lambda_mask={word}"])


@pytest.mark.parametrize("word", ["abc", "nan"])
def test_a_word_that_is_neither_is_refused(word):
    with pytest.raises(UserError, match="--lambda_mask must be a"):
        parse(["--text", "x", "--lambda_mask", word])


def test_a_typed_ramp_is_the_weight_of_its_term_at_every_step():
    config = parse(["--data", "x", "--lambda_eikonal", "0:0.4:100", "--lambda_entropy", "1:1:5", "--iters", "200"])
    weights = [term_weights(step, RunInfo(Stage(NERF, config))) for step in (0, 50, 150)]
    assert [w["eikonal"] for w in weights] == pytest.approx([0.0, 0.2, 0.4])
    assert [w["entropy"] for w in weights] == pytest.approx([0.0, 0.5, 1.0])  # with its own factor


def test_a_ramp_is_stored_and_read_back():
    config = with_values(Config(), {"lambda_rgb": "0:1:25%", "lambda_mask": 2.0}, "typed")
    again = from_json(json.loads(json.dumps(to_json(config))))
    assert (again.loss.lambda_rgb, again.loss.lambda_mask) == ("0:1:25%", 2.0)
