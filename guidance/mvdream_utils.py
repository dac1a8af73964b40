"""MVDream and ImageDream as guidance: four linked views denoised together. B views in groups of four, K conditions.

Every self-attention layer sees all views of a group, and each view is told its camera, so the views agree on one object: the
strongest known cure of objects with a face on every side. MVDream takes a prompt; ImageDream a picture, and a prompt beside it.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from guidance import text_weights
from guidance.base import CameraRequirements, Conditions, Guidance, GuidanceOutput
from guidance.diffusion import clip_image, loader, multiview_parts
from guidance.diffusion.codecs import LatentCodec, resized
from guidance.diffusion.distiller import DiffusionOptions, Distiller, shared_options
from guidance.diffusion.multiview import LINKED, camera_numbers, check_linked
from guidance.diffusion.text import embed, prompts_of
from guidance.distillation import Denoiser, Mixer, classifier_free, paired, rescale_std
from nerf.core.errors import UserError
from nerf.core.structs import Control, Part, Views
from nerf.core.transfer import upload

if TYPE_CHECKING:
    from guidance.weights import Resolved
    from nerf.config.config import Config

log = logging.getLogger("somnia.guidance")

GREYS = (0.0, 0.25, 0.5, 0.75, 1.0)  # backgrounds over which the picture of ImageDream is encoded


@dataclass(frozen=True)
class Options(DiffusionOptions):
    """What a stage may set for MVDream; the defaults are those of its authors."""

    guidance_scale: float = 50.0
    rescale: float = 0.5
    weighting: str = "x0"


def build(config: "Config", device: torch.device, resolved: "Resolved") -> "MVDream":
    """Load the weights of a run: MVDream's or ImageDream's; see :data:`guidance.Builder`."""
    if device.type == "cpu":
        log.warning("guidance: %s takes minutes a step on a CPU; try --guidance MVDream --mvdream embedded", resolved.kind)
    return MODELS[resolved.kind](text_weights.fetch(resolved), **loader.placement(config, device))


def group_mixer(scale: float, rescale: float) -> Mixer:
    """Classifier-free guidance, with the standard deviation of each group of views moved towards the conditional one's.

    All four views of a group share one factor, so that the rescaling does not change their colours against each other.

    Args:
        scale: of classifier-free guidance.
        rescale: in [0, 1], see ``distillation.rescale_std``.
    """
    mix = classifier_free(scale)

    def grouped(predictions: Tensor) -> Tensor:
        guided = mix(predictions)
        if rescale == 0 or scale == 1:  # at scale 1 the result is the conditional prediction
            return guided
        groups, conditional = guided.unflatten(0, (-1, LINKED)), predictions[1].unflatten(0, (-1, LINKED))
        return rescale_std(groups, conditional, rescale).flatten(0, 1)

    return grouped


class MVDream(Guidance):
    """Score distillation from MVDream.

    Args:
        path: a folder or file in one of the layouts of :mod:`guidance.diffusion.multiview_parts`.
        device: where the networks run.
        dtype: of their weights; gradients are computed in float32.
        options: used where a step has none of its stage.
        vram_O: keep the weights in main memory and encode one image at a time.

    Raises:
        UserError: the weights are incomplete, damaged or of another model.
    """

    name = "MVDream"
    told_camera = True
    pictures = False  # whether it takes one
    recipe = Options()

    def __init__(
        self,
        path: Path | str,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        options: Options | None = None,
        vram_O: bool = False,
    ):
        self.path, self.device, self.dtype, self.vram_O = Path(path), torch.device(device), dtype, vram_O
        self.options = options or self.recipe
        self.parts = multiview_parts.load(self.path, self.pictures, self.device, dtype)
        self.unet, self.vae = self.parts.unet, self.parts.vae
        codec = LatentCodec(self.vae, self.unet.config.sample_size)
        self.distiller = Distiller(codec, self.parts.schedule, self.device, linked=LINKED)
        self.spaces = self.distiller.spaces
        self.text: Tensor | None = None  # [2, L, D] text embeddings: negative prompt, prompt
        if self.device.type == "cuda":
            self.unet.to(memory_format=torch.channels_last)
        if vram_O:
            self.vae.enable_slicing()
            loader.save_memory([self.unet, self.vae], self.device)

    def requirements(self) -> CameraRequirements:
        """Four linked views a group, square."""
        return CameraRequirements(square=True, linked_views=LINKED)

    def denoisers(self) -> list[Any]:
        """See :meth:`Guidance.denoisers`."""
        return [self.unet]

    def stage_options(self, options: Any) -> Options:
        """See :meth:`Guidance.stage_options`."""
        return Options(**shared_options(options))

    def prepare(self, conditions: Conditions) -> None:
        """Embed the prompt and the negative prompt. There are no view words: the model is told the camera.

        Raises:
            UserError: there is no prompt.
        """
        text = conditions.text or ""
        if not text.strip() and not self.pictures:
            raise UserError(f'guidance {self.name} needs a prompt; give --text "a hamburger"')
        prompts = prompts_of(text, [""], conditions.negative)
        self.text = embed(self.parts.text_encoder, prompts, self.device, self.dtype, self.vram_O)["tokens"].flip(0)

    def _given(self, views: Views, num: int, image: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """What the UNet is given beside the noisy latents for ``num`` = K conditions of B views in G groups.

        Args:
            views: B cameras.
            num: K, 1 or 2.
            image: [B, 3, H, W] the rendered views, if there are some.

        Returns:
            Tokens and cameras, a row for each frame; and latents [K G, c, h, w] of a further frame of each group, or None.
        """
        assert self.text is not None
        cameras = camera_numbers(views, self.front).to(self.device, self.dtype)
        return self.text[-num:].repeat_interleave(len(views), 0), cameras.repeat(num, 1), None

    def denoiser(self, views: Views, image: Tensor | None = None, conditional_only: bool = False) -> Denoiser:
        """The UNet, unconditional and conditional in one batch, or conditional alone; all are told the cameras.

        Args:
            views: B cameras.
            image: [B, 3, H, W] the rendered views, if there are some; ImageDream takes the colour of their background.
            conditional_only: leave out the unconditional prediction.
        """
        if self.text is None:
            raise RuntimeError(f"{self.name}: prepare(conditions) must come before loss or sample")
        num = 1 if conditional_only else 2
        tokens, cameras, further = self._given(views, num, image)
        frames = LINKED if further is None else LINKED + 1

        def predict(noisy: Tensor, t: Tensor) -> Tensor:
            x = noisy.to(self.dtype).repeat(num, 1, 1, 1)
            x = x if further is None else _with_frame(x, further)
            timesteps = t.to(self.device).repeat(num).unflatten(0, (-1, LINKED))[:, :1].expand(-1, frames).flatten()
            out: Tensor = self.unet(x, timesteps, encoder_hidden_states=tokens, class_labels=cameras, return_dict=False)[0]
            out = out.unflatten(0, (-1, frames))[:, :LINKED].flatten(0, 1)
            return out.to(noisy.dtype).unflatten(0, (num, len(noisy)))

        return predict

    @property
    def front(self) -> float:
        """The azimuth in degrees that the model takes for the object's front."""
        return 0.0

    def loss(self, image: Tensor, views: Views, part: Part, control: Control, *, debug: bool = False) -> GuidanceOutput:
        """Score distillation of B views; see :meth:`Guidance.loss` and :meth:`Distiller.distill`.

        Raises:
            UserError: the views are not linked.
        """
        options: Options = control.options or self.options
        self.distiller.check(image, views, part, square_for=self.name)
        check_linked(views, self.name)
        with self.distiller.full_precision():
            seen = image.detach() if part.settings.space == "rgb" else None
            model = paired(
                lambda alone: self.denoiser(views, seen, conditional_only=alone),
                lambda scale: group_mixer(scale, options.rescale),
            )
            return self.distiller.distill(image, part, control, options, model, debug)

    @torch.no_grad()
    def sample(self, views: Views | None, count: int, generator: torch.Generator, steps: int, scale: float) -> Tensor:
        """Images [B, 3, size, size] in [0, 1] of the prompt as seen from B linked views; see :meth:`Distiller.sample`."""
        assert views is not None, "the model is told the camera"
        check_linked(views, self.name)
        predict, mix = self.denoiser(views), group_mixer(scale, self.options.rescale)
        return self.distiller.sample(predict, mix, len(views), generator, steps)


