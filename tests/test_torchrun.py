"""One run on two processes of torchrun: one is killed, torchrun starts both again, and a single process goes on from there."""

import os
import re
import signal
import subprocess
import sys

import pytest
import torch
from torch import distributed

import main
from nerf.run import checkpoint
from tests.helpers.processes import wait_for
from tests.helpers.scripts import load_script
from tests.test_resume import FLAGS, ROOT, final

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (distributed.is_available() and distributed.is_gloo_available()) or not os.path.isdir("/proc"),
        reason="torch has no gloo backend here, or processes have no files",
    ),
]
STEPS = 40


def command(photographs, folder, *flags):
    """The command line of a run, without the interpreter."""
    words = ["main.py", "--data", str(photographs), "--workspace", str(folder), *FLAGS, "--iters", str(STEPS), *flags]
    return [*words, "--no_save_mesh", "--dataset_size_test", "1"]


def process_of(rank, folder):
    """Number of the process of a rank of the run in a folder."""
    for name in filter(str.isdecimal, os.listdir("/proc")):
        try:
            words = open(f"/proc/{name}/cmdline").read().split("\0")
            given = open(f"/proc/{name}/environ").read().split("\0")
        except OSError:  # it ended, or is not ours
            continue
        if "main.py" in words and str(folder) in words and f"RANK={rank}" in given:
            return int(name)
    raise AssertionError(f"no process of rank {rank}")


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A run of two processes, of which the second is killed once there is a checkpoint, to its end; and its output."""
    base = tmp_path_factory.mktemp("torchrun")
    load_script("soak").make_photographs(base / "photographs")
    folder = base / "run"
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "--max-restarts", "1"]
    with open(base / "log", "w") as log:
        whole = [sys.executable, *words, *command(base / "photographs", folder, "--ckpt", "scratch")]
        run = subprocess.Popen(whole, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
        wait_for(lambda: any(checkpoint.steps(folder / "checkpoints")), run)
        os.kill(process_of(1, folder), signal.SIGKILL)
        assert run.wait(timeout=90) == 0, (base / "log").read_text()
    return base, folder, (base / "log").read_text()


def test_the_process_that_is_left_says_so_and_torchrun_goes_on_from_its_checkpoint(killed):
    _, folder, log = killed
    said = re.search(r"main\.py: step (\d+): another process of this run ended.*goes on from (df_step_\d+)", log)
    assert said and said[2] == f"df_step_{int(said[1]):08d}", log
    assert f"going on from {folder}/checkpoints/{said[2]}.safetensors" in log  # though --ckpt scratch was typed
    assert final(folder)[0] == STEPS and (folder / "result.json").is_file()


def test_a_single_process_goes_on_from_the_checkpoint_of_two(killed, capfd):
    base, folder, _ = killed
    before = final(folder)[1]
    assert main.main(command(base / "photographs", folder, "--iters", str(STEPS + 4))[1:]) == 0
    step, tensors = final(folder)
    assert step == STEPS + 4 and tensors.keys() == before.keys() and f"(step {STEPS} of {STEPS + 4})" in capfd.readouterr().err
    assert any(not torch.equal(torch.as_tensor(tensors[name]), torch.as_tensor(before[name])) for name in tensors)
