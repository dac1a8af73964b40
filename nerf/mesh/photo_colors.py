"""The colours of a surface as its photographs show them: each point is projected into all that see it.

K photographs of H x W pixels, P points, V vertices, T triangles, S texels along an edge. Not differentiable.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from nerf.core.cameras import clip_space, project
from nerf.core.progress import track
from nerf.core.structs import Views
from nerf.mesh import texture_fit
from nerf.mesh.mesh import Mesh
from nerf.mesh.texture import to_bytes
from rasterizer import interpolate, rasterize

# A surface is seen from a camera if it faces it by this cosine at least, and lies no deeper than the nearest surface within a
# pixel: as far as a plane of its slope does there, and SLACK pixels more.
LEAST_COSINE, SLACK = 0.1, 1.0
RIM = 0.02  # share of the shorter side over which the weight of a photograph grows from its border, so that none shows
NEAREST = 1e-3  # distance of the near plane, in units of the bound
ENOUGH = 0.2  # weight of the photographs below which the given colour is mixed in


@dataclass(frozen=True)
class Photo:
    """One photograph and its camera."""

    view: Views  # one pinhole
    rgba: Tensor  # [H, W, 4] in [0, 1], premultiplied; what is transparent shows nothing


class PhotoColors:
    """Colours of the points of a mesh: means over the photographs that see them.

    The weight of a photograph is the cosine between the normal and the direction to the camera, times its alpha there. Of all
    colours that do not depend on the direction, a mean over the cameras is closest to what they see in the least squares; a
    texture is then fitted to the pixels themselves.

    Args:
        photos: give the K photographs, one after another.
        mesh: what hides one part of itself from a camera.
        bound: half the side of the box that holds the mesh, scene units.
    """

    def __init__(self, photos: Sequence[Callable[[], Photo]], mesh: Mesh, bound: float):
        self._bound = bound
        self._seen: list[_Seen] = []
        self._pictures: list[Tensor] = []  # [H, W, 4] uint8 of each, premultiplied
        vertices, faces = torch.from_numpy(mesh.vertices).float(), torch.from_numpy(mesh.faces)
        for get in track(photos, "looking at photographs"):
            photo = get()
            view = photo.view.to("cpu")
            self._seen.append(_Seen(view, _nearest(view, vertices, faces, bound)))
            faded = photo.rgba.cpu() * _rim(view.height, view.width)[..., None]
            self._pictures.append((faded * 255.0).round().to(torch.uint8))
        self._confidence = np.ones(len(self._seen), np.float32)

    def over(self, points: np.ndarray, normals: np.ndarray, colors: np.ndarray) -> np.ndarray:
        """Colours [P, 3] of points of the mesh: those of the photographs, and the given ones where none sees a point.

        Args:
            points: [P, 3].
            normals: [P, 3], outward, of any length but 0.
            colors: [P, 3] in [0, 1].
        """
        total, weight = self._sums(points, normals)
        share = np.minimum(weight / (255.0 * ENOUGH), 1.0)
        mean = (total / np.maximum(weight, 1e-6)).clip(0.0, 1.0)
        blended: np.ndarray = share * mean + (1.0 - share) * colors
        return blended

    def fitted(self, mesh: Mesh) -> np.ndarray:
        """The texture [S, S, 3] uint8 of a mesh whose renders are closest to the photographs; see :mod:`nerf.mesh.texture_fit`.

        A mean over photographs blurs what they show by a pixel, and by what their cameras and the surface are off; and where a
        surface shines, it is half of what few of them see. From here on, :meth:`over` weighs the photographs as this does.

        Args:
            mesh: the mesh, unwrapped, with a texture from :meth:`over`.
        """
        photos = [(seen.view, picture) for seen, picture in zip(self._seen, self._pictures, strict=True)]
        texture, self._confidence = texture_fit.fitted(mesh, photos, self._bound, NEAREST * self._bound)
        return to_bytes(texture)

    def _sums(self, points: np.ndarray, normals: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Sums over the photographs that see points [P, 3]: of weight times colour, [P, 3], and of weights, [P, 1]."""
        place = torch.from_numpy(points.astype(np.float32))
        normal = functional.normalize(torch.from_numpy(normals.astype(np.float32)), dim=-1)
        total = torch.zeros(len(points), 4)
        for seen, picture, confidence in zip(self._seen, self._pictures, self._confidence, strict=True):
            index, cosine, xy = seen.those(place, normal)
            total[index] += _bilinear(picture, xy) * (float(confidence) * cosine)[:, None]
        return total[:, :3].numpy(), total[:, 3:].numpy()


@dataclass(frozen=True)
class _Seen:
    """What a camera sees of the mesh."""

    view: Views
    depth: Tensor  # [H, W] distance of the nearest surface within a pixel, scene units; infinite where there is none

    def those(self, points: Tensor, normals: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The points it sees of some [P, 3] with unit normals [P, 3]: indices, cosines, and places in pixels [.., 2]."""
        towards = self.view.pose[0, :3, 3] - points
        distance = towards.norm(dim=-1)
        cosine = (towards * normals).sum(-1) / distance
        height, width = self.depth.shape
        (xy,), (along,) = project(self.view, points)  # behind the camera, a point has the place of its mirror image
        inside = (along > 0) & (xy >= 0).all(-1) & (xy[:, 0] < width) & (xy[:, 1] < height)
        index = torch.nonzero(inside & (cosine > LEAST_COSINE))[:, 0]
        cosine, distance, xy = cosine[index], distance[index], xy[index]
        column, row = xy.long().unbind(-1)
        slope = (1.0 - cosine.square()).clamp(min=0.0).sqrt() / cosine
        pixel = distance / torch.minimum(self.view.fx, self.view.fy)
        seen = distance <= self.depth[row, column] + pixel * (SLACK + 2.0 * slope)
        return index[seen], cosine[seen], xy[seen]


def _nearest(view: Views, vertices: Tensor, faces: Tensor, bound: float) -> Tensor:
    """The distance [H, W] of the nearest surface at a pixel or a neighbour of it; infinite where there is none."""
    raster = rasterize(clip_space(view, vertices, NEAREST * bound, bound), faces, view.height, view.width)
    depth = (interpolate(vertices[None], raster, faces)[0] - view.pose[0, :3, 3]).norm(dim=-1)
    depth = torch.where(raster.triangle[0] >= 0, depth, torch.inf)
    return -functional.max_pool2d(-depth[None], 3, stride=1, padding=1)[0]


def _rim(height: int, width: int) -> Tensor:
    """Weights [H, W] of pixels: 1, falling to 0 at the border."""
    reach = max(RIM * min(height, width), 1.0)
    down, across = (torch.minimum(k := torch.arange(n), n - 1 - k) / reach for n in (height, width))
    return torch.minimum(down[:, None], across[None]).clamp(max=1.0)


def _bilinear(picture: Tensor, xy: Tensor) -> Tensor:
    """Bilinear values [P, C] of a picture [H, W, C] at pixel positions [P, 2] (column, row; centres at + 0.5)."""
    height, width = picture.shape[:2]
    low = (xy - 0.5).floor()
    part = xy - 0.5 - low
    found = torch.zeros(len(xy), picture.shape[2])
    for right in (0, 1):
        for below in (0, 1):
            column = (low[:, 0].long() + right).clamp(0, width - 1)
            row = (low[:, 1].long() + below).clamp(0, height - 1)
            weight = (part[:, 0] if right else 1.0 - part[:, 0]) * (part[:, 1] if below else 1.0 - part[:, 1])
            found += picture[row, column] * weight[:, None]
    return found
