"""SDXL (base) as guidance, experimental: nobody has published a recipe of score distillation from it that works well.

Text of two encoders, their pooled embedding and the sizes and crop of the picture are conditions. The VAE overflows in half
precision, so it runs in float32 unless its config says that it need not (``force_upcast``); ``--hf_keys SDXL_vae=KEY`` names
another VAE, or a distilled one (TAESDXL), which costs a fraction of the memory. B views, V view words.
"""

import logging
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import torch
from torch import Tensor

from guidance import folders, text_weights, weights
from guidance.diffusion import Network, loader, text
from guidance.diffusion.codecs import Codec, LatentCodec, TinyCodec
from guidance.sd_utils import Options, StableDiffusion, placement
from nerf.core.errors import UserError
from nerf.core.files import read_json

if TYPE_CHECKING:
    from nerf.config.config import Config

log = logging.getLogger("somnia.guidance")


class _Codec(msgspec.Struct):
    class_name: str = msgspec.field(name="_class_name", default="AutoencoderKL")
    force_upcast: bool = True


class _Index(msgspec.Struct):
    force_zeros_for_empty_prompt: bool = True


def build(config: "Config", device: torch.device, resolved: weights.Resolved) -> "StableDiffusionXL":
    """Load the weights of a run; see :data:`guidance.Builder`."""
    log.warning("guidance: SDXL is experimental; expect blur, and compare with --guidance SD")
    codec = text_weights.codec(config.guidance)
    model = StableDiffusionXL(text_weights.fetch(resolved), codec=codec, **placement(config, device))
    return model.configured(config)


class StableDiffusionXL(StableDiffusion):
    """Score distillation from a folder or file of SDXL; see :class:`StableDiffusion` for the other arguments.

    Args:
        codec: folder of another VAE, an AutoencoderKL or an AutoencoderTiny; None: that of the model.
    """

    name = "SDXL"

    def __init__(
        self,
        folder: Path | str,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        options: Options | None = None,
        vram_O: bool = False,
        codec: Path | str | None = None,
        tokenizer: str | None = None,
        prediction: str = "auto",
    ):
        self.codec_folder = None if codec is None else Path(codec)
        super().__init__(folder, device, dtype, options, vram_O, tokenizer, prediction)

    def check_folder(self) -> None:
        """See :meth:`StableDiffusion.check_folder`."""
        if self.original is None:
            text_weights.check_folder(self.folder, self.name)
        if self.codec_folder is not None:
            text_weights.check_folder(self.codec_folder, text_weights.VAE)

    def load_codec(self, grid: int) -> tuple[Codec, list[Network]]:
        """See :meth:`StableDiffusion.load_codec`."""
        import diffusers

        folder, part = (self.folder, "vae") if self.codec_folder is None else (self.codec_folder, ".")
        own = self.original is not None and self.codec_folder is None  # the VAE of a file, which says nothing of it
        found = _Codec() if own else read_json(folder / part / "config.json", folders.RESTORE, _Codec)
        codecs = {"AutoencoderKL": LatentCodec, "AutoencoderTiny": TinyCodec}
        if found.class_name not in codecs:
            raise UserError(
                f"weights: {folder} is no VAE that is known: expected {' or '.join(codecs)}, got {found.class_name}"
            )
        upcast = found.class_name == "AutoencoderKL" and found.force_upcast
        dtype = torch.float32 if upcast else self.dtype
        kind = getattr(diffusers, found.class_name)
        self.vae = self.load_vae(dtype) if own else loader.load_part(folder, part, kind, self.device, dtype)
        if self.vram_O:
            self.vae.enable_slicing()
        codec: Codec = codecs[found.class_name](self.vae, grid)
        return codec, [self.vae]

    def embed(self, prompts: list[tuple[str, str]], negative: str) -> dict[str, Tensor]:
        """See :meth:`StableDiffusion.embed`; an empty negative prompt is zeros, where the model was trained so."""
        arguments = (prompts, self.device, self.dtype, self.vram_O)
        one, two = (text.embed(encoder, *arguments) for encoder in self.text_encoders())
        found = {"tokens": torch.cat([one["tokens"], two["tokens"]], -1), "pooled": two["pooled"]}
        index = self.folder / "model_index.json"
        zeros = not index.is_file() or read_json(index, folders.RESTORE, _Index).force_zeros_for_empty_prompt
        if zeros and not negative.strip():
            for value in found.values():
                value[-1] = 0
        return found

    def text_encoders(self) -> list[text.TextEncoder]:
        """See :meth:`StableDiffusion.text_encoders`."""
        if self.original is not None:
            return self.original.text_encoders(self.dtype)
        second = text.TextEncoder(self.folder, "sdxl 2", "text_encoder_2", "tokenizer_2")
        return [text.TextEncoder(self.folder, "sdxl"), second]

    @cached_property
    def sizes(self) -> Tensor:
        """[6] that the picture is whole and of the model's size (Podell et al. 2023, sec. 2.2)."""
        side = float(self.distiller.codec.size)
        return torch.tensor([side, side, 0.0, 0.0, side, side], dtype=self.dtype, device=self.device)

    def further_conditions(self, rows: dict[str, Tensor]) -> dict[str, Any]:
        """The pooled embedding, and :attr:`sizes`."""
        return {"added_cond_kwargs": {"text_embeds": rows["pooled"], "time_ids": self.sizes.expand(len(rows["pooled"]), -1)}}
