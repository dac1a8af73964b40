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
from nerf.core.transfer import upload
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
        codes, images = out.appearance, batch.rays.patch_images
        if codes is None:
            return ObjectiveOutput()
        terms: dict[str, Tensor] = {}
        if plan.wants("appearance_norm"):
            terms["appearance_norm"] = wild_losses.vector_norm(codes.vectors)
        asked = plan.wants("mode_seeking") or (plan.wants("appearance_match") and self.appearance.kind == "encoder")
        if images is not None:
            (own,) = upload([torch.tensor(images)], self.known.device)
            vectors = codes.rows(codes.vectors, len(batch.rays))[:: len(batch.rays) // len(images)]
            if asked and self._any:
                terms |= self._in_other_light(out, own, vectors, batch.rays, part, plan)
            self.last[own] = vectors.detach().to(self.last.dtype)
            self.known[own] = True
            self._any = True
        return ObjectiveOutput(terms)

    def _in_other_light(
        self, out: RenderOutput, images: Tensor, vectors: Tensor, rays: Rays, part: Part, plan: StepPlan
    ) -> dict[str, Tensor]:
        """The terms that look at the patches again, each in the light of a random photograph of those seen before.

        Args:
            out: what was rendered of the N rays.
            images: [P] int64 photographs of the patches.
            vectors: [P, A] theirs.
            rays, part, plan: see :meth:`__call__`.
        """
        patches, height, width = out.image_shape
        generator, each = part.random.generator(Stream.OTHER_LIGHT, self.known.device), height * width
        chosen = other_photographs(self.known, images, generator)
        others = self.last[chosen]
        of_ray = torch.arange(patches, device=chosen.device).repeat_interleave(each)
        seen = replace(rays, appearance=AppearanceCodes(others, of_ray))
        colors = self.recolor(seen, out, part.settings)
        terms: dict[str, Tensor] = {}
        if plan.wants("appearance_match") and self.appearance.kind == "encoder":
            rendered = self.appearance.encode(out.as_images(colors))
            terms["appearance_match"] = wild_losses.vector_match(others, rendered)
        if plan.wants("mode_seeking"):
            shape = (patches, each, 3)
            terms["mode_seeking"] = wild_losses.mode_seeking(out.image.view(shape), colors.view(shape), vectors, others)
        return terms

    def state_dict(self) -> dict[str, Tensor]:
        """See :meth:`Objective.state_dict`."""
        return {"last": self.last, "known": self.known}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See :meth:`Objective.load_state_dict`."""
        self.last.copy_(state["last"])
        self.known.copy_(state["known"])
        self._any = bool(self.known.any())


def other_photographs(known: Tensor, own: Tensor, generator: torch.Generator) -> Tensor:
    """A random photograph [P] of the known ones [I] bool for each patch, another than its own [P] where there is one."""
    weight = known.float().expand(len(own), -1).clone()
    weight.scatter_(1, own[:, None], 1e-6 * weight.gather(1, own[:, None]))
    return torch.multinomial(weight, 1, generator=generator)[:, 0]
