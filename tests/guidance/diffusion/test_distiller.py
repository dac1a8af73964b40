"""The path from images to a loss: what is refused, logged and returned for debugging."""

from dataclasses import replace

import pytest
import torch

from guidance.diffusion.codecs import PixelCodec
from guidance.diffusion.distiller import DiffusionOptions, Distiller
from guidance.distillation import Conditioned, NoiseSchedule, classifier_free
from nerf.core.structs import Control
from tests.guidance.models import image_of, views_at
from tests.helpers.parts import part_of

DISTILLER = Distiller(PixelCodec(16, 2), NoiseSchedule(torch.linspace(0.999, 0.005, 1000), "sample", 1.0), torch.device("cpu"))


def loss(image, t_range=(0.02, 0.98), debug=False, options=None):
    """The loss under a denoiser that predicts grey."""
    grey = Conditioned(lambda names: lambda x, t: torch.zeros(len(names), *x.shape), classifier_free)
    return DISTILLER.distill(image, part_of("guided"), Control(t_range, 1.0), options or DiffusionOptions(), grey, debug)


def test_log_holds_the_timestep_and_the_norm_of_the_gradient():
    stats = loss(image_of(2, 16), t_range=(0.5, 0.5)).stats
    assert stats["t"].item() == pytest.approx(0.5) and stats["gradient_norm"] > 0
    assert not any(value.requires_grad or value.ndim for value in stats.values())


def test_debug_images_are_made_only_when_asked_for():
    assert loss(image_of(1, 16)).debug is None
    debug = loss(image_of(1, 16), debug=True).debug
    assert set(debug) == {"image", "noisy", "x0"} and all(v.shape == (1, 3, 16, 16) for v in debug.values())
    torch.testing.assert_close(debug["image"], image_of(1, 16))


def test_an_unknown_space_is_refused():
    with pytest.raises(ValueError, match=r"expected a space among \('rgb',\), got 'latent'"):
        DISTILLER.check(image_of(1, channels=4), views_at(0), part_of("guided", space="latent"))


def test_images_that_do_not_match_the_views_are_refused():
    with pytest.raises(ValueError, match=r"expected image \[2, 3, H, W\], got \[1, 3, 64, 64\]"):
        DISTILLER.check(image_of(1), views_at(0, 90), part_of("guided"))


def test_images_on_another_device_are_refused():
    with pytest.raises(ValueError, match="the image is on meta and the model on cpu"):
        DISTILLER.check(image_of(1).to("meta"), views_at(0), part_of("guided"))


@pytest.mark.parametrize("wrong", [{"rescale": 1.5}, {"rescale": -0.1}, {"weighting": "best"}])
def test_options_out_of_range_are_refused_by_their_flag(wrong):
    with pytest.raises(ValueError, match=f"--guidance_{next(iter(wrong))}"):
        DiffusionOptions(**wrong)


def spread_out(names):
    """A denoiser that knows nothing but that images are not far from the middle, so that samples follow their noise."""

    def predict(noisy, t):
        alpha, sigma = DISTILLER.schedule.levels(t, noisy)
        return (0.04 * alpha / (0.04 * alpha**2 + sigma**2) * noisy).expand(len(names), *noisy.shape)

    return predict


SPREAD_OUT = Conditioned(spread_out, classifier_free)


def sampled(image, seed=0, step=0, distiller=DISTILLER):
    """Samples in place of images."""
    return distiller.sampled(image, part_of("guided", seed=step), seed, SPREAD_OUT)


def test_all_views_and_steps_of_a_seed_are_sampled_from_one_noise_and_seeds_differ():
    image = torch.full((3, 3, 16, 16), 0.5)
    first = sampled(image)
    torch.testing.assert_close(first[1:], first[:1].expand(2, -1, -1, -1))
    torch.testing.assert_close(sampled(image, step=7), first)
    assert (sampled(image, seed=1) - first).abs().mean() > 0.05


def test_linked_views_have_a_noise_each_that_every_group_has():
    found = sampled(torch.full((4, 3, 16, 16), 0.5), distiller=replace(DISTILLER, linked=2))
    torch.testing.assert_close(found[2:], found[:2])
    assert (found[0] - found[1]).abs().mean() > 0.05


def test_a_sample_lies_on_the_background_and_does_not_depend_on_what_is_rendered():
    image = torch.full((1, 3, 16, 16), 0.5)
    with_object = image.clone()
    with_object[..., 4:12, 4:12] = 1.0
    torch.testing.assert_close(sampled(with_object), sampled(image))
    assert (sampled(image + 0.5) - sampled(image)).mean() > 0.01


def test_the_noise_of_a_seed_colours_nothing():
    assert sampled(torch.full((1, 3, 16, 16), 0.5)).mean((2, 3)).abs().max() < 1e-5


def test_a_loss_towards_samples_has_their_distance_as_its_gradient():
    image = image_of(2, 16).requires_grad_()
    control = Control((0.02, 0.5), 8.0, sample_seed=3)
    out = DISTILLER.distill(image, part_of("guided"), control, DiffusionOptions(), SPREAD_OUT, debug=True)
    out.loss.backward()
    wanted = DISTILLER.codec.decode(DISTILLER.sampled(image, part_of("guided"), 3, SPREAD_OUT))
    torch.testing.assert_close(out.debug["x0"], wanted)
    # The codec has images in [-1, 1], and the gradient is a mean over views.
    torch.testing.assert_close(image.grad, 2 * 2 * (image.detach() - wanted) / 2, rtol=1e-4, atol=1e-5)
