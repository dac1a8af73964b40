"""Measures of a mesh from every side against a known solid: outlines, normals, genus, caves, and what the prior takes it for.

K views of S x S pixels. What measures by voxels, colours and the front stands in ``benchmarks.mesh_measure``.
"""

import functools

import numpy as np
import torch

from benchmarks.mesh_measure import HALF, Buffers, ColoredMesh, iou, mesh_buffers, true_buffers, view_angles
from guidance.prior import classifier
from guidance.prior.captions import Caption
from guidance.prior.model import Prior
from guidance.prior.references import LIGHT
from guidance.prior.shapes import Shape, signed_distance
from nerf.core.shading import lit
from nerf.core.structs import LevelSet
from nerf.mesh.isosurface import extract_surface
from nerf.mesh.mesh import Mesh, weld
from nerf.mesh.soundness import Soundness, soundness

OUTLINE_SIZE, TOLERANCE, VIEWS = 256, 2.0, 8  # pixels of a view, how far apart equal outlines may be, and how many views
RINGS = (55.0, 125.0)  # degrees: polar angles of the cameras that compare normals, above the object and below it
RING_VIEWS, NORMAL_SIZE = 4, 128
TRUE_CELLS = 128  # along the longest side of a true shape whose surface is extracted
AMBIENT = 0.5  # of the views that the prior looks at, within the range that it was trained in


def boundary_f(mask: np.ndarray, truth: np.ndarray) -> float:
    """Boundary F-score of two silhouettes, bool [S, S]; 0 if one is empty."""
    from scipy.ndimage import binary_erosion, distance_transform_edt

    outlines = [m & ~binary_erosion(m) for m in (mask, truth)]
    if not all(outline.any() for outline in outlines):
        return 0.0
    near = [distance_transform_edt(~outline) <= TOLERANCE for outline in outlines]
    precision, recall = near[1][outlines[0]].mean(), near[0][outlines[1]].mean()
    return float(2 * precision * recall / max(precision + recall, 1e-9))


def outlines(mesh: ColoredMesh, shape: Shape) -> dict[str, float]:
    """``boundary_f`` and ``silhouette`` (IoU), means over views around a mesh and a true shape."""
    cameras = view_angles(VIEWS)
    both = (mesh_buffers(mesh, cameras, OUTLINE_SIZE).mask, true_buffers(shape, cameras, OUTLINE_SIZE).mask)
    pairs = list(zip(*both, strict=True))
    return {
        "boundary_f": float(np.mean([boundary_f(a, b) for a, b in pairs])),
        "silhouette": float(np.mean([iou(a, b) for a, b in pairs])),
    }


def normal_error(mesh: ColoredMesh, shape: Shape) -> float:
    """Mean angle in degrees between the normals of a mesh and of a true shape where views from above and below see both.

    90 if there is no such pixel, which is what random normals have.
    """
    rings = [view_angles(RING_VIEWS, polar) for polar in RINGS]
    cameras = {name: torch.cat([ring[name] for ring in rings]) for name in rings[0]}
    seen, truth = mesh_buffers(mesh, cameras, NORMAL_SIZE), true_buffers(shape, cameras, NORMAL_SIZE)
    both = seen.mask & truth.mask
    if not both.any():
        return 90.0
    cosine = (seen.normal[both] * truth.normal[both]).sum(-1).clip(-1, 1)
    return float(np.degrees(np.arccos(cosine)).mean())


def sound(mesh: ColoredMesh) -> Soundness:
    """Genus, caves, flat base and thin walls of a mesh that was read from a file; see :mod:`nerf.mesh.soundness`."""
    return soundness(weld(Mesh(mesh.vertices, mesh.faces)))


def true_surface(shape: Shape) -> Mesh:
    """The surface of a true shape as triangles."""

    def value(points: torch.Tensor) -> torch.Tensor:
        return signed_distance(shape, points)

    return extract_surface(LevelSet(value, 0.0, "below", logarithmic=False), HALF, TRUE_CELLS)[0]


def from_every_side(mesh: ColoredMesh, shape: Shape) -> dict[str, object]:
    """Measures of a mesh against a true shape beside those of :func:`benchmarks.mesh_measure.measure`.

    Returns:
        ``boundary_f``, ``normal`` (degrees), ``genus`` and ``caves`` (share of the volume), each of them None of a mesh that
        is not closed, and those of the true shape, ``true_genus`` and ``true_caves``.
    """
    own, true = sound(mesh), soundness(true_surface(shape))
    return {
        "boundary_f": outlines(mesh, shape)["boundary_f"],
        "normal": normal_error(mesh, shape),
        "genus": own.genus,
        "caves": own.caves,
        "true_genus": true.genus,
        "true_caves": true.caves,
    }


def pictures(seen: Buffers, light: tuple[float, ...], ambient: float, behind: float) -> torch.Tensor:
    """Pictures [K, 3, S / 2, S / 2] in [0, 1] of what cameras see, means of 2 x 2 samples.

    Args:
        seen: by K cameras.
        light: direction towards it in the axes of the camera.
        ambient: share of light from everywhere; 1 shows the colours as they are.
        behind: grey of the background.
    """
    colour, normal = torch.from_numpy(seen.color), torch.from_numpy(seen.normal)
    shaded = lit(colour, normal, torch.tensor(light).double(), ambient)
    shown = torch.where(torch.from_numpy(seen.mask)[..., None], shaded, behind)
    return torch.nn.functional.avg_pool2d(shown.movedim(-1, 1), 2)


def recognition(mesh: ColoredMesh, shape: Shape, caption: Caption) -> dict[str, object]:
    """What the embedded prior takes a mesh and its true shape for, among all kinds in the same colours.

    Returns:
        ``recognised`` and ``true_recognised``: kinds; ``lead`` and ``true_lead``: by how much the right kind is better than the
        best wrong one, see :func:`guidance.prior.classifier.recognise`.
    """
    cameras, prior = classifier.views(), _prior()
    found: dict[str, object] = {}
    for start, seen in (("", mesh_buffers(mesh, cameras, 128)), ("true_", true_buffers(shape, cameras, 128))):
        kind, lead = classifier.recognise(prior, pictures(seen, LIGHT, AMBIENT, 1.0).float(), cameras, caption)
        found |= {f"{start}recognised": kind, f"{start}lead": lead}
    return found


@functools.cache
def _prior() -> Prior:
    """The classifier, read once."""
    return classifier.load_classifier()
