"""View words for the embedded prior: which cameras a word stands for."""

import pytest
import torch

from guidance.prior.view_words import Words, azimuths_of
from guidance.prompts import DEFAULT_ANGLES, VIEW_WORDS, ViewAngles, view_weights
from nerf.core.cameras import orbit, wrap_degrees
from tests.guidance.models import views_at

COUNT = 20_000


def drawn(word, angles=DEFAULT_ANGLES, seed=0):
    return azimuths_of(torch.full((COUNT,), VIEW_WORDS.index(word)), angles, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("word", ["front", "side", "back"])
def test_azimuths_are_drawn_as_often_as_the_word_has_weight_there(word):
    azimuth, column = drawn(word), VIEW_WORDS.index(word)
    counts = torch.histc(azimuth, 36, -180, 180) / COUNT
    fine = torch.arange(-180, 180, 1.0) + 0.5
    weights = view_weights(fine, torch.full_like(fine, 90.0))[:, column].view(36, 10).sum(1)
    torch.testing.assert_close(counts, weights / weights.sum(), rtol=0, atol=0.008)  # four standard deviations of a count


def test_a_narrow_front_is_drawn_from_and_other_words_leave_the_azimuth_open():
    assert drawn("front", ViewAngles(30.0, 30.0)).abs().max() < 31 < drawn("front").abs().max()
    for word in ("overhead", "bottom"):
        assert (torch.histc(drawn(word), 8, -180, 180) / COUNT - 1 / 8).abs().max() < 0.015


def test_views_keep_all_but_their_azimuth_and_poses_agree_with_it():
    views = views_at(0, 90, 180, -60)
    seen = Words(generator=torch.Generator().manual_seed(1)).seen(views)
    assert not torch.allclose(seen.azimuth, views.azimuth)
    for name in ("polar", "radius", "fovy", "fx"):
        assert torch.equal(getattr(seen, name), getattr(views, name))
    again = orbit(75.0, seen.azimuth, 3.2, 20.0, 64, 64)
    torch.testing.assert_close(seen.pose, again.pose, rtol=0, atol=1e-5)


def test_the_word_of_a_view_is_that_of_the_view_and_a_given_word_is_obeyed():
    views, words = views_at(*[0.0] * 50, *[180.0] * 50), Words(generator=torch.Generator().manual_seed(0))
    seen = words.seen(views).azimuth
    assert seen[:50].abs().max() < 91 and wrap_degrees(seen[50:] - 180).abs().max() < 91
    assert words.seen(views, "front").azimuth.abs().max() < 91
    side = words.seen(views, "side").azimuth
    assert (side > 0).any() and (side < 0).any() and side.abs().min() >= -0.5


def test_the_same_generator_draws_the_same_azimuths():
    views = views_at(0, 90)
    pair = [Words(generator=torch.Generator().manual_seed(3)).seen(views).azimuth for _ in range(2)]
    assert torch.equal(*pair)
