"""The embedded prior as guidance: pixels and cameras instead of latents and view words. B views, K conditions."""

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from guidance import weights
from guidance.base import CameraRequirements, Conditions, GeometryEstimate, GuidanceOutput
from guidance.diffusion import Network, loader
from guidance.diffusion.distiller import shared_options
from guidance.diffusion.lora import LearningGuidance
from guidance.diffusion.text import encode_prompts
from guidance.distillation import Conditioned, Denoiser, Learned, rescale_cfg
from guidance.perpneg_utils import NEGATIVE_WORDS, PerpNeg, negative_weights, perpneg_mixer
from guidance.prior import camera, captions, detail, geometry, pixels, replies
from guidance.prior.view_words import Words
from guidance.prompts import DEFAULT_ANGLES, DEFAULT_NEGATIVE, VIEW_WORDS, ViewAngles
from nerf.core.errors import UserError
from nerf.core.streams import Stream
from nerf.core.structs import Control, Part, Views

if TYPE_CHECKING:
    from nerf.config.config import Config

log = logging.getLogger("somnia.guidance")

NAMED = ("text", "unconditional", "null", "negative")  # conditions: the prompt, the negative one, the empty one, a negative one
GUIDED = ("unconditional", "text")  # those of classifier-free guidance
# Polar angle of views, degrees, from which the UNet's error grows fast: it was trained to 105 (docs/prior.md).
LOWEST = 112.0


@dataclass(frozen=True)
class Options(pixels.Options):
    """What a stage may set for the text-conditioned embedded prior."""

    perpneg: PerpNeg | None = None  # where there are view words
    angles: ViewAngles = DEFAULT_ANGLES  # where the view words change


def build(config: "Config", device: torch.device, resolved: weights.Resolved) -> "EmbeddedPrior":
    """Load the weights of a run; see :data:`guidance.Builder`."""
    told, place = config.guidance.prior_views, loader.placement(config, device)
    model = EmbeddedPrior(weights.fetch(resolved), told=told, **place)
    model.learn(config.guidance, None)
    return model


