"""Codecs: round trips, sizes, and what is differentiable."""

import pytest
import torch
from diffusers import AutoencoderKL

from guidance.diffusion.codecs import LatentCodec, PixelCodec, resized
from nerf.core.errors import UserError
from tests.guidance.models import image_of, stable_diffusion


def test_packed_pixels_decode_to_the_image():
    codec, image = PixelCodec(64, 8), image_of(2)
    encoded = codec.encode(image, "rgb", torch.Generator())
    assert encoded.shape[1:] == codec.shape
    torch.testing.assert_close(codec.decode(encoded), image)


def test_an_image_of_space_latent_is_used_as_a_latent_as_it_is(sd_folder):
    codec = stable_diffusion(sd_folder).distiller.codec
    image = image_of(1, 8, channels=4)
    torch.testing.assert_close(codec.encode(image, "latent", torch.Generator()), 2 * image - 1)


def test_latents_have_the_shape_the_codec_declares_whatever_the_image_size(sd_folder):
    codec = stable_diffusion(sd_folder).distiller.codec
    for size in (32, 64, 100):
        assert codec.encode(image_of(1, size), "rgb", torch.Generator()).shape[1:] == codec.shape
    assert codec.decode(torch.zeros(1, *codec.shape)).shape == (1, 3, codec.size, codec.size)


def test_resizing_keeps_the_mean_of_an_image_and_an_image_of_that_size():
    image = image_of(1)
    assert resized(image, 64, 64) is image
    torch.testing.assert_close(resized(image, 16, 16).mean(), image.mean(), atol=0.01, rtol=0)


@pytest.mark.parametrize("grid", [0, -8, 10**9, True, [8, 8], None])
def test_a_side_that_latents_cannot_have_is_one_sentence(sd_folder, grid):
    with pytest.raises(UserError, match=r"latents of .* pixels a side cannot be .sample_size"):
        LatentCodec(AutoencoderKL.from_pretrained(sd_folder / "vae"), grid)


@pytest.mark.parametrize("scale", [0, -0.18, float("nan"), float("inf"), "x", True, None])
def test_a_scaling_factor_that_cannot_be_is_one_sentence(sd_folder, scale):
    vae = AutoencoderKL.from_pretrained(sd_folder / "vae")
    vae.register_to_config(scaling_factor=scale)
    with pytest.raises(UserError, match=r"a scaling_factor of .* cannot be"):
        LatentCodec(vae, 8)
