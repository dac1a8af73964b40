"""Wrong folders, files and numbers at the programs that train and measure the prior: one sentence, before anything is done."""

import shutil
from functools import partial

import pytest
import torch
from safetensors.torch import load_file, save_file

from guidance.prior import UNSHUFFLE, dataset, geometry, model, train, train_detail, train_geometry, train_gpu, training
from nerf.core.errors import UserError
from nerf.core.script import run


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A tiny prior with a geometry network."""
    prior = model.build(tiny=True)
    prior.geometry = geometry.from_unet(prior.unet, UNSHUFFLE)
    folder = tmp_path_factory.mktemp("weights")
    model.save(prior, folder, {})
    return folder


@pytest.fixture
def program(monkeypatch, capsys):
    """Runs a main function with flags; returns the exit code and what is on stderr."""

    def start(main, *flags):
        monkeypatch.setattr("sys.argv", ["program.py", *map(str, flags)])
        try:
            code = run(main)
        except SystemExit as end:
            code = end.code
        return code, capsys.readouterr().err

    return start


@pytest.mark.parametrize("words", ["5:2", "0:0"])
def test_a_range_without_a_shard_is_refused(program, tmp_path, words):
    code, said = program(dataset.main, "--shards", words, "--data", tmp_path / "new")
    assert code == 2 and f"--shards must name a shard, with first below last, as 0:60, got '{words}'" in said
    assert not (tmp_path / "new").exists()


def test_shards_go_to_a_folder_alone(program, tmp_path):
    (tmp_path / "file").write_text("mine")
    code, said = program(dataset.main, "--shards", "0:1", "--data", tmp_path / "file")
    assert code == 2 and "is not a folder" in said and (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("kind", [train.Trainer, train_detail.DetailTrainer, train_geometry.GeometryTrainer])
def test_training_without_renders_names_the_command_that_writes_them_and_starts_no_process(
    kind, program, tmp_path, monkeypatch
):
    monkeypatch.setattr(torch.multiprocessing, "spawn", lambda *_, **__: pytest.fail("it started processes"))
    code, said = program(partial(train.main, kind), "--data", tmp_path, "--run", tmp_path / "run")
    assert code == 2 and f"write some with python -m guidance.prior.{kind.writer} --shards" in said
    assert said.count("\n") == 1 and not (tmp_path / "run").exists()


def test_each_training_names_the_module_that_writes_its_renders():
    assert train.Trainer.writer == "dataset" and train_geometry.GeometryTrainer.writer == "geometry_dataset"


def test_a_state_goes_to_a_folder_alone(program, shards, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.multiprocessing, "spawn", lambda *_, **__: pytest.fail("it started processes"))
    (tmp_path / "run").write_text("mine")
    code, said = program(train.main, "--data", shards, "--run", tmp_path / "run")
    assert code == 2 and "--run" in said and "is not a folder" in said


def test_what_a_process_of_the_training_said_is_not_said_again(program, shards, tmp_path, monkeypatch):
    def ended(*_, **__):
        raise torch.multiprocessing.ProcessExitedException("process 0 ended", 0, 1, 2)

    monkeypatch.setattr(torch.multiprocessing, "spawn", ended)
    assert program(train.main, "--data", shards, "--run", tmp_path / "run") == (2, "")


def test_shards_that_are_damaged_or_of_another_time_are_named(shards, tmp_path):
    dataset.check_shards(shards, "geometry_dataset")
    (path,) = shards.glob("shard_*.safetensors")
    old = {name: value for name, value in load_file(path).items() if name != "relief"}
    save_file(old, tmp_path / path.name)
    dataset.check_shards(tmp_path)
    with pytest.raises(UserError, match="00000.safetensors lacks relief; give --data another folder"):
        dataset.check_shards(tmp_path, "geometry_dataset")
    (tmp_path / path.name).write_bytes(path.read_bytes()[:40])
    with pytest.raises(UserError, match="00000.safetensors cannot be read: .*; delete it, and write it again"):
        dataset.check_shards(tmp_path)


def test_a_state_of_another_network_or_a_damaged_one_is_refused(shards, tmp_path, monkeypatch):
    build = model.build
    monkeypatch.setattr(train.prior_model, "build", lambda seed: build(tiny=True, seed=seed))
    recipe = training.Recipe(batch=2, processes=1)
    trainer = train.Trainer(recipe, shards, tmp_path)
    trainer.save()
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    torch.save({**state, "weights": state["weights"][:3]}, tmp_path / "state.pt")
    with pytest.raises(UserError, match="has 3 weights, and this network has .*; delete it to begin anew"):
        trainer.load(tmp_path / "state.pt")
    (tmp_path / "state.pt").write_bytes(b"no state")
    with pytest.raises(UserError, match="cannot be read as the state of a training: .*; delete it to begin anew"):
        trainer.load(tmp_path / "state.pt")


def test_weights_whose_geometry_network_is_damaged_incomplete_or_of_another_shape_are_refused(weights, tmp_path):
    assert model.load(weights).geometry is not None
    folder = shutil.copytree(weights, tmp_path / "other")
    shutil.copytree(folder / "unet", folder / "geometry", dirs_exist_ok=True)
    with pytest.raises(UserError, match="geometry does not fit the UNet; .* 320 channels out"):
        model.load(folder)
    file = folder / "geometry" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors.pop("conv_in.bias")
    save_file(tensors, file)
    with pytest.raises(UserError, match="lacks 1 tensor of geometry, first conv_in.bias"):
        model.load(folder)
    file.write_bytes(b"nothing")
    with pytest.raises(UserError, match="geometry cannot be read as UNet2DConditionModel"):
        model.load(folder)


@pytest.mark.parametrize("flag", ["--out", "--data"])
def test_training_on_a_gpu_checks_its_folders_before_it_renders(flag, program, tmp_path, monkeypatch):
    monkeypatch.setattr(train_gpu, "write_shards", lambda *_: pytest.fail("it rendered"))
    (tmp_path / "file").write_text("mine")
    places = {"--out": tmp_path / "out", "--data": tmp_path / "data"} | {flag: tmp_path / "file"}
    words = [word for pair in places.items() for word in pair]
    code, said = program(train_gpu.main, "--device", "cpu", *words)
    assert code == 2 and f"{flag} {tmp_path / 'file'} cannot be written to" in said