class ImageDream(MVDream):
    """Score distillation from ImageDream; arguments as for :class:`MVDream`.

    The picture counts as the view from the object's front at the height of the horizon, whatever its elevation: the model is
    not told where it was taken from. Cameras are turned so that the picture's azimuth is the front.
    """

    name = "ImageDream"
    sampling_scale = 5.0
    pictures = True
    recipe = Options(guidance_scale=5.0, rescale=0.2)

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.azimuth = 0.0  # of the picture
        self.tokens: Tensor | None = None  # [G, T, D] image tokens for each grey background
        self.no_tokens: Tensor | None = None  # [T, D] of no picture
        self.latents: Tensor | None = None  # [G, c, h, w] scaled latents of the picture over each grey background

    @property
    def front(self) -> float:
        """See :attr:`MVDream.front`."""
        return self.azimuth

    @torch.no_grad()
    def prepare(self, conditions: Conditions) -> None:
        """Embed the prompts, and the picture over several grey backgrounds; the encoders are loaded for this call alone.

        Raises:
            UserError: there is not exactly one picture, or it is not square.
        """
        pictures = [image for image in conditions.images if image.weight > 0]
        if len(pictures) != 1:
            raise UserError(f"guidance ImageDream takes one picture, got {len(pictures)}; give --image X_rgba.png")
        height, width = pictures[0].image.shape[1:]
        if height != width:
            raise UserError(
                f"guidance ImageDream takes a square picture, got {width} x {height} pixels; prepare it with "
                "preprocess_image.py"
            )
        super().prepare(conditions)
        self.azimuth = pictures[0].azimuth
        image = torch.cat([clip_image.over(pictures[0].image.float(), grey) for grey in GREYS]).to(self.device)
        assert self.parts.image_encoder is not None and self.parts.resampler is not None
        encoder = self.parts.image_encoder()
        pixels = clip_image.preprocess(image, encoder.config.image_size).to(self.dtype)
        features = encoder(pixels, output_hidden_states=True).hidden_states[-2]
        del encoder
        loader.release(self.device)
        self.tokens = self.parts.resampler(features)
        self.no_tokens = self.parts.resampler(torch.zeros_like(features[:1]))[0]
        size = self.distiller.codec.size
        posterior = self.vae.encode((2 * resized(image, size, size) - 1).to(self.dtype)).latent_dist
        self.latents = posterior.mode() * self.vae.config.scaling_factor

    def _given(self, views: Views, num: int, image: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """As in MVDream, with the picture as a fifth frame of each group: no noise, no camera; zeros where unconditional."""
        assert self.latents is not None and self.tokens is not None and self.no_tokens is not None
        text, cameras, _ = super()._given(views, num, image)
        backdrop = torch.ones(1, device=self.device) if image is None else background_of(image)
        (greys,) = upload([torch.tensor(GREYS)], self.device)
        grey = (greys - backdrop.mean()).abs().argmin(keepdim=True)  # not read back
        groups, latents, picture = len(views) // LINKED, self.latents[grey], self.tokens[grey]
        further = torch.cat([torch.zeros_like(latents), latents])[-num:].repeat_interleave(groups, 0)
        tokens = torch.cat([self.no_tokens[None], picture])[-num:].repeat_interleave(groups * (LINKED + 1), 0)
        cameras = _with_frame(cameras, torch.zeros_like(cameras[: num * groups]))
        return torch.cat([_with_frame(text, text[::LINKED]), tokens], 1), cameras, further


def _with_frame(views: Tensor, frame: Tensor) -> Tensor:
    """Rows [4 G, ...] with a fifth row after each group of four, from ``frame`` [G, ...]."""
    return torch.cat([views.unflatten(0, (-1, LINKED)), frame[:, None]], 1).flatten(0, 1)


def background_of(image: Tensor) -> Tensor:
    """The mean colour [3] along the border of rendered images [B, 3, H, W], where there is background."""
    border = [image[:, :, 0], image[:, :, -1], image[:, :, :, 0], image[:, :, :, -1]]
    return torch.cat([side.flatten(2) for side in border], -1).mean((0, 2))


MODELS: dict[str, type[MVDream]] = {model.name: model for model in (MVDream, ImageDream)}
