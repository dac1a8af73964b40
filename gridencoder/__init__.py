"""Multiresolution hash or tiled grid encoding of positions, twice differentiable in the positions and the table."""

from gridencoder.grid import (
    GridEncoder,
    encode,
    encode_with_jacobian,
    encode_with_pullback,
    total_variation,
    weight_decay,
)
from gridencoder.layout import GridLayout

__all__ = [
    "GridEncoder",
    "GridLayout",
    "encode",
    "encode_with_jacobian",
    "encode_with_pullback",
    "total_variation",
    "weight_decay",
]
