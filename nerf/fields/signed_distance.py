"""Base of the fields whose geometry is a signed distance (NeuS, Wang et al. 2021): opacity, gradients, colour, first shape.

M points, C features. Distances are scene units, negative inside; the sharpness is the inverse width of the surface, per
scene unit.
"""

import math
from abc import abstractmethod
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

import mlp
from nerf.config.groups import FieldConfig
from nerf.core.activation import unit
from nerf.core.structs import AppearanceCodes, FieldOutput, LevelSet, Points, RenderSettings, Samples, SceneInfo
from nerf.fields.appearance import HEARD, HeardAppearance, Tint
from nerf.fields.base import Field
from nerf.fields.encoding import make_encoder
from nerf.fields.opacity import annealed_slope, light_before, sdf_to_alpha, section_alpha
from nerf.fields.shapes import first_shape, fit_shape
from nerf.fields.surface_health import surface_troubles
from nerf.fields.taps import TAPS, differences

SOFTPLUS = 100.0  # beta of the activation ``log(1 + exp(beta x)) / beta``: smooth within a hundredth
SHARPNESS_SCALE = 10.0  # sharpness = exp(10 v): a step of v by the learning rate changes it by a few per cent
MAX_SHARPNESS = 1e6
COLOUR_DEGREE = 4  # of the spherical harmonics of the direction
UPSAMPLING_SHARPNESS = 64.0  # of the first round of up-sampling; each other one has twice that of the one before
UPSAMPLING_ROUNDS = 4
# Evaluation leaves out steps whose opacity is at most NEGLIGIBLE from any direction. One distance answers for GROUP neighbours
# as far as the surface is off by STEEPEST times their distance: learned gradients are rarely longer (99.9 % are below 1.6).
NEGLIGIBLE, GROUP, STEEPEST = 1e-4, 8, 2.0
# It leaves out what less of the light reaches, too: well below what ends a ray, as gradients of more than unit length make the
# surface seem steeper from its distances than it counts as.
HIDDEN = 1e-6


