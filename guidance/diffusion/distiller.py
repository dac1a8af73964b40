"""From rendered images to a distillation loss, for any codec, noise schedule and denoiser. B images, K conditions."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from guidance.base import GuidanceOutput
from guidance.diffusion.codecs import Codec
from guidance.distillation import (
    WEIGHTINGS,
    Denoiser,
    Distilled,
    Mixer,
    NoiseSchedule,
    finite_images,
    inject,
    sample_timesteps,
    sds_gradient,
)
from nerf.core.streams import Stream
from nerf.core.structs import Control, Part, Views
from nerf.core.transfer import upload


@dataclass(frozen=True)
class DiffusionOptions:
    """What a stage may set for any diffusion model; a family adds its own fields in a subclass."""

    guidance_scale: float = 100.0  # of classifier-free guidance, where the schedule sets none
    rescale: float = 0.0  # in [0, 1], see ``distillation.rescale_cfg``
    weighting: str = "sds"  # one of ``distillation.WEIGHTINGS``

    def __post_init__(self) -> None:
        if not 0 <= self.rescale <= 1:
            raise ValueError(f"--guidance_rescale must be between 0 and 1, got {self.rescale}")
        if self.weighting not in WEIGHTINGS:
            raise ValueError(f"--guidance_weighting must be one of {', '.join(WEIGHTINGS)}, got {self.weighting!r}")

    def scale(self, control: Control) -> float:
        """The guidance scale of a step."""
        return self.guidance_scale if control.scale is None else control.scale


def shared_options(options: Any) -> dict[str, Any]:
    """The fields of :class:`DiffusionOptions` from the guidance group of a stage's flags."""
    return {
        "guidance_scale": options.guidance_scale,
        "rescale": options.guidance_rescale,
        "weighting": options.guidance_weighting,
    }


@dataclass(frozen=True)
class Distiller:
    """Encodes images, draws timesteps and noise, and turns a distillation gradient into a loss.

    It does not know what the denoiser is conditioned on: a model family makes the denoiser and the mixer for its views. Another
    way to compute the gradient is a function like :func:`guidance.distillation.sds_gradient` between :meth:`draw` and
    :meth:`output`.
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

    def check(self, image: Tensor, views: Views, part: Part) -> None:
        """Check rendered images.

        Raises:
            ValueError: they do not match the views, the space or the device.
        """
        space = part.settings.space
        if space not in self.spaces:
            raise ValueError(f"guidance: expected a space among {self.spaces}, got {space!r}")
        channels = self.codec.channels[space]
        if image.ndim != 4 or image.shape[:2] != (len(views), channels):
            raise ValueError(f"guidance: expected image [{len(views)}, {channels}, H, W], got {list(image.shape)}")
        if image.device.type != self.device.type:
            raise ValueError(f"guidance: the image is on {image.device} and the model on {self.device}")

    def encode(self, image: Tensor, part: Part) -> Tensor:
        """Rendered images [B, C, H, W] in the space of the denoiser, [B, c, h, w] float32. Differentiable."""
        return self.codec.encode(image, part.settings.space, part.random.generator(Stream.VAE_POSTERIOR))

    def draw(self, x: Tensor, part: Part, t_range: tuple[float, float]) -> tuple[Tensor, Tensor]:
        """Timesteps [B] int64 and noise [B, c, h, w] for encoded images x [B, c, h, w], on their device."""
        generator = part.random.generator(Stream.DIFFUSION_TIME)
        t = sample_timesteps(len(x) // self.linked, t_range, self.schedule.num_timesteps, generator)
        noise = torch.randn(x.shape, generator=part.random.generator(Stream.DIFFUSION_NOISE))
        t, noise = upload([t.repeat_interleave(self.linked), noise], x.device)
        return t, noise

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
        return GuidanceOutput(loss, stats, decoded, finite)

    def sds(
        self, image: Tensor, part: Part, control: Control, weighting: str, predict: Denoiser, mix: Mixer, debug: bool = False
    ) -> GuidanceOutput:
        """Score distillation sampling, see :func:`guidance.distillation.sds_gradient`.

        The gradient is that of the image at the model's own size, summed over its elements and averaged over views.

        Args:
            image: [B, C, H, W] in [0, 1], in ``part.settings.space``, as :meth:`check` accepts it; differentiable once.
            part: the source of random numbers.
            control: the timestep range.
            weighting: one of ``distillation.WEIGHTINGS``.
            predict: the denoiser under the conditions of the B views.
            mix: how its predictions are combined.
            debug: also return decoded images, see :meth:`output`.
        """
        x = self.encode(image, part)
        t, noise = self.draw(x, part, control.t_range)
        return self.output(image, x, sds_gradient(self.schedule, weighting, x, predict, mix, t, noise), debug)

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
