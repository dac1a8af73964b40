"""The surface as it is delivered: cropped, cleaned, decimated, without bumps; files and pictures of a mesh show this one.

V vertices, T triangles.
"""

import time
from dataclasses import dataclass, replace

import numpy as np

from nerf.core.errors import ExportError
from nerf.core.memory import explained
from nerf.mesh.base import flattened
from nerf.mesh.crop import crop_box
from nerf.mesh.decimate import Decimation, decimate_within
from nerf.mesh.denoise import denoise
from nerf.mesh.export_options import ExportOptions
from nerf.mesh.manifold import APART, separate
from nerf.mesh.mesh import Mesh, largest_parts, vertex_normals
from nerf.mesh.repair import Cleaning, clean_surface, without_slivers

LESS_GRID = "lower --mcubes_resolution"  # what helps where memory runs out


@dataclass(frozen=True)
class FinishedSurface:
    """A surface as it is delivered, in the box that is trained in, and what was done to it."""

    mesh: Mesh  # welded, with normals: what is written, and what pictures show
    fine: Mesh  # the clean surface before its decimation, which a normal map is made of
    cleaning: Cleaning
    dropped: int  # parts: floaters and cavities
    decimation: Decimation
    seconds: float  # that it took

    def __str__(self) -> str:
        moved = f", the surface moved by {self.decimation.farthest:.2g} at most and {self.decimation.mean:.2g} on average"
        return f"{len(self.mesh.faces):,} triangles kept{moved if self.decimation.tries else ''}"


def finish(raw: Mesh, options: ExportOptions, bound: float) -> FinishedSurface:
    """Clean a surface, drop its loose parts, decimate it and smooth its bumps.

    Args:
        raw: vertices [V, 3] and faces [T, 3], counter-clockwise seen from outside.
        options: of the export.
        bound: half the edge of the box that holds the surface.

    Raises:
        ExportError: nothing with a volume is left.
    """
    began = time.monotonic()
    with explained("cleaning and decimating the mesh", LESS_GRID):
        fine, cleaning = clean_surface(raw, bound)
        fine, dropped = largest_parts(fine, options.min_part)
        mesh, decimation = decimate_within(fine, options.decimate_target, options.max_error)
        mesh = denoise(mesh, options.denoise)  # after decimation, as it costs a tenth then and smooths as well
        if options.normal_map:
            fine = denoise(fine, options.denoise)  # or the bumps would come back with its normals
        mesh = without_slivers(mesh, bound)
        mesh, _ = largest_parts(mesh, options.min_part)  # where decimation pinched the surface, chips have been cut off
        if options.ground:
            mesh = flattened(mesh)
        mesh = separate(replace(mesh, normals=vertex_normals(mesh)), APART * 2.0 * bound)
    return FinishedSurface(mesh, fine, cleaning, dropped, decimation, time.monotonic() - began)


def finish_given(mesh: Mesh, options: ExportOptions, bound: float, transform: np.ndarray | None) -> FinishedSurface:
    """Cut a surface that is given as triangles, such as that of a tetrahedral grid, to the crop box, and :func:`finish` it.

    Args:
        mesh: see :func:`finish`; other attributes are ignored.
        options, bound: see :func:`finish`.
        transform: [4, 4] from the box to the data's own world, None if they are the same.

    Raises:
        ExportError: there is no surface (empty, NaN, inside out, outside the crop box).
    """
    if len(mesh.faces) == 0:
        raise ExportError(
            "the surface is empty: no cell has a corner inside and one outside; train longer, or start "
            "from a NeRF that holds an object"
        )
    if not np.isfinite(mesh.vertices).all():
        count = int((~np.isfinite(mesh.vertices).all(axis=1)).sum())
        raise ExportError(
            f"{count} of {len(mesh.vertices)} vertices are NaN or infinite; training has diverged: resume "
            "an earlier checkpoint with smaller --lr_distance and --lr_offset"
        )
    mesh = Mesh(mesh.vertices.astype(np.float64), mesh.faces.astype(np.int64))
    if options.crop is not None:
        mesh = crop_box(options.crop, transform, options.export_frame).mesh(mesh)
        if len(mesh.faces) == 0:
            raise ExportError("no triangle of the surface is inside the box of --mesh_crop; give a larger one")
    return finish(mesh, options, bound)
