"""Objectives: rendered pixels and samples in, named unweighted loss terms out.

An objective says which terms it makes and what it needs of a part (whole images, or samples along the rays); ``check`` holds
that against the plan before the first step, so a contradiction is told at the start and not in the middle of a run. Weights
live in the plan, never here. Letters: B views, N rays, M samples.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from guidance.base import Guidance
from nerf.config.config import Config
from nerf.core.errors import UserError
from nerf.core.structs import Batch, Part, Points, RenderOutput, StepPlan
from nerf.fields.base import Field
from nerf.training import losses

# How far the second point of the 3-D smoothness stands from the first, in scene units (standard deviation).
NEIGHBOUR_DISTANCE = 1e-2
# Streams of a part's random numbers that objectives draw from.
STREAM_NEIGHBOUR, STREAM_TOTAL_VARIATION = 101, 102
SAMPLE_TERMS = ("orient", "normal_smooth_3d")  # those that look at the samples along the rays


class Objective(ABC):
    """One kind of supervision.

    Attributes:
        terms: names of the loss terms it can make.
        sources: the sources of views it looks at.
        needs_image: it can only look at whole images.
    """

    terms: tuple[str, ...]
    sources: tuple[str, ...] = ("guided", "photos")
    needs_image = False

    def applies(self, part: Part, plan: StepPlan) -> bool:
        """Whether this objective has something to say about the part under the plan's weights."""
        return part.source in self.sources and any(plan.wants(term) for term in self.terms)

    @abstractmethod
    def __call__(self, out: RenderOutput, batch: Batch, part: Part, plan: StepPlan) -> dict[str, Tensor]:
        """Unweighted scalar terms by name; only those whose weight in the plan is not zero."""


def check(objectives: list[Objective], plan: StepPlan) -> None:
    """Hold what the objectives need against what the parts of a plan deliver.

    Raises:
        UserError: an objective needs whole images and the part draws random rays.
    """
    for part in plan.parts:
        for objective in (o for o in objectives if o.applies(part, plan)):
            if objective.needs_image and part.num_rays is not None:
                raise UserError(
                    f"{type(objective).__name__} needs whole images, but the source {part.source!r} draws {part.num_rays} "
                    f"random rays; set the weights of {', '.join(objective.terms)} to 0 or drop that source"
                )


def unheard(plan: StepPlan, triangles: bool) -> list[str]:
    """Sentences about terms that have a weight in the plan and nothing to look at.

    Args:
        plan: of a step.
        triangles: the render path shows triangles, so there are no samples along the rays.
    """
    names = [name for name in SAMPLE_TERMS if triangles and plan.wants(name)]
    return [
        f"{name} has a weight, but looks at samples along rays, and triangles have none; it does nothing in the mesh "
        "stage, where --lambda_mesh_normal and --lambda_mesh_laplacian keep the surface smooth"
        for name in names
    ]


class KnownView(Objective):
    """Colour, mask, depth and normals that are known from photographs."""

    terms = ("rgb", "mask", "depth", "normal")
    sources = ("photos",)

    def __call__(self, out: RenderOutput, batch: Batch, part: Part, plan: StepPlan) -> dict[str, Tensor]:
        terms = {}
        if plan.wants("rgb") and batch.rgb is not None:
            terms["rgb"] = losses.image_mse(out.image, batch.rgb)
        if plan.wants("mask") and batch.mask is not None:
            terms["mask"] = losses.mask_mse(out.opacity, batch.mask)
        if plan.wants("depth") and batch.depth is not None and batch.mask is not None:
            terms["depth"] = losses.depth_pearson(out.depth, batch.depth, batch.mask)
        if plan.wants("normal") and batch.normal is not None and batch.mask is not None and out.normal is not None:
            terms["normal"] = losses.normal_cosine(out.normal, batch.normal, batch.mask)
        return terms


class Guided(Objective):
    """What the guidance models think of a rendered image: score distillation and its kin."""

    terms = ("sds",)
    sources = ("guided",)
    needs_image = True

    def __init__(self, guidance: list[Guidance], grad_clip_rgb: float = -1.0, debug_interval: int = 0):
        """``debug_interval``: every so many steps ``debug`` holds what the guidance saw and wants; 0 never."""
        self.guidance = guidance
        self.grad_clip_rgb = grad_clip_rgb
        self.debug_interval = debug_interval
        self.loss_scale = 1.0  # the AMP scale of the present step, for a clip that means the same under AMP
        self.debug: dict[str, Tensor] = {}  # name -> [B, 3, H, W]
        self.stats: dict[str, Tensor] = {}  # for the log: scalars that are read only when they are written

    def __call__(self, out: RenderOutput, batch: Batch, part: Part, plan: StepPlan) -> dict[str, Tensor]:
        image = out.image
        if part.space == "latent":
            # Shaded normals and opacity stand in for the four latent channels while the shape forms (Fantasia3D, sec. 3.2).
            image = torch.cat([image, out.opacity[:, None]], dim=-1)
        pictures = out.as_images(self._clipped(image))
        looks = self.debug_interval > 0 and plan.step % self.debug_interval == 0
        self.debug, self.stats, total = {}, {}, 0.0
        for guidance in self.guidance:
            answer = guidance.loss(pictures, batch.views, part, plan.t_range, debug=looks)
            total = total + answer.loss
            self.stats |= {f"{guidance.name}_{name}": value for name, value in answer.stats.items()}
            self.debug |= {f"{guidance.name} {name}": value for name, value in (answer.debug or {}).items()}
        return {"sds": total}

    def _clipped(self, image: Tensor) -> Tensor:
        if self.grad_clip_rgb <= 0 or not image.requires_grad:
            return image
        image = image.view_as(image)
        bound = self.grad_clip_rgb * self.loss_scale
        image.register_hook(lambda grad: grad.clamp(-bound, bound))
        return image


