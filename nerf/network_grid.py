"""The default backbone: a multiresolution hash grid and a small network (Instant-NGP, sec. 3). M points."""

from dataclasses import asdict
from typing import Any, cast

import torch
from torch import Tensor, nn

import mlp
from nerf.config.groups import FieldConfig
from nerf.core.activation import at_least_single
from nerf.core.structs import SceneInfo
from nerf.fields.encoding import grid_layout, make_encoder
from nerf.fields.neural import NetworkField

# Learning rate of the table relative to the networks: few samples of a step reach each entry.
TABLE_RATE = 10.0
# Points of one network evaluation without gradients: hidden layers that fit into a CPU core's cache, and that fill a GPU.
CPU_CHUNK, GPU_CHUNK = 1 << 13, 1 << 20


class GridField(NetworkField):
    """Hash grid, then a ReLU network whose last layer is the head of :class:`NetworkField`.

    Args:
        config: the field options: levels, level_dim, base_resolution and finest_resolution (cells along a side of the
            box), log2_hashmap_size, hidden, layers (linear ones, head included), and those of :class:`NetworkField`.
        scene: see :class:`NetworkField`.
    """

    def __init__(self, config: FieldConfig, scene: SceneInfo):
        super().__init__(config, scene, config.hidden if config.layers > 1 else config.levels * config.level_dim)
        self.encoder = self.make_encoder(config)
        widths = [self.encoder.output_dim] + [config.hidden] * (config.layers - 1)
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(widths[:-1], widths[1:], strict=True))

    def make_encoder(self, config: FieldConfig) -> Any:
        """The encoder of positions, with the methods of :class:`gridencoder.GridEncoder`."""
        return make_encoder("grid", **asdict(grid_layout(config)))

    def trunk(self, positions: Tensor, max_level: float) -> Tensor:
        """Features [M, hidden] at positions [M, 3]; levels above ``max_level`` are zero. Differentiable once."""
        return self._mlp(self.encoder(positions, bound=self.bound, max_level=max_level))

    def _weights(self) -> tuple[list[Tensor], list[Tensor]]:
        """Matrices and biases of the hidden layers, as :mod:`mlp` takes them."""
        layers = cast(list[nn.Linear], list(self.layers))
        return [layer.weight for layer in layers], [layer.bias for layer in layers]

    def _mlp(self, encoded: Tensor) -> Tensor:
        return mlp.features(encoded, *self._weights()) if self.layers else encoded

    def raw_density(self, positions: Tensor, max_level: float = 1.0) -> Tensor:
        """Density before the activation [M] at positions [M, 3], blob included."""
        if torch.is_grad_enabled():
            return super().raw_density(positions, max_level)
        encoded = self.encoder(positions, bound=self.bound, max_level=max_level)
        chunks = encoded.split(CPU_CHUNK if encoded.device.type == "cpu" else GPU_CHUNK)
        return torch.cat([self._raw(self._mlp(chunk)) for chunk in chunks]) + self._blob(positions)

    def _with_gradient(self, positions: Tensor, max_level: float) -> tuple[Tensor, Tensor, Tensor]:
        """See :class:`NetworkField`; by the chain rule, as the encoder's Jacobian comes cheaply with its values.

        No gradient flows to the positions through the normal, so the encoder's second derivative is never computed.
        """
        encoded, pullback = self.encoder.value_and_pullback(positions, bound=self.bound, max_level=max_level)
        readout = self.head.weight[0]
        if self.layers:
            features, slope = mlp.features_and_slope(encoded, *self._weights(), readout)
        else:
            features, slope = encoded, readout.expand_as(encoded)
        raw = self._raw(features)
        return features, raw + self._blob(positions), pullback(at_least_single(slope)) + self._blob_gradient(positions)

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        """Optimiser groups "encoder", at ten times ``lr``, and "network"; see :meth:`Field.param_groups`."""
        table = list(self.encoder.parameters())
        in_table = {id(p) for p in table}
        networks = [p for p in self.parameters() if id(p) not in in_table]
        return [
            {"params": table, "lr": TABLE_RATE * lr, "name": "encoder"},
            {"params": networks, "lr": lr, "name": "network"},
        ]

    def total_variation(self, generator: torch.Generator) -> Tensor:
        """Total variation [] of the table near random points of the box; see :meth:`GridEncoder.total_variation`."""
        return self.encoder.total_variation(bound=self.bound, generator=generator)

    def weight_decay(self) -> Tensor:
        """Mean square [] of the table; see :meth:`GridEncoder.weight_decay`."""
        return self.encoder.weight_decay()
