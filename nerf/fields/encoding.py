"""Encoders of positions and directions by name; every one is a module with ``output_dim``."""

from torch import nn

from freqencoder import FreqEncoder
from gridencoder import GridEncoder
from shencoder import SHEncoder

ENCODERS: dict[str, type[nn.Module]] = {"grid": GridEncoder, "frequency": FreqEncoder, "sh": SHEncoder}


def make_encoder(kind: str, **options) -> nn.Module:
    """An encoder [M, D] -> [M, output_dim].

    Args:
        kind: "grid" (hash or tiled feature grid), "frequency" (sines and cosines) or "sh" (spherical harmonics).
        options: what that encoder's constructor takes.

    Raises:
        ValueError: no such kind.
    """
    if kind not in ENCODERS:
        raise ValueError(f"make_encoder: expected one of {', '.join(ENCODERS)}, got {kind!r}")
    return ENCODERS[kind](**options)
