"""Base of the neural fields: trunk network, density and albedo head, view-dependent colour. M points, C features."""

from abc import abstractmethod
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from nerf.config.groups import FieldConfig
from nerf.core.activation import at_least_single, density_activation, density_blob, unit
from nerf.core.errors import UserError
from nerf.core.structs import AppearanceCodes, FieldOutput, Points, RenderSettings, SceneInfo
from nerf.fields.appearance import HEARD, HeardAppearance, Tint
from nerf.fields.base import DensityField
from nerf.fields.encoding import make_encoder

# Half the width of the central differences, as a share of the bound; about the finest grid cell that carries density.
DIFFERENCE_STEP = 1e-2
# The view-dependent colour head: features it reads from the trunk, its hidden width, degree of the spherical harmonics.
COLOUR_FEATURES, COLOUR_HIDDEN, COLOUR_DEGREE = 16, 64, 4


class ViewColour(nn.Module):
    """View-dependent offset of the albedo logit: a small network, zero before training.

    Its inputs are features of the point and the spherical harmonics of the direction. The albedo remains a meaningful
    diffuse colour because some training rays are shaded without this head (see ``render.base.sample_colours``).

    Args:
        features: C, width of the trunk's output.
        appearance: numbers of an appearance vector, which the offset hears too; 0: there is none.
    """

    def __init__(self, features: int, appearance: int = 0):
        super().__init__()
        self.directions = make_encoder("sh", input_dim=3, degree=COLOUR_DEGREE)
        self.features = nn.Linear(features, COLOUR_FEATURES)
        self.heard = HeardAppearance(appearance) if appearance else None
        width = COLOUR_FEATURES + self.directions.output_dim + (HEARD if appearance else 0)
        self.hidden = nn.Linear(width, COLOUR_HIDDEN)
        self.out = nn.Linear(COLOUR_HIDDEN, 3)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, features: Tensor, directions: Tensor, appearance: AppearanceCodes | None = None) -> Tensor:
        """Logit offset [M, 3] from features [M, C], unit directions [M, 3] and an appearance. Differentiable."""
        inputs = [self.features(features), self.directions(directions)]
        if self.heard is not None:
            inputs.append(self.heard(appearance, features))
        return self.out(functional.relu(self.hidden(torch.cat(inputs, dim=-1))))


