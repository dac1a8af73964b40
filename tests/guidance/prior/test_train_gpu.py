"""Training on one device: what it starts from, how it resumes, what it refuses, and the report on the new weights."""

import json

import pytest
import torch

from guidance.prior import (
    UNSHUFFLE,
    WEIGHTS,
    comparison,
    detail,
    diagnose,
    geometry,
    geometry_dataset,
    model,
    train,
    train_detail,
    train_geometry,
    train_gpu,
    training,
)
from guidance.prior.captions import KIND_NAMES
from guidance.prior.comparison import GeometryFigures, PictureFigures
from nerf.core.errors import UserError
from nerf.core.script import run

RECIPE = training.Recipe(batch=4, processes=1)
MEASURED = ("car", "teddy bear")


@pytest.fixture(scope="module")
def shipped(tmp_path_factory):
    """Tiny weights, with a detail and a geometry network."""
    folder = tmp_path_factory.mktemp("shipped")
    prior = model.build(tiny=True)
    prior.detail = detail.build(tiny=True)
    prior.geometry = geometry.from_unet(prior.unet, UNSHUFFLE)
    model.save(prior, folder, {"samples": 7, "continued": [{"samples": 8}]})
    return folder


@pytest.fixture
def tiny(shipped, monkeypatch):
    """The program with tiny weights, and few measurements."""
    measure, measure_geometry = comparison.measure, comparison.measure_geometry
    monkeypatch.setattr(train_gpu, "WEIGHTS", shipped)
    monkeypatch.setattr(train_gpu, "frequency_by_error", lambda errors: dict.fromkeys(KIND_NAMES, 1.0) | {"car": errors["car"]})
    monkeypatch.setattr(comparison, "measure", lambda prior, part, count: measure(prior, part, 1, MEASURED, 1))
    monkeypatch.setattr(comparison, "measure_geometry", lambda prior, count: measure_geometry(prior, 1, MEASURED, (100, 300)))
    monkeypatch.setattr(diagnose, "KINDS", ("car",))


@pytest.fixture
def program(tiny, shards, tmp_path):
    """Runs the program for a moment on the CPU; returns its report."""

    def start(*flags):
        place = ["--data", str(shards), "--shards", "1", "--out", str(tmp_path / "out")]
        assert train_gpu.main(["--device", "cpu", "--minutes", "0.005", "--batch", "4", "--lr", "1", *place, *flags]) == 0
        return json.loads((tmp_path / "out" / "report_text.json").read_text())

    return start


def test_the_first_loss_is_that_of_the_shipped_weights_and_not_that_of_random_ones(shards, tmp_path):
    trainer = train.Trainer(RECIPE, shards, tmp_path / "run", setup=training.Setup(weights=WEIGHTS))
    wanted = torch.nn.utils.parameters_to_vector(model.load(WEIGHTS).parameters())
    assert torch.equal(trainer.weights.detach(), wanted.detach()) and trainer.progress.samples == 0
    batch = trainer.batch()
    with torch.no_grad():
        loss = float(trainer.loss(batch))
    unguessed = batch.image.square().mean((1, 2, 3)) * batch.weight  # of a network that predicts nothing, as a random one does
    assert loss < 0.2 * float(unguessed.mean())


def test_the_detail_network_of_the_weights_is_not_trained_and_is_written_with_them(shipped, shards, tmp_path):
    trainer = train.Trainer(RECIPE, shards, tmp_path / "run", setup=training.Setup(weights=shipped))
    assert trainer.prior.detail is None
    trainer.step(1.0)
    trainer.export(tmp_path / "out")
    old, new = model.load(shipped), model.load(tmp_path / "out")
    assert all(map(torch.equal, old.detail.parameters(), new.detail.parameters()))
    known = json.loads((tmp_path / "out" / "recipe.json").read_text())
    assert known["samples"] == 7 and [run["samples"] for run in known["continued"]] == [8, 4]


def test_a_run_goes_on_from_its_state_and_not_from_the_weights_again(shipped, shards, tmp_path):
    setup = training.Setup(weights=shipped)
    trainer = train.Trainer(RECIPE, shards, tmp_path / "run", setup=setup)
    trainer.step(1.0)
    trainer.save()
    again = train.Trainer(RECIPE, shards, tmp_path / "run", setup=setup)
    assert again.progress.step == 1 and torch.equal(again.weights, trainer.weights)


def test_the_detail_network_is_trained_on_top_of_the_weights_that_are_named(shipped, shards, tmp_path):
    trainer = train_detail.DetailTrainer(RECIPE, shards, tmp_path / "run", setup=training.Setup(weights=shipped))
    old = model.load(shipped)
    assert all(map(torch.equal, old.parameters(), trainer.prior.parameters()))
    assert torch.equal(torch.nn.utils.parameters_to_vector(old.detail.parameters()), trainer.weights)


def test_a_run_leaves_weights_in_half_precision_and_a_report_and_resumes(program, tmp_path, shipped, shards):
    from safetensors.torch import load_file

    found = program("--workers", "1")
    assert found["run"]["shards"] == "1 of 1" and found["run"]["step"] > 0 and set(found["before"]["kinds"]) == set(MEASURED)
    assert "500" in found["before"]["timesteps"] and found["after"]["kinds"] != found["before"]["kinds"]
    assert found["run"]["frequency"]["teddy bear"] == 1.0 != found["run"]["frequency"]["car"]
    for part in ("unet", "detail"):
        tensors = load_file(tmp_path / "out" / "snapshot" / part / "diffusion_pytorch_model.safetensors")
        assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
    text = (tmp_path / "out" / "report_text.md").read_text()
    assert "| teddy bear |" in text and "of 2 kinds" in text and "details" in text
    again = program("--frequency", "usual")
    assert again["run"]["step"] > 1 and again["run"]["frequency"] == "usual" and again["before"] == found["before"]


