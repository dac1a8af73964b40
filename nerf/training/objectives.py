"""Objectives: rendered pixels and samples in, named unweighted loss terms out.

An objective says which terms it makes, how often, and what it needs of a part; ``check`` compares that with the plan before
the first step, so a contradiction is reported at the start and not in the middle of a run. Weights live in the plan, never
here. Letters: B views, N rays, M samples.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from guidance.base import Guidance
from nerf.config.losses import LossConfig
from nerf.config.stages import Stage
from nerf.core.streams import Random, Stream, derived_seed
from nerf.core.structs import Batch, Part, RenderOutput, StepPlan
from nerf.fields.appearance import Appearance
from nerf.fields.base import Field
from nerf.fields.signed_distance import SignedDistanceField
from nerf.render.base import points_at
from nerf.training import losses, wild_losses
from nerf.training.appearance_objective import AppearanceLosses, Recolor
from nerf.training.mesh_edges import mesh_edges
from nerf.training.objective import Objective, ObjectiveOutput
from nerf.training.occluders import MAJORITY, Occluders, build_occluders
from nerf.training.refinement import EXPOSURE_RATE, Exposure
from nerf.training.sources import RunInfo
from nerf.training.surface_objectives import Distortion, SurfaceRegularisers

# Distance of the second point of the 3-D smoothness from the first (standard deviation), as a share of the field's bound.
NEIGHBOUR_DISTANCE = 1e-2
SURE = 0.9  # coverage above which an estimated depth counts; at outlines it is that of no surface
COVERED = 0.5  # opacity above which a pixel shows the object
MIN_OPACITY = 0.05  # a ray that is less opaque has no depth of its own


def check(objectives: Iterable[Objective], plan: StepPlan) -> None:
    """Check every objective against the parts of a plan that it applies to.

    Raises:
        UserError: an objective cannot be evaluated on a part.
        ValueError: two objectives make the same term, or a term has no weight in ``schedule.TERM_WEIGHTS``.
    """
    made: set[str] = set()
    for objective in objectives:
        if doubled := made & set(objective.terms):
            raise ValueError(f"objectives: two of them make the term {min(doubled)!r}; rename one")
        if unknown := set(objective.terms) - set(plan.weights):
            raise ValueError(f"objectives: the term {min(unknown)!r} has no weight; add it to schedule.TERM_WEIGHTS")
        made |= set(objective.terms)
        for part in plan.parts:
            if objective.applies(part, plan):
                objective.check(part, plan)


def inapplicable_terms(objectives: Iterable[Objective], plan: StepPlan, stage: Stage) -> list[str]:
    """Sentences about terms that have a weight in the plan and no effect in this stage."""
    objectives = list(objectives)
    asked = [term for term in PriorGeometry.terms if plan.wants(term)]
    unknown = [
        f"--lambda_{name} has a weight, but the guidance knows no geometry; it has no effect (the embedded prior does, told "
        "the camera)"
        for name in asked
        if not any(isinstance(objective, PriorGeometry) for objective in objectives)
    ]
    if not stage.kind.triangles:
        return unknown
    along_rays = [term for objective in objectives for term in objective.sample_terms if plan.wants(term)]
    return unknown + [
        f"{name} has a weight, but needs samples along rays, and triangles have none; it has no effect in the mesh "
        "stage, where --lambda_mesh_normal and --lambda_mesh_laplacian keep the surface smooth"
        for name in along_rays
    ]


class KnownView(Objective):
    """Colour, mask, depth and normals that the source knows.

    Args:
        rgb_loss, mask_loss: names of ``losses.COLOUR_ERRORS`` and ``losses.MASK_LOSSES``.
        exposure: of photographs, whose colours differ from those of the scene by it.
        occluders: of photographs: rays that something stands before teach no colour.
    """

    terms: tuple[str, ...] = ("rgb", "mask", "depth", "normal")

    def __init__(
        self,
        rgb_loss: str = "mse",
        mask_loss: str = "mse",
        exposure: Exposure | None = None,
        occluders: Occluders | None = None,
    ):
        self.rgb_loss, self.mask_loss, self.exposure, self.occluders = rgb_loss, mask_loss, exposure, occluders
        if occluders is not None:
            self.terms = (*self.terms, *occluders.terms)

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        """Exposures and occluders; see :meth:`Objective.param_groups`."""
        groups = [] if self.occluders is None else self.occluders.param_groups(lr)
        if self.exposure is None:
            return groups
        return [{"params": list(self.exposure.parameters()), "lr": EXPOSURE_RATE * lr, "name": "exposure"}, *groups]

    def _learned(self) -> dict[str, torch.nn.Module]:
        """What it learns, by the prefix of its names in a checkpoint."""
        learned = {"": self.exposure, "occluders.": self.occluders}
        return {prefix: module for prefix, module in learned.items() if module is not None}

    def state_dict(self) -> dict[str, Tensor]:
        """See :meth:`Objective.state_dict`."""
        learned = self._learned().items()
        return {f"{prefix}{name}": value for prefix, module in learned for name, value in module.state_dict().items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """See :meth:`Objective.load_state_dict`."""
        learned = self._learned()
        if not learned:
            super().load_state_dict(state)
        for prefix, module in learned.items():
            names = module.state_dict()
            module.load_state_dict({name: state[f"{prefix}{name}"] for name in names})

    def _recorded(self, image: Tensor, batch: Batch) -> Tensor:
        """Rendered colours [N, 3] as the photographs of the rays recorded them."""
        index = batch.rays.image_index
        return image if self.exposure is None or index is None else self.exposure(image, index)

    def applies(self, part: Part, plan: StepPlan) -> bool:
        """See :meth:`Objective.applies`."""
        return part.has_targets and super().applies(part, plan)

    def __call__(self, out: RenderOutput, batch: Batch, part: Part, plan: StepPlan) -> ObjectiveOutput:
        terms: dict[str, Tensor] = {}
        stats: dict[str, Tensor] = {}
        keep = None if batch.valid is None else batch.valid.to(out.image.dtype)
        if plan.wants("rgb") and batch.rgb is not None:
            error = losses.COLOUR_ERRORS[self.rgb_loss](self._recorded(out.image, batch), batch.rgb).mean(-1)
            if self.occluders is not None and plan.fraction >= self.occluders.start:
                found = self.occluders.keep(error.detach(), batch, plan)
                self.occluders.last = found.weight.detach()
                keep = found.weight if keep is None else keep * found.weight
                terms, stats = terms | found.terms, stats | found.stats
            terms["rgb"] = wild_losses.masked(error, keep)
        if plan.wants("mask") and batch.mask is not None:
            terms["mask"] = self._mask_term(out.opacity, batch.mask, keep)
        if plan.wants("depth") and batch.depth is not None and batch.mask is not None:
            terms["depth"] = _depth_of_views(out, batch.depth, batch.mask)
        if plan.wants("normal") and batch.normal is not None and batch.mask is not None and out.normal is not None:
            terms["normal"] = losses.normal_cosine(out.normal, batch.normal, batch.mask)
        return ObjectiveOutput(terms, stats)

    def _mask_term(self, opacity: Tensor, mask: Tensor, keep: Tensor | None) -> Tensor:
        """The loss of opacities [N] against masks [N]; where a ray does not teach, its opacity stands for its mask."""
        if keep is not None:
            mask = opacity.detach() + keep.detach() * (mask - opacity.detach())
        return losses.MASK_LOSSES[self.mask_loss](opacity, mask)


class DepthMaps(Objective):
    """The depth maps of photographs on random rays: metric, or up to a scale and an offset for each photograph."""

    terms = ("depth_map",)

    def __init__(self, num_images: int, occluders: Occluders | None = None):
        """``num_images``: photographs in all splits; ``occluders``: what stands before the scene has another depth."""
        self.num_images, self.occluders = num_images, occluders

    def applies(self, part: Part, plan: StepPlan) -> bool:
        """See :meth:`Objective.applies`."""
        return part.has_targets and super().applies(part, plan)

    def __call__(self, out: RenderOutput, batch: Batch, part: Part, plan: StepPlan) -> ObjectiveOutput:
        """See :meth:`Objective.__call__`."""
        if batch.depth_map is None:
            return ObjectiveOutput()
        assert batch.depth_cosine is not None and batch.rays.image_index is not None, "photographs have both"
        depth, known = out.depth / out.opacity.clamp(min=MIN_OPACITY), batch.depth_map > 0
        if self.occluders is not None and (kept := self.occluders.last) is not None:
            known = known & (kept > MAJORITY)
        if batch.depth_relative:
            term = losses.depth_correlation(
                depth * batch.depth_cosine, batch.depth_map, known, batch.rays.image_index, self.num_images
            )
        else:
            term = losses.depth_l1(depth, batch.depth_map / batch.depth_cosine, known)
        return ObjectiveOutput({"depth_map": term})


def _depth_of_views(out: RenderOutput, target: Tensor, mask: Tensor) -> Tensor:
    """The mean over whole views of their depth losses: the depth of each is known up to a scale and an offset of its own."""
    depth = out.depth / out.opacity.clamp(min=MIN_OPACITY)
    views = zip(*(plane.chunk(out.image_shape[0]) for plane in (depth, target, mask)), strict=True)
    return torch.stack([losses.depth_pearson(*view) for view in views]).mean()


class Guided(Objective):
    """The losses of the guidance models on rendered images: score distillation sampling (SDS) and its variants."""

    needs_image = True

    def __init__(self, guidance: list[Guidance], grad_clip_rgb: float = -1.0, debug_interval: int = 0):
        """Make the objective.

        Args:
            guidance: prepared models, each with a name of its own.
            grad_clip_rgb: bound on each element of the gradient at the rendered image; below 0 none.
            debug_interval: every so many steps ``images`` hold what the guidance saw and wants; 0 never.
        """
        self.guidance = guidance
        self.terms = tuple(f"sds/{model.name}" for model in guidance)
        self.grad_clip_rgb = grad_clip_rgb
        self.needs_loss_scale = grad_clip_rgb > 0
        self.debug_interval = debug_interval

    def applies(self, part: Part, plan: StepPlan) -> bool:
        """See :meth:`Objective.applies`."""
        return part.guided and super().applies(part, plan)

    def __call__(self, out: RenderOutput, batch: Batch, part: Part, plan: StepPlan) -> ObjectiveOutput:
        """See :meth:`Objective.__call__`."""
        image = out.image
        if part.settings.space == "latent":
            # Shaded normals and opacity stand in for the four latent channels while the shape forms (Fantasia3D, sec. 3.2).
            image = torch.cat([image, out.opacity[:, None]], dim=-1)
        assert batch.views is not None, "guidance judges whole images of known cameras"
        pictures = out.as_images(self._clipped(image))
        debug = self.debug_interval > 0 and plan.step % self.debug_interval == 0
        result = ObjectiveOutput()
        for model in (model for model in self.guidance if plan.wants(f"sds/{model.name}")):
            own = part if model is self.guidance[0] else _part_of(model, part)
            answer = model.loss(pictures, batch.views, own, plan.controls[model.name], debug=debug)
            result.terms[f"sds/{model.name}"] = answer.loss
            result.stats.update({f"{model.name}_{name}": value for name, value in answer.stats.items()})
            result.images.update({f"{model.name} {name}": value for name, value in (answer.debug or {}).items()})
            if answer.finite is not None:
                result.finite[f"sds/{model.name}"] = answer.finite
        return result

    def _clipped(self, image: Tensor) -> Tensor:
        if self.grad_clip_rgb <= 0 or not image.requires_grad:
            return image
        image = image.view_as(image)
        bound = self.grad_clip_rgb * self.loss_scale
        image.register_hook(lambda grad: grad.clamp(-bound, bound))
        return image

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        """Optimiser groups of guidance that learns beside the field."""
        return [group for model in self.guidance for group in model.param_groups(lr)]


class PriorGeometry(Objective):
    """Depth and normals that a guidance model expects behind the rendered images, where it sees the object.

    Colours do not tell a hollow from its filling where both look alike; what the model knows of such objects does.
    """

    terms = ("prior_depth", "prior_normal")
    needs_image = True

    def __init__(self, model: Guidance):
        """``model``: prepared."""
        self.model = model

    def applies(self, part: Part, plan: StepPlan) -> bool:
        """See :meth:`Objective.applies`."""
        return part.guided and part.settings.space == "rgb" and super().applies(part, plan)

    def __call__(self, out: RenderOutput, batch: Batch, part: Part, plan: StepPlan) -> ObjectiveOutput:
        """See :meth:`Objective.__call__`."""
        assert batch.views is not None, "guided parts are whole images of known cameras"
        pictures = out.as_images(out.image.detach())
        found = self.model.geometry(pictures, batch.views, part, plan.controls[self.model.name])
        known, depth = found.coverage.flatten() > SURE, found.depth.flatten()
        terms: dict[str, Tensor] = {}
        if plan.wants("prior_depth"):
            terms["prior_depth"] = self._depth(out, depth, known)
        if plan.wants("prior_normal") and out.normal is not None:
            normal = found.normal.movedim(1, -1).reshape(-1, 3)
            terms["prior_normal"] = losses.normal_cosine(out.normal, normal, known & (out.opacity.detach() > COVERED))
        return ObjectiveOutput(terms)

    @staticmethod
    def _depth(out: RenderOutput, depth: Tensor, known: Tensor) -> Tensor:
        """The loss of depths [N]: of all samples of a ray where there are some, else of the one surface that it meets."""
        if out.trace is not None:
            samples = out.trace.samples
            return losses.depth_distribution(out.trace.weights, samples.t, samples.ray_index, depth, known)
        seen = out.depth / out.opacity.clamp(min=MIN_OPACITY)
        return losses.depth_l1(seen, depth, known & (out.opacity.detach() > COVERED))


def _part_of(model: Guidance, part: Part) -> Part:
    """The part with random numbers of a model's own, so that two models do not look at the same timestep and noise."""
    random = Random(derived_seed(part.random.seed, model.name))
    return replace(part, request=replace(part.request, random=random), settings=replace(part.settings, random=random))


