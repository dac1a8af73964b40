"""LPIPS in plain torch: against a second implementation by loops, its files, and what is said of damaged ones."""

import sys
from importlib.machinery import ModuleSpec

import pytest
import torch

from nerf.core.errors import UserError
from nerf.run import lpips

SHAPES = ((64, 3, 11), (192, 64, 5), (384, 192, 3), (256, 384, 3), (256, 256, 3))
INDICES = (0, 3, 6, 8, 10)


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Random weights in the layout of both files, where the program looks for them."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(shape, generator=generator) / max(1, shape[-1]) / 20

    alexnet = {f"features.{i}.weight": draw(o, c, k, k) for i, (o, c, k) in zip(INDICES, SHAPES, strict=True)}
    alexnet |= {f"features.{i}.bias": draw(o) for i, (o, _, _) in zip(INDICES, SHAPES, strict=True)}
    linear = {f"lin{n}.model.1.weight": draw(1, o, 1, 1).abs() for n, (o, _, _) in enumerate(SHAPES)}
    hub, package = tmp_path / "torch" / "hub" / "checkpoints", tmp_path / "lpips"
    hub.mkdir(parents=True)
    (package / "weights" / "v0.1").mkdir(parents=True)
    torch.save(alexnet, hub / lpips.ALEXNET)
    torch.save(linear, package / "weights" / "v0.1" / "alex.pth")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    spec = ModuleSpec("lpips", None, origin=str(package / "__init__.py"))
    monkeypatch.setattr(lpips.importlib.util, "find_spec", lambda name: spec if name == "lpips" else None)
    return hub / lpips.ALEXNET, package / "weights" / "v0.1" / "alex.pth", alexnet, linear


def by_modules(a, b, alexnet, linear):
    """The same with torch's modules in float64, feature by feature."""
    features = torch.nn.Sequential(
        torch.nn.Conv2d(3, 64, 11, 4, 2), torch.nn.ReLU(), torch.nn.MaxPool2d(3, 2),
        torch.nn.Conv2d(64, 192, 5, 1, 2), torch.nn.ReLU(), torch.nn.MaxPool2d(3, 2),
        torch.nn.Conv2d(192, 384, 3, 1, 1), torch.nn.ReLU(), torch.nn.Conv2d(384, 256, 3, 1, 1), torch.nn.ReLU(),
        torch.nn.Conv2d(256, 256, 3, 1, 1), torch.nn.ReLU(),
    ).double()  # fmt: skip
    features.load_state_dict({name.removeprefix("features."): value.double() for name, value in alexnet.items()})
    shift = torch.tensor([-0.030, -0.088, -0.188]).double().reshape(3, 1, 1)
    scale = torch.tensor([0.458, 0.448, 0.450]).double().reshape(3, 1, 1)
    x, y = (((2 * t.double().permute(2, 0, 1) - 1 - shift) / scale)[None] for t in (a, b))
    total, n = 0.0, 0
    for layer in features:
        x, y = layer(x), layer(y)
        if isinstance(layer, torch.nn.ReLU):
            dx, dy = (t / (t.square().sum(1, keepdim=True).sqrt() + 1e-10) for t in (x, y))
            total += float(((dx - dy).detach() ** 2 * linear[f"lin{n}.model.1.weight"].double()).sum(1).mean())
            n += 1
    return total


def test_it_is_the_published_sum_over_features(files):
    a, b = torch.rand(70, 90, 3), torch.rand(70, 90, 3)
    found = lpips.find()
    assert float(found(a, b)) == pytest.approx(by_modules(a, b, *files[2:]), rel=1e-4)
    assert float(found(a, a)) == 0 and float(found(a, b)) == pytest.approx(float(found(b, a)), rel=1e-5)


def test_without_either_file_there_is_none(files):
    files[1].unlink()
    assert lpips.find() is None


def test_without_the_package_there_is_none_and_it_is_never_imported(files, monkeypatch):
    monkeypatch.setattr(lpips.importlib.util, "find_spec", lambda name: None)
    assert lpips.find() is None and "lpips" not in sys.modules


@pytest.mark.parametrize("which", [0, 1])
def test_damaged_weights_are_one_sentence(files, which):
    files[which].write_bytes(b"not weights")
    with pytest.raises(UserError, match=files[which].name):
        lpips.find()
    torch.save({"something": torch.zeros(2)}, files[which])
    with pytest.raises(UserError, match="are not the weights of LPIPS"):
        lpips.find()


def test_code_in_a_weights_file_is_not_run(files, tmp_path):
    import pickle

    class Writes:
        def __reduce__(self):
            return (open, (str(tmp_path / "was_run"), "w"))

    files[0].write_bytes(pickle.dumps(Writes()))
    with pytest.raises(UserError):
        lpips.find()
    assert not (tmp_path / "was_run").exists()
