"""The embedded prior as a judge of pictures: which caption denoises them best. B views, K captions."""

from collections.abc import Sequence

import torch
from torch import Tensor

from guidance.prior import IMAGE_SIZE, camera, classifier, replies
from nerf.core.structs import Views
from nerf.evaluation.cameras import turned
from nerf.evaluation.scorers import Scorer

# Of differences of log errors in a softmax: a caption whose error is a tenth lower is believed in seven times as much.
SCALE = 20.0
SEEDS = 2  # noises at each timestep


class PriorScorer(Scorer):
    """The embedded prior as a diffusion classifier; see :mod:`guidance.prior.classifier`.

    It is told the cameras that it was trained with, and of others nothing. It knows what it guided, so its figures are for
    comparing runs that it guided with each other and with the true shapes, not with runs of other models.

    Args:
        captions: all that it will be asked for.
        seed: of the noise.

    Raises:
        UserError: it does not know one of them, or its weights are missing.
    """

    name = "prior"
    title = "the embedded prior as a diffusion classifier"
    size = IMAGE_SIZE

    def __init__(self, captions: Sequence[str], seed: int = 0):
        for caption in captions:
            replies.check(caption, strict=True, further="or judge with --clip, which knows any words")
        self.seed, self.prior = seed, classifier.load_classifier()

    def _scores(self, pictures: Tensor, captions: Sequence[str], views: Views) -> Tensor:
        """Minus the mean logarithm of the errors, [B, K]; the noise of a picture depends on nothing but its place."""
        given = cameras_of(views)
        seeds = range(self.seed * SEEDS, (self.seed + 1) * SEEDS)
        found = [classifier.scores(self.prior, pictures, given, captions, seed=seed) for seed in seeds]
        return torch.stack(found).mean(0)

    def logits(self, pictures: Tensor, captions: Sequence[str], views: Views) -> Tensor:
        """See :meth:`Scorer.logits`."""
        return SCALE * self._scores(pictures, captions, views)

    def frontness(self, pictures: Tensor, caption: str, views: Views) -> Tensor:
        """See :meth:`Scorer.frontness`; between the camera of each view and that on the opposite side."""
        here, opposite = (self._scores(pictures, [caption], one)[:, 0] for one in (views, turned(views, 180.0)))
        return torch.sigmoid(SCALE * (opposite - here))


def cameras_of(views: Views) -> dict[str, Tensor] | None:
    """The cameras of views [B] as the prior is told them; None where one of them is none that it was trained with."""
    found = camera.of_views(views)
    ranges = {"polar": camera.POLAR_RANGE, "radius": camera.RADIUS_RANGE, "fovy": camera.FOVY_RANGE}
    inside = all(bool(((found[name] >= low) & (found[name] <= high)).all()) for name, (low, high) in ranges.items())
    return found if inside else None
