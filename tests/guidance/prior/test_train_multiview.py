"""Training of the multi-view prior on a tiny network and one shard."""

import pytest
import torch

from guidance.diffusion.multiview import LINKED
from guidance.prior import multiview_model, train_multiview
from guidance.prior.multiview_model import LinkedAttention, self_attention
from guidance.prior.train import train
from guidance.prior.train_multiview import MultiviewRecipe, MultiviewTrainer


@pytest.fixture
def make(prior_folder, linked_shards, tmp_path, monkeypatch):
    """recipe changes -> a trainer of the tiny prior."""
    build = multiview_model.build
    monkeypatch.setattr(train_multiview.multiview_model, "build", lambda: build(prior_folder))

    def make(**changes):
        recipe = MultiviewRecipe(**{"batch": 4, "warmup": 2, "lr": 3e-3} | changes)
        return MultiviewTrainer(recipe, linked_shards, tmp_path / "run")

    return make


def test_attention_is_trained_and_all_else_is_frozen(make):
    trainer = make()
    for group in trainer.optimizer.param_groups:
        group["weight_decay"] = 0.0
    before = {name: value.detach().clone() for name, value in trainer.prior.unet.named_parameters()}
    for _ in range(6):
        trainer.step(1.0)
    for name, value in trainer.prior.unet.named_parameters():
        assert torch.equal(value, before[name]) == (".attentions." not in name), name


def test_offsets_have_the_higher_learning_rate(make):
    trainer = make()
    trainer.step(1.0)
    slow, quick = trainer.optimizer.param_groups
    assert quick["lr"] == pytest.approx(5 * slow["lr"])
    heads = sum(layer.heads for layer in self_attention(trainer.prior.unet))
    assert quick["params"][0].numel() == heads
    offsets = torch.cat([layer.processor.offset for layer in self_attention(trainer.prior.unet)])
    torch.testing.assert_close(quick["params"][0].sort().values, offsets.sort().values)


def test_views_are_joined_in_the_share_of_steps_that_the_recipe_says(make, monkeypatch):
    trainer, seen = make(), []
    monkeypatch.setattr(
        trainer, "error", lambda batch, t: seen.append(frames(trainer)) or torch.zeros(len(t), requires_grad=True)
    )
    batch = trainer.batch()
    for _ in range(200):
        trainer.loss(batch)
    assert set(seen) == {1, LINKED} and 0.1 < seen.count(1) / 200 < 0.3


def frames(trainer):
    (found,) = {layer.processor.frames for layer in self_attention(trainer.prior.unet)}
    return found


def test_linked_attention_is_what_is_trained(make):
    layers = self_attention(make().prior.unet)
    assert layers and all(isinstance(layer.processor, LinkedAttention) for layer in layers)


def test_the_four_views_of_a_group_have_one_timestep_caption_and_fate(make, monkeypatch):
    trainer, given = make(drop_camera=0.5, drop_text=0.3), {}
    monkeypatch.setattr(trainer.prior, "predict", lambda x, t, text, camera, ray: given.update(locals()) or x)
    for _ in range(5):
        trainer.loss(trainer.batch())
        for name in ("t", "camera", "ray"):
            value = given[name].float().flatten(1) if given[name].ndim > 1 else given[name][:, None]
            told = value.abs().sum(1).unflatten(0, (-1, LINKED)) > 0
            assert (told == told[:, :1]).all()
        assert (given["t"].view(-1, LINKED) == given["t"].view(-1, LINKED)[:, :1]).all()
        first = given["text"][:, 0].unflatten(0, (-1, LINKED))
        assert (first == first[:, :1]).all()


def test_what_is_dropped_is_dropped_as_often_as_the_recipe_says(make):
    trainer = make(drop_text=0.1, drop_camera=0.2, drop_both=0.05)
    no_text, keep = trainer.dropped(20_000)
    assert float(no_text.float().mean()) == pytest.approx(0.15, abs=0.01)
    assert float(keep.mean()) == pytest.approx(0.75, abs=0.01)
    assert float((no_text & (keep == 0)).float().mean()) == pytest.approx(0.05, abs=0.01)


def test_a_run_exports_what_reads_back_and_resumes(make, prior_folder, linked_shards, tmp_path):
    recipe = make().recipe
    done = train(recipe, linked_shards, tmp_path / "run", minutes=0.01, kind=MultiviewTrainer)
    read = multiview_model.load(tmp_path / "multiview_snapshot", prior_folder)
    written = torch.nn.utils.parameters_to_vector(done.trained(read))
    assert (written - done.average).abs().max() < 3e-3
    assert '"offset_rate"' in (tmp_path / "multiview_snapshot" / "recipe.json").read_text()
    assert make().progress.step > 0


@pytest.mark.slow
def test_the_loss_falls_within_a_few_steps(make):
    trainer = make(separate=0.0)
    losses = [trainer.step(1.0) for _ in range(60)]
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])
