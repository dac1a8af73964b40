"""How close a surface is to the true one: accuracy, completeness, Chamfer distance, F-scores, normals.

Both may be meshes or point clouds. P points, V vertices, T triangles. Lengths are those of the files. Random points are
drawn evenly over the area by a seed, and their distances to a mesh are those to its triangles, not to a sampling of it. Nothing
is aligned unless :func:`aligned` is called.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nerf.core.errors import UserError
from nerf.core.files import reading
from nerf.mesh.io import read_parts, triangles
from nerf.mesh.mesh import LARGEST, Mesh, moved, moved_normals, scatter, unit
from nerf.mesh.report import FORMATS
from nerf.mesh.sdf import nearest_triangle
from nerf.mesh.source import read_surface

WAY_OUT = "export it again"
_EXACT_WITHIN = 32.0  # radii of a piece of the mesh: beyond, a distance is too large by a twentieth of a percent at most
_FLAT = 1e-12  # relative length of a normal below which a triangle, or a point of a cloud, has none
_ICP_POINTS, _ICP_TARGETS, _ICP_STEPS = 5_000, 200_000, 100
_ICP_DONE = 1e-6  # of the diagonal: the mean motion of a step after which the alignment has converged


@dataclass(frozen=True)
class Shape:
    """A surface as a file gives it: triangles, or points with or without normals."""

    mesh: Mesh | None  # None of a point cloud
    points: np.ndarray  # [P, 3] of a cloud; [V, 3] the vertices of a mesh
    normals: np.ndarray | None = None  # [P, 3] unit, of a cloud that has them

    @property
    def diagonal(self) -> float:
        """Length of the diagonal of the bounding box."""
        return float(np.linalg.norm(np.ptp(self.points, axis=0)))

    def sample(self, count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray | None]:
        """Random points [P, 3], evenly over the area of a mesh, and their unit normals; at most all of a cloud."""
        if self.mesh is not None:
            points, face = scatter(self.mesh, count, rng)
            return points, unit(self.mesh.face_normals[face])
        chosen = np.sort(rng.permutation(len(self.points))[:count])
        return self.points[chosen], None if self.normals is None else self.normals[chosen]

    def nearest(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Distances [P] of points [P, 3] to this surface, and its unit normals [P, 3] at the nearest place."""
        if self.mesh is not None:
            distance, face = nearest_triangle(self.mesh, points, exact_within=_EXACT_WITHIN)
            return distance, unit(self.mesh.face_normals[face])
        from scipy.spatial import cKDTree

        distance, index = cKDTree(self.points).query(points, workers=-1)
        return distance, None if self.normals is None else self.normals[index]

    def moved(self, matrix: np.ndarray) -> "Shape":
        """The shape where a rigid motion [4, 4] puts it."""
        points = moved(self.points, matrix)
        normals = None if self.normals is None else moved_normals(self.normals, matrix)
        return Shape(None if self.mesh is None else Mesh(points, self.mesh.faces), points, normals)


def read_shape(path: str | Path) -> Shape:
    """Read a mesh (OBJ, GLB, glTF, PLY, STL), or a PLY without faces as a point cloud.

    Raises:
        UserError: the file is of another kind or damaged, or holds neither triangles with an area nor points.
    """
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        raise UserError(f"expected a mesh or point cloud ({', '.join(FORMATS)}), got {path.name}; convert it first")
    if not path.is_file():
        raise UserError(f"there is no file {path}; give the path of a mesh or of a point cloud")
    if path.suffix.lower() == ".ply" and (cloud := _read_cloud(path)) is not None:
        return cloud
    if path.suffix.lower() == ".stl":
        with reading(path.name, WAY_OUT):
            vertices, faces = triangles(read_parts(path))
    else:
        vertices, faces = read_surface(path)
    used, index = np.unique(faces, return_inverse=True)
    mesh = Mesh(vertices[used], index.reshape(-1, 3))
    _check(mesh.vertices, path)
    length = np.linalg.norm(mesh.face_normals, axis=1)
    if not length.max(initial=0.0) > 0:
        raise UserError(f"{path.name} holds no triangle with an area, so it has no surface to measure; {WAY_OUT}")
    mesh = Mesh(mesh.vertices, mesh.faces[length > _FLAT * length.max()])
    return Shape(mesh, mesh.vertices)


