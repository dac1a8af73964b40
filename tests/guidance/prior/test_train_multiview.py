"""Training of the multi-view prior on a tiny network and one shard."""

import pytest
import torch

from guidance.diffusion.multiview import LINKED
from guidance.prior import multiview_model, train_multiview
from guidance.prior.multiview_model import LinkedAttention, self_attention
from guidance.prior.train import train
from guidance.prior.train_multiview import MultiviewRecipe, MultiviewTrainer
from guidance.prompts import VIEW_WORDS


@pytest.fixture
def make(prior_folder, linked_shards, tmp_path, monkeypatch):
    """recipe changes -> a trainer of the tiny prior."""
    build = multiview_model.build
    monkeypatch.setattr(train_multiview.multiview_model, "build", lambda seed: build(prior_folder, seed))

    def make(**changes):
        recipe = MultiviewRecipe(**{"batch": 4, "warmup": 2, "lr": 3e-3} | changes)
        return MultiviewTrainer(recipe, linked_shards, tmp_path / "run")

    return make


def test_attention_and_words_are_trained_and_all_else_is_frozen(make):
    trainer = make(drop_camera=1.0, drop_words=0.0)
    for group in trainer.optimizer.param_groups:
        group["weight_decay"] = 0.0
    before = {name: value.detach().clone() for name, value in trainer.prior.unet.named_parameters()}
    words = trainer.prior.words.detach().clone()
    for _ in range(6):
        trainer.step(1.0)
    for name, value in trainer.prior.unet.named_parameters():
        assert torch.equal(value, before[name]) == (".attentions." not in name), name
    used = (trainer.prior.words != words).any(1)
    assert used[:3].all() and not used[VIEW_WORDS.index("bottom")]  # no camera of the training set is below


def test_offsets_and_words_have_the_higher_learning_rate(make):
    trainer = make()
    trainer.step(1.0)
    slow, quick = trainer.optimizer.param_groups
    assert quick["lr"] == pytest.approx(5 * slow["lr"])
    heads = sum(layer.heads for layer in self_attention(trainer.prior.unet))
    assert quick["params"][0].numel() == heads + trainer.prior.words.numel()
    torch.testing.assert_close(quick["params"][0][-trainer.prior.words.numel() :], trainer.prior.words.flatten())


def test_views_are_joined_in_the_share_of_steps_that_the_recipe_says(make, monkeypatch):
    trainer, seen = make(), []
    monkeypatch.setattr(
        trainer, "error", lambda batch, t: seen.append(frames(trainer)) or torch.zeros(len(t), requires_grad=True)
    )
    batch = trainer.batch()
    for _ in range(200):
        trainer.loss(batch)
    assert set(seen) == {1, LINKED} and 0.2 < seen.count(1) / 200 < 0.4


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


def test_words_are_drawn_by_their_weights_for_the_view(make):
    trainer = make()
    batch = trainer.batch()
    batch.polar[:] = 75.0
    trainer.prior.words.data = torch.eye(5, 32)
    batch.azimuth = torch.tensor([0.0, 90.0, 180.0, -90.0]).repeat(4)
    assert trainer.words(batch).argmax(1).tolist() == [0, 1, 2, 1] * 4
    batch.azimuth = torch.full((16,), 45.0)
    drawn = torch.cat([trainer.words(batch).argmax(1) for _ in range(40)])
    assert set(drawn.tolist()) == {0, 1} and 0.4 < (drawn == 0).float().mean() < 0.6


def test_a_dropped_caption_has_no_word(make):
    trainer = make(drop_text=1.0)
    batch = trainer.batch()
    text = trainer.text(batch, torch.ones(4, dtype=torch.bool))
    torch.testing.assert_close(text, trainer.embeddings([""]).expand(16, -1, -1))
    kept = make(drop_text=0.0, drop_both=0.0)
    worded = kept.text(kept.batch(), torch.tensor([True, False, True, False]))
    plain = kept.text(kept.batch(), torch.zeros(4, dtype=torch.bool))
    assert worded.requires_grad and not torch.equal(worded[:, -1], plain[:, -1])


def test_a_run_exports_what_reads_back_and_resumes(make, prior_folder, linked_shards, tmp_path):
    recipe = make().recipe
    done = train(recipe, linked_shards, tmp_path / "run", minutes=0.01, kind=MultiviewTrainer)
    read = multiview_model.load(tmp_path / "multiview_snapshot", prior_folder)
    written = torch.nn.utils.parameters_to_vector(done.trained(read))
    assert (written - done.average).abs().max() < 3e-3
    assert '"drop_words"' in (tmp_path / "multiview_snapshot" / "recipe.json").read_text()
    assert make().progress.step > 0


@pytest.mark.slow
def test_the_loss_falls_within_a_few_steps(make):
    trainer = make(separate=0.0)
    losses = [trainer.step(1.0) for _ in range(60)]
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])
