"""The interface of an objective: rendered pixels and samples in, named unweighted loss terms out. B views, N rays."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from nerf.core.errors import UserError
from nerf.core.structs import Batch, Part, RenderOutput, StepPlan


@dataclass(frozen=True)
class ObjectiveOutput:
    """What one objective returns for one rendered part."""

    terms: dict[str, Tensor] = field(default_factory=dict)  # name -> unweighted scalar; only terms with a weight
    stats: dict[str, Tensor] = field(default_factory=dict)  # for the log: scalars, read when they are written
    images: dict[str, Tensor] = field(default_factory=dict)  # for --save_guidance: name -> [B, 3, H, W] in [0, 1]
    finite: dict[str, Tensor] = field(default_factory=dict)  # term -> [2, B] bool, see ``GuidanceOutput.finite``

    def update(self, other: "ObjectiveOutput") -> None:
        """Add the output of another objective for the same part."""
        self.terms.update(other.terms)
        self.stats.update(other.stats)
        self.images.update(other.images)
        self.finite.update(other.finite)


class Objective(ABC):
    """One kind of supervision.

    Attributes:
        terms: names of the loss terms it can make.
        scope: "part", evaluated for every part it applies to, or "step", for the first of them alone: regularisers of the
            model itself, which do not count twice because a step has two parts.
        needs_image: it is defined on whole images only, not on random rays or patches.
        sample_terms: those of the terms that need samples along the rays.
        needs_loss_scale: it looks at ``loss_scale``, the factor that automatic mixed precision puts on the losses of this
            step; the trainer then sets it.
    """

    terms: tuple[str, ...]
    scope: Literal["part", "step"] = "part"
    needs_image = False
    sample_terms: tuple[str, ...] = ()
    needs_loss_scale = False
    loss_scale: Tensor | float = 1.0  # 0-d, on the device of the losses

    def applies(self, part: Part, plan: StepPlan) -> bool:
        """Whether this objective is evaluated on the part under the plan's weights."""
        return any(plan.wants(term) for term in self.terms)

    def check(self, part: Part, plan: StepPlan) -> None:
        """Check before training that the objective can be evaluated on a part that it applies to.

        Raises:
            UserError: it needs whole images, and the part has random rays or patches.
        """
        if self.needs_image and part.request.layout != "image":
            raise UserError(
                f"{type(self).__name__} needs whole images, but the source {part.source!r} supplies {part.request.num_rays} "
                f"rays in the layout {part.request.layout!r}; set the weights of {', '.join(self.terms)} to 0 or drop that "
                "source"
            )

    @abstractmethod
    def __call__(self, out: RenderOutput, batch: Batch, part: Part, plan: StepPlan) -> ObjectiveOutput:
        """Unweighted scalar terms by name; only those whose weight in the plan is not zero."""

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        """Optimiser groups of the objective's own parameters; most have none."""
        return []

    def state_dict(self) -> dict[str, Tensor]:
        """What a checkpoint must hold of the objective; nothing for one without parameters."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore what :meth:`state_dict` returned.

        Raises:
            ValueError: the checkpoint holds a state and this objective has none.
        """
        if state:
            raise ValueError(f"{type(self).__name__}: expected an empty state, got {sorted(state)}")
