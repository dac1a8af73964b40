"""The backbone on tiny-cuda-nn's hash grid: the same field as the default one, and sentences where it cannot be had."""

import dataclasses
import json
import sys

import pytest
import torch

import main
from gridencoder.layout import GridLayout
from nerf import renderer
from nerf.config.config import Config, parse
from nerf.core.errors import UserError
from nerf.core.structs import Points, RenderSettings, SceneInfo
from nerf.fields import tcnn
from nerf.network_grid import GridField
from nerf.network_grid_tcnn import TcnnField
from nerf.run.memory import needs
from nerf.training import objectives
from tests.helpers import fake_tcnn

SMALL = dict(backbone="grid_tcnn", levels=5, finest_resolution=48, log2_hashmap_size=11, hidden=24)
HALF = 2.0**-10  # relative step of float16


def fields(**changes):
    """The default field and that of tiny-cuda-nn with the same weights."""
    config = dataclasses.replace(Config().field, **(SMALL | changes))
    ours, theirs = GridField(config, SceneInfo(0.9)), TcnnField(config, SceneInfo(0.9))
    for p in ours.parameters():
        torch.nn.init.normal_(p, std=0.3)
    with torch.no_grad():
        theirs.encoder.encoding.params.copy_(ours.encoder.embeddings.flatten())
    state = {name: value for name, value in ours.state_dict().items() if not name.startswith("encoder.")}
    assert theirs.load_state_dict(state, strict=False).missing_keys == ["encoder.encoding.params"]
    return ours, theirs


def test_the_options_of_the_grid_are_told_in_the_words_of_tiny_cuda_nn():
    config = tcnn.encoding_config(GridLayout(desired_resolution=2048))
    assert config.pop("per_level_scale") == pytest.approx(128 ** (1 / 15), rel=1e-12)
    assert config == {
        "otype": "HashGrid",
        "n_levels": 16,
        "n_features_per_level": 2,
        "log2_hashmap_size": 19,
        "base_resolution": 16,
        "interpolation": "Smoothstep",
    }
    assert tcnn.encoding_config(GridLayout(num_levels=1, interpolation="linear"))["interpolation"] == "Linear"
    with pytest.raises(ValueError, match="hash grid"):
        tcnn.encoding_config(GridLayout(gridtype="tiled"))


def test_it_is_the_default_field_with_another_encoder(monkeypatch):
    fake_tcnn.install(monkeypatch)
    ours, theirs = fields()
    at, settings = Points(1.8 * torch.rand(60, 3) - 0.9), RenderSettings(source="guided", need_normals=True)
    outputs, grads = [], []
    for field in (ours, theirs):
        out = field.query(at, settings)
        outputs.append(out)
        loss = (out.normal * torch.tensor([1.0, 2.0, 3.0])).sum() + out.density.log().sum() + out.albedo.square().sum()
        table = next(field.encoder.parameters())
        grads.append([g.flatten() for g in torch.autograd.grad(loss, [table, field.head.weight, field.layers[0].weight])])
    for name in ("density", "albedo", "normal"):
        torch.testing.assert_close(getattr(outputs[1], name), getattr(outputs[0], name), rtol=1e-4, atol=1e-4)
    for one, other in zip(*grads, strict=True):  # sums in another order
        torch.testing.assert_close(other, one, rtol=1e-3, atol=1e-3 * float(one.abs().max()))


