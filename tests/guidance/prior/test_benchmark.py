"""The prompts of the benchmark: every kind once, held out, in two halves."""

from guidance.prior import benchmark
from guidance.prior.captions import BENCHMARK_PROMPTS, is_held_out
from guidance.prior.shapes import caption_of
from guidance.prior.vocabulary import KIND_NAMES


def test_every_kind_is_measured_once_and_half_of_them_judge():
    assert sorted(caption_of(prompt).kind for prompt in benchmark.PROMPTS) == sorted(KIND_NAMES)
    assert len(benchmark.TUNING) == len(benchmark.JUDGING) == len(KIND_NAMES) / 2
    assert [benchmark.half_of(prompt) for prompt in ("a hamburger", "a purple sofa", "a lion")] == ["tuning", "judging", ""]


def test_published_prompts_tuned_the_settings_and_so_none_of_them_judges():
    assert {prompt for prompt, _ in BENCHMARK_PROMPTS} <= set(benchmark.TUNING)


def test_colours_of_the_prompts_were_not_trained_except_where_it_says_so():
    assert {prompt for prompt in benchmark.PROMPTS if not is_held_out(caption_of(prompt))} == set(benchmark.TRAINED)