def _check(points: np.ndarray, path: Path) -> None:
    """Refuse points [P, 3] that are none, not finite, or all at one place."""
    if len(points) == 0:
        raise UserError(f"{path.name} holds no points; {WAY_OUT}")
    bad = int((~(np.abs(points) <= LARGEST)).any(axis=1).sum())
    if bad:
        raise UserError(f"{path.name} has {bad} of {len(points)} points that are not finite or beyond {LARGEST:g}; {WAY_OUT}")
    if not np.ptp(points, axis=0).max() > 0:
        raise UserError(f"{path.name} has no size: all its points are at {points[0].tolist()}; {WAY_OUT}")


def _read_cloud(path: Path) -> Shape | None:
    """The points of a PLY without faces, with the normals that it has; None if it has faces."""
    import trimesh

    with reading(path.name, WAY_OUT, problem="cannot be read as a mesh or point cloud"):
        with open(path, "rb") as file:
            head = file.read(1 << 16).partition(b"end_header")[0].decode("ascii", "replace")
        counts = {words[1]: int(words[2]) for line in head.splitlines() if (words := line.split())[:1] == ["element"]}
        if counts.get("face", 0) > 0 or counts.get("tristrips", 0) > 0:
            return None
        if counts.get("vertex") == 0:
            raise UserError(f"{path.name} holds no points; {WAY_OUT}")
        loaded: Any = trimesh.load(str(path), file_type="ply", process=False)
        points = np.asarray(loaded.vertices, dtype=np.float64).reshape(-1, 3)
        if len(points) != counts.get("vertex", 0):
            raise ValueError(f"it was cut off, as it has {len(points):,} of {counts.get('vertex', 0):,} points")
        data = loaded.metadata.get("_ply_raw", {}).get("vertex", {}).get("data", {})  # a dict of text, an array of binary files
        known = data if isinstance(data, dict) else data.dtype.names or ()
        names, normals = ("nx", "ny", "nz"), None
        if all(name in known for name in names):
            columns = [np.asarray(data[name], dtype=np.float64).reshape(-1) for name in names]
            normals = np.stack(columns, axis=1)
            if not (np.linalg.norm(normals, axis=1) > _FLAT).all():
                normals = None
    _check(points, path)
    return Shape(None, points, None if normals is None else unit(normals))


@dataclass(frozen=True)
class Threshold:
    """Precision and recall within a distance (Knapitsch et al. 2017, sec. 4.2)."""

    distance: float  # in the unit of the files
    percent: float  # the same as a share of the diagonal of the truth's box
    precision: float  # share of the points of the mesh that are nearer than this to the truth
    recall: float  # share of the points of the truth that are nearer than this to the mesh

    @property
    def f_score(self) -> float:
        """Harmonic mean of precision and recall; 0 if both are."""
        total = self.precision + self.recall
        return 2 * self.precision * self.recall / total if total > 0 else 0.0


@dataclass(frozen=True)
class Comparison:
    """What :func:`compare` measures."""

    diagonal: float  # of the truth's box
    accuracy: float  # mean distance of points of the mesh to the truth
    completeness: float  # mean distance of points of the truth to the mesh
    accuracy_rms: float
    completeness_rms: float
    hausdorff: float  # largest distance of any point, in either direction
    normal_consistency: float | None  # mean |cosine| between the normals of nearest places, of both directions
    normal_error: float | None  # mean angle between them, degrees; 180 of a surface that is inside out
    thresholds: tuple[Threshold, ...]
    points: tuple[int, int]  # on the mesh, and on the truth
    seed: int

    @property
    def chamfer(self) -> float:
        """Mean of accuracy and completeness; distances are not squared."""
        return 0.5 * (self.accuracy + self.completeness)

    @property
    def chamfer_percent(self) -> float:
        """The same as a share of the diagonal of the truth's box, in percent."""
        return 100 * self.chamfer / self.diagonal

    def as_dict(self) -> dict:
        """The measures as JSON values."""
        thresholds = [asdict(one) | {"f_score": one.f_score} for one in self.thresholds]
        own = {"chamfer": self.chamfer, "chamfer_percent": self.chamfer_percent}
        return asdict(self) | own | {"thresholds": thresholds, "points": list(self.points)}

    def lines(self) -> list[str]:
        """The measures as text, a line for each."""

        def shown(value: float) -> str:
            return f"{value:.6g} ({100 * value / self.diagonal:.4f} %)"

        consistency = "unknown, as one of the two has no normals"
        if self.normal_consistency is not None:
            consistency = f"{self.normal_consistency:.4f}, {self.normal_error:.2f} degrees apart on average"
        found = [
            ("diagonal of the truth", f"{self.diagonal:.6g}"),
            ("accuracy", f"{shown(self.accuracy)}, rms {shown(self.accuracy_rms)}"),
            ("completeness", f"{shown(self.completeness)}, rms {shown(self.completeness_rms)}"),
            ("Chamfer distance", f"{shown(self.chamfer)}: mean of the two"),
            ("Hausdorff distance", f"{shown(self.hausdorff)}, of the points that were drawn"),
            *(
                (
                    f"F-score at {one.distance:.4g} ({one.percent:.3g} %)",
                    f"{one.f_score:.4f} (precision {one.precision:.4f}, recall {one.recall:.4f})",
                )
                for one in self.thresholds
            ),
            ("normal consistency", consistency),
            ("points", f"{self.points[0]:,} on the mesh, {self.points[1]:,} on the truth, seed {self.seed}"),
        ]
        return [f"{name:<30}{text}" for name, text in found]