class RayRegularisers(Objective):
    """Opacity, entropy and orientation: sums along a ray, means over rays, equal in meaning on every render path."""

    terms = ("opacity", "entropy", "orient")
    sample_terms = ("orient",)

    def __call__(self, out: RenderOutput, batch: Batch, part: Part, plan: StepPlan) -> ObjectiveOutput:
        terms: dict[str, Tensor] = {}
        if plan.wants("opacity"):
            terms["opacity"] = losses.opacity(out.opacity)
        if plan.wants("entropy"):
            terms["entropy"] = losses.entropy(out.opacity)
        trace = out.trace
        if plan.wants("orient") and trace is not None and trace.field.normal is not None:
            directions = batch.rays.directions[trace.samples.ray_index]
            terms["orient"] = losses.orientation(trace.weights, trace.field.normal, directions, len(batch.rays))
        return ObjectiveOutput(terms)


class Smoothness(Objective):
    """Normals that change slowly: across the image (2-D) and between near points of the field (3-D)."""

    terms = ("normal_smooth_2d", "normal_smooth_3d")
    needs_image = True
    sample_terms = ("normal_smooth_3d",)

    def __init__(self, field: Field):
        self.field = field

    def applies(self, part: Part, plan: StepPlan) -> bool:
        """See :meth:`Objective.applies`."""
        return part.shows_object and super().applies(part, plan)

    def __call__(self, out: RenderOutput, batch: Batch, part: Part, plan: StepPlan) -> ObjectiveOutput:
        terms: dict[str, Tensor] = {}
        if out.normal is None:
            return ObjectiveOutput()
        if plan.wants("normal_smooth_2d"):
            terms["normal_smooth_2d"] = losses.normal_smooth_2d(out.as_images(out.normal))
        trace = out.trace
        if plan.wants("normal_smooth_3d") and trace is not None and trace.field.normal is not None:
            at = trace.samples.positions
            rng = part.random.generator(Stream.NORMAL_NEIGHBOURS, at.device)
            noise = torch.randn(at.shape, generator=rng, device=at.device, dtype=at.dtype)
            near = at + NEIGHBOUR_DISTANCE * self.field.bound * noise
            points = replace(points_at(trace.samples, batch.rays), positions=near)
            neighbour = self.field.query(points, part.settings).require("normal")
            terms["normal_smooth_3d"] = losses.normal_smooth_3d(trace.field.normal, neighbour, trace.weights, len(batch.rays))
        return ObjectiveOutput(terms)


