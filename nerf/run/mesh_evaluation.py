"""The written mesh as a viewer shows it, rendered with its texture at the cameras of held-out photographs, against these.

The GLB is read back, so that what is measured is what a user gets: triangles, uv and texture, unlit. V vertices, T triangles.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from nerf.core.cameras import clip_space
from nerf.core.errors import ExportError
from nerf.core.images import to_uint8, write_png
from nerf.core.progress import track
from nerf.core.structs import Views
from nerf.data.posed_images import Photographs
from nerf.mesh.io import read_mesh, read_parts
from nerf.mesh.mesh import merged, moved
from nerf.mesh.placement import WAY_OUT, read_placing
from nerf.mesh.surface_colors import lookup
from nerf.run import metrics
from nerf.run.lpips import Lpips
from rasterizer import interpolate, rasterize

SHOWN = 4  # views of which a picture is written
_FINE = 3  # samples of a pixel along each axis, fewer of large pictures
_MOST_SAMPLES = 1 << 24
_HALF = 0.5  # coverage from which a pixel belongs to a silhouette


@dataclass(frozen=True)
class TexturedMesh:
    """The triangles and the colours of a file, in the box that is trained in: a texture, or colours of its vertices."""

    vertices: Tensor  # [V, 3] float32; triangles that touch share them
    faces: Tensor  # [T, 3] int64
    uv: Tensor  # [K, 2] origin at the lower left; [K, 3] colours in [0, 1] where there is no texture
    uv_faces: Tensor  # [T, 3] int64
    texture: np.ndarray | None  # [S, S, 3] in [0, 1]


def read_textured(path: Path) -> TexturedMesh:
    """Read a GLB that an export wrote, with the ``transform.json`` beside it, if there is one.

    Raises:
        ExportError: it cannot be read, or has neither a texture nor colours of its vertices.
        UserError: ``transform.json`` is damaged.
    """
    mesh, matrix = read_mesh(path), np.eye(4)
    parts = read_parts(path)
    if len(parts) == 1:  # of which the mesh was taken without its node
        matrix = np.asarray(parts[0][1], dtype=np.float64)
    matrix = np.linalg.inv(read_placing(path.parent)) @ matrix
    if mesh.texture is None and mesh.colors is None or mesh.texture is not None and mesh.uv is None:
        raise ExportError(f"{path} has neither a texture nor colours of its vertices; {WAY_OUT}")
    vertices, index = merged(mesh.vertices)
    faces = torch.from_numpy(mesh.faces)
    plain = mesh.texture is None and mesh.colors is not None
    return TexturedMesh(
        torch.from_numpy(moved(vertices, matrix)).float(),
        torch.from_numpy(index)[faces],
        torch.from_numpy(mesh.require("colors") / 255.0 if plain else mesh.require("uv")).float(),
        faces,
        None if plain else mesh.require("texture") / 255.0,
    )


def render(mesh: TexturedMesh, view: Views, min_near: float, bound: float) -> tuple[Tensor, Tensor]:
    """The mesh at one camera, unlit.

    Args:
        mesh: of V vertices.
        view: one view without lens distortion.
        min_near, bound: near plane and half the edge of the box, scene units.

    Returns:
        Premultiplied colour [H, W, 3] and coverage [H, W] in [0, 1], means of up to 3x3 samples of each pixel.
    """
    fine = _FINE
    while fine > 1 and view.height * view.width * fine**2 > _MOST_SAMPLES:
        fine -= 1
    scaled = {name: getattr(view, name) * fine for name in ("fx", "fy", "cx", "cy", "height", "width")}
    view = replace(view, **scaled)
    raster = rasterize(clip_space(view, mesh.vertices, min_near, bound), mesh.faces, view.height, view.width)
    covered = (raster.triangle >= 0)[0]
    uv = interpolate(mesh.uv[None], raster, mesh.uv_faces)[0][covered]
    planes = torch.zeros(4, view.height, view.width)
    planes[3] = covered.float()
    colour = uv if mesh.texture is None else torch.from_numpy(lookup(mesh.texture, uv.double().numpy())).float()
    planes[:3, covered] = colour.T
    mean = functional.avg_pool2d(planes[None], fine)[0]
    return mean[:3].permute(1, 2, 0), mean[3]


def silhouette_iou(covered: Tensor | np.ndarray, truth: Tensor | np.ndarray) -> float:
    """Intersection over union of two silhouettes [...] bool; 1 where both are empty."""
    either = int((covered | truth).sum())
    return 1.0 if either == 0 else int((covered & truth).sum()) / either


def measure(
    path: Path,
    photos: Photographs,
    chosen: Sequence[int],
    min_near: float,
    bound: float,
    pictures: Path | None = None,
    perceptual: Lpips | None = None,
) -> dict[str, float]:
    """Compare renders of a written mesh with held-out photographs.

    Args:
        path: the GLB.
        photos: held-out photographs.
        chosen: which of them.
        min_near, bound: see :func:`render`.
        pictures: path, without its ending, of pictures of the first few beside the photographs; None: none.
        perceptual: LPIPS; None: it is left out.

    Returns:
        Means over the photographs: ``mesh_psnr_inside`` (dB, over the pixels of the object: those of the mask, or where the
        photographs are opaque those that the mesh covers), and of photographs with alpha ``mesh_psnr``, ``mesh_ssim`` and
        ``mesh_lpips`` (whole picture, over the background of the evaluation) and ``mesh_iou`` (of the silhouettes).
    """
    mesh = read_textured(path)
    rows: list[dict[str, float]] = []
    for i in track(chosen, "measuring the mesh at held-out photographs"):
        batch, valid = photos.eval_batch(i, undistorted=photos.view(i).has_lens)
        assert batch.views is not None and batch.rgb is not None, "a photograph has a camera and colours"
        view = batch.views.to("cpu")
        colour, coverage = render(mesh, view, min_near, bound)
        shape = coverage.shape
        background = torch.ones(3) if batch.background is None else batch.background.cpu().reshape(-1, 3)[0]
        image = (colour + (1 - coverage[..., None]) * background).clamp(0, 1)
        truth = batch.rgb.cpu().reshape(*shape, 3)
        known = torch.ones(shape, dtype=torch.bool) if valid is None else valid.cpu().reshape(shape)
        inside = coverage > _HALF
        found = {}
        if batch.mask is not None:
            mask = batch.mask.cpu().reshape(shape) > _HALF
            found["mesh_psnr"] = float(metrics.psnr(image, truth, known))
            found["mesh_ssim"] = float(metrics.ssim(image, truth, known))
            if perceptual is not None:
                found["mesh_lpips"] = float(perceptual(*(torch.where(known[..., None], one, truth) for one in (image, truth))))
            found["mesh_iou"] = silhouette_iou(inside & known, mask & known)
            inside = mask
        found["mesh_psnr_inside"] = float(metrics.psnr(image, truth, inside & known))
        rows.append(found)
        if pictures is not None and len(rows) <= SHOWN:
            pair = np.concatenate([to_uint8(image), to_uint8(truth)], axis=1)
            write_png(pictures.parent / f"{pictures.name}_{i:04d}.png", pair)
    return {name: _mean([row[name] for row in rows]) for name in sorted({name for row in rows for name in row})}


def _mean(values: list[float]) -> float:
    """The mean of the values that are numbers; NaN if none is."""
    some = [value for value in values if not np.isnan(value)]
    return float(np.mean(some)) if some else float("nan")


def line_of(found: dict[str, float], count: int, field_psnr: float | None) -> str:
    """What :func:`measure` found, as a line of the log."""
    beside = "" if field_psnr is None else f" (the field {field_psnr:.2f} dB)"
    parts = []
    if "mesh_psnr" in found:
        parts.append(f"PSNR {found['mesh_psnr']:.2f} dB{beside}")
    if not np.isnan(found["mesh_psnr_inside"]):
        parts.append(f"{found['mesh_psnr_inside']:.2f} dB inside the object")
    if "mesh_iou" in found:
        parts.append(f"silhouette IoU {found['mesh_iou']:.4f}")
    return f"mesh: at {count} held-out cameras {', '.join(parts) or 'no pixel of it is seen'}"
