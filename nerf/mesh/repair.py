"""Cleaning that keeps detail: near vertices are welded, and holes at the walls of the box closed.

Letters: V vertices, T triangles, n vertices of a polygon. Lengths are scene units. Nothing is remeshed or smoothed.
"""

from dataclasses import dataclass

import numpy as np

from nerf.mesh.holes import boundary_loops, cap_walls
from nerf.mesh.manifold import unpinch
from nerf.mesh.mesh import Mesh, drop_unused, is_watertight, weld

_WELD = 1e-6  # vertices nearer to each other than this fraction of the box's edge are one
_WALL = 1e-3  # a hole whose boundary is nearer to the walls than this fraction of the bound was cut by them


@dataclass(frozen=True)
class Cleaning:
    """What :func:`clean_surface` did."""

    welded: int = 0  # vertices that were merged into another one
    capped: int = 0  # holes at the walls of the box that were closed
    open_loops: tuple[float, ...] = ()  # lengths of the boundary loops that were left open, longest first


def clean_surface(mesh: Mesh, bound: float) -> tuple[Mesh, Cleaning]:
    """Weld a surface, and close it where the walls of the box cut it; nothing else of it changes.

    Args:
        mesh: vertices [V, 3] and faces [T, 3], counter-clockwise seen from outside.
        bound: half the edge of the box; it scales the tolerances of the weld and of the caps.

    Returns:
        A mesh without unused vertices, and what was done. Holes elsewhere are left open, and reported.
    """
    mesh = drop_unused(Mesh(mesh.vertices, mesh.faces))
    if is_watertight(mesh):
        smooth = without_slivers(mesh, bound)
        return smooth, Cleaning(len(mesh.vertices) - len(smooth.vertices))
    welded = weld(mesh, _WELD * 2.0 * bound)
    merged = len(mesh.vertices) - len(welded.vertices)
    capped, count = cap_walls(welded, bound, _WALL * bound)
    if not is_watertight(capped):
        capped = unpinch(capped)
    lengths = [_perimeter(capped.vertices[loop]) for loop in boundary_loops(capped.faces)]
    return capped, Cleaning(merged, count, tuple(sorted(lengths, reverse=True)))


def without_slivers(mesh: Mesh, bound: float) -> Mesh:
    """The surface without edges shorter than the resolution of the files, by the same weld; a closed one stays closed."""
    welded = unpinch(weld(mesh, _WELD * 2.0 * bound))
    return mesh if is_watertight(mesh) and not is_watertight(welded) else welded


def _perimeter(points: np.ndarray) -> float:
    """Perimeter of a closed polygon [n, 3]."""
    return float(np.linalg.norm(points - np.roll(points, -1, axis=0), axis=1).sum())
