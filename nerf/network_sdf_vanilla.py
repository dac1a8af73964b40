"""The signed distance of NeuS: a network on frequencies of the position (Wang et al. 2021, app., sec. D). M points."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import weight_norm

from nerf.config.groups import FieldConfig
from nerf.core.structs import SceneInfo
from nerf.fields.encoding import make_encoder
from nerf.fields.signed_distance import SOFTPLUS, SignedDistanceField

# Frequencies of the position, layers, their width, and the layer that sees the input again.
OCTAVES, LAYERS, WIDTH, SKIP = 6, 8, 256, 4
COLOUR_LAYERS = 4
RATE = 0.05  # learning rate relative to --lr, which is that of hash grids: NeuS's 5e-4 where that is 0.01


class VanillaSdfField(SignedDistanceField):
    """Eight smooth layers of 256 with weight normalisation, the input again at the fifth, and colours by four layers of 256.

    Args:
        config: the field options of :class:`SignedDistanceField`; those of hash grids and ``hidden`` have no effect.
        scene: see :class:`SignedDistanceField`.
        width, layers: of the network.
    """

    fit_rate = 5e-4

    def __init__(self, config: FieldConfig, scene: SceneInfo, width: int = WIDTH, layers: int = LAYERS):
        super().__init__(config, scene, width + 1, COLOUR_LAYERS, width)
        self.encoder = make_encoder("frequency", input_dim=3, degree=OCTAVES)
        inputs, self.skip = self.encoder.output_dim, min(SKIP, layers - 1)
        widths = [inputs] + [width] * layers
        made = []
        for i in range(layers):
            narrower = inputs if i + 1 == self.skip else 0  # so that with the input beside it the next layer is as wide again
            made.append(nn.Linear(widths[i], widths[i + 1] - narrower))
        self.layers = nn.ModuleList(made)
        self.out = nn.Linear(width, width + 1)
        self._draw(config.sdf_radius, config.sdf_init == "inside_out")
        for layer in (*made, self.out):
            weight_norm(layer)

    @torch.no_grad()
    def _draw(self, radius: float, inside_out: bool) -> None:
        """Weights near a sphere's distance (SAL, Atzmon and Lipman 2020, thm. 1); what is no coordinate begins at zero."""
        layers: list[Any] = list(self.layers)
        for i, layer in enumerate(layers):
            nn.init.normal_(layer.weight, 0.0, math.sqrt(2.0 / layer.out_features))
            nn.init.zeros_(layer.bias)
            if i == 0:
                layer.weight[:, 3:] = 0.0
            elif i == self.skip:
                layer.weight[:, -(self.encoder.output_dim - 3) :] = 0.0
        sign = -1.0 if inside_out else 1.0
        nn.init.normal_(self.out.weight, sign * math.sqrt(math.pi / self.out.in_features), 1e-4)
        nn.init.constant_(self.out.bias, -sign * radius)

    def trunk(self, positions: Tensor, max_level: float) -> tuple[Tensor, Tensor]:
        """See :meth:`SignedDistanceField.trunk`; frequencies above ``max_level`` are zero. Differentiable twice."""
        encoded = self.encoder(positions / self.bound, max_level=max_level)
        x = encoded
        for i, layer in enumerate(self.layers):
            if i == self.skip:
                x = torch.cat([x, encoded], dim=-1) / math.sqrt(2.0)
            x = functional.softplus(layer(x), beta=SOFTPLUS)
        out = self.out(x)
        return out[:, 0] * self.bound, out

    def trunk_with_gradient(self, positions: Tensor, max_level: float) -> tuple[Tensor, Tensor, Tensor]:
        """See :class:`SignedDistanceField`; by automatic differentiation, twice in training."""
        training = torch.is_grad_enabled()
        with torch.enable_grad():
            at = positions if positions.requires_grad else positions.detach().requires_grad_(True)
            sdf, out = self.trunk(at, max_level)
            (gradient,) = torch.autograd.grad(sdf, at, torch.ones_like(sdf), create_graph=training)
        if training:
            return sdf, out, gradient
        return sdf.detach(), out.detach(), gradient.detach()

    def geometry_parameters(self) -> list[nn.Parameter]:
        """See :meth:`SignedDistanceField.geometry_parameters`."""
        return [*self.layers.parameters(), *self.out.parameters()]

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        """Optimiser groups "network", at a twentieth of ``lr``, and "sharpness"; see :meth:`Field.param_groups`."""
        networks = [*self.geometry_parameters(), *self.colour.parameters()]
        return self._groups(lr, [{"params": networks, "lr": RATE * lr, "name": "network"}])
