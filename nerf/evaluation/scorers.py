"""Models that say how well a picture agrees with a text: CLIP, and the embedded prior as a classifier. B views, K captions."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from guidance import text_weights
from guidance.clip_utils import Clip
from nerf.core.structs import Views
from nerf.evaluation import janus

CLIP_SCALE = 100.0  # of cosines in a softmax, where CLIP's training ends (Radford et al. 2021, sec. 2.5)


class Scorer(ABC):
    """A judge of pictures.

    Attributes:
        name: in tables.
        title: which model it is, printed with every figure.
        size: side of the pictures that it is given, pixels.
    """

    name: str
    title: str
    size: int

    @abstractmethod
    def logits(self, pictures: Tensor, captions: Sequence[str], views: Views) -> Tensor:
        """Agreement of every picture with every caption, whose softmax over captions is a posterior.

        Args:
            pictures: [B, 3, S, S] in [0, 1].
            captions: K.
            views: the B cameras.

        Returns:
            [B, K]; only differences within a row mean something.
        """

    @abstractmethod
    def frontness(self, pictures: Tensor, caption: str, views: Views) -> Tensor:
        """How much each view shows what should be seen from the opposite side: [B] in [0, 1], 0.5 where the two look alike."""

    def agreement(self, pictures: Tensor, captions: Sequence[str], true: int, views: Views) -> Tensor:
        """Agreement of each picture with one of the captions as a number that pictures can be compared by, [B]."""
        return torch.softmax(self.logits(pictures, captions, views).double(), 1)[:, true]

    def figures(self, pictures: Tensor, caption: str, views: Views) -> dict[str, float]:
        """Further figures of the agreement with one caption, by name."""
        return {}


class ClipScorer(Scorer):
    """CLIP: cosines of unit embeddings.

    Args:
        key: a folder of a CLIP model of transformers, or a hub id, which is downloaded unless it is in the cache.
        device: where it runs.

    Raises:
        UserError: there is no such model.
    """

    name = "CLIP"

    def __init__(self, key: str, device: torch.device | str = "cpu"):
        folder = text_weights.fetch(text_weights.from_key("clip", key, "--clip"), "--clip")
        self.clip = Clip(folder, device)
        self.title, self.size = f"CLIP {key if not Path(key).exists() else Path(key).name}", self.clip.size
        self._last: tuple[Tensor | None, Tensor] = (None, torch.zeros(0))  # pictures, and their embeddings

    @torch.no_grad()
    def embedded(self, pictures: Tensor) -> Tensor:
        """Unit embeddings [B, D]; the same pictures are often asked for several times in a row, and embedded once."""
        if self._last[0] is not pictures:
            self._last = (pictures, self.clip.embed(pictures.to(self.clip.device)))
        return self._last[1]

    def cosines(self, pictures: Tensor, captions: Sequence[str]) -> Tensor:
        """Cosine similarities [B, K]."""
        return self.embedded(pictures) @ self.clip.embed_texts(captions).T

    def logits(self, pictures: Tensor, captions: Sequence[str], views: Views) -> Tensor:
        """See :meth:`Scorer.logits`."""
        return CLIP_SCALE * self.cosines(pictures, captions)

    def frontness(self, pictures: Tensor, caption: str, views: Views) -> Tensor:
        """See :meth:`Scorer.frontness`; among "front view" and "back view", of which the wrong one counts."""
        posterior = torch.softmax(
            CLIP_SCALE * self.cosines(pictures, [f"front view of {caption}", f"back view of {caption}"]), 1
        )
        behind = (views.azimuth.abs() > 90).long().to(posterior.device)  # azimuths lie in (-180, 180]
        return posterior.gather(1, (1 - behind)[:, None])[:, 0]

    def agreement(self, pictures: Tensor, captions: Sequence[str], true: int, views: Views) -> Tensor:
        """See :meth:`Scorer.agreement`; the cosine."""
        return self.cosines(pictures, [captions[true]])[:, 0]

    def figures(self, pictures: Tensor, caption: str, views: Views) -> dict[str, float]:
        """The CLIP score, which is the mean cosine, and the mean distance ``1 - cosine`` of neighbouring views."""
        apart = janus.drift(self.embedded(pictures), lambda a, b: 1 - a @ b)
        return {"clip_score": float(self.cosines(pictures, [caption]).mean()), "drift_clip_embedding": apart}
