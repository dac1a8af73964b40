"""Perp-Neg: continuous weights, and negative words that never cancel the prompt."""

import pytest
import torch

from guidance.distillation import classifier_free
from guidance.perpneg_utils import PerpNeg, decay, negative_weights, perpendicular, perpneg_mixer
from guidance.prompts import ViewAngles, view_weights

AROUND = torch.linspace(-360, 360, 72_001, dtype=torch.float64)  # hundredths of a degree
HORIZON = torch.full_like(AROUND, 90.0)


def predictions(count, seed=0):
    return torch.randn(count, 3, 4, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_weights_never_jump_in_azimuth():
    settings = PerpNeg()
    steepest = -settings.negative_w * settings.side_decay / 90 * 0.01  # slope of the fastest exponential
    assert negative_weights(AROUND, HORIZON, settings).diff(dim=0).abs().max() < 1.01 * steepest


def test_weights_never_jump_in_polar():
    polar = torch.linspace(0, 180, 18_001, dtype=torch.float64)
    weights = negative_weights(torch.full_like(polar, 180.0), polar, PerpNeg())
    assert weights.diff(dim=0).abs().max() < 0.002


@pytest.mark.parametrize("front", [20.0, 60.0, 90.0, 160.0])
def test_no_view_has_its_own_word_alone_as_a_negative_one(front):
    angles = ViewAngles(front=front)
    words = view_weights(AROUND, HORIZON, angles)
    weights = negative_weights(AROUND, HORIZON, PerpNeg(), angles)
    for column in (0, 1):  # "front" and "side" in both
        assert (weights[words[:, column] == 1, column] == 0).all()


def test_weights_lie_between_full_weight_and_zero():
    weights = negative_weights(AROUND, HORIZON, PerpNeg(negative_w=-3.0))
    assert weights.max() <= 0 and weights.min() == -3.0


@pytest.mark.parametrize(("azimuth", "front", "side"), [(0, 0, -2), (90, -2, 0), (-90, -2, 0), (180, -2, -1)])
def test_principal_views_have_the_other_words_as_negative_ones(azimuth, front, side):
    weights = negative_weights(torch.tensor([float(azimuth)]), torch.tensor([90.0]), PerpNeg())
    torch.testing.assert_close(weights, torch.tensor([[float(front), float(side)]]))


def test_views_from_above_have_no_negative_words():
    assert negative_weights(torch.tensor([180.0]), torch.tensor([0.0]), PerpNeg()).abs().max() == 0


def test_a_rate_of_zero_is_the_limit_of_a_small_one():
    share = torch.linspace(0, 1, 11, dtype=torch.float64)
    torch.testing.assert_close(decay(share, 0.0), decay(share, 1e-6), rtol=0, atol=1e-6)


def test_perpendicular_part_has_no_component_along_the_axis():
    direction, axis = predictions(2)
    assert (perpendicular(direction, axis) * axis).flatten(1).sum(1).abs().max() < 1e-12


def test_perpendicular_to_a_zero_axis_is_the_vector_itself():
    direction = predictions(1)[0]
    assert torch.equal(perpendicular(direction, torch.zeros_like(direction)), direction)


def test_negative_words_leave_the_component_along_the_prompt_unchanged():
    b = predictions(4)
    mixed = perpneg_mixer(7.5, torch.full((3, 2), -2.0))(b)
    main = b[1] - b[0]
    along = ((mixed - b[0]) * main).flatten(1).sum(1) / main.flatten(1).square().sum(1)
    torch.testing.assert_close(along, torch.full_like(along, 7.5))


def test_a_negative_word_moves_the_guidance_away_from_it():
    b = predictions(4)
    push = perpneg_mixer(1.0, torch.tensor([[-2.0, 0.0]] * 3))(b) - b[1]
    assert ((push * perpendicular(b[2] - b[0], b[1] - b[0])).flatten(1).sum(1) < 0).all()


def test_with_zero_weights_it_is_classifier_free_guidance():
    b = predictions(4)
    torch.testing.assert_close(perpneg_mixer(20.0, torch.zeros(3, 2))(b), classifier_free(20.0)(b[:2]))


def test_a_negative_word_equal_to_the_prompt_changes_nothing():
    b = predictions(2)
    torch.testing.assert_close(perpneg_mixer(5.0, torch.full((3, 1), -2.0))(torch.cat([b, b[1:]])), classifier_free(5.0)(b))


def test_a_wrong_number_of_predictions_is_refused():
    with pytest.raises(ValueError, match="expected 4 predictions, got 3"):
        perpneg_mixer(1.0, torch.zeros(3, 2))(predictions(3))


@pytest.mark.parametrize("wrong", [{"negative_w": 1.0}, {"front_decay": -1.0}, {"side_decay": -1.0}])
def test_settings_of_the_wrong_sign_are_refused(wrong):
    with pytest.raises(ValueError, match="--"):
        PerpNeg(**wrong)
