"""What passes before the scene: which rays teach, found by a mask that is learned or by their errors. N rays, I photographs.

Nothing here is used when the scene is shown.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from nerf.config.wild import WildConfig
from nerf.core.structs import Batch, StepPlan
from nerf.fields.encoding import make_encoder
from nerf.training import wild_losses

MASK_RATE = 1.0  # learning rate of the mask network relative to --lr
FIRST_MASK = -3.0  # logit of masks before training: 5 % of a ray
BOX, BLOCK, WINDOW = 3, 8, 16  # pixels: neighbourhoods of a pixel, and of a block of pixels (RobustNeRF)
MAJORITY = 0.5
NO_ERROR_YET = 1e3  # above every error of a colour: what is measured against it is no outlier


@dataclass(frozen=True)
class Kept:
    """What occluders leave of N rays."""

    weight: Tensor  # [N] in [0, 1] how much each ray teaches
    terms: dict[str, Tensor] = field(default_factory=dict)  # name -> unweighted scalar
    stats: dict[str, Tensor] = field(default_factory=dict)


class Occluders(nn.Module, ABC):
    """A way to find the rays that something stands before.

    Attributes:
        terms: names of the loss terms that it makes.
        start: training progress in [0, 1] before which every ray teaches.
        last: how much the rays of the last part teach, [N], for what else is compared with photographs; None before the start.
    """

    terms: tuple[str, ...] = ()
    start: float = 0.0
    last: Tensor | None = None

    @abstractmethod
    def keep(self, error: Tensor, batch: Batch, plan: StepPlan) -> Kept:
        """How much each ray teaches.

        Args:
            error: [N] of the rays' colours, a mean over channels; without gradients.
            batch: their photographs and pixel positions.
            plan: of the step.
        """

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        """Optimiser groups of its parameters, if it has some."""
        params = list(self.parameters())
        return [{"params": params, "lr": MASK_RATE * lr, "name": "occluders"}] if params else []


class MaskNetwork(Occluders):
    """A mask for each photograph (Ha-NeRF, sec. 4.2): a network of the pixel position and a vector of the photograph.

    The vector scales and shifts the first hidden layer of the position, so that what differs between photographs is learned
    at once and not through the layers behind.

    Args:
        config: sizes of the network.
        count: I.
    """

    terms = ("mask_size", "mask_digital")

    def __init__(self, config: WildConfig, count: int):
        super().__init__()
        width = config.mask_hidden
        self.encoder = make_encoder("frequency", input_dim=2, degree=config.mask_octaves)
        self.vectors = nn.Embedding(count, config.mask_vector)
        self.position = nn.Linear(self.encoder.output_dim, width)
        self.modulation = nn.Linear(config.mask_vector, 2 * width)
        self.hidden = nn.Linear(width, width)
        self.out = nn.Linear(width, 1)
        with torch.no_grad():
            self.out.weight.mul_(0.1)
            self.out.bias.fill_(FIRST_MASK)

    def mask(self, image_index: Tensor, uv: Tensor) -> Tensor:
        """Share [N] of each ray that something stands before, in (0, 1). Differentiable.

        Args:
            image_index: [N] int64 training photographs.
            uv: [N, 2] pixel positions in [0, 1], column before row.
        """
        scale, shift = self.modulation(self.vectors.weight).index_select(0, image_index).chunk(2, -1)
        seen = functional.relu(self.position(self.encoder(2.0 * uv - 1.0)) * (1.0 + scale) + shift)
        return torch.sigmoid(self.out(functional.relu(self.hidden(seen))))[:, 0]

    @torch.no_grad()
    def picture(self, index: int, height: int, width: int) -> Tensor:
        """The mask [H, W] of training photograph ``index`` at the centres of its pixels."""
        device = self.vectors.weight.device
        row, column = ((torch.arange(n, device=device) + 0.5) / n for n in (height, width))
        uv = torch.stack([column.expand(height, -1), row[:, None].expand(-1, width)], -1).reshape(-1, 2)
        return self.mask(torch.full((len(uv),), index, device=device), uv).view(height, width)

    def keep(self, error: Tensor, batch: Batch, plan: StepPlan) -> Kept:
        """One minus the mask; see :meth:`Occluders.keep`. Differentiable in the mask."""
        rays = batch.rays
        assert rays.image_index is not None and rays.uv is not None, "rays of photographs have both"
        mask = self.mask(rays.image_index, rays.uv)
        made = {"mask_size": wild_losses.mask_size, "mask_digital": wild_losses.mask_digital}
        terms = {name: loss(mask) for name, loss in made.items() if plan.wants(name)}
        return Kept(1.0 - mask, terms, {"masked": mask.detach().mean()})


class RobustTrimming(Occluders):
    """Leaves out patches whose errors stand out (RobustNeRF, Sabour et al. 2023, sec. 4.2).

    A pixel teaches if its error is below the quantile of the step before, or if most of its 3 x 3 neighbours are, or if most
    pixels around its block of 8 x 8, in 16 x 16, teach by the first two.

    Args:
        quantile: share of the pixels of a step that are no outliers.

    Buffers: ``threshold`` [], the quantile of the errors of the last step.
    """

    threshold: Tensor

    def __init__(self, quantile: float):
        super().__init__()
        self.quantile = quantile
        self.register_buffer("threshold", torch.tensor(NO_ERROR_YET))

    def keep(self, error: Tensor, batch: Batch, plan: StepPlan) -> Kept:
        """One or zero; see :meth:`Occluders.keep`."""
        assert batch.rays.shape is not None, "checked: the rays are patches"
        weight = robust_weight(error.view(batch.rays.shape), self.threshold)
        self.threshold.copy_(torch.quantile(error, self.quantile))
        return Kept(weight.reshape(-1), stats={"masked": 1.0 - weight.mean()})


def robust_weight(error: Tensor, threshold: Tensor | float) -> Tensor:
    """Which pixels of patches teach; see :class:`RobustTrimming`.

    Args:
        error: [P, S, S].
        threshold: error from which a pixel by itself is an outlier.

    Returns:
        [P, S, S], 1 or 0.
    """
    small = (error < threshold).to(error.dtype)[:, None]
    near = functional.avg_pool2d(small, BOX, 1, BOX // 2, count_include_pad=False) > MAJORITY
    good = torch.maximum(small, near.to(error.dtype))
    side = error.shape[-1]
    blocks = math.ceil(side / BLOCK)
    border = (WINDOW - BLOCK) // 2
    ones = functional.pad(torch.ones_like(good), (border, border + blocks * BLOCK - side) * 2)
    around = functional.pad(good, (border, border + blocks * BLOCK - side) * 2)
    mean = functional.avg_pool2d(around, WINDOW, BLOCK) / functional.avg_pool2d(ones, WINDOW, BLOCK)
    most = (mean > MAJORITY).to(error.dtype).repeat_interleave(BLOCK, -1).repeat_interleave(BLOCK, -2)
    return torch.maximum(good, most[..., :side, :side])[:, 0]


def build_occluders(config: WildConfig, count: int) -> Occluders | None:
    """What ``--occluders`` names, for ``count`` training photographs; None for none."""
    if config.occluders == "none" or count == 0:
        return None
    made: Occluders = MaskNetwork(config, count) if config.occluders == "mask" else RobustTrimming(config.robust_quantile)
    made.start = config.occluders_start
    return made
