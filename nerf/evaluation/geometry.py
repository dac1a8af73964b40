"""The surface of a run: its report, and IoU and Chamfer distance where a true surface is given. G voxels a side."""

from pathlib import Path

import numpy as np

from nerf.mesh import compare, voxels
from nerf.mesh.mesh import Mesh
from nerf.mesh.report import report_file

GRID = 64  # voxels along the longest side of the two boxes together
THRESHOLD = 1.0  # distance of the F-score, % of the diagonal of the true surface's box
SAMPLES = 2_000  # triangles tested for crossing others


def report_figures(path: Path) -> dict[str, float]:
    """What :func:`nerf.mesh.report.report_file` finds, as numbers; 1 for yes and 0 for no.

    Raises:
        UserError: the file is no mesh.
    """
    report = report_file(path, SAMPLES)
    found = {
        "faces": float(report.faces),
        "parts": float(report.parts),
        "watertight": float(report.watertight),
        "manifold": float(report.edges_manifold and report.vertices_manifold),
        "outward": float(report.outward),
        "crossing": report.crossing / report.sampled if report.sampled else 0.0,
    }
    return found if report.genus is None else found | {"genus": float(report.genus)}


def voxel_iou(found: Mesh, truth: Mesh, grid: int = GRID) -> float:
    """Intersection over union of the insides of two closed surfaces in one frame, cavities filled; 0 if both are empty."""
    from scipy.ndimage import binary_fill_holes

    low = np.minimum(found.vertices.min(0), truth.vertices.min(0))
    high = np.maximum(found.vertices.max(0), truth.vertices.max(0))
    cell = float((high - low).max()) / grid
    a, b = (binary_fill_holes(voxels.voxelize(mesh.vertices, mesh.faces, low, cell, grid)) for mesh in (found, truth))
    union = int((a | b).sum())
    return int((a & b).sum()) / union if union else 0.0


def truth_figures(path: Path, truth: compare.Shape, points: int, seed: int) -> dict[str, float]:
    """Chamfer distance (% of the diagonal of the true box), F-score and, of two meshes, the IoU. Nothing is aligned.

    Args:
        path: what is judged.
        truth: the true surface in the frame of ``path``.
        points: random points on each of the two.
        seed: of these.

    Raises:
        UserError: it is no surface.
    """
    found = compare.read_shape(path)
    compared = compare.compare(found, truth, [truth.diagonal * THRESHOLD / 100], points, seed)
    figures = {"chamfer": compared.chamfer_percent, "f_score": compared.thresholds[0].f_score}
    if found.mesh is not None and truth.mesh is not None:
        figures["iou"] = voxel_iou(found.mesh, truth.mesh)
    return figures
