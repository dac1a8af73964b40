"""The vanilla backbone."""

import torch

from nerf.config.config import Config
from nerf.core.structs import SceneInfo
from nerf.network import FREQUENCIES, ResidualBlock, VanillaField


def test_a_residual_block_that_adds_nothing_is_its_activation():
    block = ResidualBlock(8)
    torch.nn.init.zeros_(block.norm.weight)
    x = torch.randn(5, 8)
    torch.testing.assert_close(block(x), torch.nn.functional.silu(x))


def test_high_frequencies_are_zero_until_their_level_is_active():
    field = VanillaField(Config().field, SceneInfo())
    encoded = field.encoder(torch.rand(4, 3), max_level=0.5)
    assert encoded.shape == (4, 3 + 6 * FREQUENCIES)
    assert (encoded[:, 3 + 3 * FREQUENCIES :] == 0).all() and (encoded[:, : 3 + 3 * FREQUENCIES] != 0).any()


def test_the_field_has_far_fewer_parameters_than_a_grid():
    assert sum(p.numel() for p in VanillaField(Config().field, SceneInfo()).parameters()) < 40_000
