"""The embedded prior as guidance: pixels and cameras instead of latents and view words. B views, K conditions."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from guidance import weights
from guidance.base import Conditions
from guidance.diffusion import Network, loader
from guidance.diffusion.distiller import shared_options
from guidance.diffusion.lora import LearningGuidance
from guidance.diffusion.text import encode_prompts
from guidance.distillation import Conditioned, Denoiser, Learned
from guidance.prior import camera, captions, detail
from guidance.prior.pixels import Options, PixelPrior
from guidance.prompts import DEFAULT_NEGATIVE
from nerf.core.errors import UserError
from nerf.core.structs import Views

if TYPE_CHECKING:
    from nerf.config.config import Config

log = logging.getLogger("somnia.guidance")

NAMED = ("text", "unconditional", "null", "negative")  # conditions: the prompt, the negative one, the empty one, a negative one
GUIDED = ("unconditional", "text")  # those of classifier-free guidance


def build(config: "Config", device: torch.device, resolved: weights.Resolved) -> "EmbeddedPrior":
    """Load the weights of a run; see :data:`guidance.Builder`."""
    told, place = config.guidance.prior_views, loader.placement(config, device)
    if told == "camera":
        model = EmbeddedPrior(weights.fetch(resolved), **place)
    else:
        from guidance.prior.multiview_guidance import WordedPrior

        model = WordedPrior(weights.fetch(resolved), told=told, **place)
    model.learn(config.guidance, None)
    return model


class EmbeddedPrior(PixelPrior, LearningGuidance):
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
        self.text: dict[str, Tensor] = {}  # name of a condition in NAMED -> [1, L, D] text embedding
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
        others = ("", negative or captions.parse(DEFAULT_NEGATIVE).text)
        rows = encode_prompts(self.folder, text, [""], negative, self.device, self.dtype, others=others)
        self.text = {name: rows[i : i + 1] for i, name in enumerate(NAMED)}

    def denoisers(self) -> list[Network]:
        """See :meth:`Guidance.denoisers`."""
        return [self.unet] if self.detail is None else [self.unet, self.detail]

    def stage_options(self, options: Any) -> Options:
        """See :meth:`Guidance.stage_options`.

        Raises:
            UserError: ``--perpneg`` or ``--debias_prompt``, which need view words.
        """
        if options.debias_prompt is not None:
            raise UserError(
                "--debias_prompt needs view words, and the embedded prior is given the camera instead; leave it out"
            )
        if options.perpneg:
            raise UserError(
                "--perpneg needs view words, and the embedded prior is given the camera instead; leave it out, or give "
                "--prior_views words"
            )
        return Options(**shared_options(options, learns=True), detail=options.prior_detail)

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
        return self.under(views, count, refine, GUIDED[1:] if conditional_only else GUIDED)

    def tokens(self, name: str, views: Views | None, count: int) -> Tensor:
        """Text embeddings [B, L, D] of a condition of :data:`NAMED` for ``count`` = B views, which are None if unknown."""
        return self.text[name].expand(count, -1, -1)

    def under(self, views: Views | None, count: int, refine: bool, names: tuple[str, ...], *words: Any) -> Denoiser:
        """The UNet under K conditions of :data:`NAMED` in one batch; all are given the camera.

        Args:
            views: B cameras; None if they are unknown.
            count: B.
            refine: refine the predictions by the detail network, if there is one.
            names: of the conditions.
            words: what :meth:`tokens` takes beside them.
        """
        if not self.text:
            raise RuntimeError("EmbeddedPrior: prepare(conditions) must come before loss or sample")
        num = len(names)
        text = torch.cat([self.tokens(name, views, count, *words) for name in names])
        rays, vector = (v.repeat(num, *(1,) * (v.ndim - 1)) for v in self.camera_conditions(views, count))

        def predict(noisy: Tensor, t: Tensor) -> Tensor:
            out = self._unet(noisy.repeat(num, 1, 1, 1), t.to(self.device).repeat(num), text, rays, vector, refine)
            return out.unflatten(0, (num, count))

        return predict

    def _unet(self, noisy: Tensor, t: Tensor, text: Tensor, rays: Tensor, vector: Tensor, refine: bool) -> Tensor:
        """Raw predictions [N, ...] for x_t [N, ...] at t [N] under text [N, L, D], ray maps [N, C, h, w] and cameras [N, D]."""
        x = torch.cat([noisy.to(self.dtype), rays], 1)
        out: Tensor = self.unet(x, t, encoder_hidden_states=text, class_labels=vector, return_dict=False)[0]
        out = out.to(noisy.dtype)
        if not refine or self.detail is None:
            return out
        return detail.refine(self.detail, noisy, out, t, text, vector, self.codec.unshuffle)

    def learned(self, views: Views, count: int, refine: bool) -> Learned | None:
        """The UNet with its LoRA under the prompt and the cameras of the views; None without a LoRA."""
        lora = self.lora
        if lora is None:
            return None
        text = self.text["text"].expand(count, -1, -1)

        def predict(noisy: Tensor, t: Tensor, camera: bool) -> Tensor:
            rays, vector = self.camera_conditions(views if camera else None, count)
            with lora.active():
                return self._unet(noisy, t.to(self.device), text, rays, vector, refine)

        return predict

    def conditioned(self, views: Views, count: int, options: Options) -> Conditioned:
        """See :meth:`PixelPrior.conditioned`; the empty and the negative prompt are known apart, and a LoRA may be trained."""
        return replace(
            super().conditioned(views, count, options),
            denoiser=lambda names: self.under(views, count, options.detail, names),
            learned=self.learned(views, count, options.detail),
        )
