"""Inputs that tests of every diffusion guidance share: views, images, and the gradient at a rendered image."""

import torch

from guidance.base import Conditions
from guidance.prior.guidance import EmbeddedPrior
from guidance.prior.guidance import Options as PriorOptions
from guidance.sd_utils import Options, StableDiffusion
from nerf.core.cameras import orbit
from nerf.core.structs import Control
from tests.helpers.parts import part_of

T_RANGE = (0.02, 0.98)
PROMPT = "a red car"


def views_at(*azimuth, size=64):
    """Views of 75 degrees polar angle at some azimuths."""
    return orbit(75.0, torch.tensor([float(a) for a in azimuth]), 3.2, 20.0, size, size)


def image_of(count, size=64, channels=3, seed=0):
    """Random images [count, channels, size, size]."""
    return torch.rand(count, channels, size, size, generator=torch.Generator().manual_seed(seed))


def stable_diffusion(folder, text=PROMPT, negative="", dtype=torch.float32, **options):
    """A prepared Stable Diffusion."""
    model = StableDiffusion(folder, "cpu", dtype, Options(**options))
    model.prepare(Conditions(text, negative))
    return model


def embedded_prior(folder, text=PROMPT, negative="", dtype=torch.float32, guidance_scale=7.5, **options):
    """A prepared embedded prior."""
    model = EmbeddedPrior(folder, "cpu", dtype, PriorOptions(guidance_scale, **options))
    model.prepare(Conditions(text, negative))
    return model


def gradient(model, image, views, part=None, **control):
    """Gradient of the loss with respect to the image."""
    image = image.clone().requires_grad_()
    model.loss(image, views, part or part_of("guided"), Control(**{"t_range": T_RANGE} | control)).loss.backward()
    return image.grad


def replace_denoiser(monkeypatch, model, predict):
    """Replace the denoiser by ``predict(noisy, t)``, the same under both conditions."""
    monkeypatch.setattr(model, "denoiser", lambda *args, **kwargs: lambda x, t: predict(x, t).expand(2, *x.shape))
