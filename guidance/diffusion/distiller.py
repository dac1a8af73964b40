"""From rendered images to a distillation loss, for any codec, noise schedule and denoiser. B images, K conditions."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from guidance.base import GuidanceOutput
from guidance.diffusion.codecs import Codec
from guidance.distillation import WEIGHTINGS, Denoiser, Mixer, NoiseSchedule, inject, sample_timesteps, sds_gradient
from nerf.core.streams import Stream
from nerf.core.structs import Control, Part, Views


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
    """Encode, add noise, denoise, and turn the result into a loss. Knows nothing of a model's conditions."""

    codec: Codec
    schedule: NoiseSchedule
    device: torch.device  # of the denoiser

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

    def loss(
        self,
        image: Tensor,
        part: Part,
        control: Control,
        options: DiffusionOptions,
        predict: Denoiser,
        mix: Mixer,
        debug: bool = False,
    ) -> GuidanceOutput:
        """Score distillation, see :func:`guidance.distillation.sds_gradient` and :func:`guidance.distillation.inject`.

        The gradient is that of the image at the model's own size, summed over its elements and averaged over views.

        Args:
            image: [B, C, H, W] in [0, 1], in ``part.settings.space``, as :meth:`check` accepts it; differentiable once.
            part: the source of random numbers.
            control: the timestep range.
            options: the weighting.
            predict: the denoiser under the B views' conditions.
            mix: how its predictions are combined.
            debug: also return the image, the noisy image and the x_0 prediction, decoded.
        """
        random = part.random
        x = self.codec.encode(image, part.settings.space, random.generator(Stream.VAE_POSTERIOR))
        total = self.schedule.num_timesteps
        t = sample_timesteps(len(x), control.t_range, total, random.generator(Stream.DIFFUSION_TIME)).to(x.device)
        noise = torch.randn(x.shape, generator=random.generator(Stream.DIFFUSION_NOISE)).to(x.device)
        out = sds_gradient(self.schedule, options.weighting, x, predict, mix, t, noise)
        loss = inject(x, out.gradient, image)
        decoded = None
        if debug:
            encoded = {"image": x.detach(), "noisy": out.noisy, "x0": out.x0}
            decoded = {name: self.codec.decode(value) for name, value in encoded.items()}
        fraction = t.float().mean() / total
        return GuidanceOutput(loss, {"t": fraction, "gradient_norm": out.norm.mean()}, decoded)

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
