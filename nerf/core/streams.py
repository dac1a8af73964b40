"""Random numbers: one list of streams for the whole program, and seeds that depend on names, never on positions."""

import hashlib
from dataclasses import dataclass
from enum import IntEnum

import torch


class Stream(IntEnum):
    """What a random number is for. Each use has a stream of its own, so that adding one moves no other."""

    COARSE_SAMPLES = 1  # plain path: place of each sample in its stratum
    FINE_SAMPLES = 2
    MARCH_OFFSET = 3  # accelerated path: shift of each ray's first sample
    DIFFUSE_RAYS = 4  # which rays of photographs are shaded without the view-dependent head
    CAMERAS = 1
    LIGHTS = 2
    PHOTO_PIXELS = 11
    PHOTO_BACKGROUND = 12
    PHOTO_CHOICE = 13
    NORMAL_NEIGHBOURS = 101
    TOTAL_VARIATION = 102
    DIFFUSION_TIME = 101
    DIFFUSION_NOISE = 102
    VAE_POSTERIOR = 103
    OCCUPANCY = 201


@dataclass(frozen=True)
class Random:
    """The random numbers of one part of a step: everything is drawn from its seed, so that a step can be repeated exactly."""

    seed: int = 0

    def generator(self, stream: Stream, device: torch.device | str = "cpu") -> torch.Generator:
        """A fresh generator on ``device``; different streams are independent."""
        return torch.Generator(device).manual_seed((self.seed * 1_000_003 + stream) % (2**63 - 1))


def derived_seed(seed: int, *path: int | str) -> int:
    """An independent 62-bit seed for each ``path`` (say step, name of a source) under one run seed."""
    digest = hashlib.blake2b(repr((seed, *path)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 2
