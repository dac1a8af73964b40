"""The photographs benchmark runs main.py and prints the metrics of its result."""

import json
import subprocess

import pytest

from benchmarks import photographs


@pytest.fixture
def run(monkeypatch):
    """Replace main.py by a function that writes this result.json and returns this exit code; returns the recorded calls."""
    calls = []

    def replace(result, code=0):
        def fake(words, check):
            calls.append(words)
            workspace = words[words.index("--workspace") + 1]
            with open(f"{workspace}/result.json", "w") as file:
                json.dump(result, file)
            return subprocess.CompletedProcess(words, code)

        monkeypatch.setattr(photographs.subprocess, "run", fake)
        return calls

    return replace


def test_printed_metrics_are_those_of_the_result(run, capsys, tmp_path):
    calls = run({"test_psnr": 28.25, "test_ssim": 0.91, "train_seconds": 600.2})
    assert photographs.main(["lego", "--minutes", "2", "--workspace", str(tmp_path), "--seed", "3"]) == 0
    assert calls[0][2:] == [
        "--data",
        "lego",
        "--workspace",
        str(tmp_path),
        "--minutes",
        "2",
        "--ckpt",
        "scratch",
        "--seed",
        "3",
    ]
    printed = capsys.readouterr().out
    assert "PSNR  28.25 dB" in printed and "SSIM  0.91" in printed


def test_exit_code_of_a_failed_run_is_returned(run):
    run({}, code=2)
    assert photographs.main(["nowhere"]) == 2


def test_a_run_without_test_metrics_names_the_flag_to_give(run, capsys):
    run({"steps": 10})
    assert photographs.main(["lego"]) == 2
    assert "give --holdout 8" in capsys.readouterr().err
