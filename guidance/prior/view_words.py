"""View words for the embedded prior, whose captions have none. B views, V view words.

A prompt with the words "front view" says of the azimuth that it is one of those the words describe. That is what the prior is
told under a word: a camera at an azimuth drawn from them anew at each step, with the view's own polar angle, distance and lens,
of which the words say nothing. In the mean over steps it knows as much as the word says. The word itself is drawn by the
weights that view words have in the view (:func:`guidance.prompts.view_weights`).
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from guidance.prior.camera import turned
from guidance.prompts import DEFAULT_ANGLES, VIEW_WORDS, ViewAngles, view_weights
from nerf.core.cameras import wrap_degrees
from nerf.core.structs import Views

LEVEL = 3  # words that differ in the azimuth: front, side and back; the others leave it open


def azimuths_of(words: Tensor, angles: ViewAngles, generator: torch.Generator) -> Tensor:
    """Azimuths [B] in degrees, each drawn from those that a word, an index [B] into ``VIEW_WORDS``, describes."""
    degrees = torch.arange(360.0)
    weights = view_weights(degrees, torch.full_like(degrees, 90.0), angles)
    weights[:, LEVEL:] = 1
    drawn = torch.multinomial(weights.T[words], 1, generator=generator)[:, 0]
    return wrap_degrees(drawn + torch.rand(len(words), generator=generator) - 0.5)


@dataclass(frozen=True)
class Words:
    """Where the view words of a step come from."""

    angles: ViewAngles = DEFAULT_ANGLES  # where they change
    generator: torch.Generator | None = None  # on the CPU; None: the one of torch

    def seen(self, views: Views, word: str | None = None) -> Views:
        """Views as a word leaves them known: turned about the vertical to an azimuth that it describes.

        Args:
            views: B cameras.
            word: one of ``VIEW_WORDS`` for all; None draws the word of each view.
        """
        generator = self.generator or torch.default_generator
        azimuth, polar = views.azimuth.cpu(), views.polar.cpu()
        if word is None:
            words = torch.multinomial(view_weights(azimuth, polar, self.angles), 1, generator=generator)[:, 0]
        else:
            words = torch.full((len(views),), VIEW_WORDS.index(word))
        drawn = azimuths_of(words, self.angles, generator).to(views.azimuth)
        return replace(views, azimuth=drawn, pose=turned(views.pose, drawn - views.azimuth))