class EmbeddedPrior(pixels.PixelPrior, LearningGuidance):
    """Score distillation from the embedded prior.

    Args:
        folder: diffusers layout: unet, scheduler, tokenizer, text_encoder, ``somnia.json``, and perhaps detail and geometry.
        device: where the networks run.
        dtype: of their weights; gradients are computed in float32.
        options: used where a step has none of its stage.
        vram_O: keep the weights in main memory.
        told: what it is told of a view: "camera", "words" (:mod:`guidance.prior.view_words`) or "none".

    Raises:
        UserError: the folder is incomplete or damaged, or its parts do not fit each other.
    """

    name = "SD"  # it stands in for Stable Diffusion, in flags, logs and checkpoints
    recipe = Options

    def __init__(
        self,
        folder: Path | str,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        options: Options | None = None,
        vram_O: bool = False,
        told: str = "camera",
    ):
        super().__init__(folder, device, dtype, options)
        self.told, self.told_camera = told, told != "none"
        self.words = Words()  # of the step
        from diffusers import UNet2DConditionModel

        self.detail: Network | None = None
        if (self.folder / "detail").is_dir():
            self.detail = loader.load_part(self.folder, "detail", UNet2DConditionModel, self.device, dtype)
        self.geometry_network: Network | None = None
        self.knows_geometry = told == "camera" and (self.folder / "geometry").is_dir()
        if self.knows_geometry:
            self.geometry_network = loader.load_part(self.folder, "geometry", UNet2DConditionModel, self.device, dtype)
        self._check_fit()
        self.understood = ""  # of the prompt
        self.text: dict[str, Tensor] = {}  # name of a condition in NAMED -> [1, L, D] text embedding
        if vram_O:
            loader.save_memory(self._networks(), self.device)

    def _check_fit(self) -> None:
        """Check that the detail and geometry networks take what the UNet takes."""
        text_dim, camera_dim = self.unet.config.cross_attention_dim, self.description.camera_dim
        if self.detail is not None and not detail.fits(self.detail, self.codec.size, text_dim, camera_dim):
            raise UserError(
                f"weights: {self.folder / 'detail'} does not fit the UNet; expected 6 n^2 channels in and 3 n^2 "
                f"out, n a divisor of {self.codec.size}, text of {text_dim} channels and cameras of {camera_dim}"
            )
        if self.geometry_network is not None:
            geometry.check_fit(self.geometry_network, self.unet, self.codec.unshuffle, self.folder / "geometry")

    def _networks(self) -> list[Network]:
        """Those that it has of UNet, detail and geometry network."""
        return [network for network in (self.unet, self.detail, self.geometry_network) if network is not None]

    def prepare(self, conditions: Conditions) -> None:
        """Embed the prompt and the negative prompt; what was understood is logged.

        Raises:
            UserError: there is no prompt, or it asks for what the prior does not have.
        """
        text = conditions.text
        if text is None or not text.strip():
            raise UserError('the embedded prior needs a prompt; give --text "a hamburger"')
        understood = replies.check(text, strict=False)
        for line in replies.remarks(understood):
            log.info("guidance: %s", line)
        self.understood = understood.understood
        text, negative = understood.text, captions.parse(conditions.negative).text
        others = ("", negative or captions.parse(DEFAULT_NEGATIVE).text)
        rows = encode_prompts(self.folder, text, [""], negative, self.device, self.dtype, others=others)
        self.text = {name: rows[i : i + 1] for i, name in enumerate(NAMED)}

    def check_text(self, text: str) -> None:
        """See :meth:`Guidance.check_text`."""
        replies.check(text, strict=True)

    def results(self) -> dict[str, Any]:
        """See :meth:`Guidance.results`."""
        return {"understood": self.understood}

    def denoisers(self) -> list[Network]:
        """See :meth:`Guidance.denoisers`."""
        return self._networks()

    def stage_options(self, options: Any) -> Options:
        """See :meth:`Guidance.stage_options`.

        Raises:
            UserError: ``--perpneg`` without view words, or ``--debias_prompt``, which needs them in the prompt.
        """
        if options.debias_prompt is not None:
            raise UserError(
                "--debias_prompt needs view words, and the embedded prior is given the camera instead; leave it out"
            )
        if options.perpneg and self.told != "words":
            raise UserError(
                "--perpneg needs view words, and the embedded prior is given the camera instead; leave it out, or give "
                "--prior_views words"
            )
        perpneg = None
        if options.perpneg:
            perpneg = PerpNeg(options.negative_w, options.front_decay_factor, options.side_decay_factor)
        return Options(
            **shared_options(options, learns=self.linked == 1),
            detail=options.prior_detail,
            perpneg=perpneg,
            angles=ViewAngles(options.angle_front, options.angle_overhead),
        )

    def loss(self, image: Tensor, views: Views, part: Part, control: Control, *, debug: bool = False) -> GuidanceOutput:
        """See :meth:`PixelPrior.loss`. Views from below :data:`LOWEST` are left to the geometry network."""
        options = control.options or self.options
        angles = options.angles if isinstance(options, Options) else DEFAULT_ANGLES
        self.words = Words(angles, part.random.generator(Stream.VIEW_WORDS))
        if not self.knows_geometry:
            return self.distilled(image, views, part, control, debug)
        judged = (views.polar <= LOWEST).to(image.device)
        if image.device.type != "cpu":  # a GPU is not asked which those are: all are denoised, and the others get no gradient
            image = torch.where(judged[:, None, None, None], image, image.detach())
            return self.distilled(image, views, part, control, debug)
        if judged.all():
            return self.distilled(image, views, part, control, debug)
        if not judged.any():
            return GuidanceOutput(0.0 * image.sum())
        found = self.distilled(image[judged], views[judged], part, control, debug)
        return replace(found, loss=found.loss * judged.float().mean())

    def distilled(self, image: Tensor, views: Views, part: Part, control: Control, debug: bool) -> GuidanceOutput:
        """Score distillation of views that the UNet can judge; see :meth:`PixelPrior.loss`."""
        return super().loss(image, views, part, control, debug=debug)

    def requirements(self) -> CameraRequirements:
        """The cameras that UNet or geometry network were trained with."""
        if not self.knows_geometry:
            return super().requirements()
        return replace(super().requirements(), polar_range=camera.GEOMETRY_POLAR_RANGE, coloured_to=LOWEST)

    @torch.no_grad()
    def geometry(self, image: Tensor, views: Views, part: Part, control: Control) -> GeometryEstimate:
        """See :meth:`Guidance.geometry`; from noisy images, which are those of score distillation where it judges all views."""
        assert self.geometry_network is not None, "knows_geometry says so"
        with self.distiller.full_precision():
            x = self.distiller.encode(image, part)
            t, noise, _ = self.distiller.draw(x, part, control, control.options or self.options)
            noisy = self.distiller.schedule.add_noise(x, noise, t)
            rays, vector = self.camera_conditions(views, len(x))
            text = self.text["text"].expand(len(x), -1, -1)
            found = geometry.predict(self.geometry_network, noisy.to(self.dtype), t, text, vector, rays, self.codec.unshuffle)
            return geometry.in_world(found, views, image.shape[-1])

    def sample(self, views: Views | None, count: int, generator: torch.Generator, steps: int, scale: float) -> Tensor:
        """See :meth:`PixelPrior.sample`; without Perp-Neg."""
        self.words = Words(generator=generator)
        return super().sample(views, count, generator, steps, scale)

    def known(self, name: str, views: Views | None) -> Views | None:
        """What is known of the views under a condition of :data:`NAMED`, or under a view word; None: nothing.

        As in Stable Diffusion, the words of the view are dropped together with the prompt.
        """
        if views is None or self.told == "camera":
            return views
        if self.told == "none" or name not in ("text", *VIEW_WORDS):
            return None
        return self.words.seen(views, None if name == "text" else name)

    def camera_conditions(self, views: Views | None, count: int) -> tuple[Tensor, Tensor]:
        """Ray maps [B, C, h, w] and camera vectors [B, D] of the views; zeros, for an unknown camera, without views."""
        grid = self.codec.grid
        if views is None:
            rays = torch.zeros(count, self.description.ray_channels, grid, grid)
            vector = torch.zeros(count, self.description.camera_dim)
        else:
            rays = camera.ray_map(views.pose.float(), views.fovy.float(), grid)
            vector = camera.condition(views.polar, views.azimuth, views.radius, views.fovy)
        return rays.to(self.device, self.dtype), vector.to(self.device, self.dtype)

    def denoiser(self, views: Views | None, count: int, refine: bool = True, conditional_only: bool = False) -> Denoiser:
        """See :meth:`PixelPrior.denoiser`; all predictions are given the camera, and the words are dropped alone."""
        return self.under(views, count, refine, GUIDED[1:] if conditional_only else GUIDED)

    def under(self, views: Views | None, count: int, refine: bool, names: tuple[str, ...]) -> Denoiser:
        """The UNet under K conditions in one batch, each given what is :meth:`known` of the views.

        Args:
            views: B cameras; None if they are unknown.
            count: B.
            refine: refine the predictions by the detail network, if there is one.
            names: of the conditions: those of :data:`NAMED`, and view words, which stand behind the prompt.
        """
        if not self.text:
            raise RuntimeError("EmbeddedPrior: prepare(conditions) must come before loss or sample")
        num = len(names)
        text = torch.cat([self.text.get(name, self.text["text"]) for name in names]).repeat_interleave(count, 0)
        given = [self.camera_conditions(self.known(name, views), count) for name in names]
        rays, vector = (torch.cat(parts) for parts in zip(*given, strict=True))

        def predict(noisy: Tensor, t: Tensor) -> Tensor:
            out = self._unet(noisy.repeat(num, 1, 1, 1), t.to(self.device).repeat(num), text, rays, vector, refine)
            return out.unflatten(0, (num, count))

        return predict

    def _unet(self, noisy: Tensor, t: Tensor, text: Tensor, rays: Tensor, vector: Tensor, refine: bool) -> Tensor:
        """Raw predictions [N, ...] for x_t [N, ...] at t [N] under text [N, L, D], ray maps [N, C, h, w] and cameras [N, D]."""
        x = torch.cat([noisy.to(self.dtype), rays], 1)
        out: Tensor = self.unet(x, t, encoder_hidden_states=text, class_labels=vector, return_dict=False)[0]
        out = out.to(noisy.dtype)
        if not refine or self.detail is None:
            return out
        return detail.refine(self.detail, noisy, out, t, text, vector, self.codec.unshuffle)

    def learned(self, views: Views, count: int, refine: bool) -> Learned | None:
        """The UNet with its LoRA under the prompt and the cameras of the views; None without a LoRA."""
        lora = self.lora
        if lora is None:
            return None
        text = self.text["text"].expand(count, -1, -1)

        def predict(noisy: Tensor, t: Tensor, camera: bool) -> Tensor:
            rays, vector = self.camera_conditions(self.known("text", views) if camera else None, count)
            with lora.active():
                return self._unet(noisy, t.to(self.device), text, rays, vector, refine)

        return predict

    def conditioned(self, views: Views, count: int, options: pixels.Options) -> Conditioned:
        """See :meth:`PixelPrior.conditioned`; the empty and the negative prompt are known apart, and a LoRA may be trained.

        The negative words of Perp-Neg are further conditions.
        """
        model = replace(
            super().conditioned(views, count, options),
            denoiser=lambda names: self.under(views, count, options.detail, names),
            learned=self.learned(views, count, options.detail),
        )
        if not isinstance(options, Options) or options.perpneg is None:
            return model
        push = negative_weights(views.azimuth, views.polar, options.perpneg, options.angles).to(self.device)
        return replace(
            model,
            mixer=lambda scale: rescale_cfg(perpneg_mixer(scale, push), options.rescale),
            words=NEGATIVE_WORDS,
            pair=None,
        )
