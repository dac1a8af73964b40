"""The detail network: it starts as nothing, sees all it is told, and does not care how pictures are packed."""

import pytest
import torch
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from guidance.prior import IMAGE_SIZE, TEXT_DIM, TINY_TEXT_DIM, UNSHUFFLE
from guidance.prior.camera import CONDITION_DIM
from guidance.prior.detail import build, fits, sharpen

T = torch.tensor([10, 900])


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    network = build(tiny=True)
    torch.nn.init.normal_(network.conv_out.weight, std=0.1)
    return network.requires_grad_(False)


@pytest.fixture
def told():
    """Words [2, 16, D] and cameras [2, 8]."""
    g = torch.Generator().manual_seed(2)
    return torch.randn(2, 16, TINY_TEXT_DIM, generator=g), torch.randn(2, CONDITION_DIM, generator=g)


def pictures(count=2, channels=3 * UNSHUFFLE**2):
    side = IMAGE_SIZE // UNSHUFFLE
    g = torch.Generator().manual_seed(1)
    return torch.randn(count, channels, side, side, generator=g), torch.randn(count, channels, side, side, generator=g)


def test_a_new_network_adds_nothing(told):
    noisy, estimate = pictures()
    assert torch.equal(sharpen(build(tiny=True), noisy, estimate, T, *told), estimate)


def test_it_sees_the_noisy_picture_the_estimate_the_time_the_words_and_the_camera(network, told):
    noisy, estimate = pictures()
    text, camera = told
    added = sharpen(network, noisy, estimate, T, text, camera) - estimate
    for other in (
        sharpen(network, noisy.flip(0), estimate, T, text, camera) - estimate,
        sharpen(network, noisy, estimate.flip(0), T, text, camera) - estimate.flip(0),
        sharpen(network, noisy, estimate, T.flip(0), text, camera) - estimate,
        sharpen(network, noisy, estimate, T, text.flip(0), camera) - estimate,
        sharpen(network, noisy, estimate, T, text, camera.flip(0)) - estimate,
    ):
        assert (other - added).abs().amax((1, 2, 3)).min() > 1e-4


@pytest.mark.parametrize("unshuffle", [1, 4, 16])
def test_packing_only_moves_values(network, told, unshuffle):
    noisy, estimate = pictures()
    repacked = (pixel_unshuffle(pixel_shuffle(p, UNSHUFFLE), unshuffle) for p in (noisy, estimate))
    other = pixel_shuffle(sharpen(network, *repacked, T, *told, unshuffle), unshuffle)
    torch.testing.assert_close(other, pixel_shuffle(sharpen(network, noisy, estimate, T, *told), UNSHUFFLE))


def test_a_network_in_half_precision_answers_in_the_dtype_of_the_estimate(network, told):
    noisy, estimate = pictures()
    half = build(tiny=True).to(torch.bfloat16)
    half.load_state_dict(network.state_dict())
    answer = sharpen(half, noisy, estimate, T, *told)
    assert answer.dtype == torch.float32
    torch.testing.assert_close(answer, sharpen(network, noisy, estimate, T, *told), rtol=0.1, atol=0.1)


def test_only_networks_of_two_pictures_in_and_one_out_that_are_told_the_same_fit(network):
    from types import SimpleNamespace

    def other(given, size=64, told=(TEXT_DIM, CONDITION_DIM)):
        config = SimpleNamespace(
            in_channels=given[0],
            out_channels=given[1],
            cross_attention_dim=TEXT_DIM,
            projection_class_embeddings_input_dim=CONDITION_DIM,
        )
        return fits(SimpleNamespace(config=config), size, *told)

    assert fits(network, IMAGE_SIZE, TINY_TEXT_DIM, CONDITION_DIM) and other((6, 3)) and other((54, 27), 9)
    assert not other((54, 27)) and not other((12, 12)) and not other((12, 6)) and not other((2, 1))
    assert not other((6, 3), told=(TEXT_DIM, 4)) and not other((6, 3), told=(TINY_TEXT_DIM, CONDITION_DIM))
