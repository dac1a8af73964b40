"""R-precision and the best region: closed forms, ties, and what averaging does to a lucky view."""

import pytest
import torch

from nerf.evaluation.alignment import best_region, chosen, r_precision
from nerf.evaluation.cameras import icosphere


def test_a_view_counts_if_the_true_caption_alone_is_nearest():
    similarity = torch.tensor([[0.9, 0.1, 0.2], [0.1, 0.9, 0.2], [0.5, 0.5, 0.1], [0.3, 0.1, 0.2]])
    assert r_precision(similarity, 0).tolist() == [1, 0, 0, 1]
    assert chosen(similarity)[:2] == [0, 1]


def test_a_scorer_that_cannot_tell_captions_apart_gets_nothing():
    assert r_precision(torch.zeros(5, 4), 2).sum() == 0


def test_a_guess_is_right_once_in_as_many_captions():
    random = torch.rand(20_000, 16, generator=torch.Generator().manual_seed(0))
    assert r_precision(random, 7).mean() == pytest.approx(1 / 16, abs=0.006)  # four standard deviations


@pytest.mark.parametrize("shape, true", [((3, 4), 4), ((3, 1), 0), ((3,), 0)])
def test_similarities_of_another_shape_are_refused(shape, true):
    with pytest.raises(ValueError, match="expected"):
        r_precision(torch.zeros(shape), true)


def test_one_lucky_view_counts_less_than_a_good_side():
    directions, neighbours = icosphere(1)
    lucky, side = torch.zeros(len(directions), 2), torch.zeros(len(directions), 2)
    lucky[5, 1] = 1
    side[directions[:, 2] > 0.3, 0] = 0.5
    assert best_region(lucky, neighbours).single == 1 and best_region(side, neighbours).single == 0.5
    assert best_region(lucky, neighbours).score < 0.2 < best_region(side, neighbours).score <= 0.5
    assert directions[best_region(side, neighbours).viewpoint, 2] > 0.8


def test_the_best_field_of_view_counts_and_equal_scores_stay():
    _, neighbours = icosphere(0)
    scores = torch.tensor([[0.1, 0.4, 0.2]]).expand(12, 3)
    found = best_region(scores, neighbours)
    assert found.score == pytest.approx(0.4) == found.mean


def test_one_round_of_averaging_is_the_mean_of_a_viewpoint_and_those_beside_it():
    neighbours = [[1], [0, 2], [1]]
    assert best_region(torch.tensor([[3.0], [0.0], [0.0]]), neighbours, rounds=1).score == pytest.approx(1.5)
    with pytest.raises(ValueError, match="expected"):
        best_region(torch.zeros(2, 1), neighbours)
