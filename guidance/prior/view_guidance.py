"""The view-conditioned embedded prior as guidance: the picture in place of a text. B views, R reference images."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from guidance import weights
from guidance.base import Conditions, ImageCondition
from guidance.diffusion import Network, loader
from guidance.diffusion.codecs import resized
from guidance.diffusion.distiller import shared_options
from guidance.distillation import Denoiser
from guidance.prior import VIEW_WEIGHTS, WEIGHTS, camera, detail
from guidance.prior.pixels import Options, PixelPrior
from guidance.prior.view_model import Seen, ViewPrior, load_encoder
from guidance.zero123_utils import reference_shares
from nerf.core.errors import UserError
from nerf.core.structs import Views

if TYPE_CHECKING:
    from nerf.config.config import Config


def build(config: "Config", device: torch.device, resolved: weights.Resolved) -> "EmbeddedViewPrior":
    """Load the weights of a run; see :data:`guidance.Builder`."""
    return EmbeddedViewPrior(weights.fetch(resolved), **loader.placement(config, device))


def reference_of(image: Tensor, size: int) -> Tensor:
    """A reference as the encoder takes it, [4, size, size] in [-1, 1]: colour over white, coverage.

    The vertical field of view is kept: a wide image loses its sides, a tall one gets transparent ones.

    Args:
        image: [4, H, W] RGBA in [0, 1], colour not premultiplied.
        size: pixels a side.
    """
    height, width = image.shape[1:]
    first = (width - height) // 2 if width > height else -((height - width) // 2)
    square = pad(image.float(), (-first, height - (width - first), 0, 0))
    layers = torch.cat([square[:3] * square[3:], square[3:]])[None]
    layers = resized(layers, size, size)
    return torch.cat([layers[:, :3] + 1 - layers[:, 3:], layers[:, 3:]], 1)[0] * 2 - 1


class EmbeddedViewPrior(PixelPrior):
    """Score distillation from the view-conditioned embedded prior.

    Args:
        folder: unet, scheduler, encoder, ``somnia.json``.
        device: where the networks run.
        dtype: of their weights; gradients are computed in float32.
        options: used where a step has none of its stage.
        vram_O: keep the weights of the UNet in main memory.
        details: folder of the text-conditioned prior, whose detail network refines the predictions where it fits.

    Raises:
        UserError: the folder is incomplete or damaged, or its parts do not fit each other.
    """

    name = "zero123"  # it stands in for Zero123, in flags, logs and checkpoints
    reads_references = True

    def __init__(
        self,
        folder: Path | str = VIEW_WEIGHTS,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        options: Options | None = None,
        vram_O: bool = False,
        details: Path = WEIGHTS,
    ):
        super().__init__(folder, device, dtype, options)
        encoder = load_encoder(self.folder / "encoder").requires_grad_(False).to(self.device, dtype)
        if encoder.config.tokens != self.unet.config.cross_attention_dim:
            raise UserError(
                f"weights: {self.folder / 'encoder'} gives tokens of {encoder.config.tokens} channels and the UNet takes "
                f"{self.unet.config.cross_attention_dim}; restore the folder from version control"
            )
        self.prior = ViewPrior(self.unet, encoder, None, self._details(details))
        self.seen: Seen | None = None  # of R references
        self.references: tuple[ImageCondition, ...] = ()
        if vram_O:
            loader.save_memory([n for n in (self.unet, self.prior.detail) if n is not None], self.device)

    def _details(self, folder: Path) -> Network | None:
        """The detail network in the folder of a text-conditioned prior; None where there is none that fits.

        It was trained with that prior's predictions and text. The tokens of a reference stand for the text, and it refines
        the predictions from them as well (docs/prior.md).
        """
        from diffusers import UNet2DConditionModel

        if not (folder / "detail").is_dir():
            return None
        network = loader.load_part(folder, "detail", UNet2DConditionModel, self.device, self.dtype)
        widths = (self.unet.config.cross_attention_dim, self.description.camera_dim)
        return network if detail.fits(network, self.codec.size, *widths) else None

    @torch.no_grad()
    def prepare(self, conditions: Conditions) -> None:
        """Read the reference images; those of weight 0 are left out.

        Raises:
            UserError: there is none, or one is empty.
        """
        references = tuple(image for image in conditions.images if image.weight > 0)
        if not references:
            raise UserError("guidance zero123 needs a picture; give --image X_rgba.png, as preprocess_image.py writes it")
        for index, reference in enumerate(references):
            if not (reference.image[3] > 0.5).any():
                raise UserError(
                    f"guidance zero123: picture {index + 1} is transparent everywhere; give one that shows an object"
                )
        images = torch.stack([reference_of(r.image, self.codec.size) for r in references]).to(self.device, self.dtype)
        self.seen = self.prior.see(images, self._cameras(references))
        self.references = references

    def _cameras(self, references: tuple[ImageCondition, ...]) -> dict[str, Tensor]:
        """The cameras of the references: ``polar``, ``azimuth``, ``radius``, ``fovy``, each [R]."""
        names = ("polar", "azimuth", "radius", "fovy")
        return {name: torch.tensor([float(getattr(r, name)) for r in references], device=self.device) for name in names}

    def stage_options(self, options: Any) -> Options:
        """See :meth:`Guidance.stage_options`."""
        return Options(**shared_options(options), detail=options.prior_detail)

    def camera_conditions(self, views: Views, offset: Tensor) -> tuple[Tensor, Tensor]:
        """Camera vectors [B, D] and ray maps [B, C, h, w] of the views in the frame ``offset`` [B] degrees from the world's."""
        pose = camera.turned(views.pose.float(), offset.to(views.pose.device))
        rays = camera.ray_map(pose, views.fovy.float(), self.codec.grid)
        vector = camera.condition(views.polar, views.azimuth + offset.to(views.azimuth), views.radius, views.fovy)
        return vector.to(self.device, self.dtype), rays.to(self.device, self.dtype)

    def shares(self, views: Views) -> Tensor:
        """How much each reference counts in the prediction of each view, [B, R], rows sum to 1: as in Zero123."""
        return reference_shares(views, self.references).to(self.device)

    def denoiser(self, views: Views | None, count: int, refine: bool = True, conditional_only: bool = False) -> Denoiser:
        """See :meth:`PixelPrior.denoiser`; the prediction under several references is their mean by :meth:`shares`.

        The camera stays when the references are dropped, in the object's frame that the first of them gives.
        """
        if self.seen is None:
            raise RuntimeError("EmbeddedViewPrior: prepare(conditions) must come before loss or sample")
        if views is None:
            raise ValueError("EmbeddedViewPrior: expected the cameras of the views, got none")
        number, shares = len(self.references), self.shares(views)
        rows = torch.arange(number, device=self.device)
        if not conditional_only:
            rows = torch.cat([rows[:1], rows])
        dropped = len(rows) - number
        rows = rows.repeat_interleave(count)
        seen = self.seen[rows]
        all_views = views[torch.arange(count, device=views.pose.device).repeat(number + dropped)]
        vector, rays = self.camera_conditions(all_views, seen.offset)
        keep = torch.ones(len(rows), device=self.device)
        keep[: dropped * count] = 0
        prior = self.prior if refine else replace(self.prior, detail=None)

        def predict(noisy: Tensor, t: Tensor) -> Tensor:
            x = noisy.to(self.dtype).repeat(number + dropped, 1, 1, 1)
            timesteps = t.to(self.device).repeat(number + dropped)
            out = prior.predict(x, timesteps, seen, vector, rays, keep).to(noisy.dtype).unflatten(0, (-1, count))
            conditional = torch.einsum("br,rb...->b...", shares.to(out), out[dropped:])
            return torch.cat([out[:dropped], conditional[None]])

        return predict
