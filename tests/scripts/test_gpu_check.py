"""What a machine with a GPU runs: a build of every source there is, the tests, and the kernel benchmarks on CUDA."""

import json
import re
import subprocess
import sys

import pytest

import extension
from tests.helpers.scripts import ROOT, load_script

TEST_FILE = """
import pytest
def test_one(): pass
def test_two(): assert 1 == 2, "not equal"
@pytest.mark.skip
def test_three(): pass
"""
NEEDS_A_PACKAGE = """
def test_imports(): import no_such_package.part
def test_asks(): raise AssertionError("No module named 'no_such_package'")
"""
WHERE = {"GPU": "a GPU", "commit": "1234567"}


@pytest.fixture
def gpu_check(monkeypatch):
    """scripts/gpu_check.py as a module that believes in a GPU."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "a GPU")
    module = load_script("gpu_check")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


@pytest.fixture
def run(gpu_check, monkeypatch, tmp_path):
    """Runs the program with flags; returns its exit status and gpu.json."""

    def program(*flags):
        places = ["--out", str(tmp_path / "out"), "--logs", str(tmp_path / "logs")]
        monkeypatch.setattr("sys.argv", ["gpu_check", *places, *flags])
        code, path = gpu_check.main(), tmp_path / "out" / "gpu.json"
        return code, json.loads(path.read_text()) if path.exists() else {}

    return program


def test_the_build_compiles_every_source_there_is_and_no_other(gpu_check, monkeypatch):
    calls = []
    monkeypatch.setattr(extension, "shared_object", lambda folder, device: calls.append((folder, device)))
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
        assert re.search(r"timing\.compare\(.*\bdevice\)|torch\.cuda\.synchronize\(device\)", text), name


def test_a_package_that_is_missing_has_its_name_on_pypi(gpu_check, monkeypatch):
    monkeypatch.setitem(gpu_check.PACKAGES, "no_such_module", "no-such-package")
    assert "no-such-package" in gpu_check.missing() and "pytest" not in gpu_check.missing()


def test_the_kernels_come_before_the_other_tests_and_every_test_file_runs_once(gpu_check, tmp_path):
    every = gpu_check.steps(tmp_path)
    assert list(every) == ["build", "kernels", "suite", "bench", "guidance"]
    assert [step.name for step in every["guidance"]] == ["bench_guidance"]
    files = {stage: [a for step in every[stage] for a in step.command if a.endswith(".py")] for stage in ("kernels", "suite")}
    assert sorted(files["kernels"] + files["suite"]) == sorted(str(path) for path in (ROOT / "tests").rglob("test_*.py"))
    assert {"gridencoder", *extension.KERNEL_FOLDERS} == {path.split("/tests/")[1].split("/")[0] for path in files["kernels"]}


def test_only_the_chosen_steps_run_and_a_failed_one_is_reported(gpu_check, run, monkeypatch, capsys, tmp_path):
    step = gpu_check.Step
    every = {
        "build": [step("build", ["-c", "print(7)"])],
        "kernels": [],
        "suite": [],
        "bench": [step("bench_good", ["-c", "print(8)"]), step("bench_bad", ["-c", "1/0"]), step("bench_other", [])],
    }
    monkeypatch.setattr(gpu_check, "steps", lambda logs: every)
    code, known = run("--only", "build", "bench_bad", "bench_good")
    output = capsys.readouterr().out
    assert code == 1 and "build: passed" in output and "bench_bad: FAILED" in output and "bench_other" not in output
    assert known["build"]["build"]["passed"] and "ZeroDivisionError" in known["bench"]["bench_bad"]["error"]
    assert (tmp_path / "logs" / "build.txt").read_text() == "7\n"
    assert "| bench_bad | **failed** |" in (tmp_path / "out" / "gpu.md").read_text()


def test_results_of_earlier_runs_stay_beside_those_of_a_later_one(gpu_check, run, monkeypatch):
    monkeypatch.setattr(gpu_check, "steps", lambda logs: {"bench": [gpu_check.Step("bench_a", ["-c", "1"])]})
    assert run("--only", "bench_a")[0] == 0
    monkeypatch.setattr(gpu_check, "steps", lambda logs: {"bench": [gpu_check.Step("bench_b", ["-c", "1"])]})
    code, known = run()
    assert code == 0 and set(known["bench"]) == {"bench_a", "bench_b"}
    assert known["bench"]["bench_b"]["machine"]["GPU"] == "a GPU"


def test_a_name_that_is_no_stage_is_refused(run, capsys):
    assert run("--only", "kernel")[0] == 2
    assert "--only kernel names no stage and no step; stages are build, kernels, suite, bench" in capsys.readouterr().err


def test_a_stage_that_has_no_time_left_fails_and_says_how_to_go_on(gpu_check, tmp_path):
    found = gpu_check.run_stage("bench", [gpu_check.Step("bench_a", ["-c", "1"])], tmp_path, 0)
    assert not found["bench_a"].passed and "--only bench_a" in found["bench_a"].error


def test_a_step_that_takes_too_long_is_ended(gpu_check, tmp_path):
    step = gpu_check.Step("slow", ["-c", "import time; print('began', flush=True); time.sleep(60)"])
    result = gpu_check.run_stage("bench", [step], tmp_path, 3)["slow"]
    assert not result.passed and result.seconds < 30 and "ran out of time" in result.error


def test_tests_are_counted_over_all_processes_and_failed_ones_named(gpu_check, tmp_path):
    names = []
    for name, text in (("test_a", TEST_FILE), ("test_b", "def test_four(): pass\n"), ("test_none", "")):
        (tmp_path / f"{name}.py").write_text(text)
        names.append(f"{name}.py")
    of_stage = [gpu_check.tests_step("suite", [str(tmp_path / name)], i, tmp_path) for i, name in enumerate(names)]
    result = gpu_check.run_stage("suite", of_stage, tmp_path, 60)["suite"]
    assert result.tests == {"passed": 2, "failed": 1, "skipped": 1} and not result.passed
    assert len(result.failures) == 1 and "test_two: AssertionError: not equal" in result.failures[0] and not result.error


def test_a_file_that_cannot_be_collected_does_not_stop_the_others(gpu_check, tmp_path):
    (tmp_path / "test_a.py").write_text("import no_such_package\n")
    (tmp_path / "test_b.py").write_text("def test_four(): pass\n")
    (tmp_path / "test_c.py").write_text("1/0\n")
    step = gpu_check.tests_step("suite", [str(tmp_path / f"test_{x}.py") for x in "abc"], 0, tmp_path)
    result = gpu_check.run_stage("suite", [step], tmp_path, 60)["suite"]
    assert result.tests == {"passed": 1, "failed": 1, "skipped": 1} and "test_c" in result.failures[0]


def test_a_test_that_needs_a_missing_package_is_skipped_and_other_failures_are_not(tmp_path):
    (tmp_path / "test_a.py").write_text(NEEDS_A_PACKAGE)
    command = [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "tests.helpers.missing_packages", str(tmp_path / "test_a.py")]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout
    assert "1 failed, 1 skipped" in said and "no_such_package is not installed" in said


def test_figures_of_a_benchmark_are_in_the_page(gpu_check, tmp_path):
    figures = {"2^17 points": {"ours": {"name": "ours", "median": 0.002, "fastest": 0.001, "rounds": 9}}}
    text = json.dumps({"figures": figures})
    step = gpu_check.Step("bench_a", ["-c", f"open({str(tmp_path / 'a.json')!r}, 'w').write({text!r})"], tmp_path / "a.json")
    gpu_check.save(tmp_path, "bench", gpu_check.run_stage("bench", [step], tmp_path, 60), WHERE)
    page = (tmp_path / "gpu.md").read_text()
    assert "## bench_a: 2^17 points" in page and "| ours | 2.000 | 1.000 |" in page and "GPU a GPU, commit 1234567" in page


@pytest.mark.parametrize("text", ["{", "[]", '{"build": 3}', '{"build": {"build": {"passed": true}}}'])
def test_a_damaged_file_of_results_is_refused_before_anything_runs(run, tmp_path, monkeypatch, capsys, text):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "gpu.json").write_text(text)
    monkeypatch.setattr(subprocess, "run", pytest.fail)
    with pytest.raises(SystemExit) as caught:
        run("--only", "build")
    assert caught.value.code == 2 and "gpu.json is damaged; restore it" in capsys.readouterr().err
