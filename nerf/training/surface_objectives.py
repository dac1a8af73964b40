"""Objectives of signed distances, and of weights along rays. N rays, M samples, K random points of the box."""

import torch
from torch import Tensor

from nerf.config.losses import LossConfig
from nerf.core.activation import unit
from nerf.core.streams import Stream
from nerf.core.structs import Batch, Part, Points, RenderOutput, SceneInfo, StepPlan, Trace
from nerf.fields.signed_distance import SignedDistanceField
from nerf.training import surface_losses
from nerf.training.objective import Objective, ObjectiveOutput

TANGENT_STEP = 1e-4  # to the second point of the curvature by angles, as a share of the bound (PermutoSDF)
CLOUD_POINTS = 1024  # points of the reconstruction that a step looks at


class Distortion(Objective):
    """Compact weights along each ray, of the object and of a background that is marched."""

    terms = ("distortion", "distortion_bg")
    sample_terms = ("distortion",)

    def __call__(self, out: RenderOutput, batch: Batch, part: Part, plan: StepPlan) -> ObjectiveOutput:
        """See :meth:`Objective.__call__`."""
        traces = {"distortion": out.trace, "distortion_bg": out.behind_trace}
        return ObjectiveOutput({name: _distortion(trace) for name, trace in traces.items() if trace and plan.wants(name)})


def _distortion(trace: Trace) -> Tensor:
    samples = trace.samples
    return surface_losses.distortion(trace.weights, samples.t, samples.dt, samples.first, samples.count)


class SurfaceRegularisers(Objective):
    """What makes a signed distance one: eikonal, curvature, few surfaces, and points of the reconstruction on it.

    Args:
        field: a signed distance.
        options: of the losses: forms, number of random points, scale.
        scene: may hold points of the reconstruction.
    """

    terms = ("eikonal", "sparsity", "off_surface", "curvature", "points")
    sample_terms = ("eikonal", "sparsity", "off_surface", "curvature", "points")

    def __init__(self, field: SignedDistanceField, options: LossConfig, scene: SceneInfo):
        self.field, self.options, self.cloud = field, options, scene.points

    def __call__(self, out: RenderOutput, batch: Batch, part: Part, plan: StepPlan) -> ObjectiveOutput:
        """See :meth:`Objective.__call__`; nothing where triangles are rendered, which train no distance of the field."""
        if out.trace is None:
            return ObjectiveOutput()
        terms: dict[str, Tensor] = {}
        valid = slice(None) if out.trace.samples.t.device.type == "cpu" else out.trace.samples.valid_mask
        sdf, gradient = out.trace.field.require("sdf")[valid], out.trace.field.require("gradient")[valid]
        if plan.wants("eikonal") or plan.wants("off_surface"):
            somewhere = self.field.geometry(self._box_points(part, out.image), part.settings)
            if plan.wants("eikonal"):
                terms["eikonal"] = surface_losses.eikonal(torch.cat([gradient, somewhere.require("gradient")]))
            if plan.wants("off_surface"):
                terms["off_surface"] = surface_losses.near_surface(somewhere.require("sdf"), self.options.sparsity_scale)
        if plan.wants("sparsity"):
            terms["sparsity"] = surface_losses.near_surface(sdf, self.options.sparsity_scale)
        if plan.wants("curvature"):
            terms["curvature"] = self._curvature(out.trace, part)
        if plan.wants("points") and self.cloud is not None:
            terms["points"] = surface_losses.surface_points(
                self.field.distance(self._cloud_points(part), part.settings.max_level)
            )
        return ObjectiveOutput(terms, {"inv_s": self.field.sharpness.detach()})

    def _box_points(self, part: Part, like: Tensor) -> Points:
        """K random points of the box."""
        generator = part.random.generator(Stream.BOX_POINTS, like.device)
        at = torch.rand(self.options.eikonal_points, 3, generator=generator, device=like.device, dtype=like.dtype)
        return Points((2.0 * at - 1.0) * self.field.bound)

    def _cloud_points(self, part: Part) -> Tensor:
        """Some points [P, 3] of the reconstruction."""
        assert self.cloud is not None
        generator = part.random.generator(Stream.CLOUD_POINTS)
        chosen = torch.randint(len(self.cloud), (CLOUD_POINTS,), generator=generator)
        return self.cloud[chosen].to(next(self.field.parameters()).device)

    def _curvature(self, trace: Trace, part: Part) -> Tensor:
        """The curvature loss at the samples, in the form that the options ask for."""
        output, positions, level = trace.field, trace.samples.positions, part.settings.max_level
        gradient = output.require("gradient")
        if self.options.curvature == "laplacian":
            laplacian = output.laplacian
            if laplacian is None:
                laplacian = self.field.differences(positions, output.require("sdf"), level)[1]
            return surface_losses.curvature_laplacian(laplacian)
        normal = unit(gradient)
        generator = part.random.generator(Stream.TANGENTS, positions.device)
        noise = torch.randn(positions.shape, generator=generator, device=positions.device, dtype=positions.dtype)
        tangent = unit(torch.linalg.cross(normal.detach(), noise))
        beside = (positions + TANGENT_STEP * self.field.bound * tangent).clamp(-self.field.bound, self.field.bound)
        neighbour = self.field.geometry(Points(beside), part.settings)
        return surface_losses.curvature_angle(normal, unit(neighbour.require("gradient")))
