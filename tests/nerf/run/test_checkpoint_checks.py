"""What a trainer saves is finite, what it loads fits in every part, and what it goes on from is the newest that is whole."""

import pytest
import torch

from nerf.core.errors import DivergenceError, UserError
from nerf.run import checkpoint
from tests.nerf.test_utils import equal, make, weights


@pytest.mark.parametrize("where", ["model", "average", "optimizer"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_not_saved(tmp_path, where, value):
    trainer = make(tmp_path, "--cuda_ray", "--keep_checkpoints", "1")
    trainer.train_step()
    good = trainer.save()
    before = good.read_bytes()
    trainer.train_step()
    parameter = next(trainer.model.parameters())
    state = trainer.optimizer.state[parameter]
    tensor = {"model": parameter.data, "average": trainer.ema.average[0], "optimizer": state["exp_avg_sq"]}[where]
    tensor.view(-1)[3] = value
    sentence = f"after step 1: .* is not finite, so no .*goes on from {good.name}; try a smaller --lr or --grad_clip 1$"
    with pytest.raises(DivergenceError, match=sentence):
        trainer.save()
    assert [p.name for p in good.parent.iterdir()] == [good.name] and good.read_bytes() == before


def tampered(name, value):
    """A change of a checkpoint's (tensors, meta): ``value`` in the place of what ``name`` leads to, None: nothing there."""

    def change(tensors, meta):
        *folders, key = name.split("/")
        node = {"meta": meta, **tensors}
        for folder in folders:
            node = node[folder]
        if folders and value is None:
            del node[key]
        elif folders:
            node[key] = value(node[key]) if callable(value) else value
        else:
            tensors.pop(key)

    return change


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (tampered("meta/step", -5), "step, got -5"),
        (tampered("meta/step", 2.5), "step, got 2.5"),
        (tampered("meta/step", True), "step, got True"),
        (tampered("meta/step", "2"), "step, got 2"),
        (tampered("meta/step", None), "step, got None"),
        (tampered("meta/seconds", float("nan")), "seconds, got nan"),
        (tampered("meta/monitor", {"fog": 1.0}), "monitor"),
        (tampered("meta/scaler", {"scale": "x"}), "scaler"),
        (tampered("meta/transform", [[1.0]]), "transform"),
        (tampered("model", None), "no model"),
        (tampered("ema", None), "no ema"),
        (tampered("optimizer", None), "lacks the state of its optimiser"),
        (tampered("optimizer/0", None), "lacks the state of its optimiser"),
        (tampered("random", None), "random numbers"),
        (tampered("random/torch", lambda t: t[:-1]), "random numbers"),
        (tampered("random/torch", torch.zeros_like), "random numbers"),
        (tampered("model/field.encoder.embeddings", lambda t: t.int()), "of type int32, this run asks for float32"),
        (tampered("model/field.encoder.embeddings", lambda t: t.double()), "of type float64"),
        (tampered("model/field.encoder.embeddings", lambda t: t * float("nan")), "not finite"),
        (tampered("model/field.encoder.embeddings", "text"), "another thing than a tensor as model/field"),
        (tampered("ema/field.encoder.embeddings", lambda t: t[:-1]), "ema/field.encoder.embeddings of shape"),
        (tampered("ema/field.encoder.embeddings", None), "lacks ema/field"),
        (tampered("ema/updates", lambda t: t - 99), "average of -"),
        (tampered("optimizer/0/exp_avg", lambda t: t[:1]), "optimizer/0/exp_avg of shape"),
        (tampered("optimizer/0/exp_avg", lambda t: t.half()), "optimizer/0/exp_avg of type"),
        (tampered("optimizer/0/exp_avg", None), "another optimizer/0"),
        (tampered("optimizer/0/step", lambda t: t.repeat(9)), "optimizer/0/step of shape"),
        (tampered("optimizer/0", 3), "another optimizer/0"),
    ],
)
def test_a_checkpoint_that_another_program_changed_is_refused_before_any_of_it_is_used(tmp_path, change, sentence):
    trainer = make(tmp_path / "a", "--cuda_ray")
    trainer.train_step()
    trainer.train_step()
    path = trainer.save()
    tensors, meta = checkpoint.load(path)
    change(tensors, meta)
    checkpoint.save(path, tensors, meta)
    other = make(tmp_path / "b", "--cuda_ray", "--seed", "4")
    before, random = weights(other), torch.get_rng_state()
    with pytest.raises(UserError, match=sentence):
        other.load(path)
    assert equal(weights(other), before) and torch.equal(torch.get_rng_state(), random)
    assert other.step == 0 and not other.optimizer.state and other.ema.updates == 0


