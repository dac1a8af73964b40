"""Training of the prior: it learns, and it resumes where it stopped."""

import pytest
import torch

from guidance.prior import model, train


@pytest.fixture
def trainer(shards, tmp_path, monkeypatch):
    build = model.build
    monkeypatch.setattr(train.prior_model, "build", lambda seed: build(tiny=True, seed=seed))
    recipe = train.Recipe(batch=8, processes=1, warmup=5, lr=5e-3)
    return train.Trainer(recipe, shards, tmp_path / "run")


def test_the_loss_falls_within_a_few_steps(trainer):
    losses = [trainer.step(1.0) for _ in range(25)]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


def test_a_run_resumes_with_the_weights_averages_and_counts_it_stopped_with(trainer, shards):
    trainer.step(1.0)
    trainer.save()
    again = train.Trainer(trainer.recipe, shards, trainer.run_folder)
    assert again.progress == trainer.progress
    assert torch.equal(trainer.weights, again.weights) and torch.equal(trainer.average, again.average)
    assert all(map(torch.equal, trainer.prior.parameters(), again.prior.parameters()))


def test_a_share_of_zero_changes_no_weight(trainer):
    before = [p.detach().clone() for p in trainer.prior.parameters()]
    trainer.step(0.0)
    assert all(map(torch.equal, before, trainer.prior.parameters()))


def test_the_export_holds_the_averaged_weights_and_the_recipe(trainer, tmp_path):
    trainer.step(1.0)
    trainer.export(tmp_path / "out")
    loaded = model.load(tmp_path / "out")
    written = torch.nn.utils.parameters_to_vector(loaded.parameters())
    assert (written - trainer.average).abs().max() < 2e-3
    assert '"data_sha256"' in (tmp_path / "out" / "recipe.json").read_text()


def test_a_short_run_ends_on_time_and_keeps_its_state(trainer, shards, tmp_path):
    done = train.train(trainer.recipe, shards, tmp_path / "run", minutes=0.01)
    assert done.progress.samples == 8 * done.progress.step
    assert (tmp_path / "run" / "state.pt").is_file() and (tmp_path / "snapshot" / "somnia.json").is_file()