def apart(found: Shape, truth: Shape) -> bool:
    """Whether the bounding boxes of two shapes do not touch."""
    low = np.maximum(found.points.min(0), truth.points.min(0))
    return bool((low > np.minimum(found.points.max(0), truth.points.max(0))).any())


def compare(found: Shape, truth: Shape, distances: Sequence[float], points: int = 200_000, seed: int = 0) -> Comparison:
    """Measure a surface against the true one at random points of both.

    Args:
        found: what is judged.
        truth: what it is compared with.
        distances: thresholds of the F-scores, in the unit of the files.
        points: P, at most, on each of the two.
        seed: of the points.
    """
    here, normals_here = found.sample(points, np.random.default_rng([seed, 0]))
    there, normals_there = truth.sample(points, np.random.default_rng([seed, 1]))
    accuracy, at_truth = truth.nearest(here)
    completeness, at_found = found.nearest(there)
    diagonal, consistency, error = truth.diagonal, None, None
    if normals_here is not None and normals_there is not None and at_truth is not None and at_found is not None:
        cosines = [(normals_here * at_truth).sum(axis=1), (normals_there * at_found).sum(axis=1)]
        consistency = float(np.mean([np.abs(one).mean() for one in cosines]))
        error = float(np.mean([np.degrees(np.arccos(np.clip(one, -1, 1))).mean() for one in cosines]))
    return Comparison(
        diagonal=diagonal,
        accuracy=float(accuracy.mean()),
        completeness=float(completeness.mean()),
        accuracy_rms=float(np.sqrt(np.square(accuracy).mean())),
        completeness_rms=float(np.sqrt(np.square(completeness).mean())),
        hausdorff=float(max(accuracy.max(), completeness.max())),
        normal_consistency=consistency,
        normal_error=error,
        thresholds=tuple(
            Threshold(d, 100 * d / diagonal, float((accuracy < d).mean()), float((completeness < d).mean())) for d in distances
        ),
        points=(len(here), len(there)),
        seed=seed,
    )


def aligned(found: Shape, truth: Shape, seed: int = 0) -> tuple[Shape, np.ndarray]:
    """A shape after the rigid motion that brings it closest to the true one (iterative closest point; Besl and McKay 1992).

    Without a scale. It makes every figure look better, and is therefore never applied unless asked for.

    Returns:
        The shape, and the motion [4, 4] from where it was.
    """
    from scipy.spatial import cKDTree

    points = found.sample(_ICP_POINTS, np.random.default_rng([seed, 2]))[0]
    target = truth.sample(_ICP_TARGETS, np.random.default_rng([seed, 3]))[0]
    tree, motion = cKDTree(target), np.eye(4)
    for _ in range(_ICP_STEPS):
        now = moved(points, motion)
        step = _rigid(now, target[tree.query(now, workers=-1)[1]])
        motion = step @ motion
        if np.abs(moved(now, step) - now).mean() < _ICP_DONE * truth.diagonal:
            break
    return found.moved(motion), motion


def _rigid(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The rotation and offset [4, 4] that brings points [P, 3] closest to others [P, 3] in the mean square (Kabsch 1976)."""
    centre, goal = source.mean(axis=0), target.mean(axis=0)
    u, _, vt = np.linalg.svd((source - centre).T @ (target - goal))
    turn = vt.T @ np.diag([1.0, 1.0, np.sign(np.linalg.det(vt.T @ u.T))]) @ u.T
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = turn, goal - turn @ centre
    return matrix
