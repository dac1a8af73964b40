"""Stable Diffusion (1.5, 2.x and finetunes) as guidance, of any diffusers folder or checkpoint file.

B views, V view words, K conditions.

The model works on the latents of a VAE and is conditioned on text; it learns of the camera by view words alone.
``python -m guidance.sd_utils "a red car"`` draws a prompt in two dimensions (see ``guidance/preview.py``).
"""

import logging
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

from guidance import text_weights, tokenizers, weights
from guidance.base import Conditions, GuidanceOutput
from guidance.debias import debias
from guidance.diffusion import Network, loader, text
from guidance.diffusion.codecs import Codec, LatentCodec
from guidance.diffusion.distiller import DiffusionOptions, Distiller, shared_options
from guidance.diffusion.lora import LearningGuidance
from guidance.diffusion.original import Original
from guidance.distillation import Conditioned, Denoiser, Learned, Mixer, classifier_free, rescale_cfg
from guidance.perpneg_utils import NEGATIVE_WORDS, PerpNeg, negative_weights, perpneg_mixer
from guidance.prior import captions
from guidance.prompts import DEFAULT_ANGLES, DEFAULT_NEGATIVE, VIEW_SUFFIXES, VIEW_WORDS, ViewAngles, blend, view_weights
from nerf.core.errors import UserError
from nerf.core.structs import Control, Part, Views

if TYPE_CHECKING:
    from nerf.config.config import Config

log = logging.getLogger("somnia.guidance")

CAMERA_DIM = 16  # numbers of a camera for a LoRA: its pose


@dataclass(frozen=True)
class Options(DiffusionOptions):
    """What a stage may set for Stable Diffusion."""

    perpneg: PerpNeg | None = None
    angles: ViewAngles = DEFAULT_ANGLES  # where the view words of the prompt change


def build(config: "Config", device: torch.device, resolved: weights.Resolved) -> "StableDiffusion":
    """Load the weights of a run; see :data:`guidance.Builder`."""
    if device.type == "cpu":
        known = captions.knows(config.prompt.text or "")  # to the embedded prior
        way_out = "; --sd_version embedded is far faster" if known else ""
        log.warning("guidance: Stable Diffusion takes about a minute a step on a CPU%s", way_out)
    return StableDiffusion(weights.fetch(resolved), **placement(config, device)).configured(config)


def placement(config: "Config", device: torch.device) -> dict[str, Any]:
    """The arguments that Stable Diffusion and SDXL take from the options of a run."""
    further = {"tokenizer": text_weights.keys(config.guidance).get(tokenizers.KEY)}
    return loader.placement(config, device) | further | {"prediction": config.guidance.prediction_type}


