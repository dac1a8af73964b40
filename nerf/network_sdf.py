"""The signed distance on a hash grid (Instant NeuS). M points, C features, L levels."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import mlp
from mlp import reference as mlp_reference
from nerf.config.groups import FieldConfig
from nerf.core.structs import SceneInfo
from nerf.fields.encoding import make_encoder
from nerf.fields.signed_distance import SOFTPLUS, SignedDistanceField

FEATURES = 13  # that the colour sees, the distance itself among them
TABLE_RATE = 2.0  # learning rate of the table relative to the networks


def sphere_weights_(
    first: nn.Linear, hidden: list[nn.Linear], out: nn.Linear, radius: float, inside_out: bool = False, coordinates: int = 3
) -> None:
    """Draw weights for which a smooth ReLU network is near the distance from a sphere (SAL, Atzmon and Lipman 2020, thm. 1).

    Args:
        first: its columns behind the coordinates begin at zero.
        hidden: the layers between.
        out: its first row is the distance.
        radius: of the sphere, in units of the bound.
        inside_out: its outside is solid.
        coordinates: columns of the first layer that are positions in units of the bound.
    """
    with torch.no_grad():
        for layer in (first, *hidden):
            nn.init.normal_(layer.weight, 0.0, math.sqrt(2.0 / layer.out_features))
            nn.init.zeros_(layer.bias)
        first.weight[:, coordinates:] = 0.0
        sign = -1.0 if inside_out else 1.0
        nn.init.normal_(out.weight[:1], sign * math.sqrt(math.pi / out.in_features), 1e-4)
        out.bias[0] = -sign * radius


class SdfField(SignedDistanceField):
    """Hash grid and position, then a network of softplus layers whose output is the distance and the features.

    Args:
        config: the field options: those of the hash grid, hidden, layers (linear ones, the output included), and those of
            :class:`SignedDistanceField`.
        scene: see :class:`SignedDistanceField`.
    """

    def __init__(self, config: FieldConfig, scene: SceneInfo):
        super().__init__(config, scene, FEATURES)
        self.encoder = make_encoder(
            "grid",
            input_dim=3,
            num_levels=config.levels,
            level_dim=config.level_dim,
            base_resolution=config.base_resolution,
            desired_resolution=config.finest_resolution,
            log2_hashmap_size=config.log2_hashmap_size,
            interpolation="smoothstep",
        )
        widths = [3 + self.encoder.output_dim] + [config.hidden] * max(config.layers - 1, 1)
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(widths[:-1], widths[1:], strict=True))
        self.out = nn.Linear(config.hidden, FEATURES)
        self._padding = -widths[0] % mlp.WIDTH_STEP
        first, *hidden = self._hidden()
        sphere_weights_(first, hidden, self.out, config.sdf_radius, config.sdf_init == "inside_out")

    def _hidden(self) -> list[nn.Linear]:
        layers: list[Any] = list(self.layers)
        return layers

    def first_level(self) -> float:
        """See :meth:`SignedDistanceField.first_level`."""
        start = self.config.level_start
        return min(start / self.config.levels, 1.0) if start else 1.0

    def taps_reach(self, max_level: float) -> float:
        """See :meth:`SignedDistanceField.taps_reach`: cells of the finest level that is on."""
        layout = self.encoder.layout
        cell = 2.0 * self.bound / layout.resolutions[layout.active_levels(max_level) - 1]
        return self.config.sdf_taps_reach * cell

    def trunk(self, positions: Tensor, max_level: float) -> tuple[Tensor, Tensor]:
        """See :meth:`SignedDistanceField.trunk`; differentiable twice."""
        out = self.out(self._network(positions, max_level))
        return out[:, 0] * self.bound, out

    def distance(self, positions: Tensor, max_level: float = 1.0) -> Tensor:
        """See :meth:`SignedDistanceField.distance`."""
        hidden = self._network(positions, max_level)
        return functional.linear(hidden, self.out.weight[:1], self.out.bias[:1])[:, 0] * self.bound

    def _inputs(self, positions: Tensor, encoded: Tensor) -> Tensor:
        """Positions in units of the bound, their encoding, and zeros up to a width that the fused network has: [M, I]."""
        nothing = positions.new_zeros(len(positions), self._padding)
        return torch.cat([positions / self.bound, encoded, nothing], dim=-1)

    def _weights(self) -> tuple[list[Tensor], list[Tensor]]:
        """Matrices and biases of the hidden layers, as :mod:`mlp` takes them."""
        first, *others = self._hidden()
        padded = functional.pad(first.weight, (0, self._padding))
        return [padded, *(layer.weight for layer in others)], [layer.bias for layer in (first, *others)]

    def _network(self, positions: Tensor, max_level: float) -> Tensor:
        """Output [M, hidden] of the last hidden layer; differentiable twice where positions require a gradient."""
        encoded = self.encoder(positions, bound=self.bound, max_level=max_level)
        network = mlp_reference.features if positions.requires_grad else mlp.features
        return network(self._inputs(positions, encoded), *self._weights(), SOFTPLUS)

    def trunk_with_gradient(self, positions: Tensor, max_level: float) -> tuple[Tensor, Tensor, Tensor]:
        """See :class:`SignedDistanceField`; by the chain rule, as the encoder's Jacobian comes cheaply with its values.

        No gradient flows to the positions, so the encoder's second derivative along them is never computed.
        """
        encoded, pullback = self.encoder.value_and_pullback(positions, bound=self.bound, max_level=max_level)
        x, end = self._inputs(positions, encoded), 3 + encoded.shape[1]
        hidden, slope = mlp.features_and_slope(x, *self._weights(), self.out.weight[0], SOFTPLUS)
        out = self.out(hidden)
        return out[:, 0] * self.bound, out, slope[:, :3] + self.bound * pullback(slope[:, 3:end].contiguous())

    def geometry_parameters(self) -> list[nn.Parameter]:
        """See :meth:`SignedDistanceField.geometry_parameters`."""
        return [*self.encoder.parameters(), *self.layers.parameters(), *self.out.parameters()]

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        """Optimiser groups "encoder", at twice ``lr``, "network" and "sharpness"; see :meth:`Field.param_groups`."""
        networks = [*self.layers.parameters(), *self.out.parameters(), *self.colour.parameters()]
        groups = [
            {"params": list(self.encoder.parameters()), "lr": TABLE_RATE * lr, "name": "encoder"},
            {"params": networks, "lr": lr, "name": "network"},
        ]
        return self._groups(lr, groups)

    def total_variation(self, generator: torch.Generator) -> Tensor:
        """Total variation [] of the table near random points of the box; see :meth:`GridEncoder.total_variation`."""
        return self.encoder.total_variation(bound=self.bound, generator=generator)

    def weight_decay(self) -> Tensor:
        """Mean square [] of the table; see :meth:`GridEncoder.weight_decay`."""
        return self.encoder.weight_decay()
