"""What a machine with a GPU runs: a build of every source there is, the tests, and the kernel benchmarks on CUDA."""

import re

import pytest

import extension
from tests.helpers.scripts import ROOT, load_script


@pytest.fixture
def gpu_check():
    """scripts/gpu_check.py as a module."""
    return load_script("gpu_check")


def test_the_build_compiles_every_source_there_is_and_no_other(gpu_check, monkeypatch):
    calls = []
    monkeypatch.setattr(extension, "shared_object", lambda folder, device: calls.append((folder, device)))
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "a GPU")
    monkeypatch.setattr(extension, "use", lambda name: calls.append(name))
    monkeypatch.setattr(extension, "backend", lambda device: calls.append(device))
    exec(gpu_check.BUILD, {})
    assert calls[-2:] == ["cuda", "cuda"]  # the request, and the check that a kernel runs
    del calls[-2:]
    there = {(path.parents[1].name, kind) for kind, pattern in (("cpu", "*_cpu.cpp"), ("cuda", "*_cuda.cu"))
             for path in ROOT.glob(f"*/src/{pattern}")}  # fmt: skip
    assert set(calls) == there and len(calls) == len(there)
    assert ("mlp", "cpu") in there and ("mlp", "cuda") not in there


def test_every_benchmark_of_a_kernel_runs_on_cuda(gpu_check):
    names = gpu_check.kernel_benchmarks()
    assert {"freqencoder", "gridencoder", "mlp", "normals", "rasterizer", "raymarching"} <= set(names)
    for name in names:
        text = (ROOT / "benchmarks" / f"{name}.py").read_text()
        assert re.search(r"timing\.compare\(.*\bdevice\)", text), name


def test_a_package_that_is_missing_has_its_name_on_pypi(gpu_check, monkeypatch):
    monkeypatch.setitem(gpu_check.PACKAGES, "no_such_module", "no-such-package")
    assert "no-such-package" in gpu_check.missing() and "pytest" not in gpu_check.missing()


def test_only_the_chosen_steps_run_and_a_failed_one_is_reported(gpu_check, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr(gpu_check, "steps", lambda: [("good", ["-c", "print(7)"]), ("bad", ["-c", "1/0"]), ("other", [])])
    monkeypatch.setattr("sys.argv", ["gpu_check", "--only", "good", "bad", "--out", str(tmp_path / "reports")])
    assert gpu_check.main() == 1
    output = capsys.readouterr().out
    assert "good: passed" in output and "bad: FAILED" in output and "other" not in output
    assert (tmp_path / "reports" / "gpu_good.txt").read_text().startswith("7\n")
