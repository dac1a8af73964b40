"""The hash grid of tiny-cuda-nn as an encoder with the interface of :class:`gridencoder.GridEncoder`. M points, L levels.

tiny-cuda-nn is no dependency: it is taken where it is installed. Only its encoding is used, never its networks.
"""

import math
from collections.abc import Callable
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

import gridencoder
from gridencoder.layout import GridLayout
from nerf.core.activation import at_least_single
from nerf.core.errors import UserError

MODULE = "tinycudann"
INSTALL = "pip install git+https://github.com/NVlabs/tiny-cuda-nn/#subdirectory=bindings/torch"
_OTHERWISE = "take --backbone grid, which encodes the same grid on every machine"


def check_device(device: str) -> None:
    """Refuse a run that could not use tiny-cuda-nn, before anything is loaded.

    Args:
        device: name of the one that computes.

    Raises:
        UserError: it is no GPU, or the package is not there.
    """
    if not device.startswith("cuda"):
        raise UserError(f"--backbone grid_tcnn needs an NVIDIA GPU, and this run computes on {device}; {_OTHERWISE}")
    if find_spec(MODULE) is None:
        raise UserError(
            f"--backbone grid_tcnn needs tiny-cuda-nn, which is not installed: {INSTALL} (it needs nvcc and takes minutes), or "
            f"{_OTHERWISE}"
        )


def load() -> ModuleType:
    """The package.

    Raises:
        UserError: it does not load.
    """
    try:
        import tinycudann
    except (ImportError, OSError) as error:  # it raises EnvironmentError where it has no kernels for the GPU
        reason = " ".join(str(error).split())
        raise UserError(f"--backbone grid_tcnn: tiny-cuda-nn does not load ({reason}); {INSTALL}, or {_OTHERWISE}") from error
    return tinycudann


def encoding_config(layout: GridLayout) -> dict[str, Any]:
    """What tiny-cuda-nn calls the grid of a layout.

    Its level ``l`` has ``ceil(base_resolution * per_level_scale**l)`` corners along an edge, as ours
    (Mueller et al. 2022, equations 2 and 3).

    Raises:
        ValueError: tiny-cuda-nn has no such grid.
    """
    if layout.gridtype != "hash" or layout.align_corners:
        raise ValueError(f"encoding_config: expected a hash grid without align_corners, got {layout}")
    growth = layout.desired_resolution / layout.base_resolution
    return {
        "otype": "HashGrid",
        "n_levels": layout.num_levels,
        "n_features_per_level": layout.level_dim,
        "log2_hashmap_size": layout.log2_hashmap_size,
        "base_resolution": layout.base_resolution,
        "per_level_scale": 2.0 ** (math.log2(growth) / max(layout.num_levels - 1, 1)),
        "interpolation": layout.interpolation.capitalize(),
    }


class TcnnGridEncoder(nn.Module):
    """Features of positions in tiny-cuda-nn's hash grid. Its table is one flat parameter.

    Args:
        layout: shape of the grid.

    Raises:
        UserError: tiny-cuda-nn does not load.
    """

    def __init__(self, layout: GridLayout):
        super().__init__()
        self.layout = layout
        self.output_dim = layout.output_dim
        seed = int(torch.randint(2**31, ()))  # of the run, where it would be the same in all of them
        # Half precision, its default, is too coarse for normals.
        self.encoding = load().Encoding(layout.input_dim, encoding_config(layout), seed=seed, dtype=torch.float32)

    def forward(self, positions: Tensor, bound: float = 1.0, max_level: float = 1.0) -> Tensor:
        """Encode positions [M, D] in [-bound, bound] to [M, L*F], at least in float32.

        Outside the box the features are zero, as are those of levels beyond the fraction ``max_level``. Differentiable in
        positions and table; twice in the positions, and in both once each (not twice in the table).
        """
        if positions.shape[0] == 0:  # its kernels take no empty batch
            return positions.new_zeros(0, self.output_dim) + 0.0 * positions.sum()
        inside = (positions.detach().abs() <= bound).all(dim=1, keepdim=True)
        values = at_least_single(self.encoding(positions / (2 * bound) + 0.5))[:, : self.output_dim]  # some builds pad them
        active = self.layout.active_levels(max_level) * self.layout.level_dim
        return values * (inside & (torch.arange(self.output_dim, device=values.device) < active))

    def value_and_pullback(
        self, positions: Tensor, bound: float = 1.0, max_level: float = 1.0
    ) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Encoding [M, L*F], and its vector-Jacobian product with the positions, [M, L*F] -> [M, D].

        See :func:`gridencoder.encode_with_pullback`; here autograd differentiates the encoding.
        """
        training = torch.is_grad_enabled()
        with torch.enable_grad():
            at = positions if positions.requires_grad else positions.detach().requires_grad_(True)
            values = self(at, bound, max_level)

        def pullback(grad_values: Tensor) -> Tensor:
            (gradient,) = torch.autograd.grad(values, at, grad_values, create_graph=training, retain_graph=True)
            return gradient

        return (values if training else values.detach()), pullback

    def total_variation(self, **_: Any) -> Tensor:
        """Refused.

        Raises:
            UserError: always.
        """
        raise UserError(
            "--lambda_tv compares neighbours in the table of the grid, and tiny-cuda-nn keeps their places to itself; set it "
            "to 0 or use --backbone grid"
        )

    def weight_decay(self, max_level: float = 1.0) -> Tensor:
        """Sum [] over levels of the mean over rows of the squared features; see :func:`gridencoder.weight_decay`.

        The levels of tiny-cuda-nn's table lie one after the other, with as many rows as ours.
        """
        table: Tensor = at_least_single(self.encoding.params).view(-1, self.layout.level_dim)
        return gridencoder.weight_decay(table, self.layout, max_level)

    def extra_repr(self) -> str:
        """The layout, for printing the module."""
        return str(self.layout)
