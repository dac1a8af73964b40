"""The Janus score and the drift: closed forms. A car with two fronts is told from a true one in test_prior_scorer.py."""

import pytest
import torch

from nerf.evaluation.cameras import circle
from nerf.evaluation.janus import dissimilarity, drift, side_mean, total_variation


def test_the_back_is_the_views_about_180_degrees():
    azimuth = circle(8, 4).azimuth
    values = torch.zeros(8)
    values[3:6] = 1.0  # 135, 180, -135
    assert side_mean(values, azimuth, 180.0) == 1 and side_mean(values, azimuth, 0.0) == 0
    assert side_mean(values, azimuth, 90.0) == pytest.approx(1 / 3)


def test_a_circle_without_a_back_is_refused():
    with pytest.raises(ValueError, match="expected a view within 60 degrees"):
        side_mean(torch.zeros(1), torch.zeros(1), 180.0)


def test_drift_goes_round_the_circle_and_is_zero_of_equal_views():
    rows = torch.tensor([[0.0], [1.0], [3.0]])
    assert drift(rows, lambda a, b: (a - b).abs()) == pytest.approx((1 + 2 + 3) / 3)
    pictures = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)).expand(4, 3, 16, 16)
    assert drift(pictures, dissimilarity) == pytest.approx(0, abs=1e-6)
    with pytest.raises(ValueError, match="two views"):
        drift(rows[:1], total_variation)


def test_belief_that_moves_to_another_caption_is_its_share():
    assert total_variation(torch.tensor([0.7, 0.3, 0.0]), torch.tensor([0.2, 0.3, 0.5])) == pytest.approx(0.5)
