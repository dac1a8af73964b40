"""A texture fitted to photographs: the one whose renders are closest to them in the least squares.

A render is linear in the texels, as it is a mean of bilinear lookups. K photographs of H x W pixels, P pixels that the mesh
covers in all of them, U texels that they show, V vertices, T triangles, S texels along an edge. Not differentiable.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from nerf.core.cameras import clip_space
from nerf.core.progress import track
from nerf.core.structs import Views
from nerf.mesh.mesh import Mesh
from nerf.mesh.surface_colors import corners_of
from rasterizer import interpolate, rasterize

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

_FINE = (2, 8)  # samples of a pixel along each axis, least and most: more where texels are small, so that none is left out
_LOOKED_AT = 8  # photographs of which the covered pixels are counted for that
_MOST_SAMPLES = 1 << 24  # 0.5 GB; beyond, pixels have fewer samples, and further beyond, some of them are left out
_ROUNDS, _STEPS = 3, 4  # weights of the photographs are found again in each round; steps of conjugate gradients in one
# Weight of the difference from the first texture, of a pixel or what a texel has of one; it decides what pixels do not.
_KEEP = 0.1
_AROUND = 2.0  # texels: how far the change of one that photographs show is that of others, so that lookups at seams agree
_EVEN = 0.05  # error of a colour, in [0, 1], below which photographs count the same


@dataclass(frozen=True)
class Pixels:
    """What a mesh shows at the pixels of photographs: ``matrix @ texels`` are colours there."""

    matrix: "csr_matrix"  # [P, U] float32, rows that sum to 1
    used: np.ndarray  # [U] int64, those texels among [S * S]
    photo: np.ndarray  # [P] int64, in [0, K)
    colour: np.ndarray  # [P, 3] float32 of the photographs, times their weight
    weight: np.ndarray  # [P] float32 in (0, 1]
    count: int  # K

    def render(self, texels: np.ndarray) -> np.ndarray:
        """Colours [P, 3] of texels [U, 3]."""
        found: np.ndarray = self.matrix @ texels
        return found

    def gather(self, pixels: np.ndarray) -> np.ndarray:
        """The transpose: texels [U, 3] of pixels [P, 3]."""
        found: np.ndarray = self.matrix.T @ pixels
        return found


def fitted(mesh: Mesh, photos: Sequence[tuple[Views, Tensor]], bound: float, near: float) -> tuple[np.ndarray, np.ndarray]:
    """The texture of a mesh, fitted to photographs.

    Args:
        mesh: unwrapped, with a texture to start from; texels that no photograph shows keep theirs.
        photos: K views, and their pictures [H, W, 4] uint8: colours times weight, and weight.
        bound: half the side of the box that holds the mesh, scene units.
        near: distance of the near plane, scene units.

    Returns:
        Colours [S, S, 3], not clipped, and weights [K] of the photographs; see :func:`fit`.
    """
    texture = mesh.require("texture").astype(np.float32) / 255.0
    pixels = pixels_of(mesh, photos, bound, near)
    if pixels is None:
        return texture, np.ones(len(photos), np.float32)
    texels = texture.reshape(-1, 3)[pixels.used]
    found, confidence = fit(pixels, texels)
    return texture + _spread(found - texels, pixels.used, len(texture)), confidence


def _spread(change: np.ndarray, used: np.ndarray, size: int) -> np.ndarray:
    """Changes [U, 3] of some texels as a picture [S, S, 3]; others nearby change as the nearest of these, those beyond by 0."""
    from scipy.ndimage import distance_transform_edt

    there, picture = np.zeros(size * size, dtype=bool), np.zeros((size * size, 3), np.float32)
    there[used], picture[used] = True, change
    away, (row, column) = distance_transform_edt(~there.reshape(size, size), return_indices=True)
    spread: np.ndarray = np.where((away <= _AROUND)[..., None], picture.reshape(size, size, 3)[row, column], 0.0)
    return spread


def pixels_of(mesh: Mesh, photos: Sequence[tuple[Views, Tensor]], bound: float, near: float) -> Pixels | None:
    """Find which texels the pixels of photographs show; None if they show none of the mesh. Arguments: see :func:`fitted`."""
    from scipy.sparse import csr_matrix, vstack

    size = len(mesh.require("texture"))
    some = photos[:: -(-len(photos) // _LOOKED_AT)]
    covered = sum(len(_samples(mesh, view, bound, near, 1, size)[2]) for view, _ in some) / len(some)
    fine, stride = _sampling(covered, len(photos), _uv_area(mesh) * size**2)
    rows, values, photo = [], [], []
    for k, (view, picture) in enumerate(track(photos, "looking at texels")):
        texels, share, place = _samples(mesh, view, bound, near, fine, size)
        flat = picture.reshape(-1, 4).numpy()
        chosen = (np.bincount(place, minlength=len(flat)) == fine * fine) & (flat[:, 3] > 0)
        chosen[np.arange(len(flat)) % stride > 0] = False
        kept, count = chosen[place], int(chosen.sum())
        row = np.repeat((np.cumsum(chosen) - 1)[place[kept]], 4)
        entries = (share[kept].reshape(-1).astype(np.float32) / fine**2, (row, texels[kept].reshape(-1)))
        rows.append(csr_matrix(entries, shape=(count, size * size), dtype=np.float32))
        values.append(flat[chosen].astype(np.float32) / 255.0)
        photo.append(np.full(count, k))
    matrix, value = vstack(rows, format="csr"), np.concatenate(values)
    if len(value) == 0:
        return None
    shown = np.bincount(matrix.indices, minlength=size * size) > 0
    column = (np.cumsum(shown, dtype=np.int32) - 1)[matrix.indices]
    matrix = csr_matrix((matrix.data, column, matrix.indptr), shape=(len(value), int(shown.sum())))
    return Pixels(matrix, np.flatnonzero(shown), np.concatenate(photo), value[:, :3], value[:, 3], len(photos))


def _sampling(covered: float, photos: int, texels: float) -> tuple[int, int]:
    """Samples of a pixel along each axis, and a stride of pixels.

    Args:
        covered: pixels of a photograph that show the mesh, in the mean.
        photos: K.
        texels: those under triangles.
    """
    least, most = _FINE
    fine = min(max(least, round((texels / max(2.0 * covered, 1.0)) ** 0.5)), most)  # a photograph sees half of them
    while fine > 1 and photos * covered * fine**2 > _MOST_SAMPLES:
        fine -= 1
    return fine, max(1, math.ceil(photos * covered / _MOST_SAMPLES))


def _uv_area(mesh: Mesh) -> float:
    """The share of the texture under triangles."""
    corner = mesh.require("uv")[mesh.faces]
    one, two = corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0]
    return float(0.5 * np.abs(one[:, 0] * two[:, 1] - one[:, 1] * two[:, 0]).sum())


def _samples(
    mesh: Mesh, view: Views, bound: float, near: float, fine: int, size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Texels [M, 4] of the bilinear lookups of the samples of a view, their shares [M, 4], and pixels [M]."""
    view = replace(view, **{name: getattr(view, name) * fine for name in ("fx", "fy", "cx", "cy", "height", "width")})
    vertices, faces = torch.from_numpy(mesh.vertices).float(), torch.from_numpy(mesh.faces)
    raster = rasterize(clip_space(view, vertices, near, bound), faces, view.height, view.width)
    towards = view.pose[0, :3, 3].double().numpy() - mesh.vertices[mesh.faces[:, 0]]
    outside = torch.from_numpy((towards * mesh.face_normals).sum(axis=1) > 0)  # the back of a triangle shows none of its texels
    triangle = raster.triangle[0].long()
    shown = (triangle >= 0) & outside[triangle.clamp(min=0)]
    uv = interpolate(torch.from_numpy(mesh.require("uv")).float()[None], raster, faces)[0][shown]
    row, column = torch.nonzero(shown).numpy().T
    texels, share = corners_of(uv.double().numpy(), size, size)
    return texels, share, row // fine * (view.width // fine) + column // fine


