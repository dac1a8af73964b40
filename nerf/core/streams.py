"""Random numbers: one list of streams for the whole program, and seeds that depend on names, never on positions."""

import hashlib
from dataclasses import dataclass
from enum import IntEnum, unique

import torch


@unique
class Stream(IntEnum):
    """What a random number is for. Each use has a stream of its own, so that adding one changes no other.

    The numbers are part of what makes a run repeatable: never reuse or change one.
    """

    SCHEDULE = 1  # shading, ambient light and background colours of a part
    CAMERAS = 2
    LIGHTS = 3
    COARSE_SAMPLES = 4  # plain path: place of each sample in its stratum
    FINE_SAMPLES = 5
    MARCH_OFFSET = 6  # accelerated path: shift of the first sample of each ray
    OCCUPANCY = 7  # where in its cell the occupancy grid queries the field
    DIFFUSE_RAYS = 8  # which rays of photographs are shaded without the view-dependent head
    PHOTO_CHOICE = 9
    PHOTO_PIXELS = 10
    PHOTO_BACKGROUND = 11
    NORMAL_NEIGHBOURS = 12
    TOTAL_VARIATION = 13
    DIFFUSION_TIME = 14
    DIFFUSION_NOISE = 15
    VAE_POSTERIOR = 16
    CLIP_CROPS = 17
    BACKGROUND_TEXTURES = 18
    KNOWN_CHOICE = 19  # which of the image prompts a step looks at
    KNOWN_CAMERAS = 20
    KNOWN_BACKGROUND = 21
    DISTILLATION = 22  # what a method draws beside the timestep and the noise
    CONTRACTED_SAMPLES = 24  # shift of the steps of a ray in the contracted background
    CONTRACTED_BASE = 25  # colours that shine through it
    VIEW_WORDS = 23  # azimuths that the embedded prior's view words stand for
    SDF_SHAPE = 40  # where the first shape of a signed distance is fitted
    BOX_POINTS = 41  # random points of the box that regularisers of a signed distance look at
    TANGENTS = 42  # directions in which curvature is looked for
    OTHER_LIGHT = 44  # photographs in whose light patches are looked at again
    CLOUD_POINTS = 43  # which points of the reconstruction a step looks at


@dataclass(frozen=True)
class Random:
    """The random numbers of one part of a step: everything is drawn from its seed, so that a step can be repeated exactly."""

    seed: int = 0

    def generator(self, stream: Stream, device: torch.device | str = "cpu") -> torch.Generator:
        """A fresh generator on ``device``; different streams are independent."""
        return torch.Generator(device).manual_seed(derived_seed(self.seed, int(stream)))


def derived_seed(seed: int, *path: int | str) -> int:
    """An independent 62-bit seed for each ``path`` (say step, name of a source) under one run seed."""
    digest = hashlib.blake2b(repr((seed, *path)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 2
