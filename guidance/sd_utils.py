"""Stable Diffusion (1.5, 2.x and finetunes) as guidance, from any diffusers folder. B views, V view words, K conditions.

The model works on the latents of a VAE and is conditioned on text; it learns of the camera by view words alone.
``python -m guidance.sd_utils "a red car"`` draws a prompt in two dimensions (see ``guidance/preview.py``).
"""

import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from guidance import weights
from guidance.base import Conditions, Guidance, GuidanceOutput
from guidance.diffusion import loader
from guidance.diffusion.codecs import LatentCodec
from guidance.diffusion.distiller import DiffusionOptions, Distiller, shared_options
from guidance.diffusion.text import encode_prompts
from guidance.distillation import Denoiser, Mixer, classifier_free, rescale_cfg
from guidance.perpneg_utils import NEGATIVE_WORDS, PerpNeg, negative_weights, perpneg_mixer
from guidance.prompts import DEFAULT_ANGLES, VIEW_SUFFIXES, VIEW_WORDS, ViewAngles, blend, view_weights
from nerf.core.errors import UserError
from nerf.core.structs import Control, Part, Views

if TYPE_CHECKING:
    from nerf.config.config import Config

log = logging.getLogger("somnia.guidance")


@dataclass(frozen=True)
class Options(DiffusionOptions):
    """What a stage may set for Stable Diffusion."""

    perpneg: PerpNeg | None = None
    angles: ViewAngles = DEFAULT_ANGLES  # where the view words of the prompt change


def build(config: "Config", device: torch.device, resolved: weights.Resolved) -> "StableDiffusion":
    """Load the weights of a run.

    Args:
        config: the frozen options.
        device: where the networks run.
        resolved: which weights; they are downloaded here if they are remote.

    Raises:
        UserError: no usable weights.
    """
    if device.type == "cpu":
        log.warning("guidance: Stable Diffusion takes about a minute a step on a CPU; try --sd_version embedded")
    dtype = loader.weights_dtype(config.optim, device)
    options = config.guidance
    folder = weights.fetch(resolved)
    return StableDiffusion(folder, device, dtype, vram_O=options.vram_O, compile_mode=options.compile_guidance)


