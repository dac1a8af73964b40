"""Training of the detail network: ``python -m guidance.prior.train_detail --minutes 45`` starts or resumes it.

The prior's other parts are frozen. Noise is added to degraded images, and the clean ones are the target
(:mod:`guidance.prior.degrade`). The squared error is divided by about sigma: at low noise it is small, and that is where
outlines are decided.
"""

import sys
from typing import Any

import torch
from torch import Tensor, nn

from guidance.prior import detail, train, training
from guidance.prior import model as prior_model
from guidance.prior.dataset import Batch
from nerf.core.script import run

RECIPE = training.Recipe(lr=2e-3, warmup=100, decay_minutes=20, t_bias=1.5)  # t = 1000 u^bias here: more samples at low noise
FLOOR = 0.1  # the weight of a squared error is 1 / (FLOOR + sigma)


class DetailTrainer(train.FrozenPriorTrainer):
    """One process of the training, on top of the shipped prior or of other weights."""

    def build(self) -> prior_model.Prior:
        """The prior, frozen, with its detail network or a new one, on the device."""
        prior = self.frozen()
        torch.manual_seed(self.recipe.seed)
        prior.detail = prior.detail or detail.build()
        prior.detail.set_attn_processor(self.attention())
        return prior.to(self.device)

    def trained(self, prior: prior_model.Prior) -> list[nn.Parameter]:
        """Those of the detail network alone."""
        return [] if prior.detail is None else list(prior.detail.parameters())

    def about(self) -> dict[str, Any]:
        """The prior's own ``recipe.json``, with this run under the key ``detail``."""
        return {**self.known(), "detail": self.record()}

    def loss(self, batch: Batch) -> Tensor:
        """Mean squared error of the x_0 prediction over ``FLOOR + sigma``."""
        u = torch.rand(len(batch.captions), generator=self.generator)  # here low timesteps are frequent
        error, sigma = self.error(batch, (1000 * u**self.recipe.t_bias).long().clamp(0, 999).to(self.device))
        return (error / (FLOOR + sigma)).mean()


if __name__ == "__main__":
    sys.exit(run(lambda: train.main(DetailTrainer, RECIPE, "run_detail")))