@pytest.mark.parametrize("max_level", [0.0, 0.5, 1.0])
def test_levels_that_are_off_and_points_outside_have_no_features(monkeypatch, max_level):
    fake_tcnn.install(monkeypatch, padding=6)
    ours, theirs = fields()
    at = 2.4 * torch.rand(200, 3) - 1.2
    expected = ours.encoder(at, bound=0.9, max_level=max_level)
    torch.testing.assert_close(theirs.encoder(at, bound=0.9, max_level=max_level), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(theirs.encoder.weight_decay(max_level), ours.encoder.weight_decay(max_level))
    assert theirs.encoder(at[:0]).shape == (0, theirs.encoder.output_dim)


def test_half_precision_comes_back_as_single_with_gradients(monkeypatch):
    fake_tcnn.install(monkeypatch, output_dtype=torch.float16)
    ours, theirs = fields()
    at, settings = Points(torch.rand(50, 3) - 0.5), RenderSettings(source="guided", need_normals=True)
    out, expected = theirs.query(at, settings), ours.query(at, settings)
    assert {value.dtype for value in (out.density, out.albedo, out.normal)} == {torch.float32}
    torch.testing.assert_close(out.albedo, expected.albedo, rtol=0, atol=20 * HALF)
    out.normal.square().sum().backward(retain_graph=True)
    out.density.log().sum().backward()
    grad = theirs.encoder.encoding.params.grad
    assert grad.dtype == torch.float32 and grad.abs().sum() > 0


def test_it_asks_for_single_precision_and_a_table_of_the_run_s_seed(monkeypatch):
    encoding, seeds = fake_tcnn.install(monkeypatch), []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        TcnnField(dataclasses.replace(Config().field, **SMALL), SceneInfo())
        seeds.append(encoding.made[-1].seed)
    assert seeds[0] == seeds[1] != seeds[2] and encoding.made[-1].dtype == torch.float32


def test_without_gradients_nothing_is_kept_for_them(monkeypatch):
    fake_tcnn.install(monkeypatch)
    field = fields()[1]
    with torch.no_grad():
        out = field.query(Points(torch.rand(9, 3) - 0.5), RenderSettings(source="guided", need_normals=True, training=False))
    assert not (out.density.requires_grad or out.normal.requires_grad or out.albedo.requires_grad)


def test_its_groups_and_its_memory_are_those_of_a_grid(monkeypatch):
    fake_tcnn.install(monkeypatch)
    groups = fields()[1].param_groups(0.1)
    assert [(group["name"], group["lr"]) for group in groups] == [("encoder", 1.0), ("network", 0.1)]
    assert groups[0]["params"][0].ndim == 1
    config = parse("--text a --workspace w --backbone grid_tcnn".split())
    stage = type("Stage", (), {"config": config, "kind": type("Kind", (), {"triangles": False})})
    assert needs(stage)[0].what == "the hash grid"


def test_total_variation_is_refused_when_the_run_is_planned(monkeypatch):
    fake_tcnn.install(monkeypatch)
    regulariser = objectives.GridRegularisers(fields()[1])
    wants = {"tv", "weight_decay"}
    plan = type("Plan", (), {"wants": staticmethod(lambda name: name in wants)})
    with pytest.raises(UserError, match="--lambda_tv .* tiny-cuda-nn"):
        regulariser.check(None, plan)
    wants.remove("tv")
    regulariser.check(None, plan)


# ---- whole runs, and machines without it ----

WORDS = "--backbone grid_tcnn --sd_version embedded --iters 2 --w 16 --h 16 --grid_levels 4 --grid_log2 10 --grid_finest 32"
WORDS += " --hidden 16 --grid_size 16 --max_steps 32 --W 8 --H 8 --dataset_size_test 2 --save_mesh --mcubes_resolution 16"
WORDS += " --texture_size 64 --threads 1 --cuda_ray --seed 3 --mesh_threshold 0.5"


def words(tmp_path, *more):
    return ["--text", "a blue ball", "--workspace", str(tmp_path / "run"), *WORDS.split(), *more]


def test_a_run_trains_resumes_and_writes_its_mesh(monkeypatch, tmp_path):
    for package in ("trimesh", "skimage"):
        pytest.importorskip(package)
    fake_tcnn.install(monkeypatch)
    monkeypatch.setitem(renderer.FIELD_NEEDS, "grid_tcnn", lambda device: None)
    threads = torch.get_num_threads()
    assert main.main(words(tmp_path)) == 0
    assert main.main(words(tmp_path, "--iters", "4")) == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["steps"] == 4 and result["mesh"]["faces"] > 0
    torch.set_num_threads(threads)


def refusal(tmp_path, capsys, *more):
    """The sentence that a run is refused with; nothing is on disk."""
    assert main.main(words(tmp_path, *more)) == 2
    assert not (tmp_path / "run").exists()
    return capsys.readouterr().err


def test_without_a_gpu_the_sentence_says_what_to_take(capsys, tmp_path):
    sentence = refusal(tmp_path, capsys, "--device", "cpu")
    assert "needs an NVIDIA GPU" in sentence and "cpu" in sentence and "take --backbone grid," in sentence


def test_without_the_package_the_sentence_says_how_to_install_it(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(main, "device_name", lambda config: "cuda")
    monkeypatch.setattr(tcnn, "find_spec", lambda name: None)
    sentence = refusal(tmp_path, capsys)
    assert "not installed: pip install git+https://" in sentence and "take --backbone grid," in sentence


@pytest.mark.parametrize("error", [ImportError("libcudart.so.11: cannot open"), OSError("Could not find compatible extension")])
def test_a_package_that_does_not_load_says_why(monkeypatch, error):
    class Finder:
        @staticmethod
        def find_spec(name, *_):
            if name == "tinycudann":
                raise error

    monkeypatch.delitem(sys.modules, "tinycudann", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Finder, *sys.meta_path])
    with pytest.raises(UserError, match=f"does not load .{str(error)[:20]}.*take --backbone grid,"):
        tcnn.load()
