"""View words: a partition of unity that never jumps."""

import pytest
import torch

from guidance.prompts import VIEW_WORDS, blend, view_weights


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
def test_principal_views_get_their_word_alone(azimuth, polar, word):
    weights = view_weights(*angles(azimuth, polar))[0]
    assert weights[VIEW_WORDS.index(word)] == 1 and weights.sum() == 1


def test_weights_are_a_partition_of_unity_over_the_whole_sphere():
    azimuth, polar = torch.meshgrid(torch.linspace(-400, 400, 161), torch.linspace(0, 180, 91), indexing="ij")
    weights = view_weights(azimuth.flatten(), polar.flatten())
    assert (weights >= 0).all()
    torch.testing.assert_close(weights.sum(1), torch.ones(len(weights)))


@pytest.mark.parametrize("axis", ["azimuth", "polar"])
def test_weights_never_jump(axis):
    steps = torch.linspace(-360, 360, 72_001) if axis == "azimuth" else torch.linspace(0, 180, 18_001)
    other = torch.full_like(steps, 35.0)  # inside the overhead ramp
    weights = view_weights(steps, other) if axis == "azimuth" else view_weights(other, steps)
    assert weights.diff(dim=0).abs().max() < 0.01 / 15  # a hundredth of a degree; the steepest ramp is 1 in 20 degrees


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


def test_blend_of_a_pure_view_is_its_embedding():
    embeddings = torch.randn(5, 7, 3, generator=torch.Generator().manual_seed(0))
    mixed = blend(embeddings, view_weights(*angles([180.0])).float())
    torch.testing.assert_close(mixed[0], embeddings[VIEW_WORDS.index("back")])


def test_angles_of_different_counts_are_refused():
    with pytest.raises(ValueError, match="azimuth"):
        view_weights(torch.zeros(2), torch.zeros(3))
