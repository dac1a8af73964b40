"""Zero123, Zero123-XL and Stable Zero123 as guidance: novel views of a picture. B views, R reference pictures, K conditions.

The denoiser is given a reference picture (its VAE latents beside the noisy ones, and its CLIP embedding) and where the view is
relative to it. Our cameras are right-handed and azimuth grows towards the camera's own right, as in the renders that these
models were trained on (Liu et al. 2023, arXiv 2303.11328), so angles enter with their own signs. (stable-dreamfusion negates
the azimuth, because its cameras are mirrored.)
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from guidance import zero123_weights
from guidance.base import CameraRequirements, Conditions, Guidance, GuidanceOutput, ImageCondition
from guidance.diffusion import clip_image, loader, zero123_parts
from guidance.diffusion.codecs import LatentCodec, resized
from guidance.diffusion.distiller import DiffusionOptions, Distiller, shared_options
from guidance.distillation import Denoiser, Mixer, paired, rescale_cfg
from nerf.core.cameras import direction_of
from nerf.core.errors import UserError
from nerf.core.structs import Control, Part, Views
from nerf.core.transfer import upload

if TYPE_CHECKING:
    from guidance.weights import Resolved
    from nerf.config.config import Config

log = logging.getLogger("somnia.guidance")

GRAD_SCALES = ("angle", "None")
NEAREST = 0.01  # degrees: references closer than this count as equally near
LEAST_SHARE = 0.1  # of the largest weight; references below it are left out


@dataclass(frozen=True)
class Options(DiffusionOptions):
    """What a stage may set for Zero123."""

    guidance_scale: float = 5.0
    grad_scale: str = "angle"  # one of GRAD_SCALES

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.grad_scale not in GRAD_SCALES:
            raise ValueError(f"--zero123_grad_scale must be one of {', '.join(GRAD_SCALES)}, got {self.grad_scale!r}")


def build(config: "Config", device: torch.device, resolved: "Resolved") -> "Zero123":
    """Load the weights of a run; see :data:`guidance.Builder`."""
    if device.type == "cpu":
        log.warning("guidance: Zero123 takes about half a minute a step on a CPU; try --zero123 embedded")
    absolute = resolved.kind == "stable zero123"
    return Zero123(zero123_weights.fetch(resolved), absolute=absolute, **loader.placement(config, device))


def relative_cameras(views: Views, reference: ImageCondition, absolute: bool) -> Tensor:
    """Where the views are relative to a reference picture, as Zero123 is told.

    ``[d polar, sin(d azimuth), cos(d azimuth), d radius]``, radians and scene units. Stable Zero123 is given the polar angle of
    the reference in the place of the last number, since the reference's elevation is no longer fixed in its training.

    Args:
        views: B cameras.
        reference: the picture.
        absolute: as Stable Zero123.

    Returns:
        [B, 4] float32.
    """
    polar, azimuth, radius = (value.float() for value in (views.polar, views.azimuth, views.radius))
    turn = torch.deg2rad(azimuth - reference.azimuth)
    last = torch.full_like(radius, reference.polar).deg2rad() if absolute else radius - reference.radius
    return torch.stack([torch.deg2rad(polar - reference.polar), turn.sin(), turn.cos(), last], -1)


def angles_to(views: Views, references: tuple[ImageCondition, ...]) -> Tensor:
    """Degrees [B, R] between the directions of the views and of the references, seen from the origin."""
    angles = [torch.tensor([getattr(r, name) for r in references]) for name in ("polar", "azimuth")]
    (theirs,) = upload([direction_of(*angles).double()], views.polar.device)
    ours = direction_of(views.polar.double(), views.azimuth.double())
    crossed = torch.linalg.cross(ours[:, None], theirs[None].expand(len(ours), -1, -1)).norm(dim=-1)
    return torch.rad2deg(torch.atan2(crossed, ours @ theirs.T)).float()


def reference_weights(angles: Tensor, weights: Tensor) -> Tensor:
    """How much each reference says about each view, rows sum to 1.

    Inverse to the angle, times the reference's own weight; those below a tenth of the largest are left out, both before and
    after the own weights, as in stable-dreamfusion.

    Args:
        angles: [B, R] degrees between views and references.
        weights: [R] of the references, >= 0, not all 0.

    Returns:
        [B, R].
    """
    near = 1 / angles.clamp(min=NEAREST)
    near = near / near.max(-1, keepdim=True).values
    near = torch.where(near < LEAST_SHARE, 0, near) * weights
    # Where the own weights silence every near reference, all count by their own weights alone.
    near = torch.where((near > 0).any(-1, keepdim=True), near, weights.expand_as(near))
    near = near / near.max(-1, keepdim=True).values
    near = torch.where(near < LEAST_SHARE, 0, near)
    return near / near.sum(-1, keepdim=True)


def reference_shares(views: Views, references: tuple[ImageCondition, ...]) -> Tensor:
    """How much each reference says about each view: :func:`reference_weights` [B, R] of the angles between them."""
    (own,) = upload([torch.tensor([reference.weight for reference in references])], views.polar.device)
    return reference_weights(angles_to(views, references), own)


class Zero123(Guidance):
    """Score distillation from Zero123.

    Args:
        path: a folder or file in one of the layouts of :mod:`guidance.diffusion.zero123_parts`.
        device: where the networks run.
        dtype: of their weights; gradients are computed in float32.
        options: used where a step has none of its stage.
        absolute: the camera is told as to Stable Zero123, see :func:`relative_cameras`.
        vram_O: keep the weights in main memory and encode one image at a time.

    Raises:
        UserError: the weights are incomplete, damaged or of another model.
    """

    name = "zero123"
    told_camera = True
    sampling_scale = 3.0

    def __init__(
        self,
        path: Path | str,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        options: Options | None = None,
        absolute: bool = False,
        vram_O: bool = False,
    ):
        self.path, self.device, self.dtype, self.absolute = Path(path), torch.device(device), dtype, absolute
        self.options = options or Options()
        self.parts = zero123_parts.load(self.path, self.device, dtype)
        self.unet, self.vae = self.parts.unet, self.parts.vae
        grid = self.unet.config.sample_size
        codec = LatentCodec(self.vae, grid if isinstance(grid, int) else zero123_parts.GRID)
        self.distiller = Distiller(codec, self.parts.schedule, self.device)
        self.spaces = self.distiller.spaces
        self.references: tuple[ImageCondition, ...] = ()
        self.embeddings: Tensor | None = None  # [R, D] CLIP embeddings of the references
        self.latents: Tensor | None = None  # [R, c, h, w] VAE latents of the references, not scaled
        if self.device.type == "cuda":
            self.unet.to(memory_format=torch.channels_last)
        if vram_O:
            self.vae.enable_slicing()
            loader.save_memory([self.unet, self.vae], self.device)

    def requirements(self) -> CameraRequirements:
        """Square images; it was trained on every direction, and on radii and lenses that its users never kept to."""
        return CameraRequirements(square=True)

    def denoisers(self) -> list[Any]:
        """See :meth:`Guidance.denoisers`."""
        return [self.unet]

    def stage_options(self, options: Any) -> Options:
        """See :meth:`Guidance.stage_options`."""
        return Options(**shared_options(options), grad_scale=options.zero123_grad_scale)

    @torch.no_grad()
    def prepare(self, conditions: Conditions) -> None:
        """Encode the reference pictures over white; the image encoder is loaded for this call alone.

        Raises:
            UserError: there is no picture, one is not square, or all have weight 0.
        """
        references = tuple(image for image in conditions.images if image.weight > 0)
        if not references:
            raise UserError("guidance zero123 needs a picture; give --image X_rgba.png, as preprocess_image.py writes it")
        for index, reference in enumerate(references):
            height, width = reference.image.shape[1:]
            if height != width:
                raise UserError(
                    f"guidance zero123 takes square pictures, and picture {index + 1} has {width} x {height} pixels; "
                    "prepare it with preprocess_image.py"
                )
        size = self.distiller.codec.size
        pictures = [resized(clip_image.over(r.image.float(), 1.0), size, size).clamp(0, 1) for r in references]
        image = torch.cat(pictures).to(self.device)
        encoder = self.parts.image_encoder()
        pixels = clip_image.preprocess(image, encoder.config.image_size, align_corners=True)
        embeddings = encoder(pixels.to(self.dtype)).image_embeds
        del encoder
        loader.release(self.device)
        if embeddings.shape[1] != self.parts.projection.out_features:
            raise UserError(
                f"weights: the image encoder of {self.path} gives {embeddings.shape[1]} numbers and its camera projection "
                f"takes {self.parts.projection.out_features}; they are not of one model"
            )
        self.references, self.embeddings = references, embeddings
        self.latents = self.vae.encode((2 * image - 1).to(self.dtype)).latent_dist.mode()

    def _require_prepared(self) -> None:
        """Our own mistake otherwise."""
        if self.embeddings is None or self.latents is None:
            raise RuntimeError("Zero123: prepare(conditions) must come before loss or sample")

    def condition(self, views: Views) -> tuple[Tensor, Tensor]:
        """What the denoiser is told of each reference: tokens [R, B, 1, D] and latents [R, B, c, h, w]."""
        self._require_prepared()
        assert self.embeddings is not None and self.latents is not None
        cameras = torch.stack([relative_cameras(views, reference, self.absolute) for reference in self.references])
        count = len(views)
        images = self.embeddings[:, None].expand(-1, count, -1)
        tokens = self.parts.projection(torch.cat([images, cameras.to(images)], -1))
        return tokens[:, :, None], self.latents[:, None].expand(-1, count, -1, -1, -1)

    def denoiser(self, views: Views, conditional_only: bool = False) -> Denoiser:
        """The UNet without a reference (zeros in the place of both), and with each of the R references, in one batch."""
        tokens, latents = self.condition(views)
        if not conditional_only:
            tokens = torch.cat([torch.zeros_like(tokens[:1]), tokens])
            latents = torch.cat([torch.zeros_like(latents[:1]), latents])
        num, count = tokens.shape[:2]

        def predict(noisy: Tensor, t: Tensor) -> Tensor:
            x = torch.cat([noisy.to(self.dtype).repeat(num, 1, 1, 1), latents.flatten(0, 1)], 1)
            timesteps = t.to(self.device).repeat(num)
            out: Tensor = self.unet(x, timesteps, encoder_hidden_states=tokens.flatten(0, 1), return_dict=False)[0]
            return out.to(noisy.dtype).unflatten(0, (num, count))

        return predict

    def mixer(self, views: Views, scale: float, options: Options) -> Mixer:
        """Classifier-free guidance towards the mean over the references, by their weights for each view."""
        shares = reference_shares(views, self.references).T.to(self.device)  # [R, B]

        def mean(predictions: Tensor) -> Tensor:
            weighted: Tensor = (
                shares.reshape(*shares.shape, *(1,) * (predictions.ndim - 2)).to(predictions) * predictions
            ).sum(0)
            return weighted

        def mix(predictions: Tensor) -> Tensor:
            if scale == 1:  # the first may be missing
                return mean(predictions[-len(shares) :])
            unconditional, conditional = predictions[0], mean(predictions[1:])
            guided = unconditional + scale * (conditional - unconditional)
            both = torch.stack([unconditional, conditional])
            return rescale_cfg(lambda _: guided, options.rescale)(both)

        return mix

    def view_weights(self, views: Views, options: Options) -> Tensor:
        """Factor [B] of each view's gradient: with ``angle``, how far it is from the nearest reference, in [0, R]."""
        if options.grad_scale == "None":
            return torch.ones_like(views.polar)
        self._require_prepared()
        return angles_to(views, self.references).min(-1).values * (len(self.references) / 180)

    def loss(self, image: Tensor, views: Views, part: Part, control: Control, *, debug: bool = False) -> GuidanceOutput:
        """Score distillation of B square views; see :meth:`Guidance.loss` and :meth:`Distiller.distill`."""
        options: Options = control.options or self.options
        self.distiller.check(image, views, part, square_for="Zero123")
        with self.distiller.full_precision():
            image = scale_gradient(image, self.view_weights(views, options))
            model = paired(
                lambda alone: self.denoiser(views, conditional_only=alone), lambda scale: self.mixer(views, scale, options)
            )
            return self.distiller.distill(image, part, control, options, model, debug)

    @torch.no_grad()
    def sample(self, views: Views | None, count: int, generator: torch.Generator, steps: int, scale: float) -> Tensor:
        """Images [B, 3, size, size] in [0, 1] of the references as seen from B views; see :meth:`Distiller.sample`."""
        assert views is not None, "the model is told the camera"
        predict, mix = self.denoiser(views), self.mixer(views, scale, self.options)
        return self.distiller.sample(predict, mix, len(views), generator, steps)


def scale_gradient(image: Tensor, factor: Tensor) -> Tensor:
    """``image`` [B, ...] unchanged, whose gradient is multiplied by ``factor`` [B]."""
    factor = factor.to(image).reshape(-1, *(1,) * (image.ndim - 1))
    return image.detach() + factor * (image - image.detach())
