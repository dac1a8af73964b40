"""Ranges that several options share. Their ends are far beyond useful values: they catch typing errors and overflows."""

from nerf.core.ranges import above, between

MAX_SIDE = 8192  # pixels of a rendered image
SIZE = between(1, MAX_SIDE)
SIZE_OR_NONE = between(0, MAX_SIDE)
FRACTION = between(0, 1)
MOST = 10**9
STEPS = between(1, MOST)
WEIGHT = between(0, 1e9)  # of a loss, and of what scales one
FAR = 1e4  # scene units; beyond it, float32 is too coarse for a box of a few units
LENGTH, POSITIVE_LENGTH = between(0, FAR), above(0, FAR)
AZIMUTH, POLAR, FOV = between(-360, 360), between(0, 180), between(0.1, 170)
SIDE, BORDER = between(8, 4096), between(0, 0.9)  # of a preprocessed picture: pixels, and the share around the object
MOST_LEVELS = 32  # of a hash grid
BOUND = between(1e-3, 128)  # half the side of the scene's box
PROFILE_WARMUP = 3  # steps before those of --profile, which allocate memory, build kernels and fill caches
AXES = ("x", "y", "z", "-x", "-y", "-z")  # of a mesh file
MESH_SUFFIXES = (".obj", ".glb", ".gltf", ".ply")  # of mesh files that can be read