def fit(pixels: Pixels, texels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Fit texels to photographs, each with a noise of its own.

    The likelihood of photographs that are off by a normal noise, each of an unknown variance, is the greatest where
    ``sum_k P_k log(mean of the squared differences of photograph k)`` is the least: those that show the surface in a light
    that others do not see, such as a reflection, count less. Solved by weighted least squares, with weights found again in
    each round, by conjugate gradients (Hestenes and Stiefel 1952) on the normal equations.

    Args:
        pixels: of K photographs.
        texels: [U, 3] colours to start from, in [0, 1].

    Returns:
        Colours [U, 3], and the weights [K] of the photographs, of mean 1 over the pixels.
    """
    change, confidence = np.zeros_like(texels), np.ones(pixels.count, np.float32)
    keep = _KEEP * min(1.0, len(pixels.photo) / len(pixels.used))
    shown = pixels.render(texels)  # of texels + change
    for _ in track(range(_ROUNDS), "fitting the texture"):
        confidence = _confidence(pixels, shown)
        weight = (pixels.weight * confidence[pixels.photo])[:, None]
        residual = pixels.gather(confidence[pixels.photo][:, None] * pixels.colour - weight * shown) - keep * change
        direction, size = residual.copy(), np.square(residual).sum(0)
        for _ in range(_STEPS):
            ahead = pixels.render(direction)
            turned = pixels.gather(weight * ahead) + keep * direction
            step = size / np.maximum((direction * turned).sum(0), 1e-20)
            change += step * direction
            shown += step * ahead
            residual -= step * turned
            after = np.square(residual).sum(0)
            direction = residual + after / np.maximum(size, 1e-20) * direction
            size = after
    return texels + change, _confidence(pixels, shown)


def _confidence(pixels: Pixels, shown: np.ndarray) -> np.ndarray:
    """Weights [K] of photographs, one over the mean squared differences from colours [P, 3]; of mean 1 over the pixels.

    Photographs that show too little of the mesh to have a pixel in the fit have the weight 1.
    """
    off = np.square(pixels.weight[:, None] * shown - pixels.colour).mean(1) / pixels.weight
    amount = np.bincount(pixels.photo, pixels.weight, pixels.count)
    variance = np.bincount(pixels.photo, off, pixels.count) / np.maximum(amount, 1e-6)
    confidence = 1.0 / (variance + _EVEN**2)
    found = confidence * amount.sum() / (confidence * amount).sum()
    return np.where(amount > 0, found, 1.0).astype(np.float32)
