"""Intervals of means: they hold the truth as often as they say, know about groups, and are the same every time."""

import numpy as np
import pytest

from nerf.evaluation.statistics import interval


def test_an_interval_holds_the_true_mean_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    inside = [(found := interval(rng.normal(2.0, 1.0, 20), seed=i)).low <= 2.0 <= found.high for i in range(200)]
    assert 0.88 <= np.mean(inside) <= 0.99


def test_runs_of_one_prompt_are_drawn_together():
    prompts, offset = np.repeat(np.arange(8), 10), np.repeat(np.random.default_rng(1).normal(size=8), 10)
    apart, together = interval(offset), interval(offset, prompts)
    assert together.high - together.low > 2 * (apart.high - apart.low) and together.mean == apart.mean


def test_the_same_numbers_give_the_same_interval_and_a_seed_another():
    values = np.random.default_rng(2).normal(size=12)
    assert interval(values, seed=3) == interval(values, seed=3) != interval(values, seed=4)


def test_what_is_not_a_number_does_not_count():
    assert interval([1.0, np.nan, 3.0]).mean == 2.0 and interval([1.0, np.nan, 3.0]).count == 2
    assert interval([np.nan]) is None and interval([]) is None
    single = interval([0.25])
    assert (single.low, single.high, single.shown(2)) == (0.25, 0.25, "0.25")


def test_equal_numbers_have_an_interval_without_width():
    found = interval([0.5] * 6)
    assert (found.mean, found.low, found.high) == (0.5, 0.5, 0.5) and found.shown(1) == "0.5 [0.5, 0.5]"


@pytest.mark.parametrize("bad", [{"level": 1.0}, {"groups": ["a"]}])
def test_arguments_that_do_not_fit_are_refused(bad):
    with pytest.raises(ValueError, match="expected"):
        interval([1.0, 2.0], **bad)
