"""The multi-view prior as guidance: ``--guidance MVDream --mvdream embedded``. B views in groups of four."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from guidance import weights
from guidance.base import GuidanceOutput
from guidance.diffusion import Network, loader
from guidance.diffusion.multiview import LINKED, check_linked
from guidance.prior import MULTIVIEW_WEIGHTS, WEIGHTS, multiview_model
from guidance.prior.guidance import EmbeddedPrior
from nerf.core.structs import Control, Part, Views

if TYPE_CHECKING:
    from nerf.config.config import Config


def build(config: "Config", device: torch.device, resolved: weights.Resolved) -> "EmbeddedMultiview":
    """Load the weights of a run; see :data:`guidance.Builder`."""
    told, place = config.guidance.prior_views, loader.placement(config, device)
    return EmbeddedMultiview(WEIGHTS, changes=resolved.source, told=told, **place)


class EmbeddedMultiview(EmbeddedPrior):
    """Score distillation from the multi-view prior: groups of four linked views, which see each other.

    Args:
        folder: of the text-conditioned prior.
        changes: folder with the tensors that differ from the text-conditioned prior's.
        others: see :class:`EmbeddedPrior`.

    Raises:
        UserError: a folder is incomplete or damaged, or its parts do not fit each other.
    """

    name = "MVDream"  # it stands in for MVDream, in flags, logs and checkpoints
    linked = LINKED

    def __init__(self, folder: Path | str = WEIGHTS, *args: Any, changes: Path | str = MULTIVIEW_WEIGHTS, **others: Any):
        self.changes = Path(changes)
        super().__init__(folder, *args, **others)
        self.told_camera = True  # whatever it is told: its views must be linked

    def load_unet(self) -> Network:
        """The UNet of the text-conditioned prior, changed."""
        unet = super().load_unet()
        multiview_model.change(unet, self.changes)
        return unet.requires_grad_(False)

    def loss(self, image: Tensor, views: Views, part: Part, control: Control, *, debug: bool = False) -> GuidanceOutput:
        """See :meth:`EmbeddedPrior.loss`.

        Raises:
            UserError: the views are not linked.
        """
        check_linked(views, self.name)
        return super().loss(image, views, part, control, debug=debug)

    def sample(self, views: Views | None, count: int, generator: torch.Generator, steps: int, scale: float) -> Tensor:
        """See :meth:`EmbeddedPrior.sample`; the views must be known, and linked."""
        assert views is not None, "the views are drawn together"
        check_linked(views, self.name)
        return super().sample(views, count, generator, steps, scale)
