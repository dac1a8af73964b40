"""Every distillation method from the command line, with tiny Stable Diffusion and embedded prior; VSD killed and resumed."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import main
from guidance.diffusion.distiller import shared_options
from guidance.distillation import METHODS, T_SCHEDULES, Method
from nerf.core.errors import UserError
from nerf.run import checkpoint

pytestmark = pytest.mark.slow

TINY = (
    "--text car --seed 5 --max_steps 24 --grid_size 16 --grid_levels 2 --grid_log2 8 --grid_finest 16 --hidden 16 --w 8 --h 8 "
    "--W 8 --H 8 --dataset_size_test 1 --threads 1 --batch_size 2 --cuda_ray --latent_iter_ratio 0 --device cpu --optim adam"
).split()


@pytest.fixture
def run(tmp_path):
    """Run main.py in this process: words -> its exit code."""
    before = torch.get_num_threads()
    yield lambda *words: main.main([*TINY, *map(str, words)])
    torch.set_num_threads(before)


def final(folder):
    """The step and the tensors of the newest checkpoint."""
    step, path = checkpoint.steps(folder / "checkpoints", "nerf")[-1]
    return step, checkpoint.load(path)[0]


def field_of(folder):
    """The weights of the field after a run."""
    return final(folder)[1]["model"]


@pytest.mark.parametrize("folder", ["sd_folder", "prior_folder"])
def test_every_method_trains_a_field_and_no_two_alike(run, request, tmp_path, folder):
    weights, fields = request.getfixturevalue(folder), {}
    for name in METHODS:
        assert run("--hf_key", weights, "--workspace", tmp_path / name, "--iters", 1, "--distillation", name) == 0
        fields[name] = torch.cat([v.flatten() for v in field_of(tmp_path / name).values() if v.is_floating_point()])
    for name, field in fields.items():
        assert torch.isfinite(field).all()
        assert not any(torch.equal(field, other) for another, other in fields.items() if another != name)


@pytest.mark.parametrize("schedule", T_SCHEDULES[1:])
def test_a_falling_schedule_of_timesteps_falls_over_the_run(run, prior_folder, tmp_path, monkeypatch, schedule):
    seen, sds = [], METHODS["sds"]
    spy = replace(sds, distill=lambda query: seen.append(query.t.tolist()) or sds.distill(query))
    monkeypatch.setitem(METHODS, "sds", spy)
    words = ("--hf_key", prior_folder, "--workspace", tmp_path, "--iters", 3, "--t_schedule", schedule, "--t_range", 0.2, 0.8)
    assert run(*words, "--t_anneal", 0.9) == 0  # which is for uniform timesteps
    assert all(len(set(views)) == 1 for views in seen)
    assert seen[0][0] == 800 and seen[0] > seen[1] > seen[2] and seen[2][0] >= 200


@pytest.mark.parametrize("folder", ["sd_folder", "prior_folder"])
def test_vsd_stopped_and_resumed_ends_with_the_bits_of_one_run(run, request, tmp_path, folder):
    words = ("--hf_key", request.getfixturevalue(folder), "--distillation", "vsd", "--exp_start_iter", 0, "--exp_end_iter", 4)
    assert run(*words, "--workspace", tmp_path / "one", "--iters", 4) == 0
    assert run(*words, "--workspace", tmp_path / "two", "--iters", 2) == 0
    early = {name: p.clone() for name, p in final(tmp_path / "two")[1]["guidance"]["SD"].items()}
    assert run(*words, "--workspace", tmp_path / "two", "--iters", 4) == 0
    (step, one), (other, two) = final(tmp_path / "one"), final(tmp_path / "two")
    assert step == other == 4
    assert one["guidance"]["SD"].keys() == two["guidance"]["SD"].keys() and len(early) > 0
    for kind in ("model", "ema"):
        for name, tensor in one[kind].items():
            assert torch.equal(torch.as_tensor(two[kind][name]), torch.as_tensor(tensor)), name
    for name, tensor in one["guidance"]["SD"].items():
        assert torch.equal(two["guidance"]["SD"][name], tensor), name
    assert any(not torch.equal(early[name], two["guidance"]["SD"][name]) for name in early)  # it goes on learning


def test_a_workspace_goes_on_with_its_method_and_refuses_another(run, prior_folder, tmp_path, capsys):
    words = ("--hf_key", prior_folder, "--workspace", tmp_path)
    assert run(*words, "--iters", 1, "--distillation", "vsd") == 0
    assert run(*words, "--iters", 2) == 0 and final(tmp_path)[0] == 2
    assert run(*words, "--iters", 3, "--distillation", "sds") == 2
    assert "--distillation vsd" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--distillation", "best"], "--distillation must be one of sds, sjc, vsd"),
        (["--distillation", "vsd", "--vram_O"], "trains a part of the UNet"),
        (["--debias_prompt", "bert"], "--debias_prompt needs view words"),
        (["--debias_gradient", "8", "2"], "--debias_gradient"),
        (["--t_schedule", "cosine"], "--t_schedule must be uniform, linear, sqrt or dreamtime"),
        (["--sdi_steps", "0"], "--sdi_steps must be"),
        (["--ism_interval", "0", "5"], "--ism_interval must be"),
    ],
)
def test_what_cannot_be_is_one_sentence(run, prior_folder, tmp_path, capsys, words, sentence):
    assert run("--hf_key", prior_folder, "--workspace", tmp_path / "run", "--iters", 1, *words) == 2
    printed = capsys.readouterr().err
    assert sentence in printed and "Traceback" not in printed


def test_a_registered_method_is_named_on_the_command_line(run, prior_folder, tmp_path, monkeypatch):
    calls = []
    mine = Method("mine", lambda query: calls.append(query.scale) or METHODS["sds"].distill(query))
    monkeypatch.setitem(METHODS, "mine", mine)
    assert run("--hf_key", prior_folder, "--workspace", tmp_path, "--iters", 2, "--distillation", "mine") == 0
    assert len(calls) == 2


def test_models_without_text_to_image_refuse_to_train_a_lora():
    with pytest.raises(UserError, match="--distillation vsd trains a LoRA.*use one of sds, sjc, csd"):
        shared_options(SimpleNamespace(distillation="vsd"))
