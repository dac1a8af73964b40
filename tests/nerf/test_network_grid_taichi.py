"""``--backbone grid_taichi`` and ``--taichi_ray`` run one folder of operations in Taichi and leave the others as they are."""

import importlib.util

import pytest
import torch

import extension
import main
from extension import backends
from nerf.config.config import parse
from nerf.config.groups import FieldConfig
from nerf.config.resolve import resolve
from nerf.core.structs import Points, RenderSettings, SceneInfo
from nerf.network_grid import GridField
from nerf.network_grid_taichi import TaichiField
from nerf.renderer import build_model
from tests.helpers import kernel_backends
from tests.nerf.analytic import Ball, image_rays

SMALL = FieldConfig(levels=3, base_resolution=4, finest_resolution=16, log2_hashmap_size=9, hidden=16)


@pytest.fixture
def used(monkeypatch):
    """The names of the kernels that are run from now on, and whether they were Taichi's; plain torch is requested."""
    found, run = [], extension.Kernels.run

    def recorded(self, name, *arguments, **values):
        found.append((name, self.functions is not None))
        run(self, name, *arguments, **values)

    monkeypatch.setattr(extension.Kernels, "run", recorded)
    kernel_backends.on("cpu", "taichi")
    with extension.scope("torch"):
        yield found


def test_the_field_is_the_default_one_with_its_grid_in_taichi(used):
    ours, twin = TaichiField(SMALL, SceneInfo()), GridField(SMALL, SceneInfo())
    twin.load_state_dict(ours.state_dict())
    points, settings = Points(1.6 * torch.rand(50, 3) - 0.8), RenderSettings(source="guided", shading="lambertian")
    gradients = []
    for field in (ours, twin):
        out = field.query(points, settings)
        (out.density.sum() + out.albedo.square().sum() + out.normal[:, 0].sum()).backward()
        gradients.append(out.normal), gradients.extend(p.grad for p in field.parameters())
    half = len(gradients) // 2
    for got, wanted in zip(gradients[:half], gradients[half:], strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)
    ours.total_variation(torch.Generator()).backward()
    assert {name for name, _ in used} >= {"grid_encode", "grid_encode_backward", "grid_contract", "grid_total_variation"}
    assert all(taichi for _, taichi in used)


def test_taichi_ray_runs_the_rays_in_taichi_and_nothing_else(used, tmp_path):
    asked = parse(["--text", "a cone", "--workspace", str(tmp_path), "--taichi_ray", "--grid_size", "16"])
    stage = resolve(asked, main.read_disk(asked), main.choose_weights).pending[0]
    path = build_model(stage, SceneInfo()).path
    field = Ball(0.5, density=30.0)
    path.update(field, torch.Generator().manual_seed(0))
    sums = path.render(field, image_rays(6, 6), RenderSettings(source="eval", training=False))
    assert sums.opacity.max() > 0.9
    assert {name for name, _ in used} >= {"packbits", "march_count", "march_write", "composite_accumulate"}
    assert all(taichi for _, taichi in used) and not any(name.startswith("grid_") for name, _ in used)
    assert extension.requested("raymarching") == "torch"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--backend taichi", "--backend taichi does not work here: Taichi is not installed; pip install 'taichi"),
        ("--taichi_ray", "--taichi_ray needs Taichi: Taichi is not installed; pip install 'taichi"),
        ("--backbone grid_taichi", "--backbone grid_taichi needs Taichi: Taichi is not installed; pip install 'taichi"),
    ],
)
def test_where_taichi_is_not_installed_a_run_is_refused_with_what_to_type(words, sentence, tmp_path, monkeypatch, capfd):
    real, request = importlib.util.find_spec, extension.requested()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "taichi" else real(name, *a))
    monkeypatch.setattr(backends, "_chosen", {})
    threads = torch.get_num_threads()
    try:
        assert main.main(["--text", "a red cone", "--workspace", str(tmp_path / "run"), "-O", *words.split()]) == 2
    finally:
        extension.use(request)
        torch.set_num_threads(threads)
    assert sentence in capfd.readouterr().err and not (tmp_path / "run").exists()
