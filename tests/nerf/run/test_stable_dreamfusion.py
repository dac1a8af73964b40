"""A checkpoint in the layout of stable-dreamfusion, made here, against its formulas written out independently."""

import math
import os

import pytest
import torch

from gridencoder.layout import GridLayout
from nerf.config.groups import FieldConfig
from nerf.config.parser import flag_of
from nerf.core.errors import UserError
from nerf.core.structs import SceneInfo
from nerf.network_grid import GridField
from nerf.run.checkpoint_checks import load_module
from nerf.run.stable_dreamfusion import read_stable_dreamfusion_field

LEVELS, LOG2 = 16, 15


def resolutions(bound):
    """Corners along a side of every level."""
    growth = math.log2(2048 * bound / 16) / (LEVELS - 1)
    return [math.ceil(16 * 2 ** (growth * level) - 1e-6) for level in range(LEVELS)]


def their_model(bound=1.0, hidden=64):
    """The state dict of stable-dreamfusion's NeRFNetwork (grid backbone), with a smaller table."""
    rows = [-(-min(2**LOG2, r**3) // 8) * 8 for r in resolutions(bound)]
    offsets = torch.tensor([0, *rows]).cumsum(0).int()
    widths = [2 * LEVELS, hidden, hidden, 4]
    state = {
        "aabb_train": torch.tensor([-bound] * 3 + [bound] * 3),
        "aabb_infer": torch.tensor([-bound] * 3 + [bound] * 3),
        "density_grid": torch.full((1, 8), 3.0),
        "density_bitfield": torch.zeros(1, dtype=torch.uint8),
        "encoder.embeddings": torch.randn(int(offsets[-1]), 2),
        "encoder.offsets": offsets,
        "bg_net.net.0.weight": torch.randn(32, 39),
        "bg_net.net.0.bias": torch.randn(32),
    }
    for i, (a, b) in enumerate(zip(widths, widths[1:], strict=False)):
        state[f"sigma_net.net.{i}.weight"] = torch.randn(b, a) / a**0.5
        state[f"sigma_net.net.{i}.bias"] = torch.randn(b)
    return state


def their_output(state, bound, points):
    """Density [M] and albedo [M, 3] by stable-dreamfusion's formulas, in float64, corner by corner."""
    features = []
    for level, resolution in enumerate(resolutions(bound)):
        low, high = int(state["encoder.offsets"][level]), int(state["encoder.offsets"][level + 1])
        table, size = state["encoder.embeddings"][low:high].double(), high - low
        at = ((points + bound) / (2 * bound) * resolution - 0.5).clamp(0, resolution - 1)
        floor = at.floor().long()
        part = at - floor
        blend = part**2 * (3 - 2 * part)
        total = 0
        for corner in ((i, j, k) for i in (0, 1) for j in (0, 1) for k in (0, 1)):
            x, y, z = (floor + torch.tensor(corner)).clamp(max=resolution - 1).unbind(1)
            if resolution**3 > size:
                row = (x ^ (y * 2654435761) ^ (z * 805459861)) & 0xFFFFFFFF
            else:
                row = x + resolution * y + resolution**2 * z
            weight = torch.where(torch.tensor(corner) == 1, blend, 1 - blend).prod(dim=1)
            total = total + weight[:, None] * table[row % size]
        features.append(total)
    h = torch.cat(features, dim=1)
    for i in range(3):
        h = h @ state[f"sigma_net.net.{i}.weight"].double().T + state[f"sigma_net.net.{i}.bias"].double()
        h = h.relu() if i < 2 else h
    blob = 5 * torch.exp(-points.square().sum(1) / (2 * 0.2**2))
    return torch.exp(h[:, 0] + blob), torch.sigmoid(h[:, 1:])


def saved(tmp_path, model, **more):
    """A df.pth."""
    path = tmp_path / "df.pth"
    torch.save({"epoch": 100, "global_step": 10000, "stats": {}, "mean_density": 3.0, "model": model, **more}, path)
    return path


def our_field(found):
    """A GridField with the imported options and weights."""
    names = {flag_of(field): field.name for field in FieldConfig.__dataclass_fields__.values()}
    config = FieldConfig(**{names[flag]: value for flag, value in found.options.items()})
    field = GridField(config, SceneInfo(config.bound))
    load_module(field, found.tensors, "df.pth")
    return field


@pytest.mark.parametrize("bound", [1.0, 2.0])
def test_density_and_albedo_are_equal_to_the_formulas_of_stable_dreamfusion(tmp_path, bound):
    model = their_model(bound)
    field = our_field(read_stable_dreamfusion_field(saved(tmp_path, model)))
    points = (2 * torch.rand(500, 3) - 1) * bound
    points[:8] = torch.tensor([[a, b, c] for a in (-1, 1) for b in (-1, 1) for c in (-1, 1)]) * bound
    density, albedo = their_output(model, bound, points.double())
    with torch.no_grad():
        torch.testing.assert_close(field.density(points).double(), density, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(field.albedo(points).double(), albedo, rtol=0, atol=1e-4)


def test_options_and_threshold_are_read_from_the_tensors(tmp_path):
    found = read_stable_dreamfusion_field(saved(tmp_path, their_model(2.0, hidden=32)))
    assert found.options == {
        "backbone": "grid", "bound": 2.0, "grid_levels": 16, "grid_features": 2, "grid_coarsest": 16,
        "grid_finest": 4096, "grid_log2": LOG2, "hidden": 32, "layers": 3,
    }  # fmt: skip
    assert found.threshold == 3.0
    assert found.meta == {"step": 10000, "epoch": 100, "mean_density": 3.0}


def test_threshold_is_ten_without_an_occupancy_grid_and_at_most_ten_with_one(tmp_path):
    model = their_model()
    model["density_grid"] += 100
    assert read_stable_dreamfusion_field(saved(tmp_path, model)).threshold == 10
    del model["density_grid"]
    assert read_stable_dreamfusion_field(saved(tmp_path, model)).threshold == 10


def test_table_of_the_default_size_has_the_layout_of_stable_dreamfusion():
    layout = GridLayout()
    assert layout.resolutions == (16, 23, 31, 43, 59, 81, 112, 154, 213, 295, 407, 562, 777, 1073, 1483, 2048)
    assert layout.rows == 6_098_120


def test_reading_leaves_the_random_state_alone(tmp_path):
    path = saved(tmp_path, their_model())
    before = torch.random.get_rng_state()
    read_stable_dreamfusion_field(path)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("lost", ["encoder.embeddings", "encoder.offsets", "sigma_net.net.0.weight", "sigma_net.net.1.bias"])
def test_missing_tensor_is_named(tmp_path, lost):
    model = their_model()
    del model[lost]
    with pytest.raises(UserError, match=f"lacks.*{lost}.*--backbone grid"):
        read_stable_dreamfusion_field(saved(tmp_path, model))


@pytest.mark.parametrize("extra, sentence", [("sdf", "mesh stage"), ("encoder.params", "grid_tcnn")])
def test_wrong_stage_and_wrong_backbone_are_named(tmp_path, extra, sentence):
    with pytest.raises(UserError, match=sentence):
        read_stable_dreamfusion_field(saved(tmp_path, their_model() | {extra: torch.zeros(4)}))


def test_table_of_another_shape_is_refused(tmp_path):
    model = their_model()
    model["aabb_train"] *= 1.5  # a box for which the levels would have other resolutions
    with pytest.raises(UserError, match="cannot be expressed here"):
        read_stable_dreamfusion_field(saved(tmp_path, model))
    model = their_model()
    model["encoder.embeddings"] = model["encoder.embeddings"][:-8]
    with pytest.raises(UserError, match="does not fit offsets"):
        read_stable_dreamfusion_field(saved(tmp_path, model))


def test_network_with_another_head_is_refused(tmp_path):
    model = their_model()
    model["sigma_net.net.2.weight"], model["sigma_net.net.2.bias"] = torch.zeros(7, 64), torch.zeros(7)
    with pytest.raises(UserError, match="four outputs"):
        read_stable_dreamfusion_field(saved(tmp_path, model))


def test_diverged_run_is_refused(tmp_path):
    model = their_model()
    model["sigma_net.net.1.weight"][3, 3] = torch.nan
    with pytest.raises(UserError, match="not finite.*diverged"):
        read_stable_dreamfusion_field(saved(tmp_path, model))


class Evil:
    """A pickle that runs code."""

    def __reduce__(self):
        return os.mkdir, ("was_run",)


def test_pickle_that_would_run_code_is_refused_and_does_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="would run"):
        read_stable_dreamfusion_field(saved(tmp_path, their_model(), surprise=Evil()))
    assert not (tmp_path / "was_run").exists()


def test_missing_file_is_reported(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        read_stable_dreamfusion_field(tmp_path / "df.pth")


WRONG = {
    "encoder.offsets": [torch.zeros(0), torch.tensor(3), torch.zeros(2, 2), torch.zeros(17), torch.arange(100_000), 3],
    "encoder.embeddings": [
        torch.tensor(1.0),
        torch.zeros(3, dtype=torch.int64),
        torch.zeros(0, 2),
        torch.zeros(4, 2).to_sparse(),
    ],
    "sigma_net.net.0.weight": [torch.tensor(1.0), torch.zeros(2, 3, 4), torch.zeros(0, 0)],
    "sigma_net.net.2.bias": [torch.tensor(1.0), torch.zeros(4, dtype=torch.complex64)],
    "aabb_train": [torch.zeros(0), torch.full((6,), torch.inf), torch.full((6,), torch.nan), torch.full((6,), 1e30)],
    "density_grid": [torch.zeros(0)],
}


@pytest.mark.parametrize("name, number", [(name, i) for name, values in WRONG.items() for i in range(len(values))])
def test_a_tensor_of_another_kind_is_one_sentence(tmp_path, name, number):
    path = saved(tmp_path, their_model() | {name: WRONG[name][number]})
    if name == "density_grid":
        assert read_stable_dreamfusion_field(path).threshold == 10
        return
    with pytest.raises(UserError, match="df.pth"):
        read_stable_dreamfusion_field(path)
