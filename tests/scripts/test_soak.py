"""The soak test runs, counts, and notices what it is there to notice."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nerf.run import checkpoint
from tests.helpers.scripts import load_script

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_rounds_of_the_soak_test_end_well():
    command = [sys.executable, "scripts/soak.py", "--rounds", "2", "--seed", "3"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    last = done.stdout.splitlines()[-1]
    assert "nothing lost and nothing mixed" in last and "2 runs with the same bits, 1 pairs of programs, 1 sentences" in last
    assert not last.startswith("soak: 0 kills") and "fewer than asked for" in last


PHASES = ["start-up", "training", "a checkpoint", "the export"]


def program(soak, monkeypatch, workspace, script):
    """Let the soak test start a shell script in place of a run."""
    start = lambda self, folder, *words: subprocess.Popen(["bash", "-c", f"cd {workspace}; {script}"])  # noqa: E731
    monkeypatch.setattr(soak.Soak, "start", start)


@pytest.fixture
def watched(tmp_path):
    """An empty workspace, and a soak test that has measured a run."""
    soak = load_script("soak")
    (tmp_path / "w" / "checkpoints").mkdir(parents=True)
    (tmp_path / "output.txt").write_text("")
    return soak, tmp_path / "w", soak.Soak(tmp_path, random.Random(1), seconds=dict.fromkeys(PHASES, 0.1))


def test_the_phase_of_a_run_is_read_from_its_files(watched):
    soak, folder, _ = watched
    (folder / "log_df.txt").write_text("export: surface, of an earlier run\n")
    watch = soak.Watch(folder)
    assert watch.phase() == "start-up"
    with open(folder / "log_df.txt", "a") as log:
        log.write("going on from df_step_00000003.safetensors\n")
        log.flush()
        assert watch.phase() == "training"
        (folder / "checkpoints" / ".df_step_00000004.1.unfinished.safetensors").touch()
        assert watch.phase() == "a checkpoint"
        log.write("wrote run/results/df_step_00000024_rgb.mp4\n")
    assert watch.phase() == "the export"


RUN = "sleep .3; echo go >> log_df.txt; sleep .3; touch checkpoints/.a.1.unfinished.x; sleep .3; rm checkpoints/.a*; sleep .2; "


@pytest.mark.parametrize("phase", PHASES)
def test_a_kill_strikes_in_the_phase_that_was_drawn(watched, monkeypatch, phase):
    soak, folder, test = watched
    program(soak, monkeypatch, folder, RUN + "echo export: clean >> log_df.txt; exec sleep 60")
    monkeypatch.setattr(test, "choose", random.Random(0))
    monkeypatch.setattr(test.choose, "choice", lambda phases: phase)
    assert test.kill_once(folder)
    assert test.counts == {"kills": 1, f"kills in {phase}": 1}


def test_a_run_that_skips_the_phase_is_killed_in_the_next_one(watched, monkeypatch):
    soak, folder, test = watched
    program(soak, monkeypatch, folder, "echo export: clean >> log_df.txt; exec sleep 60")
    monkeypatch.setattr(test.choose, "choice", lambda phases: "training")
    assert test.kill_once(folder) and test.counts["kills in the export"] == 1


def test_a_run_that_ends_before_its_kill_counts_as_missed_and_a_failed_one_is_a_failure(watched, monkeypatch):
    soak, folder, test = watched
    monkeypatch.setattr(test.choose, "choice", lambda phases: "the export")
    program(soak, monkeypatch, folder, "exit 0")
    assert not test.kill_once(folder) and test.counts == {"missed": 1}
    program(soak, monkeypatch, folder, "exit 3")
    with pytest.raises(soak.Failure, match="a run failed that was not killed"):
        test.kill_once(folder)


def test_the_last_line_says_what_is_missing(watched):
    _, _, test = watched
    assert test.shortfall() == "0 of 100 kills, 0 of 100 same bits, 0 of 20 pairs"
    test.counts.update({"kills": 100, "same bits": 101, "pairs": 20})
    assert test.shortfall() == ""


def test_other_bits_and_leftovers_are_noticed(tmp_path):
    soak = load_script("soak")
    folder = tmp_path / "w"
    checkpoint.save(folder / "checkpoints" / checkpoint.file_name(3), {"x": torch.ones(3)}, {"stage": "nerf", "step": 3})
    (folder / "mesh").mkdir()
    (folder / "mesh" / "mesh.glb").write_bytes(b"x")
    (folder / "result.json").write_text(json.dumps({"mesh": {"files": {"glb": "mesh.glb"}}}))
    (tmp_path / "output.txt").write_text("")
    test = soak.Soak(tmp_path, None, bits=soak.digests(folder))
    test.compare(folder)
    (folder / "mesh" / ".mesh.1.unfinished.glb").touch()
    with pytest.raises(soak.Failure, match="bits.*unfinished"):
        test.compare(folder)
    (folder / "mesh" / ".mesh.1.unfinished.glb").unlink()
    (folder / ".lock").touch()
    with pytest.raises(soak.Failure, match="leftovers"):
        test.compare(folder)
    checkpoint.save(folder / "checkpoints" / checkpoint.file_name(3), {"x": torch.zeros(3)}, {"stage": "nerf", "step": 3})
    with pytest.raises(soak.Failure, match="nerf x"):
        test.compare(folder)
