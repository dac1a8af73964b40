"""The field interface, as render paths, the occupancy grid and mesh extraction use it. M points."""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from nerf.core.errors import UserError
from nerf.core.structs import AppearanceCodes, FieldOutput, LevelSet, Points, RenderSettings, Samples, SceneInfo
from nerf.fields.opacity import density_to_alpha

# Points of one query where no gradients are needed, so that the temporaries of a field stay small.
NO_GRID = (
    "--lambda_tv and --lambda_wd regularise a feature grid, which this backbone lacks; set both to 0 or use --backbone grid"
)
QUERY_CHUNK = 1 << 17


class Field(nn.Module, ABC):
    """Geometry and colour at points of the box [-bound, bound]^3.

    Attributes:
        bound: half the edge of the box, in scene units.
    """

    bound: float
    # Rounds in which the plain path draws its fine samples; above one, each draws by :meth:`section_opacity`.
    upsampling_rounds = 1
    # A cell of the occupancy grid keeps the largest alpha sampled so far, decayed by this factor each time it is sampled again.
    occupancy_decay = 0.95

    def begin_step(self, fraction: float) -> None:
        """Set what follows the training progress in [0, 1] and is no parameter. By default nothing."""

    def initialize(self, scene: SceneInfo, generator: torch.Generator) -> str | None:
        """Put a first shape into a field that has just been made.

        Args:
            scene: what is known of it.
            generator: on the CPU.

        Returns:
            A line for the log, or None where nothing was done, as by default.
        """
        return None

    def troubles(self, fraction: float) -> list[str]:
        """What is wrong with what was learned so far, as sentences with what to try; by default nothing is looked at.

        Args:
            fraction: training progress in [0, 1].
        """
        return []

    @abstractmethod
    def query(self, points: Points, settings: RenderSettings) -> FieldOutput:
        """Evaluate the field at M points, which may be none.

        Args:
            points: positions [M, 3]; on rays also their directions, image indices and pixel positions.
            settings: decide whether normals and view-dependent colours are computed, and ``max_level``.

        Returns:
            Density or signed distance, albedo, and what the settings ask for. Differentiable in the field's parameters,
            normals included. Normals are computed under ``torch.no_grad`` as well.
        """

    def geometry(self, points: Points, settings: RenderSettings) -> FieldOutput:
        """What :meth:`opacity` needs of M points, without colours: the search for visible samples uses nothing else.

        By default the whole of :meth:`query`.
        """
        return self.query(points, settings)

    def recolored(self, output: FieldOutput, points: Points, settings: RenderSettings) -> FieldOutput:
        """The same geometry at M points that were queried, with the colours of another appearance.

        Args:
            output: of :meth:`query` at the points, in whatever appearance.
            points: with the other one.
            settings: those of the query.

        Returns:
            ``output`` with other colours, differentiable in what colours alone depend on and in the appearance.
        """
        raise NotImplementedError(f"{type(self).__name__} has no colours that depend on an appearance")

    @abstractmethod
    def opacity(self, output: FieldOutput, points: Points, dt: Tensor, settings: RenderSettings) -> Tensor:
        """Opacity of the steps around M points.

        Args:
            output: of :meth:`query` or :meth:`geometry` at the points.
            points: the M points.
            dt: [M] length of the steps, scene units.
            settings: those of the query.

        Returns:
            [M] in [0, 1]; differentiable in ``output`` and in parameters that only the opacity depends on.
        """

    def may_be_seen(self, samples: Samples, settings: RenderSettings) -> Tensor | None:
        """Which of M steps may have an opacity at all, from whatever direction they are seen, and be reached by light.

        Evaluation computes no gradients and no colours of the others.

        Args:
            samples: M steps, those of a ray next to one another and front to back.
            settings: those of the query.

        Returns:
            bool [M], or None where the answer costs as much as the query, as by default. Not differentiable.
        """
        return None

    @abstractmethod
    def occupancy(self, positions: Tensor, dt: float, reach: Tensor | float = 0.0) -> Tensor:
        """Opacity of a step at each position, in any direction, for the occupancy grid.

        Args:
            positions: [M, 3] scene units.
            dt: length of the steps, scene units.
            reach: [M] or one number: how far from a position the rest of its cell extends; a field that knows how near its
                surface is answers for all of the cell, others ignore it.

        Returns:
            [M] in [0, 1]; not differentiable.
        """

    @abstractmethod
    def level_set(self, threshold: float) -> LevelSet:
        """The field's surface, for mesh extraction.

        Args:
            threshold: density at the surface; fields whose surface does not depend on a density ignore it.
        """

    def longest_step(self) -> float | None:
        """Longest step of a march that still resolves the field everywhere, scene units; None: there is none.

        Waits for a GPU.
        """
        return None

    def section_value(self, points: Points, settings: RenderSettings) -> Tensor:
        """What :meth:`section_opacity` needs of M points: [M], for fields with several rounds of up-sampling."""
        raise NotImplementedError(f"{type(self).__name__} is sampled in one round")

    def section_opacity(self, values: Tensor, t: Tensor, number: int) -> Tensor:
        """Opacity [n, S - 1] of the sections between samples, in a round of up-sampling.

        Args:
            values: [n, S] of :meth:`section_value` at the samples.
            t: [n, S] distances along the rays, ascending.
            number: of the round, from 0.
        """
        raise NotImplementedError(f"{type(self).__name__} is sampled in one round")

    def albedo(self, positions: Tensor, appearance: AppearanceCodes | None = None) -> Tensor:
        """Diffuse colour [M, 3] in [0, 1] at positions [M, 3], as baked into textures, in an appearance if there are some."""
        points = Points(positions, appearance=appearance)
        return self.query(points, RenderSettings(source="eval", training=False)).require("albedo")

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        """Optimiser groups (params, lr, name) of all parameters.

        Args:
            lr: base learning rate; a field may train some of its parameters faster.
        """
        return [{"params": list(self.parameters()), "lr": lr, "name": "field"}]

    def total_variation(self, generator: torch.Generator) -> Tensor:
        """Total variation [] of the encoder's table near random points, for fields that have one. Differentiable.

        Raises:
            UserError: this field has no table.
        """
        raise UserError(NO_GRID)

    def weight_decay(self) -> Tensor:
        """Mean square [] of the encoder's table, for fields that have one. Differentiable.

        Raises:
            UserError: this field has no table.
        """
        raise UserError(NO_GRID)