class GridRegularisers(Objective):
    """Total variation and weight decay of the encoder's table; they need points of the field and no rays."""

    terms = ("tv", "weight_decay")
    scope = "step"

    def __init__(self, field: Field):
        self.field = field

    def check(self, part: Part, plan: StepPlan) -> None:
        """See :meth:`Objective.check`; a field without a table is refused, too."""
        with torch.no_grad():
            if plan.wants("weight_decay"):
                self.field.weight_decay()
            if plan.wants("tv"):
                self.field.total_variation(torch.Generator())

    def __call__(self, out: RenderOutput, batch: Batch, part: Part, plan: StepPlan) -> ObjectiveOutput:
        terms: dict[str, Tensor] = {}
        if plan.wants("tv"):
            terms["tv"] = self.field.total_variation(part.random.generator(Stream.TOTAL_VARIATION, out.image.device))
        if plan.wants("weight_decay"):
            terms["weight_decay"] = self.field.weight_decay()
        return ObjectiveOutput(terms)


class MeshRegularisers(Objective):
    """A smooth surface: neighbouring triangles that face alike, vertices amid their neighbours, few changes of sign."""

    terms = ("mesh_normal", "mesh_laplacian", "mesh_sign")
    scope = "step"

    def __init__(self, laplacian: str):
        """``laplacian``: "uniform" or "cotangent" weights."""
        self.laplacian = {"uniform": losses.laplacian_uniform, "cotangent": losses.laplacian_cotangent}[laplacian]
        self.steep = laplacian == "uniform"  # triangles with a very small angle count

    def __call__(self, out: RenderOutput, batch: Batch, part: Part, plan: StepPlan) -> ObjectiveOutput:
        terms: dict[str, Tensor] = {}
        surface = out.surface
        if surface is None:
            return ObjectiveOutput()
        if len(surface.faces) > 0 and (plan.wants("mesh_normal") or plan.wants("mesh_laplacian")):
            edges = mesh_edges(surface.vertices, surface.faces, self.steep)
            if plan.wants("mesh_normal"):
                terms["mesh_normal"] = losses.normal_consistency(surface.vertices, surface.faces, edges)
            if plan.wants("mesh_laplacian"):
                terms["mesh_laplacian"] = self.laplacian(surface.vertices, surface.faces, edges)
        if plan.wants("mesh_sign"):
            terms["mesh_sign"] = losses.sdf_sign_entropy(surface.distance, surface.crossing)
        return ObjectiveOutput(terms)


