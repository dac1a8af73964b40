"""Real spherical harmonics of directions."""

from shencoder.sh import SHEncoder, encode

__all__ = ["SHEncoder", "encode"]
