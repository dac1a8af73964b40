"""The detail network: it starts as nothing, sees both pictures and the time, and does not care how they are packed."""

import pytest
import torch
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from guidance.prior import IMAGE_SIZE, UNSHUFFLE
from guidance.prior.detail import build, fits, sharpen


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    network = build(tiny=True)
    torch.nn.init.normal_(network.conv_out.weight, std=0.1)
    return network.requires_grad_(False)


def pictures(count=2, channels=3 * UNSHUFFLE**2):
    side = IMAGE_SIZE // UNSHUFFLE
    g = torch.Generator().manual_seed(1)
    return torch.randn(count, channels, side, side, generator=g), torch.randn(count, channels, side, side, generator=g)


def test_a_new_network_adds_nothing():
    noisy, estimate = pictures()
    assert torch.equal(sharpen(build(tiny=True), noisy, estimate, torch.tensor([10, 900])), estimate)


def test_it_sees_the_noisy_picture_the_estimate_and_the_time(network):
    noisy, estimate = pictures()
    t = torch.tensor([10, 900])
    added = sharpen(network, noisy, estimate, t) - estimate
    for other in (
        sharpen(network, noisy.flip(0), estimate, t) - estimate,
        sharpen(network, noisy, estimate.flip(0), t) - estimate.flip(0),
        sharpen(network, noisy, estimate, t.flip(0)) - estimate,
    ):
        assert (other - added).abs().amax((1, 2, 3)).min() > 1e-4


@pytest.mark.parametrize("unshuffle", [1, 4, 16])
def test_packing_only_moves_values(network, unshuffle):
    noisy, estimate = pictures()
    t = torch.tensor([10, 900])
    repacked = (pixel_unshuffle(pixel_shuffle(p, UNSHUFFLE), unshuffle) for p in (noisy, estimate))
    other = pixel_shuffle(sharpen(network, *repacked, t, unshuffle), unshuffle)
    torch.testing.assert_close(other, pixel_shuffle(sharpen(network, noisy, estimate, t), UNSHUFFLE))


def test_a_network_in_half_precision_answers_in_the_dtype_of_the_estimate(network):
    noisy, estimate = pictures()
    t = torch.tensor([10, 900])
    half = build(tiny=True).to(torch.bfloat16)
    half.load_state_dict(network.state_dict())
    answer = sharpen(half, noisy, estimate, t)
    assert answer.dtype == torch.float32
    torch.testing.assert_close(answer, sharpen(network, noisy, estimate, t), rtol=0.1, atol=0.1)


def test_only_networks_of_two_pictures_in_and_one_out_fit(network):
    from diffusers import UNet2DModel

    def other(given, size=64):
        shape = {"block_out_channels": (8,), "down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}
        return fits(UNet2DModel(in_channels=given[0], out_channels=given[1], norm_num_groups=8, **shape), size)

    assert fits(network, IMAGE_SIZE) and other((6, 3)) and other((54, 27), 9)
    assert not other((54, 27)) and not other((12, 12)) and not other((12, 6)) and not other((2, 1))