class RayRegularisers(Objective):
    """Opacity, entropy and orientation: sums along a ray, means over rays, equal in meaning on every render path."""

    terms = ("opacity", "entropy", "orient")

    def __call__(self, out: RenderOutput, batch: Batch, part: Part, plan: StepPlan) -> dict[str, Tensor]:
        terms = {}
        if plan.wants("opacity"):
            terms["opacity"] = losses.opacity(out.opacity)
        if plan.wants("entropy"):
            terms["entropy"] = losses.entropy(out.opacity)
        if plan.wants("orient") and out.field is not None and out.field.normal is not None:
            directions = batch.rays.directions[out.samples.ray_index]
            terms["orient"] = losses.orientation(out.weights, out.field.normal, directions, len(batch.rays))
        return terms


class Smoothness(Objective):
    """Normals that change slowly: across the image (2-D) and between near points of the field (3-D)."""

    terms = ("normal_smooth_2d", "normal_smooth_3d")
    sources = ("guided",)
    needs_image = True

    def __init__(self, field: Field):
        self.field = field

    def __call__(self, out: RenderOutput, batch: Batch, part: Part, plan: StepPlan) -> dict[str, Tensor]:
        terms = {}
        if out.normal is None:
            return terms
        if plan.wants("normal_smooth_2d"):
            terms["normal_smooth_2d"] = losses.normal_smooth_2d(out.as_images(out.normal))
        if plan.wants("normal_smooth_3d") and out.field is not None and out.field.normal is not None:
            at = out.samples.positions
            rng = part.generator(STREAM_NEIGHBOUR, at.device)
            near = at + NEIGHBOUR_DISTANCE * torch.randn(at.shape, generator=rng, device=at.device, dtype=at.dtype)
            neighbour = self.field.query(Points(near), part).normal
            terms["normal_smooth_3d"] = losses.normal_smooth_3d(out.field.normal, neighbour, out.weights, len(batch.rays))
        return terms


class GridRegularisers(Objective):
    """Total variation and weight decay of the encoder's table; they need points of the field and no rays."""

    terms = ("tv", "weight_decay")

    def __init__(self, field: Field):
        self.field = field

    def __call__(self, out: RenderOutput, batch: Batch, part: Part, plan: StepPlan) -> dict[str, Tensor]:
        terms = {}
        if plan.wants("tv"):
            terms["tv"] = self.field.total_variation(part.generator(STREAM_TOTAL_VARIATION, out.image.device))
        if plan.wants("weight_decay"):
            terms["weight_decay"] = self.field.weight_decay()
        return terms


class MeshRegularisers(Objective):
    """A smooth surface: neighbouring triangles that face alike, vertices amid their neighbours, few changes of sign."""

    terms = ("mesh_normal", "mesh_laplacian", "mesh_sign")

    def __init__(self, laplacian: str):
        """``laplacian``: "uniform" or "cotangent" weights."""
        self.laplacian = {"uniform": losses.laplacian_uniform, "cotangent": losses.laplacian_cotangent}[laplacian]

    def __call__(self, out: RenderOutput, batch: Batch, part: Part, plan: StepPlan) -> dict[str, Tensor]:
        terms, surface = {}, out.surface
        if surface is None:
            return terms
        if plan.wants("mesh_normal"):
            terms["mesh_normal"] = losses.normal_consistency(surface.vertices, surface.faces)
        if plan.wants("mesh_laplacian"):
            terms["mesh_laplacian"] = self.laplacian(surface.vertices, surface.faces)
        if plan.wants("mesh_sign"):
            terms["mesh_sign"] = losses.sdf_sign_entropy(surface.distance, surface.crossing)
        return terms


def build(config: Config, field: Field, guidance: list[Guidance]) -> list[Objective]:
    """The objectives of a run, in the order in which they are evaluated."""
    objectives: list[Objective] = [KnownView(), RayRegularisers(), Smoothness(field), GridRegularisers(field)]
    if config.dmtet.dmtet:
        objectives.append(MeshRegularisers(config.loss.mesh_laplacian))
    if guidance:
        interval = config.guidance.save_guidance_interval if config.guidance.save_guidance else 0
        objectives.insert(0, Guided(guidance, config.optim.grad_clip_rgb, interval))
    return objectives
