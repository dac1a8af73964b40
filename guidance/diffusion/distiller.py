"""From rendered images to a distillation loss, for any codec, noise schedule and denoiser. B images, K conditions."""

from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from guidance.base import GuidanceOutput
from guidance.diffusion.codecs import Codec
from guidance.distillation import (
    METHODS,
    T_SCHEDULES,
    WEIGHTINGS,
    Conditioned,
    Denoiser,
    Distilled,
    Method,
    Mixer,
    NoiseSchedule,
    Query,
    TimestepSchedule,
    Tuning,
    bounded,
    finite_images,
    inject,
)
from nerf.core.errors import UserError
from nerf.core.streams import Stream
from nerf.core.structs import Control, Part, Views
from nerf.core.transfer import upload


@dataclass(frozen=True)
class DiffusionOptions:
    """What a stage may set for any diffusion model; a family adds its own fields in a subclass."""

    guidance_scale: float = 100.0  # of classifier-free guidance, where the schedule sets none
    rescale: float = 0.0  # in [0, 1], see ``distillation.rescale_cfg``
    weighting: str = "sds"  # one of ``distillation.WEIGHTINGS``
    method: str = "sds"  # a name in ``distillation.METHODS``
    t_schedule: str = "uniform"  # one of ``distillation.T_SCHEDULES``
    debias_gradient: tuple[float, float] = (0.0, 0.0)  # see ``distillation.bounded``
    tuning: Tuning = Tuning()

    def __post_init__(self) -> None:
        if not 0 <= self.rescale <= 1:
            raise ValueError(f"--guidance_rescale must be between 0 and 1, got {self.rescale}")
        if self.weighting not in WEIGHTINGS:
            raise ValueError(f"--guidance_weighting must be one of {', '.join(WEIGHTINGS)}, got {self.weighting!r}")
        if self.t_schedule not in T_SCHEDULES:
            raise ValueError(f"--t_schedule must be one of {', '.join(T_SCHEDULES)}, got {self.t_schedule!r}")

    @property
    def distillation(self) -> Method:
        """The method of distillation.

        Raises:
            UserError: it is not known.
        """
        return distillation_method(self.method)

    def scale(self, control: Control) -> float:
        """The guidance scale of a step."""
        return self.guidance_scale if control.scale is None else control.scale


def distillation_method(name: str) -> Method:
    """The method of distillation of a name.

    Raises:
        UserError: it is not known.
    """
    if name not in METHODS:
        raise UserError(f"--distillation must be one of {', '.join(METHODS)}, got {name!r}")
    return METHODS[name]


def shared_options(options: Any, learns: bool = False) -> dict[str, Any]:
    """The fields of :class:`DiffusionOptions` from the guidance group of a stage's flags.

    Args:
        options: the flags.
        learns: whether the model can train a version of its denoiser beside the field.

    Raises:
        UserError: a method of distillation that is not known, or that this model cannot serve.
    """
    if distillation_method(options.distillation).learns and not learns:
        able = ", ".join(name for name, method in METHODS.items() if not method.learns)
        raise UserError(
            f"--distillation {options.distillation} trains a LoRA, which is built for models of text to image alone; with this "
            f"--guidance use one of {able}"
        )
    return {
        "guidance_scale": options.guidance_scale,
        "rescale": options.guidance_rescale,
        "weighting": options.guidance_weighting,
        "method": options.distillation,
        "t_schedule": options.t_schedule,
        "debias_gradient": options.debias_gradient,
        "tuning": Tuning(
            csd_negative=options.csd_negative,
            ism_interval=options.ism_interval,
            ism_stride=options.ism_stride,
            sdi_steps=options.sdi_steps,
            sdi_scale=options.sdi_scale,
            sdi_eta=options.sdi_eta,
        ),
    }


