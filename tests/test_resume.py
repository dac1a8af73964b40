"""A run that is killed and resumed ends with the bits of an uninterrupted one: the command line and real signals."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import main
from nerf.run import checkpoint
from tests.helpers.processes import wait_for
from tests.helpers.scripts import load_script

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[1]
FLAGS = (
    "--seed 5 --iters 60 --num_rays 64 --max_steps 48 --grid_size 16 --grid_levels 4 --grid_log2 10 --grid_finest 32 "
    "--hidden 16 --holdout 4 --W 8 --H 8 --dataset_size_test 2 --threads 1 --checkpoint_seconds 0.05 --preview_interval 1000 "
    "--ema_decay 0.9 --eval_interval 1000 --device cpu"  # on a GPU, atomic additions differ in their last bits
).split()
# Both stages in one workspace; a NeRF of so few steps has a surface because it starts from a blob.
STAGES = (
    "--stages nerf,dmtet --dmtet_iters 40 --tet_grid_size 8 --w 12 --h 12 --batch_size 2 --mesh_threshold 2 "
    "--mcubes_resolution 24 --lambda_mask 1 --blob_density 4 --blob_radius 0.6"
).split()
STEPS = {"nerf": 60, "dmtet": 40}


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Eight tiny pictures of a red square from all sides."""
    folder = tmp_path_factory.mktemp("data") / "photographs"
    load_script("soak").make_photographs(folder)
    return folder


def start(photographs, folder, flags=()):
    command = [sys.executable, "main.py", "--data", str(photographs), "--workspace", str(folder), *FLAGS, *flags]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)


def run_whole(photographs, folder, flags=()):
    """The same run to its end, in this process, which has torch already."""
    assert main.main(["--data", str(photographs), "--workspace", str(folder), *FLAGS, *flags]) == 0


def wait_for_step(folder, step, process, stage="nerf"):
    """Return once a checkpoint of ``step`` or later of a stage exists."""
    wait_for(lambda: any(found >= step for found, _ in checkpoint.steps(folder / "checkpoints", stage)), process)


def final(folder, stage="nerf"):
    """Step and tensors of the newest checkpoint of a stage, flat."""
    step, path = checkpoint.steps(folder / "checkpoints", stage)[-1]
    flat = {}

    def walk(prefix, node):
        for key, value in node.items():
            if isinstance(value, dict):
                walk(f"{prefix}/{key}", value)
            else:
                flat[f"{prefix}/{key}"] = value

    walk("", checkpoint.load(path)[0])
    return step, flat


@pytest.fixture(scope="module")
def straight(photographs, tmp_path_factory):
    """An uninterrupted run."""
    folder = tmp_path_factory.mktemp("straight")
    run_whole(photographs, folder)
    return final(folder)


def test_a_run_killed_by_force_ends_with_the_same_bits(photographs, straight, tmp_path):
    process = start(photographs, tmp_path)
    wait_for_step(tmp_path, 3, process)
    process.kill()
    process.wait()
    assert checkpoint.steps(tmp_path / "checkpoints")[-1][0] < 60
    run_whole(photographs, tmp_path)
    step, tensors = final(tmp_path)
    assert step == straight[0] == 60 and tensors.keys() == straight[1].keys()
    for name, tensor in straight[1].items():
        assert torch.equal(torch.as_tensor(tensors[name]), torch.as_tensor(tensor)), name


@pytest.fixture(scope="module")
def straight_stages(photographs, tmp_path_factory):
    """Both stages, one after the other, undisturbed."""
    folder = tmp_path_factory.mktemp("stages")
    run_whole(photographs, folder, STAGES)
    return final(folder, "dmtet")


@pytest.mark.parametrize("stage", STEPS)
def test_a_run_of_two_stages_killed_in_either_ends_with_the_same_bits(photographs, straight_stages, tmp_path, stage):
    process = start(photographs, tmp_path, STAGES)
    wait_for_step(tmp_path, 3, process, stage)
    process.kill()
    process.wait()
    assert checkpoint.steps(tmp_path / "checkpoints", stage)[-1][0] < STEPS[stage]
    run_whole(photographs, tmp_path, STAGES)
    step, tensors = final(tmp_path, "dmtet")
    assert step == straight_stages[0] == 40 and tensors.keys() == straight_stages[1].keys()
    for name, tensor in straight_stages[1].items():
        assert torch.equal(torch.as_tensor(tensors[name]), torch.as_tensor(tensor)), name


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_leaves_with_the_code_shells_expect(photographs, tmp_path, number, code):
    process = start(photographs, tmp_path)
    wait_for_step(tmp_path, 1, process)
    process.send_signal(number)
    assert process.wait(timeout=60) == code
    printed = process.stderr.read()
    assert "saved" in printed and "Traceback" not in printed
    assert checkpoint.latest(tmp_path / "checkpoints") is not None
