"""Encoders of positions and directions by name; every one is a module with ``output_dim``. M points, D dimensions."""

from typing import Any, Literal, overload

from torch import nn

from freqencoder import FreqEncoder
from gridencoder import GridEncoder
from gridencoder.layout import GridLayout
from nerf.config.groups import FieldConfig
from shencoder import SHEncoder

ENCODERS: dict[str, type[nn.Module]] = {"grid": GridEncoder, "frequency": FreqEncoder, "sh": SHEncoder}


@overload
def make_encoder(kind: Literal["grid"], **options: Any) -> GridEncoder:
    """Hash or tiled feature grid, [M, D] -> [M, L * F]."""


@overload
def make_encoder(kind: Literal["frequency"], **options: Any) -> FreqEncoder:
    """Sines and cosines, [M, D] -> [M, D + 2 * D * K]."""


@overload
def make_encoder(kind: Literal["sh"], **options: Any) -> SHEncoder:
    """Spherical harmonics of directions, [M, 3] -> [M, degree^2]."""


@overload
def make_encoder(kind: str, **options: Any) -> nn.Module:
    """Any encoder of ``ENCODERS``."""


def make_encoder(kind: str, **options: Any) -> nn.Module:
    """Build an encoder [M, D] -> [M, output_dim].

    Args:
        kind: "grid" (hash or tiled feature grid), "frequency" (sines and cosines) or "sh" (spherical harmonics).
        options: arguments of that encoder's constructor.

    Raises:
        ValueError: no such kind.
    """
    if kind not in ENCODERS:
        raise ValueError(f"make_encoder: expected one of {', '.join(ENCODERS)}, got {kind!r}")
    return ENCODERS[kind](**options)


def grid_layout(config: FieldConfig) -> GridLayout:
    """The hash grid that the field options ask for."""
    return GridLayout(
        num_levels=config.levels,
        level_dim=config.level_dim,
        base_resolution=config.base_resolution,
        desired_resolution=config.finest_resolution,
        log2_hashmap_size=config.log2_hashmap_size,
    )