@dataclass(frozen=True)
class ObjectiveInputs:
    """What objectives are built from."""

    run: RunInfo  # the stage with its options, the scene
    field: Field
    guidance: list[Guidance]
    device: torch.device  # where parameters of an objective belong
    appearance: Appearance | None = None  # of the model, where colours depend on it
    recolor: Recolor | None = None  # of the model: what was rendered, in another appearance

    @property
    def stage(self) -> Stage:
        """The stage of the run."""
        return self.run.stage

    @property
    def loss(self) -> LossConfig:
        """The options of the losses."""
        return self.stage.config.loss

    @cached_property
    def occluders(self) -> Occluders | None:
        """What stands before the scene in photographs; one for all objectives, and that of the known views learns it."""
        found = build_occluders(self.stage.config.wild, self.run.scene.num_training)
        return None if found is None else found.to(self.device)


def _guided(inputs: ObjectiveInputs) -> Objective | None:
    options, optim = inputs.stage.config.guidance, inputs.stage.config.optim
    interval = options.save_guidance_interval if options.save_guidance else 0
    return Guided(inputs.guidance, optim.grad_clip_rgb, interval) if inputs.guidance else None


def _prior_geometry(inputs: ObjectiveInputs) -> Objective | None:
    able = [model for model in inputs.guidance if model.knows_geometry]
    return PriorGeometry(able[0]) if able else None


