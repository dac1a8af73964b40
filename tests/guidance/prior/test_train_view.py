"""Training of the view-conditioned prior on a tiny network and one shard."""

import pytest
import torch

from guidance.prior import model, train_view, view_model
from guidance.prior.train import train


@pytest.fixture
def trainer(view_shards, tmp_path, monkeypatch):
    build = view_model.build
    monkeypatch.setattr(train_view.view_model, "build", lambda seed: build(tiny=True, seed=seed))
    monkeypatch.setattr(train_view.prior_model, "load", lambda folder: model.build(tiny=True))
    recipe = train_view.ViewRecipe(batch=8, processes=1, warmup=5, lr=5e-3, encoder_steps=2, encoder_batch=12)
    return train_view.ViewTrainer(recipe, view_shards, tmp_path / "run")


def test_the_encoder_learns_alone_at_first_then_all_do(trainer):
    unet = [p.detach().clone() for p in trainer.prior.unet.parameters()]
    trainer.optimizer.param_groups[0]["weight_decay"] = 0.0
    heading = trainer.prior.encoder.heading.weight.detach().clone()
    assert len(trainer.batch().captions) == 12
    trainer.step(1.0), trainer.step(1.0)
    assert all(map(torch.equal, unet, trainer.prior.unet.parameters()))
    assert not torch.equal(heading, trainer.prior.encoder.heading.weight)
    assert len(trainer.batch().captions) == 8
    trainer.step(1.0)
    assert not torch.equal(unet[0], next(trainer.prior.unet.parameters()))


@pytest.mark.slow
def test_the_loss_falls_within_a_few_steps(trainer):
    trainer.progress.step = 2
    losses = [trainer.step(1.0) for _ in range(40)]
    assert sum(losses[-8:]) < 0.8 * sum(losses[:8])


def test_the_unconditional_tokens_start_as_the_empty_prompt(trainer):
    torch.testing.assert_close(trainer.prior.encoder.null, trainer.embeddings([""])[0])


def test_the_losses_of_the_encoder_vanish_for_what_it_should_say(trainer):
    batch = trainer.batch()
    reading = view_model.Reading(
        trainer.embeddings(batch.captions),
        50 * view_model.heading_target((batch.source["azimuth"] / 10).round() * 10),
    )
    batch.source["azimuth"] = (batch.source["azimuth"] / 10).round() * 10
    caption, heading = trainer.encoder_losses(batch, reading)
    assert caption == 0 and heading < 1e-6
    reading.heading = -reading.heading
    assert trainer.encoder_losses(batch, reading)[1] > 1 or not batch.oriented.any()


def test_a_run_exports_a_folder_that_reads_back_and_resumes(trainer, view_shards, tmp_path):
    done = train(trainer.recipe, view_shards, tmp_path / "run", minutes=0.01, kind=train_view.ViewTrainer)
    written = torch.nn.utils.parameters_to_vector(view_model.load(tmp_path / "view_snapshot").parameters())
    assert (written - done.average).abs().max() < 2e-3
    assert '"drop_reference"' in (tmp_path / "view_snapshot" / "recipe.json").read_text()
    again = train_view.ViewTrainer(trainer.recipe, view_shards, tmp_path / "run")
    assert again.progress.step > 0


def test_small_errors_of_the_azimuth_are_trained_on_and_gross_ones_are_not(trainer):
    batch = trainer.batch()
    true = torch.tensor([10.0, 10.0, 350.0, 10.0]).repeat(3)
    batch.source["azimuth"] = true
    batch.oriented = torch.tensor([True, True, True, False]).repeat(3)
    found = torch.tensor([20.0, 190.0, 10.0, 190.0]).repeat(3)
    reading = view_model.Reading(torch.zeros(12, 16, 32), view_model.heading_target(found).clamp(min=1e-9).log())
    expected = torch.tensor([20.0, 10.0, 10.0, 190.0]).repeat(3)
    torch.testing.assert_close(trainer.azimuths(batch, reading), expected, rtol=0, atol=0.1)


def test_the_unet_moves_more_slowly_than_the_encoder(trainer):
    trainer.progress.step = 1000  # past the warm-up and the encoder's own phase
    trainer.optimizer.param_groups[0]["weight_decay"] = trainer.optimizer.param_groups[1]["weight_decay"] = 0.0
    before = [p.detach().clone() for p in trainer.prior.parameters()]
    trainer.step(1.0)
    moved = [float((a - b).detach().abs().max()) for a, b in zip(before, trainer.prior.parameters(), strict=True)]
    unet = len(list(trainer.prior.unet.parameters()))
    # Adam's first step is the learning rate, whatever the gradient is.
    assert max(moved[:unet]) == pytest.approx(0.3 * trainer.recipe.lr, rel=0.01)
    assert max(moved[unet:]) == pytest.approx(trainer.recipe.lr, rel=0.01)
