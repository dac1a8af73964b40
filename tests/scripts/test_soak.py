"""The soak test runs, counts, and notices what it is there to notice."""

import json
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
    assert "2 same bits" in done.stdout and "1 sentences" in done.stdout


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
