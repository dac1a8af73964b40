"""CLIP as guidance: the rendered pictures should be near a text, reference pictures, or both. B views, N crops, R references.

Alone it is Dream Fields (Jain et al. 2022, arXiv 2112.01455): cosine similarity of embeddings (eq. 5) on random crops, over the
random textured backgrounds of ``--background_textures``. It has no noise levels: range of timesteps and guidance scale have no
effect. Beside another guidance it keeps the views near a picture, the more the nearer they are to where that was taken.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from guidance import text_weights, weights
from guidance.base import Conditions, Guidance, GuidanceOutput, ImageCondition
from guidance.diffusion import Network, clip_image, loader, text
from guidance.diffusion.codecs import resized
from nerf.core.cameras import direction_of
from nerf.core.errors import DivergenceError, UserError
from nerf.core.streams import Stream
from nerf.core.structs import Control, Part, Views

if TYPE_CHECKING:
    from nerf.config.config import Config

SMALLEST_CROP = 0.8  # side of a crop, as a share of the picture's
WHITE = 1.0  # behind reference pictures


@dataclass(frozen=True)
class Options:
    """What a stage may set for CLIP."""

    crops: int = 4  # random crops of each view in a step; 0: the whole picture alone


def build(config: "Config", device: torch.device, resolved: weights.Resolved) -> "Clip":
    """Load the weights of a run; see :data:`guidance.Builder`."""
    return Clip(text_weights.fetch(resolved), **loader.placement(config, device))


class Clip(Guidance):
    """Cosine similarity in the space of CLIP.

    Args:
        folder: a CLIP model of transformers: config, weights and tokenizer in one folder.
        device: where the network runs.
        dtype: of its weights.
        options: used where a step has none of its stage.
        vram_O: keep the weights in main memory.

    Raises:
        UserError: the folder is incomplete, damaged, or of another model.
    """

    name = "clip"

    def __init__(
        self,
        folder: Path | str,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        options: Options | None = None,
        vram_O: bool = False,
    ):
        self.folder, self.device, self.dtype, self.vram_O = Path(folder), torch.device(device), dtype, vram_O
        self.wide = torch.promote_types(dtype, torch.float32)  # of everything outside the network
        self.options = options or Options()
        text_weights.check_folder(self.folder, self.name)
        loader.require_diffusers()
        from transformers import CLIPVisionModelWithProjection

        # The text half is read for the prompt alone (``text.embed``).
        self.network: Network = loader.load_part(self.folder, ".", CLIPVisionModelWithProjection, self.device, dtype)
        self.size = int(self.network.config.image_size)
        self.text: Tensor | None = None  # [D] unit embedding of the prompt
        self.pictures: Tensor | None = None  # [R, D] unit embeddings of the references
        self.directions = torch.zeros(0, 3)  # [R, 3] unit, from the origin to their cameras
        self.shares = torch.zeros(0)  # [R] their weights, which sum to 1
        if vram_O:
            loader.save_memory([self.network], self.device)

    def prepare(self, conditions: Conditions) -> None:
        """Embed the prompt and the reference pictures, those that there are.

        Raises:
            UserError: there are neither.
        """
        prompt, images = conditions.text, [image for image in conditions.images if image.weight > 0]
        if (prompt is None or not prompt.strip()) and not images:
            raise UserError('guidance clip needs a prompt; give --text "a hamburger" or --image FILE.png')
        self.text, self.pictures = None, None
        if prompt is not None and prompt.strip():
            self.text = self.embed_texts([prompt])[0]
        if images:
            self._prepare_pictures(images)

    def _prepare_pictures(self, images: list[ImageCondition]) -> None:
        """Embed reference pictures, over white, and note where they were taken."""
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            self.pictures = torch.cat([self.embed(clip_image.over(image.image.to(self.device), WHITE)) for image in images])
        angles = torch.tensor([[image.polar, image.azimuth] for image in images])
        self.directions = direction_of(angles[:, 0], angles[:, 1]).to(self.device)
        weight = torch.tensor([image.weight for image in images], device=self.device)
        self.shares = weight / weight.sum()

    def stage_options(self, options: Any) -> Options:
        """See :meth:`Guidance.stage_options`."""
        return Options(options.clip_crops)

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Unit embeddings [K, D], float32 or wider, of K texts."""
        encoder = text.TextEncoder(self.folder, "features", ".", ".")
        found = text.embed(encoder, [(one, "") for one in texts], self.device, self.dtype, self.vram_O)
        return torch.nn.functional.normalize(found["pooled"].to(self.wide), dim=-1)

    def embed(self, image: Tensor) -> Tensor:
        """Unit embeddings [B, D], float32 or wider, of pictures [B, 3, H, W] in [0, 1]. Differentiable."""
        pixels = clip_image.preprocess(image.to(self.wide), self.size).to(self.dtype)
        return torch.nn.functional.normalize(self.network(pixel_values=pixels).image_embeds.to(self.wide), dim=-1)

    def crops(self, image: Tensor, part: Part, count: int) -> Tensor:
        """Random square crops [N B, 3, h, w] of pictures [B, 3, H, W], resized to one size, the crops of a view N apart.

        Sides are uniform from :data:`SMALLEST_CROP` of the picture's to all of it, places uniform.
        """
        views, _, height, width = image.shape
        draw = torch.rand(count, views, 3, generator=part.random.generator(Stream.CLIP_CROPS))
        pieces: list[Tensor] = []
        for share, down, right in draw.flatten(0, 1).tolist():
            view = len(pieces) % views
            side = SMALLEST_CROP + (1 - SMALLEST_CROP) * share
            h, w = max(round(side * height), 1), max(round(side * width), 1)
            top, left = round(down * (height - h)), round(right * (width - w))
            piece = image[view : view + 1, :, top : top + h, left : left + w]
            pieces.append(resized(piece, self.size, self.size))
        return torch.cat(pieces)

    def loss(self, image: Tensor, views: Views, part: Part, control: Control, *, debug: bool = False) -> GuidanceOutput:
        """One minus the cosine similarity, a mean over views and crops; see :meth:`Guidance.loss`.

        That to the references is weighted by ``1 - angle / 180 degrees`` between the view and the reference.

        Raises:
            RuntimeError: :meth:`prepare` has not been called.
        """
        options: Options = control.options or self.options
        if self.text is None and self.pictures is None:
            raise RuntimeError("Clip: prepare(conditions) must come before loss")
        if image.ndim != 4 or image.shape[:2] != (len(views), 3):
            raise ValueError(f"guidance: expected image [{len(views)}, 3, H, W], got {list(image.shape)}")
        with torch.autocast(self.device.type, enabled=False):
            return self._loss(image, views, part, options.crops, debug)

    def _loss(self, image: Tensor, views: Views, part: Part, crops: int, debug: bool) -> GuidanceOutput:
        """See :meth:`loss`."""
        seen = self.crops(image, part, crops) if crops else image
        embeddings = self.embed(seen).unflatten(0, (-1, len(views)))  # [N, B, D]
        loss, stats = embeddings.new_zeros(()), {}
        if self.text is not None:
            similarity = embeddings @ self.text
            loss = loss + (1 - similarity).mean()
            stats["text"] = similarity.mean().detach()
        if self.pictures is not None:
            similarity = embeddings @ self.pictures.T  # [N, B, R]
            loss = loss + ((1 - similarity) * self.nearness(views) * self.shares).sum(-1).mean()
            stats["image"] = similarity.mean().detach()
        if loss.device.type == "cpu" and not torch.isfinite(loss):  # a GPU is not waited for, see Guidance.loss
            raise DivergenceError("CLIP: the loss is not finite; lower --lr, set --grad_clip, or resume an earlier checkpoint")
        return GuidanceOutput(loss, stats, {"crops": seen.detach()[: len(views)]} if debug else None)

    def nearness(self, views: Views) -> Tensor:
        """How near each view is to each reference: [B, R] in [0, 1], 1 at the same direction and 0 at the opposite one."""
        directions = direction_of(views.polar, views.azimuth).to(self.directions)
        cosine = (directions @ self.directions.T).clamp(-1, 1)
        return 1 - torch.rad2deg(torch.acos(cosine)) / 180
