"""The default backbone: a multiresolution hash grid and a small network (Instant-NGP, sec. 3). M points."""

import torch
from torch import Tensor, nn

import mlp
from nerf.config.groups import FieldConfig
from nerf.core.activation import at_least_single
from nerf.fields.encoding import make_encoder
from nerf.fields.neural import NetworkField

# The table learns this much faster than the networks: each entry sees few samples a step.
TABLE_RATE = 10.0
# Points whose hidden layers fit into a core's cache, and enough of them to keep a GPU busy.
PIECE, GPU_PIECE = 8192, 1 << 20


class GridField(NetworkField):
    """Hash grid, then a ReLU network whose last layer is the head of :class:`NetworkField`.

    Args:
        config: the field options: levels, level_dim, base_resolution and finest_resolution (cells along a side of the
            box), log2_hashmap_size, hidden, layers (linear ones, head included), and those of :class:`NetworkField`.
    """

    def __init__(self, config: FieldConfig):
        super().__init__(config, config.hidden if config.layers > 1 else config.levels * config.level_dim)
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
        widths = [self.encoder.output_dim] + [config.hidden] * (config.layers - 1)
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(widths[:-1], widths[1:], strict=True))

    def trunk(self, positions: Tensor, max_level: float) -> Tensor:
        """Features [M, hidden] of positions [M, 3]; the levels above ``max_level`` read zero. Differentiable once."""
        return self._mlp(self.encoder(positions, bound=self.bound, max_level=max_level))

    def _weights(self) -> tuple[list[Tensor], list[Tensor]]:
        """Matrices and biases of the hidden layers, as the kernel takes them."""
        return [layer.weight for layer in self.layers], [layer.bias for layer in self.layers]

    def _mlp(self, encoded: Tensor) -> Tensor:
        return mlp.features(encoded, *self._weights()) if self.layers else encoded

    def raw_density(self, positions: Tensor, max_level: float = 1.0) -> Tensor:
        """Density before the activation [M] at positions [M, 3], blob included."""
        if torch.is_grad_enabled():
            return super().raw_density(positions, max_level)
        encoded = self.encoder(positions, bound=self.bound, max_level=max_level)
        # Few points at a time, so that what passes from layer to layer stays in the cache.
        pieces = encoded.split(PIECE if encoded.device.type == "cpu" else GPU_PIECE)
        return torch.cat([self._raw(self._mlp(piece)) for piece in pieces]) + self._blob(positions)

    def _with_gradient(self, positions: Tensor, max_level: float) -> tuple[Tensor, Tensor, Tensor]:
        """As in :class:`NetworkField`, by the chain rule over the encoding, whose slope costs little beside it.

        The positions get no gradient through the normal, so no second derivative along them is ever computed.
        """
        encoded, pullback = self.encoder.value_and_pullback(positions, bound=self.bound, max_level=max_level)
        readout = self.head.weight[0]
        if self.layers:
            features, slope = mlp.features_and_slope(encoded, *self._weights(), readout)
        else:
            features, slope = encoded, readout.expand_as(encoded)
        raw = self._raw(features)
        return features, raw + self._blob(positions), pullback(at_least_single(slope)) + self._blob_gradient(positions)

    def param_groups(self, lr: float) -> list[dict]:
        """The table at ten times the rate of the networks."""
        table = list(self.encoder.parameters())
        kept = {id(p) for p in table}
        networks = [p for p in self.parameters() if id(p) not in kept]
        return [
            {"params": table, "lr": TABLE_RATE * lr, "name": "encoder"},
            {"params": networks, "lr": lr, "name": "network"},
        ]

    def total_variation(self, generator: torch.Generator) -> Tensor:
        """Total variation of the table around random points of the box; see :meth:`GridEncoder.total_variation`."""
        return self.encoder.total_variation(bound=self.bound, generator=generator)

    def weight_decay(self) -> Tensor:
        """Mean square of the table; see :meth:`GridEncoder.weight_decay`."""
        return self.encoder.weight_decay()
