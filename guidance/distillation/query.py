"""What a distillation method is given for one step: encoded images, and a denoiser under named conditions.

B images, K conditions. Conditions have names: ``unconditional`` (the negative prompt where there is one, else the empty
prompt), ``text`` (the prompt for the view), ``null`` (always the empty prompt), ``negative`` (always a negative prompt), and
whatever else a model family adds.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from guidance.distillation.gradient import Distilled
from guidance.distillation.schedule import Denoiser, Mixer, NoiseSchedule, predict_x0, timestep_weight
from nerf.core.transfer import upload


@dataclass(frozen=True)
class Tuning:
    """The numbers of single methods; each default is the published one."""

    csd_negative: float = 0.5  # share of the negative prompt in CSD's baseline, reached half-way through the run
    ism_interval: tuple[int, int] = (100, 50)  # timesteps of 1000 between s and t: at the start, and after 30 % of the run
    ism_stride: int = 200  # timesteps of 1000 of one inversion step
    sdi_steps: int = 10  # inversion steps over the whole schedule
    sdi_scale: float = -7.5  # guidance scale of the inversion
    sdi_eta: float = 0.3  # noise of the inversion, as a share of DDPM's


class Learned(Protocol):
    """A trainable version of the denoiser, under the prompt and the cameras of B views."""

    def __call__(self, noisy: Tensor, t: Tensor, camera: bool) -> Tensor:
        """Raw prediction [B, ...] for x_t ``noisy`` [B, ...] at timesteps t [B].

        Args:
            noisy: x_t.
            t: [B] int64.
            camera: False withholds the cameras.

        Returns:
            Differentiable in the parameters that are trained.
        """


@dataclass(frozen=True)
class Conditioned:
    """A denoiser for the B views of one step, as a model family supplies it."""

    denoiser: Callable[[tuple[str, ...]], Denoiser]  # names of K conditions -> predictions [K, B, ...]
    mixer: Callable[[float], Mixer]  # guidance scale -> mixer of the predictions (unconditional, text, *words)
    words: tuple[str, ...] = ()  # conditions of Perp-Neg, where it is on
    learned: Learned | None = None  # for the methods that train a model beside the field
    pair: Callable[[bool], Denoiser] | None = None  # see :func:`paired`

    def guided(self, scale: float) -> tuple[Denoiser, Mixer]:
        """The denoiser and the mixer of guidance; at scale 1 without Perp-Neg the unconditional prediction is left out."""
        if self.pair is not None:
            return self.pair(scale == 1), self.mixer(scale)
        names = ("text",) if scale == 1 and not self.words else ("unconditional", "text", *self.words)
        return self.denoiser(names), self.mixer(scale)


def paired(pair: Callable[[bool], Denoiser], mixer: Callable[[float], Mixer]) -> Conditioned:
    """A model without a negative prompt of its own: its conditions are one unconditional and some conditional predictions.

    Args:
        pair: whether to leave out the unconditional prediction -> the denoiser; the unconditional prediction comes first.
        mixer: guidance scale -> mixer of those predictions; at scale 1 it takes the conditional ones alone.
    """

    def under(names: tuple[str, ...]) -> Denoiser:
        def predict(noisy: Tensor, t: Tensor) -> Tensor:
            unconditional, *conditional = pair(False)(noisy, t)
            text = mixer(1.0)(torch.stack(conditional))
            return torch.stack([text if name == "text" else unconditional for name in names])

        return predict

    return Conditioned(under, mixer, pair=pair)


@dataclass(frozen=True)
class Query:
    """B encoded images at one step of training, and everything that a method may ask about them."""

    schedule: NoiseSchedule
    model: Conditioned
    x: Tensor  # [B, ...] images or latents, without gradient
    t: Tensor  # [B] int64 on the device of x
    noise: Tensor  # like x, standard normal
    scale: float = 7.5  # of classifier-free guidance
    weighting: str = "sds"  # one of WEIGHTINGS
    level: int | None = None  # the timestep on the host, where all images have the same
    fraction: float = 0.0  # training progress in [0, 1]
    tuning: Tuning = Tuning()
    random: torch.Generator = field(default_factory=torch.Generator)  # on the CPU, for whatever else a method draws

    def __post_init__(self) -> None:
        if self.noise.shape != self.x.shape or self.t.shape != self.x.shape[:1]:
            raise ValueError(
                f"Query: expected noise {list(self.x.shape)} and t [{self.x.shape[0]}], got {list(self.noise.shape)} and "
                f"{list(self.t.shape)}"
            )

    def at(self, timestep: int) -> Tensor:
        """[B] int64 timesteps that are all the same, on the device of x."""
        return torch.full_like(self.t, timestep)

    def drawn_noise(self) -> Tensor:
        """Fresh standard normal noise like x."""
        (noise,) = upload([torch.randn(self.x.shape, generator=self.random, dtype=self.x.dtype)], self.x.device)
        return noise

    def guided(self, noisy: Tensor, t: Tensor, scale: float | None = None) -> Tensor:
        """Guided x_0 prediction [B, ...], by default at the scale of the step."""
        return self.schedule.denoise(noisy, t, *self.model.guided(self.scale if scale is None else scale))

    def x0_under(self, noisy: Tensor, t: Tensor, *names: str) -> Tensor:
        """x_0 predictions [K, B, ...] under named conditions."""
        return self.schedule.denoise(noisy, t, self.model.denoiser(names), lambda predictions: predictions)

    def learned_x0(self, noisy: Tensor, t: Tensor) -> Tensor:
        """x_0 prediction [B, ...] of the model that is trained, without gradient."""
        assert self.model.learned is not None, "the method says that it learns"
        alpha, sigma = self.schedule.levels(t, noisy)
        with torch.no_grad():
            raw = self.model.learned(noisy, t, True)
            return self.schedule.clamped(predict_x0(raw, noisy, alpha, sigma, self.schedule.prediction_type))

    def result(self, residual: Tensor, x0: Tensor, noisy: Tensor, loss: Tensor | None = None) -> Distilled:
        """The gradient ``w(t) residual`` and what it was computed from.

        Args:
            residual: [B, ...] difference of two noise predictions.
            x0: [B, ...] what the method wants, for pictures.
            noisy: [B, ...] x_t.
            loss: of the model that is trained.
        """
        gradient = timestep_weight(self.weighting, *self.schedule.levels(self.t, self.x)) * residual
        return Distilled(gradient, x0, noisy, self.t, gradient.flatten(1).norm(dim=1), loss)