class StableDiffusion(LearningGuidance):
    """Score distillation from the weights of Stable Diffusion.

    Args:
        folder: diffusers layout: unet, vae, scheduler, tokenizer, text_encoder; or a file in the original layout.
        device: where the networks run.
        dtype: of their weights; gradients are computed in float32.
        options: used where a step has none of its stage.
        vram_O: keep the weights in main memory, those of the text encoder too, and encode one image at a time.
        tokenizer: for a file, see :func:`guidance.tokenizers.find`.
        prediction: "epsilon" or "v_prediction", whatever the weights say; "auto" is what they say.

    Raises:
        UserError: the folder or file is incomplete or damaged, or the UNet is not one of text-to-image.
    """

    name = "SD"
    single_file = True  # whether a file in the original layout is read

    def __init__(
        self,
        folder: Path | str,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        options: Options | None = None,
        vram_O: bool = False,
        tokenizer: str | None = None,
        prediction: str = "auto",
    ):
        self.folder, self.device, self.dtype, self.vram_O = Path(folder), torch.device(device), dtype, vram_O
        self.options = options or Options()
        single = self.single_file and self.folder.is_file()
        self.original = Original(self.folder, self.name, tokenizer, prediction) if single else None
        self.check_folder()
        loader.require_diffusers()
        self.unet = self.load_unet()
        grid = self.unet.config.sample_size
        if not isinstance(grid, int):
            raise UserError(
                f"weights: {self.folder / 'unet' / 'config.json'} must give sample_size, the side "
                f"of the latents, as a number, and gives {grid}"
            )
        codec, networks = self.load_codec(grid)
        original = self.original
        schedule = loader.load_schedule(self.folder, self.device) if original is None else original.schedule(self.device)
        if prediction != "auto":
            schedule = replace(schedule, prediction_type=prediction)
        self.distiller = Distiller(codec, schedule, self.device)
        self.spaces = self.distiller.spaces
        self.embeddings: dict[str, Tensor] = {}  # name -> [V + 1, ...]: the prompt with each view word, the negative prompt
        self.conditions = Conditions()
        self.further: dict[str, dict[str, Tensor]] = {}  # condition -> name -> [1, ...], of those that a method has asked for
        self.debias_prompt: Path | None = None  # folder of a masked language model, see ``guidance/debias.py``
        if self.device.type == "cuda":
            self.unet.to(memory_format=torch.channels_last)
        if vram_O:
            loader.save_memory([self.unet, *networks], self.device)

    def configured(self, config: "Config") -> Self:
        """The model itself, with what the options of a run add to it: prompt debiasing, and a LoRA where one is trained.

        Raises:
            UserError: see :meth:`LearningGuidance.learn`.
        """
        if config.guidance.debias_prompt is not None:
            self.debias_prompt = Path(config.guidance.debias_prompt)
        self.learn(config.guidance, CAMERA_DIM)
        return self

    # ---- what the other models of text to image do in their own way ------------------------------------------------

    def check_folder(self) -> None:
        """Check that the folder holds a model of this kind, before anything is loaded.

        Raises:
            UserError: it does not.
        """
        if self.original is None:
            weights.check_folder(self.folder)

    def load_unet(self) -> Network:
        """The UNet, frozen, on its device."""
        from diffusers import UNet2DConditionModel

        if self.original is not None:
            return self.original.unet(self.device, self.dtype)
        return loader.load_part(self.folder, "unet", UNet2DConditionModel, self.device, self.dtype)

    def load_vae(self, dtype: torch.dtype) -> Network:
        """The VAE, frozen, on its device."""
        from diffusers import AutoencoderKL

        if self.original is not None:
            return self.original.vae(self.device, dtype)
        return loader.load_part(self.folder, "vae", AutoencoderKL, self.device, dtype)

    def load_codec(self, grid: int) -> tuple[Codec, list[Network]]:
        """The codec between images and the space of the UNet, and its networks; ``grid`` is the side of that space."""
        self.vae = self.load_vae(self.dtype)
        if self.vram_O:
            self.vae.enable_slicing()
        return LatentCodec(self.vae, grid), [self.vae]

    def embed(self, prompts: list[tuple[str, str]], negative: str) -> dict[str, Tensor]:
        """Text embeddings of prompts (text, suffix), P rows each: "tokens" [P, L, D] and what else the UNet takes.

        Args:
            prompts: the last one is the negative prompt.
            negative: its text.
        """
        (encoder,) = self.text_encoders()
        return text.embed(encoder, prompts, self.device, self.dtype, self.vram_O)

    def text_encoders(self) -> list[text.TextEncoder]:
        """The text encoders of the model."""
        return [text.TextEncoder(self.folder)] if self.original is None else self.original.text_encoders(self.dtype)

    def further_conditions(self, rows: dict[str, Tensor]) -> dict[str, Any]:
        """Keyword arguments of the UNet beside the tokens, from rows [K B, ...] of the embeddings by name."""
        return {}

    # ---- text to image --------------------------------------------------------------------------------------------

    def prepare(self, conditions: Conditions) -> None:
        """Embed the prompt with each view word, and the negative prompt.

        Raises:
            UserError: there is no prompt.
        """
        prompt, negative = conditions.text, conditions.negative
        if prompt is None or not prompt.strip():
            raise UserError(f'guidance {self.name} needs a prompt; give --text "a hamburger"')
        texts = [prompt] * len(VIEW_WORDS)
        if self.debias_prompt is not None:
            texts = debias(prompt, self.debias_prompt, VIEW_WORDS)
        prompts = [*zip(texts, VIEW_SUFFIXES, strict=True), (negative, "")]
        self.embeddings, self.conditions, self.further = self.embed(prompts, negative), conditions, {}

    @property
    def positive(self) -> Tensor | None:
        """[V, L, D] text embeddings of the prompt with each view word; None before :meth:`prepare`."""
        return self.embeddings["tokens"][:-1] if self.embeddings else None

    @property
    def negative(self) -> Tensor | None:
        """[1, L, D] text embeddings of the negative prompt; None before :meth:`prepare`."""
        return self.embeddings["tokens"][-1:] if self.embeddings else None

    def denoisers(self) -> list[Any]:
        """See :meth:`Guidance.denoisers`."""
        return [self.unet]

    def stage_options(self, options: Any) -> Options:
        """See :meth:`Guidance.stage_options`."""
        perpneg = None
        if options.perpneg:
            perpneg = PerpNeg(options.negative_w, options.front_decay_factor, options.side_decay_factor)
        angles = ViewAngles(options.angle_front, options.angle_overhead)
        return Options(**shared_options(options, learns=True), perpneg=perpneg, angles=angles)

    def guided_names(self, views: Views | None, options: Options) -> tuple[str, ...]:
        """The conditions of guidance: unconditional, conditional, and the negative view words of Perp-Neg."""
        perpneg = options.perpneg is not None and views is not None
        return ("unconditional", "text", *(NEGATIVE_WORDS if perpneg else ()))

    def condition(self, name: str) -> dict[str, Tensor]:
        """Embeddings [1, ...] by name of a condition that does not depend on the view.

        "unconditional", "null" (the empty prompt), "negative" (:data:`DEFAULT_NEGATIVE` where none was given), "plain" (the
        prompt without a view word), or one of the view words. A prompt is embedded when it is asked for first.
        """
        negative = self.conditions.negative
        if name in VIEW_WORDS:
            return {key: value[VIEW_WORDS.index(name)][None] for key, value in self.embeddings.items()}
        if name == "unconditional" or (name == "null" and not negative) or (name == "negative" and negative):
            return {key: value[-1:] for key, value in self.embeddings.items()}
        if name not in self.further:
            prompt = {"null": "", "negative": DEFAULT_NEGATIVE, "plain": self.conditions.text or ""}[name]
            self.further[name] = self.embed([(prompt, "")], prompt)
        return self.further[name]

    def text_embeddings(
        self,
        views: Views | None,
        count: int,
        options: Options,
        name: str = "tokens",
        conditions: tuple[str, ...] | None = None,
    ) -> Tensor:
        """Text embeddings of K conditions.

        Args:
            views: B cameras; None uses the prompt with the word "front".
            count: B.
            options: of the stage.
            name: which of the embeddings.
            conditions: names: "text", the prompt for the view, or one of :meth:`condition`; by default those of guidance.

        Returns:
            [K, B, L, D] for "tokens", [K, B, D] for "pooled".
        """
        if not self.embeddings:
            raise RuntimeError(f"{type(self).__name__}: prepare(conditions) must come before loss or sample")
        rows = []
        for condition in conditions or self.guided_names(views, options):
            if condition == "text" and views is not None:
                shares = view_weights(views.azimuth, views.polar, options.angles).to(self.device)
                rows.append(blend(self.embeddings[name][:-1], shares))
            else:
                row = self.condition("front" if condition == "text" else condition)[name]
                rows.append(row.expand(count, *row.shape[1:]))
        return torch.stack(rows)

    def mixer(self, views: Views | None, scale: float, options: Options) -> Mixer:
        """How the predictions are combined: Perp-Neg if asked for and the views are known, else classifier-free guidance."""
        if options.perpneg is not None and views is not None:
            push = negative_weights(views.azimuth, views.polar, options.perpneg, options.angles).to(self.device)
            return rescale_cfg(perpneg_mixer(scale, push), options.rescale)
        # At scale 1 the result is the conditional prediction, whose standard deviation it has already.
        return rescale_cfg(classifier_free(scale), 0 if scale == 1 else options.rescale)

    def denoiser(
        self, views: Views | None, count: int, options: Options, conditions: tuple[str, ...] | None = None
    ) -> Denoiser:
        """The UNet under K conditions in one batch, see :meth:`text_embeddings`."""
        names = self.embeddings or ("tokens",)
        rows = {name: self.text_embeddings(views, count, options, name, conditions) for name in names}

        def predict(noisy: Tensor, t: Tensor) -> Tensor:
            return self._unet(noisy, t, rows)

        return predict

    def _unet(self, noisy: Tensor, t: Tensor, rows: dict[str, Tensor], camera: Tensor | None = None) -> Tensor:
        """Raw predictions [K, B, ...] for x_t [B, ...] at t [B], under embeddings [K, B, ...] by name.

        The LoRA takes cameras [B, D], with K = 1.
        """
        num, count = rows["tokens"].shape[:2]
        flat = {name: value.flatten(0, 1) for name, value in rows.items()}
        tokens, x = flat.pop("tokens"), noisy.to(self.dtype).repeat(num, 1, 1, 1)
        further = self.further_conditions(flat) | ({} if camera is None else {"class_labels": camera})
        timesteps = t.to(self.device).repeat(num)
        out: Tensor = self.unet(x, timesteps, encoder_hidden_states=tokens, **further, return_dict=False)[0]
        out = out[:, : noisy.shape[1]]  # a model of DeepFloyd IF predicts a variance as well
        return out.to(noisy.dtype).unflatten(0, (num, count))

    def learned(self, views: Views, count: int, options: Options) -> Learned | None:
        """The UNet with its LoRA under the prompt without view words and the poses of the views; None without a LoRA."""
        lora = self.lora
        if lora is None:
            return None
        rows = {name: self.text_embeddings(views, count, options, name, ("plain",)) for name in self.embeddings}
        pose = views.pose.to(self.device).float().flatten(1)

        def predict(noisy: Tensor, t: Tensor, camera: bool) -> Tensor:
            with lora.active():
                return self._unet(noisy, t, rows, pose if camera else torch.zeros_like(pose))[0]

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
    from nerf.core.console import protected

    with protected():
        sys.exit(main())
