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
from guidance.base import Conditions, GuidanceOutput
from guidance.debias import debias
from guidance.diffusion import loader
from guidance.diffusion.codecs import LatentCodec
from guidance.diffusion.distiller import DiffusionOptions, Distiller, distillation_method, shared_options
from guidance.diffusion.lora import LearningGuidance
from guidance.diffusion.text import encode_prompts
from guidance.distillation import Conditioned, Denoiser, Learned, Mixer, classifier_free, rescale_cfg
from guidance.perpneg_utils import NEGATIVE_WORDS, PerpNeg, negative_weights, perpneg_mixer
from guidance.prompts import DEFAULT_ANGLES, DEFAULT_NEGATIVE, VIEW_SUFFIXES, VIEW_WORDS, ViewAngles, blend, view_weights
from nerf.core.errors import UserError
from nerf.core.structs import Control, Part, Views

if TYPE_CHECKING:
    from nerf.config.config import Config

log = logging.getLogger("somnia.guidance")

CAMERA_DIM = 16  # numbers of a camera for a LoRA: its pose
NAMED = ("null", "negative", "plain")  # conditions that do not depend on the view; plain is the prompt without a view word


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
    judge = config.guidance.debias_prompt
    folder = weights.fetch(resolved)
    model = StableDiffusion(
        folder, device, dtype, vram_O=config.guidance.vram_O, debias_prompt=None if judge is None else Path(judge)
    )
    if distillation_method(config.guidance.distillation).learns:
        model.learn(config.guidance, CAMERA_DIM)
    return model


