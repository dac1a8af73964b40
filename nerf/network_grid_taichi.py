"""The grid backbone whose grid runs in Taichi, whatever the backend of everything else. M points."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from torch import Tensor

import extension
from gridencoder import GridEncoder
from nerf.config.groups import FieldConfig
from nerf.core.errors import UserError
from nerf.fields.encoding import grid_layout
from nerf.network_grid import GridField

BACKEND, FOLDER = "taichi", "gridencoder"


def check_device(device: str) -> None:
    """Refuse a run that could not use Taichi, before anything is loaded.

    Args:
        device: name of the one that computes.

    Raises:
        UserError: it does not work here, and why.
    """
    reason = extension.unavailable(BACKEND, device)
    if reason is not None:
        raise UserError(f"--backbone grid_taichi needs Taichi: {reason}; or take --backbone grid, which encodes the same grid")


class TaichiGridEncoder(GridEncoder):
    """:class:`GridEncoder` on backend taichi."""

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """See :meth:`GridEncoder.forward`."""
        with extension.scope(BACKEND, FOLDER):
            return super().forward(*args, **kwargs)

    def value_and_pullback(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """See :meth:`GridEncoder.value_and_pullback`."""
        with extension.scope(BACKEND, FOLDER):
            return super().value_and_pullback(*args, **kwargs)

    def total_variation(self, *args: Any, **kwargs: Any) -> Tensor:
        """See :meth:`GridEncoder.total_variation`."""
        with extension.scope(BACKEND, FOLDER):
            return super().total_variation(*args, **kwargs)


class TaichiField(GridField):
    """:class:`GridField` with its grid in Taichi; their checkpoints hold the same."""

    def make_encoder(self, config: FieldConfig) -> TaichiGridEncoder:
        """The encoder of the same grid."""
        return TaichiGridEncoder(**asdict(grid_layout(config)))
