"""The multi-view prior as guidance, and the same weights on single views with view words. B views, K conditions, V view words.

With ``--guidance MVDream --mvdream embedded`` four linked views are denoised together (:class:`EmbeddedMultiview`). With
``--prior_views words`` or ``none`` the embedded prior of ``--guidance SD`` is told less of each view than its camera
(:class:`WordedPrior`): what Stable Diffusion has, so that measures against objects with a face on every side can be compared.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from guidance import weights
from guidance.base import GuidanceOutput
from guidance.diffusion import Network, loader
from guidance.diffusion.distiller import shared_options
from guidance.diffusion.multiview import LINKED, check_linked
from guidance.distillation import Conditioned, Denoiser, Mixer, rescale_cfg
from guidance.perpneg_utils import NEGATIVE_WORDS, PerpNeg, negative_weights, perpneg_mixer
from guidance.prior import MULTIVIEW_WEIGHTS, WEIGHTS, multiview_model
from guidance.prior.guidance import EmbeddedPrior
from guidance.prior.pixels import Options
from guidance.prompts import DEFAULT_ANGLES, VIEW_WORDS, ViewAngles, view_weights
from nerf.core.errors import UserError
from nerf.core.structs import Control, Part, Views

if TYPE_CHECKING:
    from nerf.config.config import Config

TOLD = ("camera", "words", "none")  # of each view, see --prior_views


@dataclass(frozen=True)
class WordOptions(Options):
    """What a stage may set where there are view words."""

    perpneg: PerpNeg | None = None
    angles: ViewAngles = DEFAULT_ANGLES  # where the view words change


def build(config: "Config", device: torch.device, resolved: weights.Resolved) -> "EmbeddedMultiview":
    """Load the weights of a run; see :data:`guidance.Builder`."""
    return EmbeddedMultiview(
        WEIGHTS, changes=resolved.source, told=config.guidance.prior_views, **loader.placement(config, device)
    )


class WordedPrior(EmbeddedPrior):
    """Score distillation from the embedded prior with the weights that know view words, each view by itself.

    Args:
        folder: of the text-conditioned prior.
        device: where the networks run.
        dtype: of their weights; gradients are computed in float32.
        options: used where a step has none of its stage.
        vram_O: keep the weights in main memory.
        changes: folder with the tensors that differ from the text-conditioned prior's.
        told: what it is told of a view, one of :data:`TOLD`.

    Raises:
        UserError: a folder is incomplete or damaged, or its parts do not fit each other.
    """

    def __init__(
        self,
        folder: Path | str,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        options: Options | None = None,
        vram_O: bool = False,
        changes: Path | str = MULTIVIEW_WEIGHTS,
        told: str = TOLD[0],
    ):
        self.changes, self.told = Path(changes), told
        super().__init__(folder, device, dtype, options, vram_O)

    def load_unet(self) -> Network:
        """The UNet of the text-conditioned prior, changed; the view words [V, D] come with it."""
        unet = super().load_unet()
        self.words = multiview_model.change(unet, self.changes)
        multiview_model.join(unet, self.linked > 1)
        return unet.requires_grad_(False)

    def stage_options(self, options: Any) -> WordOptions:
        """See :meth:`Guidance.stage_options`.

        Raises:
            UserError: ``--perpneg`` where there are no view words, or ``--debias_prompt``.
        """
        if options.debias_prompt is not None:
            raise UserError("--debias_prompt reads the prompt, and the view words of the embedded prior are none; leave it out")
        if options.perpneg and self.told != "words":
            raise UserError("--perpneg needs view words; give --prior_views words, or leave it out")
        perpneg = None
        if options.perpneg:
            perpneg = PerpNeg(options.negative_w, options.front_decay_factor, options.side_decay_factor)
        return WordOptions(
            **shared_options(options, learns=self.linked == 1),
            detail=options.prior_detail,
            perpneg=perpneg,
            angles=ViewAngles(options.angle_front, options.angle_overhead),
        )

    def camera_conditions(self, views: Views | None, count: int) -> tuple[Tensor, Tensor]:
        """See :meth:`EmbeddedPrior.camera_conditions`; unknown cameras unless it is told them."""
        return super().camera_conditions(views if self.told == "camera" else None, count)

    def tokens(self, name: str, views: Views | None, count: int, angles: ViewAngles = DEFAULT_ANGLES) -> Tensor:
        """See :meth:`EmbeddedPrior.tokens`; a view word is a condition too, and "text" has the words of the view.

        Args:
            name: one of ``guidance.NAMED`` or of ``VIEW_WORDS``.
            views: B cameras; None if they are unknown.
            count: B.
            angles: where the view words change.
        """
        if name in VIEW_WORDS:
            text, words = self.text["text"], self.words[VIEW_WORDS.index(name)][None]
            return multiview_model.with_words(text, words).expand(count, -1, -1)
        text = super().tokens(name, views, count)
        if name != "text" or self.told != "words" or views is None:
            return text
        shares = view_weights(views.azimuth, views.polar, angles).to(self.words)
        return multiview_model.with_words(text, shares @ self.words)

    def mixer_of(self, views: Views, scale: float, options: WordOptions) -> Mixer:
        """How the predictions are combined: Perp-Neg if asked for, else classifier-free guidance."""
        if options.perpneg is None:
            return self.mixer(scale, options)
        push = negative_weights(views.azimuth, views.polar, options.perpneg, options.angles).to(self.device)
        return rescale_cfg(perpneg_mixer(scale, push), options.rescale)

    def conditioned(self, views: Views, count: int, options: Options) -> Conditioned:
        """See :meth:`PixelPrior.conditioned`; the negative words of Perp-Neg are conditions too."""
        o = options if isinstance(options, WordOptions) else WordOptions(**vars(options))

        def denoiser(names: tuple[str, ...]) -> Denoiser:
            return self.under(views, count, o.detail, names, o.angles)

        return Conditioned(
            denoiser,
            lambda scale: self.mixer_of(views, scale, o),
            NEGATIVE_WORDS if o.perpneg is not None else (),
            self.learned(views, count, o.detail),
        )


class EmbeddedMultiview(WordedPrior):
    """Score distillation from the multi-view prior: groups of four linked views, which see each other.

    Arguments as for :class:`WordedPrior`; by default it is told the cameras, as MVDream is.
    """

    name = "MVDream"  # it stands in for MVDream, in flags, logs and checkpoints
    linked = LINKED

    def loss(self, image: Tensor, views: Views, part: Part, control: Control, *, debug: bool = False) -> GuidanceOutput:
        """See :meth:`PixelPrior.loss`.

        Raises:
            UserError: the views are not linked.
        """
        check_linked(views, self.name)
        return super().loss(image, views, part, control, debug=debug)

    def sample(self, views: Views | None, count: int, generator: torch.Generator, steps: int, scale: float) -> Tensor:
        """See :meth:`PixelPrior.sample`; the views must be known, and linked."""
        assert views is not None, "the views are drawn together"
        check_linked(views, self.name)
        return super().sample(views, count, generator, steps, scale)