def _known_view(inputs: ObjectiveInputs) -> Objective:
    wanted = inputs.stage.config.data.exposure and inputs.run.scene.num_training > 0
    exposure = Exposure(inputs.run.scene.num_training).to(inputs.device) if wanted else None
    return KnownView(inputs.loss.rgb_loss, inputs.loss.mask_loss, exposure, inputs.occluders)


def _appearance_losses(inputs: ObjectiveInputs) -> Objective | None:
    if inputs.appearance is None or inputs.recolor is None:
        return None
    return AppearanceLosses(inputs.appearance, inputs.recolor)


def _mesh_regularisers(inputs: ObjectiveInputs) -> Objective | None:
    return MeshRegularisers(inputs.stage.config.loss.mesh_laplacian) if inputs.stage.kind.triangles else None


def _surface_regularisers(inputs: ObjectiveInputs) -> Objective | None:
    field = inputs.field
    return SurfaceRegularisers(field, inputs.loss, inputs.run.scene) if isinstance(field, SignedDistanceField) else None


# Name -> builder, in the order of evaluation. A builder returns None where the stage has no such objective. The weights of
# an objective's terms are in ``schedule.TERM_WEIGHTS``.
OBJECTIVES: dict[str, Callable[[ObjectiveInputs], Objective | None]] = {
    "guided": _guided,
    "prior_geometry": _prior_geometry,
    "known_view": _known_view,
    "appearance": _appearance_losses,
    "depth_maps": lambda inputs: DepthMaps(inputs.run.scene.num_images, inputs.occluders),
    "ray_regularisers": lambda inputs: RayRegularisers(),
    "smoothness": lambda inputs: Smoothness(inputs.field),
    "grid_regularisers": lambda inputs: GridRegularisers(inputs.field),
    "mesh_regularisers": _mesh_regularisers,
    "distortion": lambda inputs: Distortion(),
    "surface_regularisers": _surface_regularisers,
}


def build(inputs: ObjectiveInputs) -> dict[str, Objective]:
    """The objectives of a stage by name, in the order in which they are evaluated."""
    built = {name: make(inputs) for name, make in OBJECTIVES.items()}
    return {name: objective for name, objective in built.items() if objective is not None}
