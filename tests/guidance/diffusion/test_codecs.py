"""Codecs: round trips, sizes, and what is differentiable."""

import torch

from guidance.diffusion.codecs import PixelCodec, resized
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
