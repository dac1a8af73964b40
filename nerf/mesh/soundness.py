"""What a surface may hide: handles, caves, an uneven base, thin walls. T triangles, P points."""

from dataclasses import dataclass

import numpy as np

from nerf.mesh.base import find_base
from nerf.mesh.intersections import pierced
from nerf.mesh.mesh import Mesh, components, half_edges, is_watertight, scatter, signed_volume
from nerf.mesh.voxels import caves

THIN = 0.01  # of the diagonal: a wall is thin from here on
_POINTS = 2_000  # random points of the surface that are asked for the thickness below them
_CAVE, _UNEVEN, _THIN_SHARE = 0.03, 1e-3, 0.05  # shares of volume, height and surface from which a note is made


@dataclass(frozen=True)
class Soundness:
    """The hidden properties of a surface with +Y up; None is what only a closed solid has."""

    genus: int | None  # handles of all parts together (a ball 0, a torus 1); None if the surface is open or not manifold
    caves: float | None  # volume that no camera level with the object or above it can see, as a share of the mesh's own
    base_share: float | None  # of the footprint that stands on the ground; None without a flat base
    base_deviation: float | None  # from a plane, in the unit of the mesh; None without a flat base
    thin_walls: float | None  # share of the surface below which the object is thinner than THIN of its diagonal

    def lines(self) -> list[tuple[str, str]]:
        """Names and values as text."""
        genus = "none, as it is not a closed manifold" if self.genus is None else f"{self.genus}"
        cave = "unknown, as it is no closed solid" if self.caves is None else f"{100 * self.caves:.1f} % of the volume"
        base = "none"
        if self.base_share is not None:
            base = f"{100 * self.base_share:.0f} % of the footprint, even to {self.base_deviation:.2g}"
        thin = "unknown, as it is no closed solid"
        if self.thin_walls is not None:
            thin = f"{100 * self.thin_walls:.1f} % of the surface, below {100 * THIN:g} % of the diagonal"
        return [("genus", genus), ("caves", cave), ("flat base (lowest y)", base), ("thin walls", thin)]

    def said(self) -> str:
        """The part of a line behind "closed"."""
        words = [] if self.genus is None else [f"genus {self.genus}"]
        if self.caves is not None and self.caves >= _CAVE:
            words.append(f"caves of {100 * self.caves:.0f} % of its volume")
        return "".join(f", {word}" for word in words)

    def notes(self, height: float, grounded: bool) -> tuple[str, ...]:
        """Possible defects, and what to do about them.

        Args:
            height: of the mesh, in its unit.
            grounded: its base has been made even.
        """
        found = []
        if self.caves is not None and self.caves >= _CAVE:
            found.append(
                f"caves that no camera level with the object or above it sees have {100 * self.caves:.0f} % of its volume; "
                "look at it from below, and fill them in a modelling program if the object should be solid"
            )
        if self.genus:
            holes = "a hole" if self.genus == 1 else f"{self.genus} holes"
            found.append(f"{holes} through the object (its genus); look at it from below too if it should have fewer")
        if self.base_deviation is not None and not grounded and self.base_deviation > _UNEVEN * height:
            found.append(f"its flat base is uneven by {self.base_deviation:.2g}; --ground makes it even and puts it at y = 0")
        if self.thin_walls is not None and self.thin_walls >= _THIN_SHARE:
            found.append(
                f"{100 * self.thin_walls:.0f} % of the surface has a wall thinner than {100 * THIN:g} % of its diagonal below "
                "it, which a printer may lose"
            )
        return tuple(found)


def soundness(mesh: Mesh, seed: int = 0) -> Soundness:
    """Measure a surface.

    Args:
        mesh: faces [T, 3]; welded, or with ``weld``.
        seed: of the points at which the thickness is looked at.
    """
    welded = mesh.welded_faces
    whole = Mesh(mesh.vertices, mesh.faces)
    closed = is_watertight(mesh)
    solid = closed and signed_volume(whole) > 0
    base = find_base(whole)
    return Soundness(
        genus=genus_of(welded) if closed else None,
        caves=caves(whole) if solid else None,
        base_share=None if base is None else base.share,
        base_deviation=None if base is None else base.deviation,
        thin_walls=_thin_walls(whole, seed) if solid else None,
    )


def genus_of(faces: np.ndarray) -> int | None:
    """Handles of all parts of a closed surface together; None if the triangles [T, 3] around a vertex are several fans."""
    used, compact = np.unique(faces, return_inverse=True)
    compact = compact.reshape(-1, 3)
    if fans(compact) != len(used):
        return None
    pairs = np.sort(np.stack(half_edges(compact), axis=1), axis=1)
    edges = len(np.unique(pairs, axis=0))
    pieces = int(components(pairs, len(used))[0])
    return pieces - (len(used) - edges + len(faces)) // 2  # of each part, Euler's number is 2 - 2 genus


def fans(faces: np.ndarray) -> int:
    """The number of triangle fans of all vertices; corners belong to one fan if an edge of two triangles connects them."""
    corner, following = half_edges(np.arange(faces.size).reshape(-1, 3))
    ends = np.stack(half_edges(faces), axis=1)
    swapped = ends[:, 0] > ends[:, 1]
    low, high = np.where(swapped, following, corner), np.where(swapped, corner, following)
    group, uses = np.unique(np.sort(ends, axis=1), axis=0, return_inverse=True, return_counts=True)[1:]
    half = np.flatnonzero(uses[group.reshape(-1)] == 2)
    pairs = half[np.argsort(group.reshape(-1)[half], kind="stable")].reshape(-1, 2)
    joined = np.concatenate([low[pairs], high[pairs]])
    return int(components(joined, faces.size)[0])


def _thin_walls(mesh: Mesh, seed: int) -> float:
    """The share of random points whose ray against the normal leaves the object within :data:`THIN` of the diagonal."""
    points, face = scatter(mesh, _POINTS, np.random.default_rng(seed))
    normal = mesh.face_normals[face]
    normal /= np.linalg.norm(normal, axis=1, keepdims=True)
    reach = THIN * float(np.linalg.norm(np.ptp(mesh.bounds, axis=0)))
    return float(pierced(mesh, points - 1e-3 * reach * normal, points - reach * normal).mean())