class NetworkField(DensityField):
    """A trunk network with one head for raw density and albedo logits. Subclasses provide encoder and trunk.

    ``density = act(h_0 + blob(x))``, ``albedo = sigmoid(h_1..3)``. Normals point against the gradient of the raw
    density: it has the direction of the density's gradient (the activation is increasing) and does not underflow where
    the density does.

    Args:
        config: the field options: density_activation, density_bias, blob_density, blob_radius, normals.
        scene: bound of the box.
        width: output width of the trunk.

    Raises:
        UserError: unknown kind of normals.
    """

    def __init__(self, config: FieldConfig, scene: SceneInfo, width: int):
        super().__init__()
        self.bound = float(scene.bound)
        self.activation_name = config.density_activation
        self.activation = density_activation(config.density_activation)
        self.blob_density, self.blob_radius = float(config.blob_density), float(config.blob_radius)
        if config.normals not in ("analytic", "finite"):
            raise UserError(f"--normals must be analytic or finite, got {config.normals!r}")
        self.normals = config.normals
        self.head = nn.Linear(width, 4)
        with torch.no_grad():
            self.head.bias[0] = config.density_bias
        self.view_colour = ViewColour(width, scene.appearance if scene.local_light else 0)
        self.tint = Tint(width, scene.appearance, scene.local_light) if scene.appearance else None

    @abstractmethod
    def trunk(self, positions: Tensor, max_level: float) -> Tensor:
        """Features [M, width] at positions [M, 3]; differentiable twice if normals are analytic."""

    def _blob(self, positions: Tensor) -> Tensor:
        if self.blob_density == 0:
            return positions.new_zeros(len(positions))
        return density_blob(positions, self.activation_name, self.blob_density, self.blob_radius)

    def _blob_gradient(self, positions: Tensor) -> Tensor:
        """Gradient [M, 3] of the blob in space, a constant: the blob has no parameters."""
        if self.blob_density == 0:
            return torch.zeros_like(positions)
        with torch.enable_grad():
            at = positions.detach().requires_grad_(True)
            return torch.autograd.grad(self._blob(at).sum(), at)[0]

    def _raw(self, features: Tensor) -> Tensor:
        """Density output [M] of the head for features [M, width], before blob and activation."""
        return at_least_single(functional.linear(features, self.head.weight[:1], self.head.bias[:1])[:, 0])

    def _logit(self, features: Tensor, positions: Tensor) -> Tensor:
        return self._raw(features) + self._blob(positions)

    def raw_density(self, positions: Tensor, max_level: float = 1.0) -> Tensor:
        """Density before the activation [M] at positions [M, 3], blob included."""
        return self._logit(self.trunk(positions, max_level), positions)

    def density(self, positions: Tensor, max_level: float = 1.0) -> Tensor:
        """Density [M] at positions [M, 3], per scene unit. Differentiable in parameters and positions."""
        return self.activation(self.raw_density(positions, max_level))

    def query(self, points: Points, settings: RenderSettings) -> FieldOutput:
        """Density [M], albedo [M, 3], and normals and view-dependent colour [M, 3]; see :meth:`Field.query`.

        Raises:
            ValueError: the settings ask for view-dependent colour and the points have no directions.
        """
        positions, gradient = points.positions, None
        if settings.computes_normals and self.normals == "analytic":
            features, logit, gradient = self._with_gradient(positions, settings.max_level)
        else:
            features = self.trunk(positions, settings.max_level)
            logit = self._logit(features, positions)
            if settings.computes_normals:
                gradient = self._central_differences(positions, settings.max_level)
        albedo, rgb = self._colours(features, points, settings)
        normal = None if gradient is None else -unit(gradient)
        kept = None if points.appearance is None else features
        return FieldOutput(density=self.activation(logit), albedo=albedo, normal=normal, rgb=rgb, features=kept)

    def recolored(self, output: FieldOutput, points: Points, settings: RenderSettings) -> FieldOutput:
        """See :meth:`Field.recolored`."""
        albedo, rgb = self._colours(output.require("features").detach(), points, settings)
        return replace(output, albedo=albedo, rgb=rgb)

    def _colours(self, features: Tensor, points: Points, settings: RenderSettings) -> tuple[Tensor, Tensor | None]:
        """Diffuse colour [M, 3] and, where the settings ask for it, that seen from the points' directions [M, 3]."""
        colour = at_least_single(functional.linear(features, self.head.weight[1:], self.head.bias[1:]))
        if self.tint is not None:
            colour = at_least_single(self.tint(features, colour, points.appearance))
        if not settings.view_dependent:
            return torch.sigmoid(colour), None
        if points.directions is None:
            raise ValueError("Field.query: view-dependent colour needs Points with directions [M, 3], got None")
        offset = at_least_single(self.view_colour(features, points.directions, points.appearance))
        return torch.sigmoid(colour), torch.sigmoid(colour + offset)

    def _with_gradient(self, positions: Tensor, max_level: float) -> tuple[Tensor, Tensor, Tensor]:
        """Features [M, width], raw density [M] and its gradient [M, 3] in space, differentiable if gradients are enabled."""
        training = torch.is_grad_enabled()
        with torch.enable_grad():
            at = positions if positions.requires_grad else positions.detach().requires_grad_(True)
            features = self.trunk(at, max_level)
            logit = self._logit(features, at)
            (gradient,) = torch.autograd.grad(logit, at, torch.ones_like(logit), create_graph=training)
        if training:
            return features, logit, gradient
        return features.detach(), logit.detach(), gradient.detach()

    def _central_differences(self, positions: Tensor, max_level: float) -> Tensor:
        """Gradient [M, 3] of the raw density from six neighbours, clamped to the box. Differentiable once."""
        columns, width = [], DIFFERENCE_STEP * self.bound
        for axis in range(3):
            step = torch.zeros(3, device=positions.device, dtype=positions.dtype)
            step[axis] = width
            ends = torch.cat([positions + step, positions - step]).clamp(-self.bound, self.bound)
            above, below = self.raw_density(ends, max_level).chunk(2)
            columns.append(0.5 * (above - below) / width)
        return torch.stack(columns, dim=-1)
