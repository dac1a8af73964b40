"""The embedded prior as guidance: pixels and cameras instead of latents and view words. B views, K conditions."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from guidance import weights
from guidance.base import CameraRequirements, Conditions, Guidance, GuidanceOutput
from guidance.diffusion import Network, loader
from guidance.diffusion.codecs import PixelCodec
from guidance.diffusion.distiller import DiffusionOptions, Distiller, shared_options
from guidance.diffusion.text import encode_prompts
from guidance.distillation import Denoiser, Mixer, classifier_free, rescale_cfg
from guidance.prior import camera, captions, detail
from guidance.prior.description import read
from nerf.core.errors import UserError
from nerf.core.structs import Control, Part, Views

if TYPE_CHECKING:
    from nerf.config.config import Config

log = logging.getLogger("somnia.guidance")


@dataclass(frozen=True)
class Options(DiffusionOptions):
    """What a stage may set for the embedded prior."""

    detail: bool = True  # refine its predictions by the detail network


def build(config: "Config", device: torch.device, resolved: weights.Resolved) -> "EmbeddedPrior":
    """Load the weights of a run.

    Args:
        config: the frozen options.
        device: where the networks run.
        resolved: which weights.

    Raises:
        UserError: the folder is damaged.
    """
    dtype = loader.weights_dtype(config.optim, device)
    return EmbeddedPrior(weights.fetch(resolved), device, dtype, vram_O=config.guidance.vram_O)


class EmbeddedPrior(Guidance):
    """Score distillation from the embedded prior.

    Args:
        folder: diffusers layout: unet, scheduler, tokenizer, text_encoder, ``somnia.json``, and perhaps detail.
        device: where the networks run.
        dtype: of their weights; gradients are computed in float32.
        options: used where a step has none of its stage.
        vram_O: keep the weights in main memory.

    Raises:
        UserError: the folder is incomplete or damaged, or its parts do not fit each other.
    """

    name = "SD"  # it stands in for Stable Diffusion, in flags, logs and checkpoints
    told_camera = True

    def __init__(
        self,
        folder: Path | str,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        options: Options | None = None,
        vram_O: bool = False,
    ):
        self.folder, self.device, self.dtype = Path(folder), torch.device(device), dtype
        weights.check_folder(self.folder)
        description = read(self.folder)
        if description is None:
            raise UserError(f"weights: {self.folder} has no somnia.json; it is not an embedded prior")
        self.description = description
        self.sampling_scale = description.guidance_scale
        self.options = options or Options(guidance_scale=description.guidance_scale)
        loader.require_diffusers()
        from diffusers import UNet2DConditionModel

        self.unet = loader.load_part(self.folder, "unet", UNet2DConditionModel, self.device, dtype)
        self.detail: Network | None = None
        if (self.folder / "detail").is_dir():
            self.detail = loader.load_part(self.folder, "detail", UNet2DConditionModel, self.device, dtype)
        self.codec = PixelCodec(description.size, description.unshuffle)
        self.distiller = Distiller(self.codec, loader.load_schedule(self.folder, self.device, clamp=1.0), self.device)
        self.spaces = self.distiller.spaces
        self._check_fit()
        self.text: Tensor | None = None  # [2, L, D] text embeddings: negative prompt, prompt
        if self.device.type == "cuda":
            self.unet.to(memory_format=torch.channels_last)
        if vram_O:
            loader.save_memory([network for network in (self.unet, self.detail) if network is not None], self.device)

    def _check_fit(self) -> None:
        """Check that the networks take the packed pixels, the ray map and the camera vector of ``somnia.json``."""
        expected = self.codec.shape[0] + self.description.ray_channels
        if self.unet.config.in_channels != expected:
            raise UserError(
                f"weights: expected a UNet of {expected} input channels, and {self.folder / 'unet'} takes "
                f"{self.unet.config.in_channels}; restore the folder from version control"
            )
        text_dim, camera_dim = self.unet.config.cross_attention_dim, self.description.camera_dim
        if self.detail is not None and not detail.fits(self.detail, self.codec.size, text_dim, camera_dim):
            raise UserError(
                f"weights: {self.folder / 'detail'} does not fit the UNet; expected 6 n^2 channels in and 3 n^2 "
                f"out, n a divisor of {self.codec.size}, text of {text_dim} channels and cameras of {camera_dim}"
            )

    def prepare(self, conditions: Conditions) -> None:
        """Embed the prompt and the negative prompt; words outside the vocabulary are named in a warning and left out.

        Raises:
            UserError: there is no prompt.
        """
        text = conditions.text
        if text is None or not text.strip():
            raise UserError('the embedded prior needs a prompt; give --text "a hamburger"')
        unknown = weights.unknown_words(text, vocabulary=True)
        if unknown:
            log.warning("guidance: %s; these words are ignored", unknown)
        text, negative = captions.parse(text).text, captions.parse(conditions.negative).text
        self.text = encode_prompts(self.folder, text, [""], negative, self.device, self.dtype).flip(0)

    def requirements(self) -> CameraRequirements:
        """The cameras it was trained with."""
        return CameraRequirements(
            square=True,
            radius_range=camera.RADIUS_RANGE,
            fovy_range=camera.FOVY_RANGE,
            polar_range=camera.POLAR_RANGE,
        )

    def stage_options(self, options: Any) -> Options:
        """See :meth:`Guidance.stage_options`.

        Raises:
            UserError: ``--perpneg``, which needs view words.
        """
        if options.perpneg:
            raise UserError("--perpneg needs view words, and the embedded prior is given the camera instead; leave it out")
        return Options(**shared_options(options), detail=options.prior_detail)

    def camera_conditions(self, views: Views | None, count: int) -> tuple[Tensor, Tensor]:
        """Ray maps [B, C, h, w] and camera vectors [B, D] of the views; zeros, for an unknown camera, without views."""
        grid = self.codec.grid
        if views is None:
            rays = torch.zeros(count, self.description.ray_channels, grid, grid)
            vector = torch.zeros(count, self.description.camera_dim)
        else:
            rays = camera.ray_map(views.pose.float(), views.fovy.float(), grid)
            vector = camera.condition(views.polar, views.azimuth, views.radius, views.fovy)
        return rays.to(self.device, self.dtype), vector.to(self.device, self.dtype)

    def denoiser(self, views: Views | None, count: int, refine: bool = True, conditional_only: bool = False) -> Denoiser:
        """The UNet, unconditional and conditional in one batch, or conditional alone; all are given the camera.

        Args:
            views: B cameras; None if they are unknown.
            count: B.
            refine: refine the predictions by the detail network, if there is one.
            conditional_only: leave out the unconditional prediction.
        """
        if self.text is None:
            raise RuntimeError("EmbeddedPrior: prepare(conditions) must come before loss or sample")
        prompts = self.text[1:] if conditional_only else self.text
        num = len(prompts)
        text = prompts.repeat_interleave(count, 0)
        rays, vector = (v.repeat(num, *(1,) * (v.ndim - 1)) for v in self.camera_conditions(views, count))

        def predict(noisy: Tensor, t: Tensor) -> Tensor:
            x = torch.cat([noisy.to(self.dtype).repeat(num, 1, 1, 1), rays], 1)
            timesteps = t.to(self.device).repeat(num)
            out: Tensor = self.unet(x, timesteps, encoder_hidden_states=text, class_labels=vector, return_dict=False)[0]
            out = out.to(noisy.dtype)
            if refine and self.detail is not None:
                again = noisy.repeat(num, 1, 1, 1)
                out = detail.refine(self.detail, again, out, timesteps, text, vector, self.codec.unshuffle)
            return out.unflatten(0, (num, count))

        return predict

    def mixer(self, scale: float, options: Options) -> Mixer:
        """How the predictions are combined: classifier-free guidance."""
        # At scale 1 the result is the conditional prediction, whose standard deviation it has already.
        return rescale_cfg(classifier_free(scale), 0 if scale == 1 else options.rescale)

    def loss(self, image: Tensor, views: Views, part: Part, control: Control, *, debug: bool = False) -> GuidanceOutput:
        """Score distillation of B views; see :meth:`Guidance.loss` and :meth:`Distiller.sds`.

        Raises:
            ValueError: the images are not square.
        """
        options: Options = control.options or self.options
        scale = options.scale(control)
        self.distiller.check(image, views, part)
        if image.shape[2] != image.shape[3]:
            raise ValueError(f"guidance: the embedded prior takes square images, got {list(image.shape)}; set --w equal to --h")
        with self.distiller.full_precision():
            predict = self.denoiser(views, len(image), options.detail, conditional_only=scale == 1)
            return self.distiller.sds(image, part, control, options.weighting, predict, self.mixer(scale, options), debug)

    def sample(self, views: Views | None, count: int, generator: torch.Generator, steps: int, scale: float) -> Tensor:
        """Images [B, 3, size, size] in [0, 1] of the prompt, for ``count`` = B views or none; see :meth:`Distiller.sample`."""
        with torch.no_grad():
            predict, mix = self.denoiser(views, count, self.options.detail), self.mixer(scale, self.options)
            return self.distiller.sample(predict, mix, count, generator, steps)
