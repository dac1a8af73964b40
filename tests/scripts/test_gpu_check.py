"""What a machine with a GPU runs: a build of every source there is, the tests, and the kernel benchmarks on CUDA."""

import re

import pytest

import extension
from tests.helpers.scripts import ROOT, load_script


@pytest.fixture
def gpu_check():
    """scripts/gpu_check.py as a module."""
    return load_script("gpu_check")


def test_the_build_asks_for_every_source_there_is_and_for_no_other(gpu_check, monkeypatch):
    asked = []
    monkeypatch.setattr(extension, "shared_object", lambda folder, device: asked.append((folder, device)))
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "a GPU")
    monkeypatch.setattr(extension, "use", lambda rung: asked.append(rung))
    monkeypatch.setattr(extension, "backend", lambda device: asked.append(device))
    exec(gpu_check.BUILD, {})
    assert asked[-2:] == ["cuda", "cuda"]  # and that a kernel must run
    del asked[-2:]
    there = {(path.parents[1].name, kind) for kind, pattern in (("cpu", "*_cpu.cpp"), ("cuda", "*_cuda.cu"))
             for path in ROOT.glob(f"*/src/{pattern}")}  # fmt: skip
    assert set(asked) == there and len(asked) == len(there)
    assert ("mlp", "cpu") in there and ("mlp", "cuda") not in there


def test_every_benchmark_of_a_kernel_runs_on_cuda(gpu_check):
    names = gpu_check.kernel_benchmarks()
    assert {"gridencoder", "mlp", "normals", "rasterizer", "raymarching"} <= set(names)
    for name in names:
        text = (ROOT / "benchmarks" / f"{name}.py").read_text()
        assert re.search(r"timing\.compare\(.*\bdevice\)", text), name


def test_a_package_that_is_missing_is_named_as_pip_calls_it(gpu_check, monkeypatch):
    monkeypatch.setitem(gpu_check.PACKAGES, "no_such_module", "no-such-package")
    assert "no-such-package" in gpu_check.missing() and "pytest" not in gpu_check.missing()


def test_only_the_steps_asked_for_run_and_one_that_fails_is_told(gpu_check, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr(gpu_check, "steps", lambda: [("good", ["-c", "print(7)"]), ("bad", ["-c", "1/0"]), ("other", [])])
    monkeypatch.setattr("sys.argv", ["gpu_check", "--only", "good", "bad", "--out", str(tmp_path / "reports")])
    assert gpu_check.main() == 1
    said = capsys.readouterr().out
    assert "good: passed" in said and "bad: FAILED" in said and "other" not in said
    assert (tmp_path / "reports" / "gpu_good.txt").read_text().startswith("7\n")
