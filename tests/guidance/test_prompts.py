"""View words: weights are continuous, sum to one, and change where the angles say."""

import pytest
import torch

from guidance.prompts import RAMP, VIEW_WORDS, ViewAngles, blend, view_weights
from nerf.config.config import Config, with_values
from nerf.core.cameras import wrap_degrees
from nerf.core.errors import UserError

LEGAL = [(front, overhead) for front in (20.0, 47.0, 60.0, 90.0, 133.0, 160.0) for overhead in (10.0, 30.0, 80.0)]
each_legal_pair = pytest.mark.parametrize(("front", "overhead"), LEGAL)


def angles(azimuth, polar=90.0):
    azimuth = torch.as_tensor(azimuth, dtype=torch.float64).reshape(-1)
    return azimuth, torch.as_tensor(polar, dtype=torch.float64).expand(azimuth.shape)


@pytest.mark.parametrize(
    ("azimuth", "polar", "word"),
    [
        (0, 90, "front"),
        (90, 90, "side"),
        (-90, 90, "side"),
        (180, 90, "back"),
        (-180, 80, "back"),
        (360, 60, "front"),
        (123, 0, "overhead"),
        (-45, 180, "bottom"),
    ],
)
def test_principal_views_have_their_word_alone(azimuth, polar, word):
    weights = view_weights(*angles(azimuth, polar))[0]
    assert weights[VIEW_WORDS.index(word)] == 1 and weights.sum() == 1


@each_legal_pair
def test_weights_are_a_partition_of_unity_over_the_whole_sphere(front, overhead):
    azimuth, polar = torch.meshgrid(torch.linspace(-400, 400, 161), torch.linspace(0, 180, 91), indexing="ij")
    weights = view_weights(azimuth.flatten(), polar.flatten(), ViewAngles(front, overhead))
    assert (weights >= 0).all()
    torch.testing.assert_close(weights.sum(1), torch.ones(len(weights)))


@each_legal_pair
@pytest.mark.parametrize("axis", ["azimuth", "polar"])
def test_weights_are_continuous(axis, front, overhead):
    steps = torch.linspace(-360, 360, 72_001) if axis == "azimuth" else torch.linspace(0, 180, 18_001)
    other = torch.full_like(steps, overhead + 5.0)  # inside the overhead ramp
    pair = (steps, other) if axis == "azimuth" else (other, steps)
    weights = view_weights(*(v.double() for v in pair), ViewAngles(front, overhead))
    assert weights.diff(dim=0).abs().max() < 1.001 * 0.01 / RAMP  # a hundredth of a degree on the steepest ramp


@each_legal_pair
def test_two_words_have_equal_weight_at_the_given_angles(front, overhead):
    limits = ViewAngles(front, overhead)
    around = view_weights(*angles([front / 2, -front / 2, 180 - front / 2, front / 2 - 180]), limits)
    expected = torch.tensor([[0.5, 0.5, 0, 0, 0]] * 2 + [[0, 0.5, 0.5, 0, 0]] * 2, dtype=torch.float64)
    torch.testing.assert_close(around, expected)
    for polar, word in ((overhead, "overhead"), (180 - overhead, "bottom")):
        weights = view_weights(*angles(0.0, polar), limits)[0]
        torch.testing.assert_close(weights[VIEW_WORDS.index(word)].item(), 0.5)


@each_legal_pair
def test_principal_views_have_one_word_at_every_legal_angle(front, overhead):
    azimuth, polar = torch.tensor([0.0, 90, -90, 180, 50, 50]), torch.tensor([90.0, 90, 90, 90, 0, 180])
    weights = view_weights(azimuth, polar, ViewAngles(front, overhead))
    assert weights.argmax(-1).tolist() == [0, 1, 1, 2, 3, 4] and (weights.amax(-1) == 1).all()


def test_by_default_front_side_and_back_are_linear_in_the_azimuth():
    azimuth = torch.linspace(-180, 180, 2_001)
    turn = wrap_degrees(azimuth).abs() / 90
    expected = torch.stack([(1 - turn).clamp(min=0), 1 - (1 - turn).abs(), (turn - 1).clamp(min=0)], -1)
    weights = view_weights(azimuth, torch.full_like(azimuth, 90.0))[:, :3]
    torch.testing.assert_close(weights, expected)
    # The same bits as the plain formula.
    assert torch.equal(weights[:, 0], expected[:, 0]) and torch.equal(weights[:, 2], expected[:, 2])


@pytest.mark.parametrize(
    ("flag", "values"), [("angle_front", (19.9, 20, 90, 160, 160.1)), ("angle_overhead", (9.9, 10, 30, 80, 80.1))]
)
def test_the_flags_accept_the_angles_that_the_blending_accepts(flag, values):
    for value, legal in zip(values, (False, True, True, True, False), strict=True):
        for make, error in (
            (lambda: with_values(Config(), {flag: float(value)}, "typed"), UserError),  # noqa: B023 (called at once)
            (lambda: ViewAngles(**{flag.removeprefix("angle_"): value}), ValueError),  # noqa: B023
        ):
            if legal:
                make()
            else:
                with pytest.raises(error, match=f"--{flag} must be between"):
                    make()
    blending = ViewAngles()
    assert (Config().guidance.angle_front, Config().guidance.angle_overhead) == (blending.front, blending.overhead)


def test_weights_do_not_depend_on_azimuth_at_the_poles():
    azimuth = torch.linspace(-180, 180, 37)
    for polar in (0.0, 180.0):
        weights = view_weights(*angles(azimuth, polar))
        assert torch.equal(weights, weights[:1].expand_as(weights))


def test_left_and_right_are_both_sides():
    azimuth = torch.linspace(0, 180, 19)
    torch.testing.assert_close(view_weights(*angles(azimuth)), view_weights(*angles(-azimuth)))


def test_whole_turns_change_nothing():
    azimuth = torch.linspace(-170, 170, 18)
    for turns in (-720, -360, 360):
        torch.testing.assert_close(view_weights(*angles(azimuth + turns)), view_weights(*angles(azimuth)))


def test_blend_of_a_principal_view_is_its_embedding():
    embeddings = torch.randn(5, 7, 3, generator=torch.Generator().manual_seed(0))
    mixed = blend(embeddings, view_weights(*angles([180.0])).float())
    torch.testing.assert_close(mixed[0], embeddings[VIEW_WORDS.index("back")])


def test_angles_of_different_counts_are_refused():
    with pytest.raises(ValueError, match="azimuth"):
        view_weights(torch.zeros(2), torch.zeros(3))
