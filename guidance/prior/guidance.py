"""The embedded prior as guidance: pixels and cameras instead of latents and view words. B views, K conditions."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from guidance import weights
from guidance.base import Conditions
from guidance.diffusion import Network, loader
from guidance.diffusion.distiller import shared_options
from guidance.diffusion.text import encode_prompts
from guidance.distillation import Denoiser
from guidance.prior import camera, captions, detail
from guidance.prior.pixels import Options, PixelPrior
from nerf.core.errors import UserError
from nerf.core.structs import Views

if TYPE_CHECKING:
    from nerf.config.config import Config

log = logging.getLogger("somnia.guidance")


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


class EmbeddedPrior(PixelPrior):
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
        super().__init__(folder, device, dtype, options)
        from diffusers import UNet2DConditionModel

        self.detail: Network | None = None
        if (self.folder / "detail").is_dir():
            self.detail = loader.load_part(self.folder, "detail", UNet2DConditionModel, self.device, dtype)
        self._check_fit()
        self.text: Tensor | None = None  # [2, L, D] text embeddings: negative prompt, prompt
        if vram_O:
            loader.save_memory([network for network in (self.unet, self.detail) if network is not None], self.device)

    def _check_fit(self) -> None:
        """Check that the detail network takes what the UNet takes."""
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

    def denoisers(self) -> list[Network]:
        """See :meth:`Guidance.denoisers`."""
        return [self.unet] if self.detail is None else [self.unet, self.detail]

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
        """See :meth:`PixelPrior.denoiser`; all predictions are given the camera, and the words are dropped alone."""
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
