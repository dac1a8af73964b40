"""Training of the multi-view prior: ``python -m guidance.prior.train_multiview --minutes 50`` starts or resumes it.

The text-conditioned prior's attention blocks are trained on groups of four linked views with one timestep; all else is frozen.
In most steps the views of a group attend to each other; in the others each is alone, so that what a view can know by itself is
not forgotten. The camera is withheld from some groups, as from some images in the training of that prior. G groups of 4 views.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from guidance.diffusion.multiview import LINKED
from guidance.prior import multiview_model, train, training
from guidance.prior.model import Prior
from guidance.prior.multiview_dataset import DATA, LinkedBatch, LinkedLoader
from nerf.core.script import run


@dataclass(frozen=True)
class MultiviewRecipe(training.Recipe):
    """Hyperparameters of the training of the multi-view prior."""

    batch: int = 8  # groups per process and step
    processes: int = 1
    lr: float = 6e-4
    warmup: int = 100
    decay_minutes: float = 15
    ema: float = 0.995
    drop_camera: float = 0.12
    separate: float = 0.2  # probability of a step in which each view is alone
    offset_rate: float = 5.0  # factor of the learning rate of the offsets of attention


class MultiviewTrainer(training.Training[Prior, LinkedBatch]):
    """One process of the training."""

    recipe: MultiviewRecipe
    loader: LinkedLoader
    snapshot = "multiview_snapshot"
    writer = "multiview_dataset"

    def __init__(
        self, recipe: MultiviewRecipe, data: Path, run: Path, rank: int = 0, setup: training.Setup = training.HERE
    ) -> None:
        super().__init__(recipe, data, run, rank, setup)
        self.embeddings = train.Embeddings(self.prior)

    def build(self) -> Prior:
        """The text-conditioned prior with linked attention."""
        return multiview_model.build()

    def prepare_attention(self) -> None:
        """As for every prior, with linked self-attention; what is not trained is frozen."""
        linked = [(layer, layer.processor) for layer in multiview_model.self_attention(self.prior.unet)]
        super().prepare_attention()
        for layer, processor in linked:
            layer.set_processor(processor)
        self.prior.unet.requires_grad_(False)
        for value in multiview_model.changes(self.prior.unet).values():
            value.requires_grad_(True)

    def trained(self, prior: Prior) -> list[nn.Parameter]:
        """The attention blocks, then the offsets of joint attention."""
        named = multiview_model.changes(prior.unet)
        return [named[name] for name in sorted(named, key=lambda name: name.endswith(".processor.offset"))]

    def rates(self) -> list[tuple[int, float]]:
        """A higher one for the offsets."""
        offsets = sum(layer.heads for layer in multiview_model.self_attention(self.prior.unet))
        return [(self.weights.numel() - offsets, 1.0), (offsets, self.recipe.offset_rate)]

    def open(self, seed: int) -> LinkedLoader:
        """The source of groups."""
        return LinkedLoader(self.data, seed)

    def batch(self) -> LinkedBatch:
        """The next groups."""
        return self.loader.groups(self.recipe.batch)

    def write(self, prior: Prior, folder: Path) -> None:
        """Write what differs from the text-conditioned prior, with ``recipe.json``, to a folder."""
        multiview_model.save(prior, folder, self.about())

    def loss(self, batch: LinkedBatch) -> Tensor:
        """Mean squared error of x_0, weighted by kind."""
        groups = len(batch.captions)
        multiview_model.join(self.prior.unet, bool(torch.rand(1, generator=self.generator) >= self.recipe.separate))
        error = self.error(batch, self.timesteps(groups).repeat_interleave(LINKED))
        return (error.unflatten(0, (groups, LINKED)).mean(1) * batch.weight).mean()

    def error(self, batch: LinkedBatch, t: Tensor) -> Tensor:
        """Mean squared error [4 G] of x_0 at timesteps t [4 G], conditions dropped at random by groups."""
        groups = len(batch.captions)
        no_text, keep_camera = self.dropped(groups)
        captions = ["" if no else text for no, text in zip(no_text.tolist(), batch.captions, strict=True)]
        keep = keep_camera.repeat_interleave(LINKED)
        clean, noisy, _ = self.noised(batch.image, batch.degraded, t)
        text = self.embeddings(captions).repeat_interleave(LINKED, 0)
        with torch.autocast("cpu", torch.bfloat16):
            x0 = self.prior.predict(noisy, t, text, batch.camera * keep[:, None], batch.ray * keep[:, None, None, None])
        return (x0.float() - clean).square().mean((1, 2, 3))


if __name__ == "__main__":
    sys.exit(run(lambda: train.main(MultiviewTrainer, MultiviewRecipe(), "run_multiview", DATA)))
