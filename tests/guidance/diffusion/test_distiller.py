"""The path from images to a loss: what is refused, logged and returned for debugging."""

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