@dataclass(frozen=True)
class Distiller:
    """Encodes images, draws timesteps and noise, and turns a distillation gradient into a loss.

    It does not know what the denoiser is conditioned on: a model family makes the denoiser and the mixer for its views. Which
    gradient is computed is up to the method, see ``guidance/distillation/methods.py``.
    """

    codec: Codec
    schedule: NoiseSchedule
    device: torch.device  # of the denoiser
    linked: int = 1  # consecutive images that have one timestep

    @property
    def spaces(self) -> tuple[str, ...]:
        """The accepted image spaces."""
        return tuple(self.codec.channels)

    def full_precision(self) -> AbstractContextManager[Any]:
        """Switch autocast off: the networks run in the dtype of their weights, everything else in float32."""
        return torch.autocast(self.device.type, enabled=False)

    def check(self, image: Tensor, views: Views, part: Part, square_for: str | None = None) -> None:
        """Check rendered images.

        Args:
            image: [B, C, H, W].
            views: the B cameras.
            part: of the step; it names the space of the images.
            square_for: a model that takes square images alone, for the message.

        Raises:
            ValueError: they do not match the views, the space or the device, or are not square.
        """
        space = part.settings.space
        if space not in self.spaces:
            raise ValueError(f"guidance: expected a space among {self.spaces}, got {space!r}")
        channels = self.codec.channels[space]
        if image.ndim != 4 or image.shape[:2] != (len(views), channels):
            raise ValueError(f"guidance: expected image [{len(views)}, {channels}, H, W], got {list(image.shape)}")
        if image.device.type != self.device.type:
            raise ValueError(f"guidance: the image is on {image.device} and the model on {self.device}")
        if square_for is not None and image.shape[2] != image.shape[3]:
            raise ValueError(f"guidance: {square_for} takes square images, got {list(image.shape)}; set --w equal to --h")

    def encode(self, image: Tensor, part: Part) -> Tensor:
        """Rendered images [B, C, H, W] in the space of the denoiser, [B, c, h, w] float32. Differentiable."""
        return self.codec.encode(image, part.settings.space, part.random.generator(Stream.VAE_POSTERIOR))

    @cached_property
    def times(self) -> TimestepSchedule:
        """Draws timesteps."""
        return TimestepSchedule(self.schedule.alphas_cumprod)

    def draw(self, x: Tensor, part: Part, control: Control, options: DiffusionOptions) -> tuple[Tensor, Tensor, int | None]:
        """Timesteps and noise for encoded images.

        Args:
            x: [B, c, h, w].
            part: the source of random numbers, and the training progress.
            control: the timestep range.
            options: the schedule of timesteps, and whether the method wants one for all images.

        Returns:
            Timesteps [B] int64 and noise [B, c, h, w] on the device of x, and the timestep where all images have the same.
        """
        shared = options.distillation.shares_t
        generator = part.random.generator(Stream.DIFFUSION_TIME)
        fraction, groups = part.request.fraction, len(x) // self.linked
        t = self.times.draw(groups, options.t_schedule, fraction, control.t_range, generator, shared)
        level = int(t[0]) if shared or options.t_schedule != "uniform" else None
        noise = torch.randn(x.shape, generator=part.random.generator(Stream.DIFFUSION_NOISE))
        t, noise = upload([t.repeat_interleave(self.linked), noise], x.device)
        return t, noise, level

    def output(self, image: Tensor, x: Tensor, out: Distilled, debug: bool) -> GuidanceOutput:
        """The loss with the gradient ``out.gradient`` at x, its statistics, and for ``debug`` the decoded images.

        Args:
            image: [B, C, H, W] rendered images that x was encoded from.
            x: [B, c, h, w] from :meth:`encode`.
            out: the gradient at x and what it was computed from.
            debug: return the image, the noisy image and the x_0 prediction as well.
        """
        decoded = None
        loss = inject(x, out.gradient, image)
        if debug:
            encoded = {"image": x.detach(), "noisy": out.noisy, "x0": out.x0}
            decoded = {name: self.codec.decode(value) for name, value in encoded.items()}
        stats = {"t": out.t.float().mean() / self.schedule.num_timesteps, "gradient_norm": out.norm.mean()}
        # On a CPU inject has looked already.
        finite = None if loss.device.type == "cpu" else finite_images(image, out.gradient)
        if out.loss is not None:
            loss, stats = loss + out.loss, stats | {"lora_loss": out.loss.detach()}
        return GuidanceOutput(loss, stats, decoded, finite)

    def distill(
        self, image: Tensor, part: Part, control: Control, options: DiffusionOptions, model: Conditioned, debug: bool = False
    ) -> GuidanceOutput:
        """The loss of a distillation method, by default that of score distillation sampling.

        The gradient is that of the image at the model's own size, summed over its elements and averaged over views.

        Args:
            image: [B, C, H, W] in [0, 1], in ``part.settings.space``, as :meth:`check` accepts it; differentiable once.
            part: the source of random numbers, and the training progress.
            control: the timestep range and the guidance scale.
            options: of the stage; they name the method.
            model: the denoiser under the conditions of the B views.
            debug: also return decoded images, see :meth:`output`.
        """
        x = self.encode(image, part)
        t, noise, level = self.draw(x, part, control, options)
        query = Query(
            schedule=self.schedule,
            model=model,
            x=x.detach(),
            t=t,
            noise=noise,
            scale=options.scale(control),
            weighting=options.weighting,
            level=level,
            fraction=part.request.fraction,
            tuning=options.tuning,
            random=part.random.generator(Stream.DISTILLATION),
        )
        out = options.distillation.distill(query)
        gradient = bounded(out.gradient, options.debias_gradient, query.fraction)
        return self.output(image, x, replace(out, gradient=gradient), debug)

    @torch.no_grad()
    def sample(self, predict: Denoiser, mix: Mixer, count: int, generator: torch.Generator, steps: int) -> Tensor:
        """Images generated by deterministic DDIM (Song et al. 2021, arXiv 2010.02502, eq. 12, eta = 0).

        Args:
            predict: the denoiser under the conditions of B images.
            mix: how its predictions are combined.
            count: B.
            generator: on the CPU; all images start from one noise, so that views of one object resemble each other.
            steps: denoising steps.

        Returns:
            [B, 3, size, size] in [0, 1].
        """
        schedule = self.schedule
        x = torch.randn((1, *self.codec.shape), generator=generator).expand(count, -1, -1, -1).to(self.device)
        timesteps = torch.linspace(schedule.num_timesteps - 1, 0, steps + 1).round().long()
        x0 = x
        for now, following in zip(timesteps[:-1], timesteps[1:], strict=True):
            t = now.expand(count)
            alpha, sigma = schedule.levels(t, x)
            x0 = schedule.denoise(x, t, predict, mix)
            alpha_next, sigma_next = schedule.levels(following.expand(count), x)
            x = alpha_next * x0 + sigma_next * (x - alpha * x0) / sigma
        return self.codec.decode(x0)