class StableDiffusion(LearningGuidance):
    """Score distillation from a Stable Diffusion folder.

    Args:
        folder: diffusers layout: unet, vae, scheduler, tokenizer, text_encoder.
        device: where the networks run.
        dtype: of their weights; gradients are computed in float32.
        options: used where a step has none of its stage.
        vram_O: keep the weights in main memory and encode one image at a time.
        debias_prompt: folder of a masked language model, see ``guidance/debias.py``.

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
        debias_prompt: Path | None = None,
    ):
        self.folder, self.device, self.dtype = Path(folder), torch.device(device), dtype
        self.debias_prompt = debias_prompt
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
        self.named: dict[str, Tensor] = {}  # name of a condition in NAMED -> [1, L, D]
        if self.device.type == "cuda":
            self.unet.to(memory_format=torch.channels_last)
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
        negative = conditions.negative
        others = ("", negative or DEFAULT_NEGATIVE, text)
        texts = text if self.debias_prompt is None else debias(text, self.debias_prompt, VIEW_WORDS)
        rows = encode_prompts(self.folder, texts, VIEW_SUFFIXES, negative, self.device, self.dtype, others)
        count = len(VIEW_SUFFIXES)
        self.positive, self.negative = rows[:count], rows[count : count + 1]
        self.named = {name: rows[count + 1 + i : count + 2 + i] for i, name in enumerate(NAMED)}

    def stage_options(self, options: Any) -> Options:
        """See :meth:`Guidance.stage_options`."""
        perpneg = None
        if options.perpneg:
            perpneg = PerpNeg(options.negative_w, options.front_decay_factor, options.side_decay_factor)
        angles = ViewAngles(options.angle_front, options.angle_overhead)
        return Options(**shared_options(options), perpneg=perpneg, angles=angles)

    def guided_names(self, views: Views | None, options: Options) -> tuple[str, ...]:
        """The conditions of guidance: unconditional, conditional, and the negative view words of Perp-Neg."""
        perpneg = options.perpneg is not None and views is not None
        return ("unconditional", "text", *(NEGATIVE_WORDS if perpneg else ()))

    def text_embeddings(
        self, views: Views | None, count: int, options: Options, names: tuple[str, ...] | None = None
    ) -> Tensor:
        """Text embeddings of K conditions.

        Args:
            views: B cameras; None uses the prompt with the word "front".
            count: B.
            options: of the stage.
            names: of the conditions: "unconditional", "text", one of :data:`NAMED` or a view word; by default those of
                guidance.

        Returns:
            [K, B, L, D].
        """
        if self.positive is None or self.negative is None:
            raise RuntimeError("StableDiffusion: prepare(conditions) must come before loss or sample")
        rows = []
        for name in names or self.guided_names(views, options):
            if name == "text" and views is not None:
                rows.append(blend(self.positive, view_weights(views.azimuth, views.polar, options.angles).to(self.device)))
                continue
            if name == "unconditional":
                row = self.negative
            elif name in self.named:
                row = self.named[name]
            else:
                at = 0 if name == "text" else VIEW_WORDS.index(name)
                row = self.positive[at : at + 1]
            rows.append(row.expand(count, -1, -1))
        return torch.stack(rows)

    def mixer(self, views: Views | None, scale: float, options: Options) -> Mixer:
        """How the predictions are combined: Perp-Neg if asked for and the views are known, else classifier-free guidance."""
        if options.perpneg is not None and views is not None:
            push = negative_weights(views.azimuth, views.polar, options.perpneg, options.angles).to(self.device)
            return rescale_cfg(perpneg_mixer(scale, push), options.rescale)
        # At scale 1 the result is the conditional prediction, whose standard deviation it has already.
        return rescale_cfg(classifier_free(scale), 0 if scale == 1 else options.rescale)

    def denoiser(self, views: Views | None, count: int, options: Options, names: tuple[str, ...] | None = None) -> Denoiser:
        """The UNet under K conditions in one batch, see :meth:`text_embeddings`."""
        text = self.text_embeddings(views, count, options, names)

        def predict(noisy: Tensor, t: Tensor) -> Tensor:
            return self._unet(noisy, t, text)

        return predict

    def _unet(self, noisy: Tensor, t: Tensor, text: Tensor, camera: Tensor | None = None) -> Tensor:
        """Raw predictions [K, B, ...] for x_t [B, ...] at t [B] under text [K, B, L, D]; the LoRA takes cameras [B, D]."""
        num, count = text.shape[:2]
        x, timesteps = noisy.to(self.dtype).repeat(num, 1, 1, 1), t.to(self.device).repeat(num)
        out: Tensor = self.unet(x, timesteps, encoder_hidden_states=text.flatten(0, 1), class_labels=camera, return_dict=False)[
            0
        ]
        return out.to(noisy.dtype).unflatten(0, (num, count))

    def learned(self, views: Views, count: int, options: Options) -> Learned | None:
        """The UNet with its LoRA under the prompt without view words and the poses of the views; None without a LoRA."""
        lora = self.lora
        if lora is None:
            return None
        text = self.text_embeddings(views, count, options, ("plain",))
        pose = views.pose.to(self.device).float().flatten(1)

        def predict(noisy: Tensor, t: Tensor, camera: bool) -> Tensor:
            with lora.active():
                return self._unet(noisy, t, text, pose if camera else torch.zeros_like(pose))[0]

        return predict

    def loss(self, image: Tensor, views: Views, part: Part, control: Control, *, debug: bool = False) -> GuidanceOutput:
        """Score distillation of B views; see :meth:`Guidance.loss` and :meth:`Distiller.distill`."""
        options: Options = control.options or self.options
        count = len(image)
        self.distiller.check(image, views, part)
        with self.distiller.full_precision():
            model = Conditioned(
                lambda names: self.denoiser(views, count, options, names),
                lambda scale: self.mixer(views, scale, options),
                self.guided_names(views, options)[2:],
                self.learned(views, count, options),
            )
            return self.distiller.distill(image, part, control, options, model, debug)

    def sample(self, views: Views | None, count: int, generator: torch.Generator, steps: int, scale: float) -> Tensor:
        """Images [B, 3, size, size] in [0, 1] of the prompt, for ``count`` = B views or none; see :meth:`Distiller.sample`."""
        with torch.no_grad():
            predict, mix = self.denoiser(views, count, self.options), self.mixer(views, scale, self.options)
            return self.distiller.sample(predict, mix, count, generator, steps)


if __name__ == "__main__":
    from guidance.preview import main

    sys.exit(main())
