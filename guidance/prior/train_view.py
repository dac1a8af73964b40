"""Training of the view-conditioned prior: ``python -m guidance.prior.train_view --minutes 100`` starts or resumes it.

The UNet starts from the text-conditioned prior. The encoder alone learns first, to name what it sees as that prior's text
encoder does and to tell from where it was seen; then both are trained together on the squared error of x_0. The camera is
given in the frame that the encoder estimates, as it is when the prior is used, so the UNet learns to make up for its errors.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax

from guidance.prior import WEIGHTS, train, training, view_model
from guidance.prior import model as prior_model
from guidance.prior.view_dataset import DATA, PairBatch, PairLoader
from guidance.prior.view_model import Reading, ViewPrior
from nerf.core.script import run

GROSS = 25.0  # degrees, from which an error of the estimated azimuth is not trained on


@dataclass(frozen=True)
class ViewRecipe(training.Recipe):
    """Hyperparameters of the training of the view-conditioned prior."""

    lr: float = 5e-4
    unet_rate: float = 0.3  # factor of the learning rate of the UNet, which is trained already
    ema: float = 0.998
    decay_minutes: float = 20
    encoder_steps: int = 2800  # steps of the encoder alone
    encoder_batch: int = 64  # references per process and step, while it is alone
    caption_alone: float = 20.0  # weight of the squared error of the tokens that stand for the text, while it is alone
    caption_weight: float = 0.5  # the same afterwards
    heading_weight: float = 0.02  # of the cross-entropy of the azimuth
    drop_reference: float = 0.1  # probability of dropping the reference


class ViewTrainer(training.Training[ViewPrior, PairBatch]):
    """One process of the training."""

    recipe: ViewRecipe
    loader: PairLoader
    snapshot = "view_snapshot"
    writer = "view_dataset"

    def build(self) -> ViewPrior:
        """The UNet of the text-conditioned prior and a new encoder; its text encoder is the encoder's teacher."""
        prior = view_model.build(seed=self.recipe.seed)
        self.embeddings = train.Embeddings(prior_model.load(WEIGHTS))  # of the teacher
        with torch.no_grad():
            prior.encoder.null[:] = self.embeddings([""])[0]
        return prior

    def trained(self, prior: ViewPrior) -> list[nn.Parameter]:
        """All parameters."""
        return prior.parameters()

    def rates(self) -> list[tuple[int, float]]:
        """A lower one for the UNet."""
        trained = sum(p.numel() for p in self.prior.unet.parameters())
        return [(trained, self.recipe.unet_rate), (self.weights.numel() - trained, 1.0)]

    def open(self, seed: int) -> PairLoader:
        """The source of pairs."""
        return PairLoader(self.data, seed)

    @property
    def alone(self) -> bool:
        """Whether the encoder is still trained alone."""
        return self.progress.step < self.recipe.encoder_steps

    def batch(self) -> PairBatch:
        """The next pairs."""
        return self.loader.pairs(self.recipe.encoder_batch if self.alone else self.recipe.batch)

    def write(self, prior: ViewPrior, folder: Path) -> None:
        """Write a prior, with ``recipe.json``, to a folder."""
        view_model.save(prior, folder, self.about())

    def encoder_losses(self, batch: PairBatch, reading: Reading) -> tuple[Tensor, Tensor]:
        """Mean squared error of the caption tokens, and mean cross-entropy of the azimuth of kinds that have a front."""
        caption = (reading.caption.float() - self.embeddings(batch.captions)).square().mean()
        wanted = view_model.heading_target(batch.source["azimuth"])
        entropy = -(wanted * log_softmax(reading.heading.float(), -1)).sum(-1)
        return caption, (entropy * batch.oriented).mean()

    def loss(self, batch: PairBatch) -> Tensor:
        """Mean squared error of x_0, weighted by kind, with the encoder's own losses; these alone at first."""
        r = self.recipe
        with torch.autocast("cpu", torch.bfloat16):
            reading = self.prior.read(batch.reference, batch.source)
        caption, heading = self.encoder_losses(batch, reading)
        if self.alone:
            return r.caption_alone * caption + heading
        error = self.error(batch, reading, self.timesteps(len(batch.captions)))
        return (error * batch.weight).mean() + r.caption_weight * caption + r.heading_weight * heading

    def azimuths(self, batch: PairBatch, reading: Reading) -> Tensor:
        """The azimuths [B] of the references that the UNet is trained with: the estimates, and the true ones for gross errors.

        The UNet learns to correct small errors. It can do nothing about great ones but blur, and would learn to ignore the
        camera; it is better that the object comes out turned.
        """
        found, true = view_model.azimuth_of(reading.heading), batch.source["azimuth"]
        miss = ((found - true + 180) % 360 - 180).abs()
        return torch.where((miss < GROSS) | ~batch.oriented, found, true)

    def error(self, batch: PairBatch, reading: Reading, t: Tensor) -> Tensor:
        """Mean squared error [B] of x_0 at timesteps t [B], the reference dropped at random."""
        keep = (torch.rand(len(t), generator=self.generator) >= self.recipe.drop_reference).float()
        clean, noisy, _ = self.noised(batch.image, batch.degraded, t)
        with torch.autocast("cpu", torch.bfloat16):
            seen = self.prior.see(batch.reference, batch.source, reading, self.azimuths(batch, reading))
            x0 = self.prior.predict(noisy, t, seen, *view_model.cameras_of(batch.target, seen.offset), keep)
        return (x0.float() - clean).square().mean((1, 2, 3))


if __name__ == "__main__":
    sys.exit(run(lambda: train.main(ViewTrainer, ViewRecipe(), "run_view", DATA)))
