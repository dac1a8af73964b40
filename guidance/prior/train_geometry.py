"""Training of the geometry network: ``python -m guidance.prior.train_geometry --minutes 60`` starts or resumes it.

The prior's other parts are frozen. As for the detail network, noise is added to degraded pictures. The renders are those of
:mod:`guidance.prior.geometry_dataset`. What goes on from a geometry network sees the kinds more often whose depth it errs in,
unless it is told how often. B images.
"""

import sys
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy

from guidance.prior import UNSHUFFLE, geometry, train, training
from guidance.prior import model as prior_model
from guidance.prior.comparison import measure_geometry
from guidance.prior.dataset import GEOMETRY_WRITER, Batch, frequency_by_error
from guidance.prior.geometry_dataset import DATA
from nerf.core.script import run

RECIPE = training.Recipe(lr=6e-4, warmup=100, decay_minutes=20, t_bias=1.0)
# Of the mean absolute errors of relief (in units of the network) and of normals, and of the cross entropy of coverage.
WEIGHTS_OF_ERRORS = (1.0, 0.3, 0.3)


class GeometryTrainer(train.FrozenPriorTrainer):
    """One process of the training, beside the shipped prior or beside other weights."""

    writer = GEOMETRY_WRITER

    def build(self) -> prior_model.Prior:
        """The prior, frozen, with its geometry network or a new one, on the device."""
        prior = self.frozen()
        if prior.geometry is None:
            prior.geometry = geometry.from_unet(prior.unet, UNSHUFFLE, self.recipe.seed)
        elif self.setup.frequency is None:
            hardness = measure_geometry(prior, timesteps=(300,)).hardness()
            self.setup = replace(self.setup, frequency=frequency_by_error(hardness))
        prior.geometry.set_attn_processor(self.attention())
        return prior.to(self.device)

    def trained(self, prior: prior_model.Prior) -> list[nn.Parameter]:
        """Those of the geometry network alone."""
        return [] if prior.geometry is None else list(prior.geometry.parameters())

    def about(self) -> dict[str, Any]:
        """The prior's own ``recipe.json``, with this run as the last one under the key ``geometry``."""
        known = self.known()
        return {**known, "geometry": [*known.get("geometry", []), self.record()]}

    def loss(self, batch: Batch) -> Tensor:
        """The weighted sum of the errors of relief, normals and coverage, those of the surface over what is covered."""
        (depth, turned, missed), (a, b, c) = self.errors(batch), WEIGHTS_OF_ERRORS
        return a * depth + b * turned + c * missed

    def errors(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Mean absolute errors of relief and normals, and the cross entropy of coverage, at random timesteps; scalars."""
        t = self.timesteps(len(batch.captions))
        no_text, _ = self.dropped(len(t))
        captions = ["" if no else text for no, text in zip(no_text.tolist(), batch.captions, strict=True)]
        _, noisy, _ = self.noised(batch.image, batch.degraded, t)
        assert self.prior.geometry is not None and batch.geometry is not None
        with torch.autocast(self.device.type, torch.bfloat16):
            text = self.encode_text(captions)
            found = geometry.predict(self.prior.geometry, noisy, t, text, batch.camera, batch.ray, UNSHUFFLE)
        relief, normal, coverage = batch.geometry.split([1, 3, 1], 1)
        covered = coverage[:, 0] > 0
        depth = (found.relief - relief[:, 0]).abs()[covered].mean() / geometry.UNIT
        turned = (found.normal - normal).abs().mean(1)[covered].mean()
        return depth, turned, binary_cross_entropy(found.coverage, coverage[:, 0])


if __name__ == "__main__":
    sys.exit(run(lambda: train.main(GeometryTrainer, RECIPE, "run_geometry", DATA)))
