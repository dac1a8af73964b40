"""Fields: what is at a point. The interface, and what the neural fields of this project share. M points."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from nerf.core.errors import UserError
from nerf.core.structs import FieldOutput, Points, RenderSettings


class Field(nn.Module, ABC):
    """What is at a point of the box [-bound, bound]^3.

    Attributes:
        bound: half the edge of the box, in scene units.
    """

    bound: float

    @abstractmethod
    def query(self, points: Points, settings: RenderSettings) -> FieldOutput:
        """Density, albedo and, where the settings ask for them, normals and view-dependent colour at M points.

        Differentiable in the field's parameters, normals included; ``torch.no_grad`` does not keep normals from coming.
        """

    @abstractmethod
    def density(self, positions: Tensor, max_level: float = 1.0) -> Tensor:
        """Density [M] at positions [M, 3], per scene unit. Differentiable in parameters and positions."""

    def albedo(self, positions: Tensor) -> Tensor:
        """Diffuse colour [M, 3] in [0, 1] at positions [M, 3]: what an exported texture holds."""
        return self.query(Points(positions), RenderSettings(source="eval", training=False)).albedo

    def to_alpha(self, output: FieldOutput, dt: Tensor) -> Tensor:
        """Opacity [M] of steps dt [M] through what ``query`` found, ``1 - exp(-density dt)`` (NeRF, eq. 3)."""
        return -torch.expm1(-output.density * dt)

    def alpha(self, points: Points, dt: Tensor, settings: RenderSettings) -> Tensor:
        """Opacity [M] of steps of length dt [M] around the points, without colours or normals."""
        return -torch.expm1(-self.density(points.positions, settings.max_level) * dt)

    @torch.no_grad()
    def occupancy(self, positions: Tensor) -> Tensor:
        """A density-like value [M] at positions [M, 3] for the occupancy grid. Not differentiable."""
        return self.density(positions)

    def param_groups(self, lr: float) -> list[dict]:
        """Parameters with their learning rates, as an optimiser wants them: dicts of params, lr and name."""
        return [{"params": list(self.parameters()), "lr": lr, "name": "field"}]

    def total_variation(self, generator: torch.Generator) -> Tensor:
        """Total variation of the encoder's table near random points; a grid backbone has one.

        Raises:
            UserError: this field has no table.
        """
        raise UserError("lambda_tv: this backbone has no feature grid; set --lambda_tv 0 or --backbone grid")

    def weight_decay(self) -> Tensor:
        """Mean square of the encoder's table; a grid backbone has one.

        Raises:
            UserError: this field has no table.
        """
        raise UserError("lambda_wd: this backbone has no feature grid; set --lambda_wd 0 or --backbone grid")
