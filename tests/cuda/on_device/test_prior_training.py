"""A step of the training of the embedded prior on the device: everything it computes with is there."""

import pytest
import torch

from guidance.prior import detail, diagnose, model, train, train_detail, training
from tests.guidance.prior.conftest import shards  # noqa: F401  # fixture
from tests.helpers.fake_cuda.tensor import CudaTensor


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Tiny weights, with a detail network."""
    folder = tmp_path_factory.mktemp("weights")
    prior = model.build(tiny=True)
    prior.detail = detail.build(tiny=True)
    model.save(prior, folder, {})
    return folder


@pytest.mark.parametrize("kind", [train.Trainer, train_detail.DetailTrainer])
def test_training_runs_on_the_device_and_goes_on_there(kind, shards, weights, tmp_path):  # noqa: F811
    recipe, setup = training.Recipe(batch=4, processes=1), training.Setup("cuda", weights=weights)
    trainer = kind(recipe, shards, tmp_path / "run", setup=setup)
    before = trainer.weights.detach().clone()
    assert isinstance(trainer.weights.data, CudaTensor) and trainer.batch().image.is_cuda
    losses = [trainer.step(1.0) for _ in range(2)]
    assert all(0 < loss < 100 for loss in losses) and not torch.equal(before.cpu(), trainer.weights.detach().cpu())
    trainer.save()
    again = kind(recipe, shards, tmp_path / "run", setup=setup)
    again.step(1.0)
    assert again.progress.step == 3 and again.weights.is_cuda
    trainer.export(tmp_path / "out")
    assert (model.load(tmp_path / "out").unet.conv_in.weight - trainer.prior.unet.conv_in.weight.cpu()).abs().max() < 0.1


def test_errors_are_the_same_wherever_the_networks_are(weights):
    there = diagnose.kind_errors(model.load(weights).to("cuda"), ["car"], (500,), 2)
    here = diagnose.kind_errors(model.load(weights), ["car"], (500,), 2)
    assert there["car"][500] == pytest.approx(here["car"][500], abs=2e-3)