@pytest.mark.parametrize("optim", ["adam", "adan"])
def test_what_a_run_saves_it_loads(tmp_path, optim):
    first = make(tmp_path, "--cuda_ray", "--optim", optim)
    first.save()
    assert make(tmp_path, "--cuda_ray", "--optim", optim).step == 0
    first.train_step()
    first.save()
    assert make(tmp_path, "--cuda_ray", "--optim", optim).step == 1


def test_a_run_goes_on_from_the_newest_whole_checkpoint_and_says_so(tmp_path, capsys):
    trainer = make(tmp_path, "--cuda_ray", "--keep_checkpoints", "3")
    for _ in trainer.run():
        path = trainer.save()
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    again = make(tmp_path, "--cuda_ray")
    assert again.step == 5
    said = capsys.readouterr().err
    assert f"warning: checkpoint {path} is damaged" in said and "going on from" in said


@pytest.mark.parametrize("keep", ["1", "2"])
def test_what_is_trained_after_an_earlier_step_is_kept_and_gone_on_from(tmp_path, keep):
    trainer = make(tmp_path, "--cuda_ray", "--keep_checkpoints", "9")
    for _ in trainer.run():
        trainer.save()
    early = tmp_path / "checkpoints" / checkpoint.file_name(2)
    again = make(tmp_path, "--cuda_ray", "--ckpt", str(early), "--keep_checkpoints", keep)
    again.train_step()
    mine = again.save()
    assert mine.exists() and early.exists() and checkpoint.latest(early.parent) == mine
    again.train_step()
    again.save()
    assert early.exists() and len(list(early.parent.iterdir())) == 1 + int(keep)
    assert make(tmp_path, "--cuda_ray").step == 4


def test_weights_of_a_finished_run_that_are_trained_from_step_0_are_kept(tmp_path):
    make(tmp_path, "--cuda_ray").train()
    again = make(tmp_path, "--cuda_ray", "--ckpt", "latest_model", "--keep_checkpoints", "1")
    again.train_step()
    again.save()
    again.train_step()
    newest = again.save()
    kept = sorted(path.name for path in newest.parent.iterdir())
    assert kept == [newest.name, checkpoint.file_name(6)] and checkpoint.latest(newest.parent) == newest


def test_with_one_checkpoint_kept_the_way_out_of_a_damaged_one_works(tmp_path):
    trainer = make(tmp_path, "--cuda_ray", "--keep_checkpoints", "2")
    for _ in trainer.run():
        path = trainer.save()
    path.write_bytes(b"half")
    with pytest.raises(UserError, match="give --ckpt .* the one before it, (.*)") as refused:
        make(tmp_path, "--cuda_ray", "--ckpt", str(path))
    named = str(refused.value).rsplit("the one before it, ")[1]
    again = make(tmp_path, "--cuda_ray", "--ckpt", named, "--keep_checkpoints", "1")
    again.train()
    assert make(tmp_path, "--cuda_ray").step == 6
    for _, kept in checkpoint.steps(tmp_path / "checkpoints"):
        checkpoint.load(kept)


def test_a_run_goes_on_from_a_checkpoint_that_was_written_before_there_was_a_share_of_rays(tmp_path):
    """It had all rays, which the initial value says; so it ends with the same bits."""
    straight = make(tmp_path / "a", "--cuda_ray")
    straight.train()
    first = make(tmp_path / "b", "--cuda_ray")
    for _ in zip(range(3), first.run(), strict=False):
        pass
    path = first.save()
    tensors, meta = checkpoint.load(path)
    assert tensors["model"].pop("path.ray_share") == 1
    checkpoint.save(path, tensors, meta)
    second = make(tmp_path / "b", "--cuda_ray")
    assert second.step == 3
    second.train()
    assert equal(weights(straight), weights(second))


def test_only_a_model_that_marches_is_given_a_share_of_rays(tmp_path):
    trainer = make(tmp_path, "--no_cuda_ray")
    trainer.train_step()
    assert "path.ray_share" not in checkpoint.load(trainer.save())[0]["model"]
