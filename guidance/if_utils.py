"""DeepFloyd IF, first stage, as guidance: pixels of 64 x 64 and text of a T5 encoder. B views, V view words.

T5-XXL is larger than the UNet: a prompt is embedded once and kept on disk, and while it is, the UNet is not on the GPU.
"""

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from guidance import text_weights, weights
from guidance.diffusion import Network, loader, text
from guidance.diffusion.codecs import Codec, PixelCodec
from guidance.sd_utils import StableDiffusion
from nerf.core.structs import Views

if TYPE_CHECKING:
    from nerf.config.config import Config


def build(config: "Config", device: torch.device, resolved: weights.Resolved) -> "DeepFloydIF":
    """Load the weights of a run; see :data:`guidance.Builder`."""
    return DeepFloydIF(text_weights.fetch(resolved), **loader.placement(config, device)).configured(config)


class DeepFloydIF(StableDiffusion):
    """Score distillation from a folder of DeepFloyd IF; see :class:`StableDiffusion` for the arguments.

    The UNet predicts a variance beside the noise (6 channels), which score distillation has no use for: it is dropped.
    """

    name = "IF"
    single_file = False

    def check_folder(self) -> None:
        """See :meth:`StableDiffusion.check_folder`."""
        text_weights.check_folder(self.folder, self.name)

    def load_codec(self, grid: int) -> tuple[Codec, list[Network]]:
        """See :meth:`StableDiffusion.load_codec`."""
        return PixelCodec(grid, 1), []

    def embed(self, prompts: list[tuple[str, str]], negative: str) -> dict[str, Tensor]:
        """See :meth:`StableDiffusion.embed`."""
        encoder, room = text.TextEncoder(self.folder, "t5"), loader.parked(self.unet, self.device)
        return text.embed(encoder, prompts, self.device, self.dtype, self.vram_O, around=room)

    def sample(self, views: Views | None, count: int, generator: torch.Generator, steps: int, scale: float) -> Tensor:
        """See :meth:`StableDiffusion.sample`; predictions are clamped to the range of pixels, as when the model was trained.

        Score distillation does not clamp them: a guided prediction far outside is the push that a high scale means.
        """
        distiller = self.distiller
        self.distiller = replace(distiller, schedule=replace(distiller.schedule, clamp=1.0))
        try:
            return super().sample(views, count, generator, steps, scale)
        finally:
            self.distiller = distiller
