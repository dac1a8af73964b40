"""Frequency encoding: sines and cosines of positions at octaves."""

from freqencoder.freq import FreqEncoder, encode

__all__ = ["FreqEncoder", "encode"]
