"""Training of the multi-view prior: ``python -m guidance.prior.train_multiview --minutes 50`` starts or resumes it.

The text-conditioned prior's attention blocks and the view words are trained on groups of four linked views with one timestep;
all else is frozen. In most steps the views of a group attend to each other; in the others each is alone, so that the prior
remains one of single views too. In some groups the camera is withheld, and mostly a view word is given in its place, drawn by
the weights that guidance gives to the words of that view. G groups of 4 views.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from guidance.diffusion.multiview import LINKED
from guidance.prior import multiview_model, train
from guidance.prior.multiview_dataset import DATA, LinkedBatch, LinkedLoader
from guidance.prior.multiview_model import MultiviewPrior
from guidance.prompts import view_weights


@dataclass(frozen=True)
class MultiviewRecipe(train.Recipe):
    """Hyperparameters of the training of the multi-view prior."""

    batch: int = 8  # groups per process and step
    processes: int = 1
    lr: float = 6e-4
    warmup: int = 100
    decay_minutes: float = 15
    ema: float = 0.995
    separate: float = 0.3  # probability of a step in which each view is alone
    drop_camera: float = 0.35  # probability of withholding the camera of a group
    drop_words: float = 0.25  # probability of giving no view word, where the camera is withheld
    words_too: float = 0.1  # probability of giving a view word beside the camera
    words_rate: float = 5.0  # factor of the learning rate of the view words and of the offsets of attention


class MultiviewTrainer(train.Training[MultiviewPrior, LinkedBatch]):
    """One process of the training."""

    recipe: MultiviewRecipe
    loader: LinkedLoader
    snapshot = "multiview_snapshot"

    def __init__(self, recipe: MultiviewRecipe, data: Path, run: Path, rank: int = 0) -> None:
        super().__init__(recipe, data, run, rank)
        self.embeddings = train.Embeddings(self.prior)

    def build(self) -> MultiviewPrior:
        """The text-conditioned prior with linked attention."""
        return multiview_model.build(seed=self.recipe.seed)

    def prepare_attention(self) -> None:
        """As for every prior, with linked self-attention; what is not trained is frozen."""
        linked = [(layer, layer.processor) for layer in multiview_model.self_attention(self.prior.unet)]
        super().prepare_attention()
        for layer, processor in linked:
            layer.set_processor(processor)
        self.prior.unet.requires_grad_(False)
        for value in self.prior.changes().values():
            value.requires_grad_(True)

    def trained(self, prior: MultiviewPrior) -> list[nn.Parameter]:
        """The attention blocks, then the offsets of joint attention and the view words."""
        quick = {name: self._is_quick(name) for name in prior.changes()}
        return [value for name, value in sorted(prior.changes().items(), key=lambda item: quick[item[0]])]

    @staticmethod
    def _is_quick(name: str) -> bool:
        """Whether a parameter has the higher learning rate."""
        return name == multiview_model.WORDS or name.endswith(".processor.offset")

    def rates(self) -> list[tuple[int, float]]:
        """A higher one for the offsets and the words."""
        quick = sum(value.numel() for name, value in self.prior.changes().items() if self._is_quick(name))
        return [(self.weights.numel() - quick, 1.0), (quick, self.recipe.words_rate)]

    def open(self, seed: int) -> LinkedLoader:
        """The source of groups."""
        return LinkedLoader(self.data, seed)

    def batch(self) -> LinkedBatch:
        """The next groups."""
        return self.loader.groups(self.recipe.batch)

    def write(self, prior: MultiviewPrior, folder: Path) -> None:
        """Write what differs from the text-conditioned prior, with ``recipe.json``, to a folder."""
        multiview_model.save(prior, folder, self.about())

    def _chance(self, count: int) -> Tensor:
        """Uniform numbers [count] in [0, 1)."""
        return torch.rand(count, generator=self.generator)

    def words(self, batch: LinkedBatch) -> Tensor:
        """A view word's token [4 G, D] for each view, drawn by the weights that the word has there. Differentiable."""
        assert self.prior.words is not None
        chosen = torch.multinomial(view_weights(batch.azimuth, batch.polar), 1, generator=self.generator)[:, 0]
        return self.prior.words[chosen]

    def text(self, batch: LinkedBatch, given: Tensor) -> Tensor:
        """Text embeddings [4 G, L, D], with a view word in the groups where ``given`` [G], the captions dropped at random."""
        r, groups = self.recipe, len(batch.captions)
        dropped = self._chance(groups) < r.drop_text + r.drop_both
        captions = ["" if no else caption for no, caption in zip(dropped.tolist(), batch.captions, strict=True)]
        text = self.embeddings(captions).repeat_interleave(LINKED, 0)
        chosen = (given & ~dropped).repeat_interleave(LINKED)[:, None, None]  # the unconditional prediction has no word
        return torch.where(chosen, multiview_model.with_words(text, self.words(batch)), text)

    def loss(self, batch: LinkedBatch) -> Tensor:
        """Mean squared error of x_0, weighted by kind."""
        groups = len(batch.captions)
        multiview_model.join(self.prior.unet, bool(self._chance(1) >= self.recipe.separate))
        error = self.error(batch, self.timesteps(groups).repeat_interleave(LINKED))
        return (error.unflatten(0, (groups, LINKED)).mean(1) * batch.weight).mean()

    def error(self, batch: LinkedBatch, t: Tensor) -> Tensor:
        """Mean squared error [4 G] of x_0 at timesteps t [4 G], conditions dropped at random by groups."""
        r, groups = self.recipe, len(batch.captions)
        told = self._chance(groups) >= r.drop_camera
        word = self._chance(groups) < torch.where(told, r.words_too, 1 - r.drop_words)
        keep = told.float().repeat_interleave(LINKED)
        clean, noisy, _ = self.noised(batch.image, batch.degraded, t)
        text = self.text(batch, word)
        with torch.autocast("cpu", torch.bfloat16):
            x0 = self.prior.predict(noisy, t, text, batch.camera * keep[:, None], batch.ray * keep[:, None, None, None])
        return (x0.float() - clean).square().mean((1, 2, 3))


if __name__ == "__main__":
    train.main(MultiviewTrainer, MultiviewRecipe(), "run_multiview", DATA)
