"""Textured backgrounds: in range, of every kind, a texture of its own for each view, and planned at their rate."""

import pytest
import torch

from nerf.training.textures import TEXTURES, checkerboard, fourier, noise, random_textures
from tests.nerf.training.test_schedule import guided, options


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("size", [(64, 48), (1, 1), (2, 9), (7, 7)])
def test_textures_are_colours_behind_every_ray(size):
    colours = random_textures(5, *size, generator())
    assert colours.shape == (5 * size[0] * size[1], 3)
    assert colours.min() >= 0 and colours.max() <= 1 and torch.isfinite(colours).all()


@pytest.mark.parametrize("texture", TEXTURES)
def test_each_kind_varies_over_the_picture_and_with_the_seed(texture):
    first, other = texture(32, 32, generator(1)), texture(32, 32, generator(2))
    assert first.shape == (32, 32, 3) and first.std((0, 1)).min() > 0.01
    assert not torch.allclose(first, other) and torch.equal(first, texture(32, 32, generator(1)))


def test_a_checkerboard_has_two_colours_in_turn():
    picture = checkerboard(32, 32, generator(3))
    assert len(picture.reshape(-1, 3).unique(dim=0)) == 2


def test_waves_are_smoother_than_noise():
    def roughness(picture):
        return (picture[1:] - picture[:-1]).abs().mean() / picture.std()

    assert roughness(fourier(64, 64, generator())) < 0.5 * roughness(noise(64, 64, generator()))


def test_views_have_textures_of_their_own():
    colours = random_textures(6, 16, 16, generator()).reshape(6, -1)
    assert len(colours.unique(dim=0)) == 6


def test_textures_come_at_their_rate_and_change_nothing_else():
    plain, textured, some = (options(background_textures=rate) for rate in (0.0, 1.0, 0.3))
    a, b = guided(3, plain).settings, guided(3, textured).settings
    assert a.background.shape == (4, 3) and b.background.shape == (4 * 64 * 48, 3)
    assert (a.shading, a.ambient, a.random) == (b.shading, b.ambient, b.random)
    share = sum(len(guided(step, some).settings.background) > 4 for step in range(300)) / 300
    assert 0.2 < share < 0.4
