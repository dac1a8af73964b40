"""Guidance whose estimate is the truth: what field, extraction and mesh stage reach by themselves, whatever the prior knows.

It stands in for the embedded prior in ``benchmarks/ceiling.py``: same cameras, noise levels and loss, but the x_0 prediction is
the picture of the captioned shape by the same camera, in the light and over the background that the rendering shows. B views.
"""

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from guidance.base import Conditions, GeometryEstimate, GuidanceOutput
from guidance.distillation import Denoiser
from guidance.prior import camera
from guidance.prior.geometry import Geometry, in_world
from guidance.prior.guidance import EmbeddedPrior
from guidance.prior.render import unlit, views_of
from guidance.prior.shapes import EMPTY, Shape, canonical
from nerf.core.structs import Control, Part, Views
from nerf.core.transfer import upload

_RIDGE = 1.0  # pixels whose light is taken to be flat, so that a fit to few pixels stays near that
_DARKEST = 0.1  # shade, as in training


class PerfectPrior(EmbeddedPrior):
    """The embedded prior with true pictures of the canonical member of the prompt's family as its estimates."""

    def prepare(self, conditions: Conditions) -> None:
        """See :meth:`EmbeddedPrior.prepare`."""
        super().prepare(conditions)
        self.shape: Shape = canonical(conditions.text or "")
        self.seen: Tensor | None = None  # [B, 3, S, S] in [0, 1], the rendering of the step at the prior's size

    def distilled(self, image: Tensor, views: Views, part: Part, control: Control, debug: bool) -> GuidanceOutput:
        """See :meth:`EmbeddedPrior.distilled`."""
        with torch.no_grad():
            self.seen = self.codec.decode(self.distiller.encode(image, part))
        return super().distilled(image, views, part, control, debug)

    @torch.no_grad()
    def geometry(self, image: Tensor, views: Views, part: Part, control: Control) -> GeometryEstimate:
        """The truth; see :meth:`Guidance.geometry`."""
        seen = views_of(self.shape, camera.of_views(views), self.codec.size)
        coverage = avg_pool2d((seen.material != EMPTY).float()[:, None], seen.material.shape[-1] // self.codec.size)[:, 0]
        found = Geometry(*upload([seen.relief, seen.normal.movedim(-1, 1), coverage], self.device))
        with self.distiller.full_precision():
            return in_world(found, views, image.shape[-1])

    def under(self, views: Views | None, count: int, refine: bool, names: tuple[str, ...]) -> Denoiser:
        """The truth, whatever the noise and the conditions; see :meth:`EmbeddedPrior.under`."""
        assert views is not None and self.seen is not None, "in training there are views"
        picture = true_picture(self.shape, views, self.seen.cpu()).to(self.device)
        target = self.codec.encode(picture, "rgb", torch.Generator())

        def predict(noisy: Tensor, t: Tensor) -> Tensor:
            return target.to(noisy).expand(len(names), *target.shape)

        return predict


def true_picture(shape: Shape, views: Views, seen: Tensor) -> Tensor:
    """Pictures of a shape as a rendering shows it: by its cameras, in its light, over its background.

    Args:
        shape: of the captioned ones.
        views: B cameras.
        seen: [B, 3, S, S] the rendering. Its light is fitted to it, its background is the mean of its border.

    Returns:
        [B, 3, S, S] in [0, 1].
    """
    layers, normal = unlit(shape, camera.of_views(views), seen.shape[-1])
    albedo, covered = layers[:, :3], layers[:, 3:]
    shade = torch.stack([_shade(*layers) for layers in zip(seen, albedo, covered, normal, strict=True)])
    border = torch.cat([seen[..., 0, :], seen[..., -1, :], seen[..., :, 0], seen[..., :, -1]], -1).mean(-1)
    return albedo * shade + (1 - covered) * border[:, :, None, None]


def _shade(seen: Tensor, albedo: Tensor, covered: Tensor, normal: Tensor) -> Tensor:
    """The shade [1, S, S] of a view: linear in the normal [S, S, 3], fitted to the rendering by least squares.

    Its scale is that of Lambert's law, which is 1 towards the light: how bright the object is does not follow the rendering.
    """
    inner = covered[0] == 1
    basis = torch.cat([torch.ones_like(normal[..., :1]), normal], -1)  # [S, S, 4]
    weight = albedo[:, inner]  # [3, P]
    rows = (weight[..., None] * basis[inner]).reshape(-1, 4)
    ridge = _RIDGE * torch.eye(4)
    target = rows.T @ seen[:, inner].reshape(-1) + ridge[:, 0]
    found = torch.linalg.solve(rows.T @ rows + ridge, target)
    brightest = (found[0] + found[1:].norm()).clamp(min=_DARKEST)  # the shade of what faces the light, which is 1
    return (basis @ (found / brightest)).clamp(_DARKEST, 1.0)[None]
