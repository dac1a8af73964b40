"""Training of the detail network: it learns, the rest of the prior keeps its bits, and a run resumes."""

import pytest
import torch

from guidance.prior import detail, model, train_detail


@pytest.fixture
def trainer(shards, shipped, tmp_path, monkeypatch):
    build = detail.build
    monkeypatch.setattr(train_detail.train, "WEIGHTS", shipped)
    monkeypatch.setattr(train_detail.detail, "build", lambda: build(tiny=True))
    recipe = train_detail.train.Recipe(batch=8, processes=1, warmup=5, lr=1e-2, t_bias=1.5)
    return train_detail.DetailTrainer(recipe, shards, tmp_path / "run")


@pytest.mark.slow
def test_the_loss_falls_within_a_few_steps(trainer):
    losses = [trainer.step(1.0) for _ in range(60)]
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])


def test_noise_is_added_to_degraded_images_and_the_clean_ones_are_the_target(trainer):
    seen = {}
    predict = trainer.prior.predict
    trainer.prior.predict = lambda noisy, *rest: predict(seen.setdefault("noisy", noisy), *rest)
    batch = trainer.loader.batch(8)
    trainer.error(batch, torch.zeros(8, dtype=torch.long))
    given = torch.nn.functional.pixel_shuffle(seen["noisy"], 8)
    noise = (1 - trainer.alphas_cumprod[0]).sqrt()
    assert not torch.equal(batch.degraded, batch.image)
    torch.testing.assert_close(given.mean((2, 3)), batch.degraded.mean((2, 3)), atol=float(noise) / 10, rtol=0.01)


def test_only_the_detail_network_changes_and_the_rest_is_written_as_it_shipped(trainer, shipped, tmp_path):
    before = [p.detach().clone() for p in trainer.prior.parameters()]
    for _ in range(3):
        trainer.step(1.0)
    trainer.export(tmp_path / "out")
    written, old = model.load(tmp_path / "out"), model.load(shipped)
    assert all(map(torch.equal, before, trainer.prior.parameters()))
    assert all(map(torch.equal, old.parameters(), written.parameters()))
    average = torch.nn.utils.parameters_to_vector(written.detail.parameters())
    assert (average - trainer.average).abs().max() < 2e-3 and written.detail.conv_out.weight.abs().max() > 0
    recipe = (tmp_path / "out" / "recipe.json").read_text()
    assert '"seed": 7' in recipe and '"detail"' in recipe


def test_a_run_resumes_with_the_weights_it_stopped_with(trainer, shards):
    trainer.step(1.0)
    trainer.save()
    again = train_detail.DetailTrainer(trainer.recipe, shards, trainer.run_folder)
    assert again.progress == trainer.progress and torch.equal(trainer.weights, again.weights)
    assert all(map(torch.equal, trainer.prior.detail.parameters(), again.prior.detail.parameters()))


def test_training_starts_from_the_shipped_detail_network(trainer, shards, tmp_path, monkeypatch):
    trainer.step(1.0)
    trainer.export(tmp_path / "out")
    monkeypatch.setattr(train_detail.train, "WEIGHTS", tmp_path / "out")
    fresh = train_detail.DetailTrainer(trainer.recipe, shards, tmp_path / "elsewhere")
    assert (fresh.weights - trainer.average).abs().max() < 2e-3 and fresh.weights.abs().max() > 0