class DensityField(Field):
    """A field whose geometry is a volume density; subclasses implement :meth:`density` and :meth:`query`."""

    @abstractmethod
    def density(self, positions: Tensor, max_level: float = 1.0) -> Tensor:
        """Density at positions.

        Args:
            positions: [M, 3] scene units.
            max_level: fraction of the encoder's levels that is active.

        Returns:
            [M] extinction per scene unit; differentiable in parameters and positions.
        """

    def geometry(self, points: Points, settings: RenderSettings) -> FieldOutput:
        """Density [M] alone; see :meth:`Field.geometry`."""
        return FieldOutput(density=self.density(points.positions, settings.max_level))

    def opacity(self, output: FieldOutput, points: Points, dt: Tensor, settings: RenderSettings) -> Tensor:
        """Opacity [M] in [0, 1], see :func:`nerf.fields.opacity.density_to_alpha`. Differentiable."""
        return density_to_alpha(output.require("density"), dt)

    @torch.no_grad()
    def occupancy(self, positions: Tensor, dt: float, reach: Tensor | float = 0.0) -> Tensor:
        """Opacity [M] of steps of length dt at positions [M, 3]; see :meth:`Field.occupancy`."""
        return density_to_alpha(self.density(positions), dt)

    def level_set(self, threshold: float) -> LevelSet:
        """The points where the density equals ``threshold``; see :meth:`Field.level_set`."""
        return LevelSet(value=torch.no_grad()(self.density), level=threshold)