class StableDiffusion(Guidance):
    """Score distillation from a Stable Diffusion folder.

    Args:
        folder: diffusers layout: unet, vae, scheduler, tokenizer, text_encoder.
        device: where the networks run.
        dtype: of their weights; gradients are computed in float32.
        options: used where a step has none of its stage.
        vram_O: keep the weights in main memory and encode one image at a time.
        compile_mode: of the UNet, see :func:`guidance.diffusion.loader.compile_network`.

    Raises:
        UserError: the folder is incomplete or damaged, or the UNet is not one of text-to-image.
    """

    name = "SD"

    def __init__(
        self,
        folder: Path | str,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        options: Options | None = None,
        vram_O: bool = False,
        compile_mode: str = "none",
    ):
        self.folder, self.device, self.dtype = Path(folder), torch.device(device), dtype
        self.options = options or Options()
        weights.check_folder(self.folder)
        loader.require_diffusers()
        from diffusers import AutoencoderKL, UNet2DConditionModel

        self.unet = loader.load_part(self.folder, "unet", UNet2DConditionModel, self.device, dtype)
        grid = self.unet.config.sample_size
        if not isinstance(grid, int):
            raise UserError(
                f"weights: {self.folder / 'unet' / 'config.json'} must give sample_size, the side "
                f"of the latents, as a number, and gives {grid}"
            )
        self.vae = loader.load_part(self.folder, "vae", AutoencoderKL, self.device, dtype)
        codec = LatentCodec(self.vae, grid)
        self.distiller = Distiller(codec, loader.load_schedule(self.folder, self.device), self.device)
        self.spaces = self.distiller.spaces
        self.positive: Tensor | None = None  # [V, L, D] text embeddings of the prompt with each view word
        self.negative: Tensor | None = None  # [1, L, D] of the negative prompt
        if self.device.type == "cuda":
            self.unet.to(memory_format=torch.channels_last)
        loader.compile_network(self.unet, compile_mode, self.device)
        if vram_O:
            self.vae.enable_slicing()
            loader.save_memory([self.unet, self.vae], self.device)

    def prepare(self, conditions: Conditions) -> None:
        """Embed the prompt with each view word, and the negative prompt.

        Raises:
            UserError: there is no prompt.
        """
        text = conditions.text
        if text is None or not text.strip():
            raise UserError('guidance SD needs a prompt; give --text "a hamburger"')
        embeddings = encode_prompts(self.folder, text, VIEW_SUFFIXES, conditions.negative, self.device, self.dtype)
        self.positive, self.negative = embeddings[:-1], embeddings[-1:]

    def stage_options(self, options: Any) -> Options:
        """See :meth:`Guidance.stage_options`."""
        perpneg = None
        if options.perpneg:
            perpneg = PerpNeg(options.negative_w, options.front_decay_factor, options.side_decay_factor)
        angles = ViewAngles(options.angle_front, options.angle_overhead)
        return Options(**shared_options(options), perpneg=perpneg, angles=angles)

    def text_embeddings(self, views: Views | None, count: int, options: Options) -> Tensor:
        """Text embeddings of the K conditions: unconditional, conditional, and the negative view words of Perp-Neg.

        Args:
            views: B cameras; None uses the prompt with the word "front".
            count: B.
            options: of the stage.

        Returns:
            [K, B, L, D].
        """
        if self.positive is None or self.negative is None:
            raise RuntimeError("StableDiffusion: prepare(conditions) must come before loss or sample")
        unconditional = self.negative.expand(count, -1, -1)
        if views is None:
            return torch.stack([unconditional, self.positive[:1].expand(count, -1, -1)])
        shares = view_weights(views.azimuth, views.polar, options.angles).to(self.device)
        rows = [unconditional, blend(self.positive, shares)]
        if options.perpneg is not None:
            rows += [self.positive[VIEW_WORDS.index(word)].expand(count, -1, -1) for word in NEGATIVE_WORDS]
        return torch.stack(rows)

    def mixer(self, views: Views | None, scale: float, options: Options) -> Mixer:
        """How the predictions are combined: Perp-Neg if asked for and the views are known, else classifier-free guidance."""
        if options.perpneg is not None and views is not None:
            push = negative_weights(views.azimuth, views.polar, options.perpneg, options.angles).to(self.device)
            return rescale_cfg(perpneg_mixer(scale, push), options.rescale)
        # At scale 1 the result is the conditional prediction, whose standard deviation it has already.
        return rescale_cfg(classifier_free(scale), 0 if scale == 1 else options.rescale)

    def denoiser(self, views: Views | None, count: int, options: Options, conditional_only: bool = False) -> Denoiser:
        """The UNet under all K conditions in one batch, or under the conditional one alone."""
        text = self.text_embeddings(views, count, options)
        text = text[1:2] if conditional_only else text
        num = len(text)

        def predict(noisy: Tensor, t: Tensor) -> Tensor:
            x = noisy.to(self.dtype).repeat(num, 1, 1, 1)
            timesteps = t.to(self.device).repeat(num)
            out: Tensor = self.unet(x, timesteps, encoder_hidden_states=text.flatten(0, 1), return_dict=False)[0]
            return out.to(noisy.dtype).unflatten(0, (num, count))

        return predict

    def loss(self, image: Tensor, views: Views, part: Part, control: Control, *, debug: bool = False) -> GuidanceOutput:
        """Score distillation of B views; see :meth:`Guidance.loss` and :meth:`Distiller.sds`."""
        options: Options = control.options or self.options
        scale = options.scale(control)
        self.distiller.check(image, views, part)
        with self.distiller.full_precision():
            predict = self.denoiser(views, len(image), options, scale == 1 and options.perpneg is None)
            mix = self.mixer(views, scale, options)
            return self.distiller.sds(image, part, control, options.weighting, predict, mix, debug)

    def sample(self, views: Views | None, count: int, generator: torch.Generator, steps: int, scale: float) -> Tensor:
        """Images [B, 3, size, size] in [0, 1] of the prompt, for ``count`` = B views or none; see :meth:`Distiller.sample`."""
        with torch.no_grad():
            predict, mix = self.denoiser(views, count, self.options), self.mixer(views, scale, self.options)
            return self.distiller.sample(predict, mix, count, generator, steps)


if __name__ == "__main__":
    from guidance.preview import main

    sys.exit(main())