class SurfaceColour(nn.Module):
    """Colour of a point of a surface: a diffuse part from its features, and an offset of its logit that sees the direction.

    The offset is zero before training: a network of the features, the spherical harmonics of the direction and the unit normal,
    as in Instant NeuS. The diffuse part stays meaningful because some training rays show it alone
    (``render.base.sample_colours``).

    Args:
        features: C.
        hidden: width of the network.
        layers: hidden layers.
        appearance: numbers of an appearance vector; 0: there is none.
        local: the offset hears it, too; see :class:`nerf.fields.appearance.Tint`.
    """

    def __init__(self, features: int, hidden: int, layers: int = 2, appearance: int = 0, local: bool = False):
        super().__init__()
        self.diffuse = nn.Linear(features, 3)
        self.tint = Tint(features, appearance, local) if appearance else None
        self.heard = HeardAppearance(appearance) if appearance and local else None
        self.directions = make_encoder("sh", input_dim=3, degree=COLOUR_DEGREE)
        inputs = features + self.directions.output_dim + 3 + (0 if self.heard is None else HEARD)
        widths = [inputs] + [hidden] * layers
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in zip(widths[:-1], widths[1:], strict=True))
        self.out = nn.Linear(hidden, 3)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(
        self, features: Tensor, normal: Tensor, directions: Tensor | None, appearance: AppearanceCodes | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Diffuse colour [M, 3] and, with unit directions [M, 3], that seen from there [M, 3]. Differentiable.

        Args:
            features: [M, C].
            normal: [M, 3] unit normals.
            directions: [M, 3] of the rays, or None.
            appearance: of the points.
        """
        diffuse = self.diffuse(features)
        if self.tint is not None:
            diffuse = self.tint(features, diffuse, appearance)
        if directions is None:
            return torch.sigmoid(diffuse), None
        seen = [features, self.directions(directions), normal]
        if self.heard is not None:
            seen.append(self.heard(appearance, features))
        inputs = torch.cat(seen, dim=-1)
        layers: list[Any] = list(self.hidden)
        offset = self.out(mlp.features(inputs, [one.weight for one in layers], [one.bias for one in layers]))
        return torch.sigmoid(diffuse), torch.sigmoid(diffuse + offset)


class SignedDistanceField(Field):
    """A field whose geometry is a signed distance; subclasses provide the networks.

    Args:
        config: the field options: the sharpness and its schedule, the gradient, the first shape.
        scene: bound of the box.
        features: C, width of what :meth:`trunk` returns beside the distance.
        colour_layers: hidden layers of the colour network.
        colour_hidden: their width; None: that of the options.

    Parameters: ``variance`` [], a tenth of the sharpness's logarithm; a buffer where the sharpness is scheduled.
    """

    upsampling_rounds = UPSAMPLING_ROUNDS
    occupancy_decay = 0.5  # one distance answers for all of a cell, so that what was there before is soon forgotten
    fit_rate = 5e-3  # learning rate of the first shape
    variance: Tensor

    def __init__(
        self,
        config: FieldConfig,
        scene: SceneInfo,
        features: int,
        colour_layers: int = 2,
        colour_hidden: int | None = None,
    ):
        super().__init__()
        self.config, self.bound = config, float(scene.bound)
        self.shape = first_shape(config, scene)
        self.scheduled = config.sharpness == "scheduled"
        start = torch.tensor(math.log(config.sharpness_start) / SHARPNESS_SCALE)
        if self.scheduled:
            self.register_buffer("variance", start)
        else:
            self.variance = nn.Parameter(start)
        self.gradient_kind = "analytic" if config.sdf_gradient == "auto" else config.sdf_gradient
        width = colour_hidden or config.colour_hidden
        self.colour = SurfaceColour(features, width, colour_layers, scene.appearance, scene.local_light)

    # ---- what subclasses provide ----

    @abstractmethod
    def trunk(self, positions: Tensor, max_level: float) -> tuple[Tensor, Tensor]:
        """Signed distance [M] and features [M, C] at positions [M, 3]; levels above ``max_level`` are off. Differentiable."""

    @abstractmethod
    def trunk_with_gradient(self, positions: Tensor, max_level: float) -> tuple[Tensor, Tensor, Tensor]:
        """What :meth:`trunk` returns, and the gradient [M, 3] of the distance in space; differentiable in the parameters."""

    @abstractmethod
    def geometry_parameters(self) -> list[nn.Parameter]:
        """The parameters that the distance depends on."""

    def distance(self, positions: Tensor, max_level: float = 1.0) -> Tensor:
        """Signed distance [M] at positions [M, 3]; scene units, negative inside. Differentiable."""
        return self.trunk(positions, max_level)[0]

    def first_level(self) -> float:
        """Share of the encoder's levels that is on at the first step."""
        return 1.0

    def taps_reach(self, max_level: float) -> float:
        """Distance of the points that finite differences look at, scene units."""
        return self.config.sdf_taps_reach * 1e-2 * self.bound

    # ---- the field interface ----

    @property
    def sharpness(self) -> Tensor:
        """Inverse width [] of the surface, per scene unit. Differentiable."""
        return (SHARPNESS_SCALE * self.variance).exp().clamp(max=MAX_SHARPNESS)

    def begin_step(self, fraction: float) -> None:
        """Set the sharpness of this training progress, where it is scheduled: linear from its start to its end (Voxurf)."""
        if self.scheduled:
            start, end = self.config.sharpness_start, self.config.sharpness_end
            self.variance.fill_(math.log(start + fraction * (end - start)) / SHARPNESS_SCALE)

    def _evaluate(self, positions: Tensor, max_level: float) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Distance [M], features [M, C], gradient [M, 3], and the Laplacian [M] where finite differences give it too."""
        with torch.autocast(positions.device.type, enabled=False):  # distances of a cell need 24 bits
            if self.gradient_kind == "analytic":
                return *self.trunk_with_gradient(positions, max_level), None
            sdf, features = self.trunk(positions, max_level)
            gradient, laplacian = self.differences(positions, sdf, max_level)
        return sdf, features, gradient, laplacian

    def differences(self, positions: Tensor, sdf: Tensor, max_level: float) -> tuple[Tensor, Tensor]:
        """Gradient [M, 3] and Laplacian [M] by finite differences of points around; differentiable in the parameters.

        Args:
            positions: [M, 3].
            sdf: [M] distance there.
            max_level: see :meth:`trunk`.
        """
        kind = self.gradient_kind if self.gradient_kind in TAPS else "taps4"
        reach = self.taps_reach(max_level)
        return differences(lambda at: self.distance(at, max_level), positions, sdf, kind, reach, self.bound)

    def query(self, points: Points, settings: RenderSettings) -> FieldOutput:
        """Distance [M], its gradient [M, 3] and colours [M, 3]; see :meth:`Field.query`.

        Raises:
            ValueError: the settings ask for view-dependent colour and the points have no directions.
        """
        sdf, features, gradient, laplacian = self._evaluate(points.positions, settings.max_level)
        normal = unit(gradient)
        if settings.view_dependent and points.directions is None:
            raise ValueError("Field.query: view-dependent colour needs Points with directions [M, 3], got None")
        albedo, rgb = self._colours(features, normal, points, settings)
        shown = normal if settings.computes_normals else None
        kept = None if points.appearance is None else features
        return FieldOutput(sdf=sdf, gradient=gradient, laplacian=laplacian, albedo=albedo, normal=shown, rgb=rgb, features=kept)

    def recolored(self, output: FieldOutput, points: Points, settings: RenderSettings) -> FieldOutput:
        """See :meth:`Field.recolored`."""
        normal = unit(output.require("gradient")).detach()
        albedo, rgb = self._colours(output.require("features").detach(), normal, points, settings)
        return replace(output, albedo=albedo, rgb=rgb)

    def _colours(
        self, features: Tensor, normal: Tensor, points: Points, settings: RenderSettings
    ) -> tuple[Tensor, Tensor | None]:
        """Diffuse colour [M, 3] and, where the settings ask for it, that seen from the points' directions [M, 3]."""
        return self.colour(features, normal, points.directions if settings.view_dependent else None, points.appearance)

    def geometry(self, points: Points, settings: RenderSettings) -> FieldOutput:
        """Distance [M] and its gradient [M, 3]; see :meth:`Field.geometry`."""
        sdf, _, gradient, laplacian = self._evaluate(points.positions, settings.max_level)
        return FieldOutput(sdf=sdf, gradient=gradient, laplacian=laplacian)

    def opacity(self, output: FieldOutput, points: Points, dt: Tensor, settings: RenderSettings) -> Tensor:
        """Opacity [M] in [0, 1], see :func:`nerf.fields.opacity.sdf_to_alpha`; without directions, of rays along the normal.

        Differentiable in distance, gradient and sharpness.
        """
        slope: Tensor | float = -1.0
        if points.directions is not None:
            cosine = (unit(output.require("gradient")) * points.directions).sum(-1)
            annealing = self.config.cos_anneal
            slope = annealed_slope(cosine, min(1.0, settings.fraction / annealing) if annealing > 0 else 1.0)
        return sdf_to_alpha(output.require("sdf"), slope, dt, self.sharpness)

    @torch.no_grad()
    def may_be_seen(self, samples: Samples, settings: RenderSettings) -> Tensor | None:
        """Steps that are neither far outside nor behind the surface, by distances alone; see :meth:`Field.may_be_seen`."""
        positions, dt = samples.positions, samples.dt
        if len(positions) == 0:
            return torch.zeros(0, dtype=torch.bool, device=positions.device)
        sharpness, longest = self.sharpness, dt.max()
        # The opacity of a step along the normal is below exp(-sharpness (f - dt / 2)): softplus(-x) <= exp(-x).
        far = 0.5 * longest - math.log(NEGLIGIBLE) / sharpness
        near = (torch.arange(len(positions), device=positions.device) // GROUP * GROUP + GROUP // 2).clamp(
            max=len(positions) - 1
        )
        first = self.distance(positions[GROUP // 2 :: GROUP], settings.max_level)
        if len(first) * GROUP < len(positions):  # the last group has no middle
            first = torch.cat([first, self.distance(positions[-1:], settings.max_level)])
        apart = (positions - positions[near]).norm(dim=-1)
        seen = ~(first.repeat_interleave(GROUP)[: len(positions)] - STEEPEST * apart > far)
        close = seen.nonzero()[:, 0]
        sdf = self.distance(positions[close], settings.max_level)
        light = light_before(sdf, samples.t[close], dt[close], samples.ray_index[close], sharpness)
        seen[close] = ~(sdf > far) & ~(light < math.log(HIDDEN))  # NaN is seen
        return seen

    def longest_step(self) -> float | None:
        """The width of the surface; see :meth:`Field.longest_step`. Opacity is exact for any step where the distance is linear,
        so that only colours have to be resolved."""
        return 1.0 / float(self.sharpness.detach())

    def section_value(self, points: Points, settings: RenderSettings) -> Tensor:
        """Distance [M]; see :meth:`Field.section_value`."""
        return self.distance(points.positions, settings.max_level)

    def section_opacity(self, values: Tensor, t: Tensor, number: int) -> Tensor:
        """Opacity [n, S - 1] for a sharpness that doubles with the round; see :meth:`Field.section_opacity`."""
        return section_alpha(values, t, UPSAMPLING_SHARPNESS / self.bound * 2.0**number)

    @torch.no_grad()
    def occupancy(self, positions: Tensor, dt: float, reach: Tensor | float = 0.0) -> Tensor:
        """Opacity [M] of steps of length dt along the normal, anywhere within ``reach``; see :meth:`Field.occupancy`."""
        sdf = self.distance(positions)
        nearest = sdf.sign() * (sdf.abs() - reach).clamp(min=0.0)
        return sdf_to_alpha(nearest, -1.0, dt, self.sharpness)

    def level_set(self, threshold: float) -> LevelSet:
        """The points at distance zero, whatever the threshold; see :meth:`Field.level_set`."""
        return LevelSet(value=torch.no_grad()(self.distance), level=0.0, inside="below", logarithmic=False)

    def initialize(self, scene: SceneInfo, generator: torch.Generator) -> str | None:
        """Fit the first shape, see :func:`nerf.fields.shapes.first_shape`."""
        if self.config.sdf_init_steps == 0:
            return None
        error = fit_shape(self, self.shape, self.config.sdf_init_steps, generator)
        return f"the signed distance begins as {self.shape.name}, {100 * error:.2g} % of the bound off on average"

    def troubles(self, fraction: float) -> list[str]:
        """See :func:`nerf.fields.surface_health.surface_troubles`."""
        return surface_troubles(self, fraction)

    def _groups(self, lr: float, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Optimiser groups of the networks, and of the sharpness where it is learned."""
        if self.scheduled:
            return groups
        return [*groups, {"params": [self.variance], "lr": self.config.sharpness_lr * lr, "name": "sharpness"}]
