"""The detail network: it starts as the identity, uses all its inputs, and does not depend on the packing."""

import pytest
import torch
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from guidance.prior import IMAGE_SIZE, TEXT_DIM, TINY_TEXT_DIM, UNSHUFFLE
from guidance.prior.camera import CONDITION_DIM
from guidance.prior.detail import build, fits, refine

T = torch.tensor([10, 900])


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    network = build(tiny=True)
    torch.nn.init.normal_(network.conv_out.weight, std=0.1)
    return network.requires_grad_(False)


@pytest.fixture
def conditions():
    """Text embeddings [2, 16, D] and camera vectors [2, 8]."""
    g = torch.Generator().manual_seed(2)
    return torch.randn(2, 16, TINY_TEXT_DIM, generator=g), torch.randn(2, CONDITION_DIM, generator=g)


def images(count=2, channels=3 * UNSHUFFLE**2):
    side = IMAGE_SIZE // UNSHUFFLE
    g = torch.Generator().manual_seed(1)
    return torch.randn(count, channels, side, side, generator=g), torch.randn(count, channels, side, side, generator=g)


def test_a_new_network_changes_nothing(conditions):
    noisy, prediction = images()
    assert torch.equal(refine(build(tiny=True), noisy, prediction, T, *conditions), prediction)


def test_the_output_depends_on_image_prediction_timestep_text_and_camera(network, conditions):
    noisy, prediction = images()
    text, camera = conditions
    added = refine(network, noisy, prediction, T, text, camera) - prediction
    for other in (
        refine(network, noisy.flip(0), prediction, T, text, camera) - prediction,
        refine(network, noisy, prediction.flip(0), T, text, camera) - prediction.flip(0),
        refine(network, noisy, prediction, T.flip(0), text, camera) - prediction,
        refine(network, noisy, prediction, T, text.flip(0), camera) - prediction,
        refine(network, noisy, prediction, T, text, camera.flip(0)) - prediction,
    ):
        assert (other - added).abs().amax((1, 2, 3)).min() > 1e-4


@pytest.mark.parametrize("unshuffle", [1, 4, 16])
def test_packing_does_not_matter(network, conditions, unshuffle):
    noisy, prediction = images()
    repacked = (pixel_unshuffle(pixel_shuffle(p, UNSHUFFLE), unshuffle) for p in (noisy, prediction))
    other = pixel_shuffle(refine(network, *repacked, T, *conditions, unshuffle), unshuffle)
    torch.testing.assert_close(other, pixel_shuffle(refine(network, noisy, prediction, T, *conditions), UNSHUFFLE))


def test_a_network_in_half_precision_keeps_the_dtype_of_the_prediction(network, conditions):
    noisy, prediction = images()
    half = build(tiny=True).to(torch.bfloat16)
    half.load_state_dict(network.state_dict())
    refined = refine(half, noisy, prediction, T, *conditions)
    assert refined.dtype == torch.float32
    torch.testing.assert_close(refined, refine(network, noisy, prediction, T, *conditions), rtol=0.1, atol=0.1)


def test_only_networks_of_two_images_in_and_one_out_under_the_same_conditions_fit(network):
    from types import SimpleNamespace

    def other(given, size=64, widths=(TEXT_DIM, CONDITION_DIM)):
        config = SimpleNamespace(
            in_channels=given[0],
            out_channels=given[1],
            cross_attention_dim=TEXT_DIM,
            projection_class_embeddings_input_dim=CONDITION_DIM,
        )
        return fits(SimpleNamespace(config=config), size, *widths)

    assert fits(network, IMAGE_SIZE, TINY_TEXT_DIM, CONDITION_DIM) and other((6, 3)) and other((54, 27), 9)
    assert not other((54, 27)) and not other((12, 12)) and not other((12, 6)) and not other((2, 1))
    assert not other((6, 3), widths=(TEXT_DIM, 4)) and not other((6, 3), widths=(TINY_TEXT_DIM, CONDITION_DIM))
