"""What the appearance of photographs has to be: small, seen in what is rendered with it, and of consequence. P patches, N rays.

K vectors of A numbers, I photographs.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from nerf.core.streams import Stream
from nerf.core.structs import AppearanceCodes, Batch, Part, Rays, RenderOutput, RenderSettings, StepPlan
from nerf.fields.appearance import Appearance
from nerf.training import wild_losses
from nerf.training.objective import Objective, ObjectiveOutput

Recolor = Callable[[Rays, RenderOutput, RenderSettings], Tensor]


class AppearanceLosses(Objective):
    """Norm of the vectors, view-consistent appearance and mode seeking (Ha-NeRF, sec. 4.1).

    The latter two look at each patch again in the light of a photograph that was seen before. Geometry stays as it is: only
    colour heads and encoder learn from them.

    Args:
        appearance: of the model.
        recolor: rays in another appearance, what was rendered of them, settings -> colours [N, 3].

    State: the last vector of each training photograph, [I, A], and which of them have one, [I] bool.
    """

    terms = ("appearance_norm", "appearance_match", "mode_seeking")

    def __init__(self, appearance: Appearance, recolor: Recolor):
        self.appearance, self.recolor = appearance, recolor
        device = next(appearance.parameters()).device
        self.last = torch.zeros(appearance.count, appearance.size, device=device)
        self.known = torch.zeros(appearance.count, dtype=torch.bool, device=device)
        self._any = False  # of ``known``, on the host

    def applies(self, part: Part, plan: StepPlan) -> bool:
        """See :meth:`Objective.applies`."""
        return part.has_targets and super().applies(part, plan)

    def __call__(self, out: RenderOutput, batch: Batch, part: Part, plan: StepPlan) -> ObjectiveOutput:
        """See :meth:`Objective.__call__`."""
        codes, index = out.appearance, batch.rays.image_index
        if codes is None or index is None:
            return ObjectiveOutput()
        terms: dict[str, Tensor] = {}
        if plan.wants("appearance_norm"):
            terms["appearance_norm"] = wild_losses.vector_norm(codes.vectors)
        asked = plan.wants("mode_seeking") or (plan.wants("appearance_match") and self.appearance.kind == "encoder")
        if asked and self._any and batch.rays.shape is not None:
            terms |= self._in_other_light(out, codes, batch.rays, part, plan)
        self._remember(torch.unique(index), codes.vectors.detach())
        return ObjectiveOutput(terms)

    def _in_other_light(
        self, out: RenderOutput, codes: AppearanceCodes, rays: Rays, part: Part, plan: StepPlan
    ) -> dict[str, Tensor]:
        """The terms that look at the patches again, each in the light of a random photograph of those seen before."""
        patches, height, width = out.image_shape
        generator = part.random.generator(Stream.OTHER_LIGHT, self.known.device)
        chosen = torch.multinomial(self.known.float(), patches, replacement=True, generator=generator)
        others, each = self.last[chosen], height * width
        of_ray = torch.arange(patches, device=chosen.device).repeat_interleave(each)
        seen = replace(rays, appearance=AppearanceCodes(others, of_ray))
        colors = self.recolor(seen, out, part.settings)
        terms: dict[str, Tensor] = {}
        if plan.wants("appearance_match") and self.appearance.kind == "encoder":
            rendered = self.appearance.encode(out.as_images(colors))
            terms["appearance_match"] = wild_losses.vector_match(others, rendered)
        if plan.wants("mode_seeking"):
            own = codes.rows(codes.vectors, len(rays))[::each]
            shape = (patches, each, 3)
            terms["mode_seeking"] = wild_losses.mode_seeking(out.image.view(shape), colors.view(shape), own, others)
        return terms

    def _remember(self, images: Tensor, vectors: Tensor) -> None:
        self.last[images] = vectors.to(self.last.dtype)
        self.known[images] = True
        self._any = True

    def state_dict(self) -> dict[str, Tensor]:
        """See :meth:`Objective.state_dict`."""
        return {"last": self.last, "known": self.known}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See :meth:`Objective.load_state_dict`."""
        self.last.copy_(state["last"])
        self.known.copy_(state["known"])
        self._any = bool(self.known.any())
