"""Ray marching through an occupancy grid: sampling, compositing, and the Morton order of the bitfield.

Letters: N rays, M samples (packed end to end, ray n owns [first[n], first[n] + count[n])), C channels or cascades,
H cells along an axis. Cascade c of the grid covers [-b, b]^3 with b = min(2^c, bound); cell (x, y, z) of it spans
[-b + 2 b x / H, -b + 2 b (x + 1) / H) and so on, and is bit c H^3 + morton3D(x, y, z) of the bitfield.
"""

from raymarching.capacity import clear_overflow, overflow
from raymarching.inference import composite_rays, march_rays
from raymarching.ray_queue import RayQueue
from raymarching.raymarching import (
    composite_rays_train,
    flatten_rays,
    march_rays_train,
    morton3D,
    morton3D_invert,
    near_far_from_aabb,
    packbits,
    sph_from_ray,
)
from raymarching.reference import step_sizes

__all__ = [
    "RayQueue",
    "clear_overflow",
    "composite_rays",
    "composite_rays_train",
    "flatten_rays",
    "march_rays",
    "march_rays_train",
    "morton3D",
    "morton3D_invert",
    "near_far_from_aabb",
    "overflow",
    "packbits",
    "sph_from_ray",
    "step_sizes",
]
