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
from guidance.diffusion import Network, loader, text
from guidance.diffusion.codecs import Codec, LatentCodec
from guidance.diffusion.distiller import DiffusionOptions, Distiller, shared_options
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
    return StableDiffusion(weights.fetch(resolved), device, dtype, vram_O=config.guidance.vram_O)


class StableDiffusion(Guidance):
    """Score distillation from a Stable Diffusion folder.

    Args:
        folder: diffusers layout: unet, vae, scheduler, tokenizer, text_encoder.
        device: where the networks run.
        dtype: of their weights; gradients are computed in float32.
        options: used where a step has none of its stage.
        vram_O: keep the weights in main memory, those of the text encoder too, and encode one image at a time.

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
    ):
        self.folder, self.device, self.dtype, self.vram_O = Path(folder), torch.device(device), dtype, vram_O
        self.options = options or Options()
        self.check_folder()
        loader.require_diffusers()
        from diffusers import UNet2DConditionModel

        self.unet = loader.load_part(self.folder, "unet", UNet2DConditionModel, self.device, dtype)
        grid = self.unet.config.sample_size
        if not isinstance(grid, int):
            raise UserError(
                f"weights: {self.folder / 'unet' / 'config.json'} must give sample_size, the side "
                f"of the latents, as a number, and gives {grid}"
            )
        codec, networks = self.load_codec(grid)
        self.distiller = Distiller(codec, loader.load_schedule(self.folder, self.device), self.device)
        self.spaces = self.distiller.spaces
        self.embeddings: dict[str, Tensor] = {}  # name -> [V + 1, ...]: the prompt with each view word, the negative prompt
        if self.device.type == "cuda":
            self.unet.to(memory_format=torch.channels_last)
        if vram_O:
            loader.save_memory([self.unet, *networks], self.device)

    # ---- what the other models of text to image do in their own way ------------------------------------------------

    def check_folder(self) -> None:
        """Check that the folder holds a model of this kind, before anything is loaded.

        Raises:
            UserError: it does not.
        """
        weights.check_folder(self.folder)

    def load_codec(self, grid: int) -> tuple[Codec, list[Network]]:
        """The codec between images and the space of the UNet, and its networks; ``grid`` is the side of that space."""
        from diffusers import AutoencoderKL

        self.vae = loader.load_part(self.folder, "vae", AutoencoderKL, self.device, self.dtype)
        if self.vram_O:
            self.vae.enable_slicing()
        return LatentCodec(self.vae, grid), [self.vae]

    def embed(self, prompts: list[tuple[str, str]], negative: str) -> dict[str, Tensor]:
        """Text embeddings of prompts (text, suffix), P rows each: "tokens" [P, L, D] and what else the UNet takes.

        Args:
            prompts: the last one is the negative prompt.
            negative: its text.
        """
        return text.embed(text.TextEncoder(self.folder), prompts, self.device, self.dtype, self.vram_O)

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
        self.embeddings = self.embed(text.prompts_of(prompt, VIEW_SUFFIXES, negative), negative)

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
        return Options(**shared_options(options), perpneg=perpneg, angles=angles)

    def text_embeddings(self, views: Views | None, count: int, options: Options, name: str = "tokens") -> Tensor:
        """Text embeddings of the K conditions: unconditional, conditional, and the negative view words of Perp-Neg.

        Args:
            views: B cameras; None uses the prompt with the word "front".
            count: B.
            options: of the stage.
            name: which of the embeddings.

        Returns:
            [K, B, L, D] for "tokens", [K, B, D] for "pooled".
        """
        if not self.embeddings:
            raise RuntimeError(f"{type(self).__name__}: prepare(conditions) must come before loss or sample")
        positive, negative = self.embeddings[name][:-1], self.embeddings[name][-1:]

        def every(row: Tensor) -> Tensor:
            """The same for each view."""
            return row.expand(count, *row.shape[-negative.ndim + 1 :])

        if views is None:
            return torch.stack([every(negative), every(positive[:1])])
        shares = view_weights(views.azimuth, views.polar, options.angles).to(self.device)
        rows = [every(negative), blend(positive, shares)]
        if options.perpneg is not None:
            rows += [every(positive[VIEW_WORDS.index(word)]) for word in NEGATIVE_WORDS]
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
        chosen = slice(1, 2) if conditional_only else slice(None)
        names = self.embeddings or ("tokens",)
        rows = {name: self.text_embeddings(views, count, options, name)[chosen].flatten(0, 1) for name in names}
        tokens = rows.pop("tokens")
        num, further = len(tokens) // count, self.further_conditions(rows)

        def predict(noisy: Tensor, t: Tensor) -> Tensor:
            x = noisy.to(self.dtype).repeat(num, 1, 1, 1)
            timesteps = t.to(self.device).repeat(num)
            out: Tensor = self.unet(x, timesteps, encoder_hidden_states=tokens, **further, return_dict=False)[0]
            out = out[:, : noisy.shape[1]]  # a model of DeepFloyd IF predicts a variance as well
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
    from nerf.core.console import protected

    with protected():
        sys.exit(main())
