"""Triangles to pixels, with derivatives: rasterize, interpolate what corners carry, antialias silhouettes.

Letters: B views, V vertices, T triangles, H x W pixels, C channels. Clip space is OpenGL's (x right, y up, z/w in [-1, 1]
with -1 nearest); image row 0 is the top and pixel centres lie at +0.5.
"""

from rasterizer.raster import Raster
from rasterizer.rasterizer import antialias, edge_adjacency, interpolate, rasterize

__all__ = ["Raster", "antialias", "edge_adjacency", "interpolate", "rasterize"]