def test_the_geometry_network_has_renders_and_a_recipe_of_its_own():
    args, part = train_gpu.arguments(["--part", "geometry"]), train_gpu.PARTS["geometry"]
    assert args.data == geometry_dataset.DATA and part.write is geometry_dataset.write_shard
    before = GeometryFigures({kind: {300: 0.1} for kind in KIND_NAMES}, {}, {})
    recipe, setup = train_gpu.placed(args, "cuda", before)
    assert (recipe.batch, recipe.lr, recipe.t_bias, setup.device) == (512, 1e-3, train_geometry.RECIPE.t_bias, "cuda")


@pytest.mark.parametrize("part", list(train_gpu.PARTS))
def test_a_damaged_shard_is_refused_before_anything_is_measured(part, tmp_path):
    (tmp_path / "shard_00000.safetensors").write_bytes(b"no shard")
    with pytest.raises(UserError, match="shard_00000.* delete it, and write it again"):
        train_gpu.main(
            ["--device", "cpu", "--part", part, "--shards", "1", "--data", str(tmp_path), "--out", str(tmp_path / "o")]
        )


def test_the_geometry_network_is_trained_and_compared_by_depth(tiny, shipped, tmp_path):
    place = ["--data", str(tmp_path / "data"), "--shards", "1", "--out", str(tmp_path / "out"), "--workers", "1"]
    geometry_dataset.write_shard(0, tmp_path / "data", 4)
    flags = ["--device", "cpu", "--minutes", "0.005", "--batch", "4", "--lr", "1", "--part", "geometry"]
    assert train_gpu.main([*flags, *place]) == 0
    found = json.loads((tmp_path / "out" / "report_geometry.json").read_text())
    assert set(found["before"]["kinds"]) == set(MEASURED) and set(found["before"]["normals"]["car"]) == {"100", "300"}
    assert found["run"]["step"] > 0 and found["after"]["kinds"] != found["before"]["kinds"]
    text = (tmp_path / "out" / "report_geometry.md").read_text()
    assert "## Silhouettes" in text and "Mean errors of depth" in text
    old, new = model.load(shipped), model.load(tmp_path / "out" / "snapshot")
    assert all(map(torch.equal, old.parameters(), new.parameters()))
    assert all(map(torch.equal, old.detail.parameters(), new.detail.parameters()))


def test_weights_without_a_geometry_network_are_refused(tmp_path):
    model.save(model.build(tiny=True), tmp_path / "weights", {})
    with pytest.raises(UserError, match="has no geometry network to go on from; copy .*geometry into it, or give shipped"):
        train_gpu.main(["--device", "cpu", "--part", "geometry", "--start", str(tmp_path / "weights")])


def test_a_gpu_that_is_not_there_is_refused_in_one_sentence(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert run(lambda: train_gpu.main(["--device", "cuda", "--data", str(tmp_path), "--out", str(tmp_path / "out")])) == 2
    assert "torch sees no CUDA device here" in capsys.readouterr().err and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--start", "no_such_folder"], "shipped, random or a folder of weights"),
        (["--start", "random", "--part", "detail"], "the detail network is trained beside a trained prior; give shipped or a"),
        (["--start", "random", "--part", "geometry"], "the geometry network is trained beside a trained prior"),
    ],
)
def test_a_start_that_cannot_be_is_refused_before_anything_is_rendered(flags, said, tmp_path):
    with pytest.raises(UserError, match=said):
        train_gpu.main(["--device", "cpu", "--data", str(tmp_path), *flags])
    assert not list(tmp_path.iterdir())


def test_batches_are_larger_on_a_gpu_and_others_prepare_them(tiny, monkeypatch):
    monkeypatch.setattr(train_gpu, "cores", lambda: 16)
    before = PictureFigures({kind: {500: 0.1, 850: 0.3} for kind in KIND_NAMES}, {}, {})
    recipe, setup = train_gpu.placed(train_gpu.arguments([]), "cuda", before)
    assert (recipe.batch, recipe.processes, setup.workers, setup.device) == (1024, 1, 15, "cuda")
    recipe, setup = train_gpu.placed(train_gpu.arguments(["--part", "detail", "--batch", "8"]), "cpu", before)
    assert (recipe.batch, recipe.t_bias, setup.workers) == (8, train_detail.RECIPE.t_bias, 0)


def test_the_comparison_is_over_kinds_at_each_timestep():
    before = PictureFigures({"car": {100: 0.2, 850: 0.4}, "cube": {100: 0.1, 850: 0.1}}, {}, {})
    after = PictureFigures({"car": {100: 0.1, 850: 0.4}, "cube": {100: 0.05, 850: 0.2}}, {}, {})
    found = comparison.ratios(before, after)
    assert found[100] == {"mean": 0.5, "lower": 2, "worst": 0.5}
    assert found[850] == {"mean": round(2**0.5, 4), "lower": 0, "worst": 2.0}
    assert before.hardness() == {"car": 0.4, "cube": 0.1}
    assert GeometryFigures(before.kinds, {}, {}).hardness() == pytest.approx({"car": 0.3, "cube": 0.1})
