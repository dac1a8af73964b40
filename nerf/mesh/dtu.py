"""The protocol by which meshes are judged on DTU (Jensen et al. 2014): thinned points, an observed region, a table.

P points, V vertices, T triangles, K photographs. Lengths are millimetres of the scanner's world: the mesh must be in that frame
(``--export_frame source`` undoes ``scale_mat``). The distance from mesh to scan counts inside the observed region alone, that
from scan to mesh above the table alone, distances beyond 20 mm not at all, and the overall figure is the mean of both means.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from nerf.core.errors import UserError
from nerf.core.files import reading
from nerf.mesh.mesh import Mesh, drop_unused

SPACING = 0.2  # millimetres between points
FARTHEST = 20.0  # distances beyond this are left out
_PATCH = 60  # millimetres around the bounding box in which points of the mesh are searched at all
_WAY_OUT = "give the files of the same scan from DTU's SampleSet"
_CHUNK = 1 << 14


@dataclass(frozen=True)
class Region:
    """Where the scanner of DTU could see (``ObsMaskN_10.mat``, ``PlaneN.mat``)."""

    observed: np.ndarray  # bool [X, Y, Z] voxels
    box: np.ndarray  # [2, 3] lowest and highest corner, millimetres
    resolution: float  # side of a voxel, millimetres
    plane: np.ndarray  # [4]: points with plane . (x, y, z, 1) > 0 are above the table


def read_region(mask: Path, plane: Path) -> Region:
    """Read the observed region and the table plane of a scan.

    Raises:
        UserError: a file is missing or has other contents.
    """
    from scipy.io import loadmat

    for path in (mask, plane):
        if not path.is_file():
            raise UserError(f"there is no file {path}; {_WAY_OUT}")
    with reading(mask, _WAY_OUT):
        found = loadmat(str(mask), variable_names=("ObsMask", "BB", "Res"))
        observed, box = np.asarray(found["ObsMask"]) > 0, np.asarray(found["BB"], dtype=np.float64)
        resolution = float(np.asarray(found["Res"]).reshape(-1)[0])
        if observed.ndim != 3 or box.shape != (2, 3) or not resolution > 0:
            raise ValueError(f"expected ObsMask of three axes, BB [2, 3] and Res > 0, got {observed.shape} and {box.shape}")
    with reading(plane, _WAY_OUT):
        normal = np.asarray(loadmat(str(plane), variable_names=("P",))["P"], dtype=np.float64).reshape(-1)
        if normal.shape != (4,) or not np.isfinite(normal).all():
            raise ValueError(f"expected P with four finite numbers, got {normal.shape}")
    return Region(observed, box, resolution, normal)


@dataclass(frozen=True)
class DtuFigures:
    """Millimetres."""

    accuracy: float  # mesh to scan
    completeness: float  # scan to mesh
    points: tuple[int, int]  # that counted: of the mesh inside the observed region, of the scan above the table

    @property
    def overall(self) -> float:
        """Mean of the two."""
        return 0.5 * (self.accuracy + self.completeness)

    def as_dict(self) -> dict:
        """The figures as JSON values."""
        return asdict(self) | {"overall": self.overall, "points": list(self.points)}


def measure(mesh: Mesh, scan: np.ndarray, region: Region, seed: int = 0) -> DtuFigures:
    """Judge a mesh by the points [P, 3] of a scan.

    Raises:
        UserError: the mesh has no point in the observed region, or the scan none above the table, so that the frames differ.
    """
    from scipy.spatial import cKDTree

    low, high = region.box[0] - _PATCH, region.box[1] + 2 * _PATCH
    points = thinned(spread(mesh, SPACING), SPACING, seed)
    points = points[((points >= low) & (points < high)).all(axis=1)]
    voxel = np.round((points - region.box[0]) / region.resolution).astype(np.int64)
    inside = ((voxel >= 0) & (voxel < region.observed.shape)).all(axis=1)
    inside[inside] = region.observed[tuple(voxel[inside].T)]
    above = scan[scan @ region.plane[:3] + region.plane[3] > 0]
    if not inside.any() or len(above) == 0:
        raise UserError(
            f"the mesh has {int(inside.sum())} points in the observed region and the scan {len(above)} above the table; the "
            "mesh must be in the scanner's millimetres: export with --export_frame source, and give the files of the same scan"
        )
    there, back = cKDTree(scan).query(points[inside], workers=-1)[0], cKDTree(points).query(above, workers=-1)[0]
    means = [float(one[one < FARTHEST].mean()) if (one < FARTHEST).any() else FARTHEST for one in (there, back)]
    return DtuFigures(means[0], means[1], (int(inside.sum()), len(above)))


def spread(mesh: Mesh, spacing: float) -> np.ndarray:
    """Points [P, 3] of a surface, ``spacing`` apart at most: all vertices, and lattices inside the triangles."""
    corners, found = mesh.corners, [mesh.vertices[np.unique(mesh.faces)]]
    edges = np.linalg.norm(np.roll(corners, -1, axis=1) - corners, axis=2).max(axis=1)
    parts = np.maximum(np.ceil(edges / spacing), 1).astype(np.int64)
    for n in np.unique(parts[parts > 1]):
        i, j = (one.reshape(-1) for one in np.meshgrid(np.arange(n + 1), np.arange(n + 1), indexing="ij"))
        keep = i + j <= n
        weights = np.stack([n - i - j, i, j], axis=1)[keep] / n
        found.append(np.einsum("pc,tcd->tpd", weights, corners[parts == n]).reshape(-1, 3))
    return np.concatenate(found)


def thinned(points: np.ndarray, spacing: float, seed: int = 0) -> np.ndarray:
    """The points [P, 3] that are left when, in random order, each that is left removes all others nearer than ``spacing``."""
    from scipy.spatial import cKDTree

    points = points[np.random.default_rng(seed).permutation(len(points))]
    tree, left = cKDTree(points), np.ones(len(points), dtype=bool)
    for start in range(0, len(points), _CHUNK):
        chunk = start + np.flatnonzero(left[start : start + _CHUNK])
        for index, near in zip(chunk, tree.query_ball_point(points[chunk], spacing, workers=-1), strict=True):
            if left[index]:
                left[near] = False
                left[index] = True
    return points[left]


def culled(mesh: Mesh, projections: np.ndarray, masks: Sequence[np.ndarray], dilation: int) -> Mesh:
    """The part of a mesh that no photograph excludes: the triangles whose corners project into every dilated mask.

    A photograph says nothing of what lies outside of its picture or behind its camera. To be used for measuring alone: the
    surface that is left is open.

    Args:
        mesh: vertices [V, 3] and faces [T, 3], in the world of the cameras.
        projections: [K, 3, 4] from the world to pixels, centres at + 0.5.
        masks: of the K photographs, bool [H, W].
        dilation: radius in pixels of the disc by which the masks grow; NeuS 50, 2DGS 24, NeuralWarp 12.
    """
    from scipy.ndimage import distance_transform_edt

    keep = np.ones(len(mesh.vertices), dtype=bool)
    for matrix, mask in zip(projections, masks, strict=True):
        grown = mask if dilation == 0 or not mask.any() else distance_transform_edt(~mask) <= dilation
        image = mesh.vertices @ matrix[:, :3].T + matrix[:, 3]
        ahead = image[:, 2] > 0
        depth = np.where(ahead, image[:, 2], 1.0)
        column, row = (np.floor(np.clip(image[:, k] / depth, -1e9, 1e9)).astype(np.int64) for k in (0, 1))
        shown = ahead & (column >= 0) & (row >= 0) & (column < mask.shape[1]) & (row < mask.shape[0])
        keep[shown] &= grown[row[shown], column[shown]]
    faces = mesh.faces[keep[mesh.faces].all(axis=1)]
    if len(faces) == 0:
        raise UserError(
            "no triangle of the mesh lies in all masks; the mesh must be in the world of the cameras: export it with "
            "--export_frame source"
        )
    return drop_unused(replace(mesh, faces=faces))
