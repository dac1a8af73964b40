"""Sizes that cannot be held are refused with the flags that ask for them; what works is not."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nerf.config.config import parse
from nerf.config.kept import StoredRun
from nerf.config.resolve import resolve
from nerf.core.errors import UserError
from nerf.core.structs import SceneInfo
from nerf.renderer import build_model
from nerf.run import memory

ROOT = Path(__file__).resolve().parents[3]


def stages(*words):
    """The stages of a command line."""
    return resolve(parse(["--text", "a cone", *words]), StoredRun()).pending


@pytest.fixture
def machine(monkeypatch):
    """A machine with 16 GiB."""
    monkeypatch.setattr(memory, "host_memory", lambda: 16.0 * memory.GIB)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            "--grid_levels 32 --grid_log2 26 --grid_features 8 --grid_coarsest 512",
            "--grid_levels 32 --grid_features 8 --grid_log2 26: the hash grid would take 320 GiB at least",
        ),
        ("--batch_size 256 --w 8192 --h 4096", "--batch_size 256 --w 8192 --h 4096: the pictures of a step would take 512 GiB"),
        ("--dataset_size_test 10000 --W 4096 --H 4096", "--dataset_size_test 10000 --W 4096 --H 4096: the frames of the video"),
        ("--cuda_ray --grid_size 512 --bound 128", None),
        ("--dmtet --tet_grid_size 512 --dmtet_reso_scale 1", None),
        ("--save_mesh --mcubes_resolution 1024", None),
        ("--backbone vanilla --hidden 4096", None),
    ],
)
def test_what_cannot_be_held_is_refused_with_its_flags(machine, words, sentence):
    if sentence is None:
        memory.check_memory(stages(*words.split()), "cpu")
        return
    with pytest.raises(UserError) as caught:
        memory.check_memory(stages(*words.split()), "cpu")
    assert str(caught.value).startswith(sentence) and str(caught.value).endswith(", and this machine has 16; lower one of them")


@pytest.mark.parametrize("preset", ["", "-O", "-O2"])
def test_the_defaults_fit_into_two_gibibytes(monkeypatch, preset):
    monkeypatch.setattr(memory, "host_memory", lambda: 2.0 * memory.GIB)
    memory.check_memory(stages(*preset.split(), "--stages", "nerf,dmtet"), "cpu")


@pytest.mark.parametrize("words", ["", "--grid_features 4 --grid_log2 12", "--backbone vanilla", "--cuda_ray --bound 3"])
def test_no_need_is_larger_than_what_the_model_has(words):
    (stage,) = stages(*words.split())
    model = build_model(stage, SceneInfo(stage.config.field.bound))
    held = sum(p.numel() * p.element_size() for p in [*model.parameters(), *model.buffers()])
    found = {need.what: need.bytes for need in memory.needs(stage)}
    parameters = found.get("the hash grid", found.get("the network", 0.0)) / memory.TRAINED
    assert parameters + found.get("the occupancy grid", 0.0) <= held
    assert parameters > 0.1 * sum(p.numel() * p.element_size() for p in model.parameters()) or "vanilla" in words


def test_the_memory_of_this_machine_is_found():
    assert 2**28 < memory.host_memory() < 2**50 or memory.host_memory() == math.inf


def test_a_limit_of_the_container_counts(tmp_path, monkeypatch):
    (tmp_path / "memory.max").write_text("1000000\n")
    monkeypatch.setattr(memory, "CGROUP", (tmp_path / "memory.max", tmp_path / "none"))
    assert memory.host_memory() == 1e6
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.host_memory() > 1e6


def test_a_gpu_holds_the_model_and_the_host_the_frames(monkeypatch, machine):
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: type("Card", (), {"total_memory": 2**20}))
    with pytest.raises(UserError, match="the hash grid would take .* GiB at least, and the GPU has 0.000977"):
        memory.check_memory(stages(), "cuda:0")


PEAK = """
import re
from pathlib import Path
import torch
from nerf.mesh.isosurface import extract_surface
from tests.helpers import solids

def most():
    return 1024 * int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1])

torch.set_num_threads(1)
level_set = solids.Solid(lambda points: solids.ball(points, radius=0.95)).as_distance()
extract_surface(level_set, 1.0, 64)
before = most()
extract_surface(level_set, 1.0, 192)
print(most() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="the peak is read from Linux' /proc")
def test_extracting_a_surface_takes_what_is_reckoned_with_and_little_more():
    (stage,) = stages("--save_mesh", "--mcubes_resolution", "192")
    (need,) = (need for need in memory.needs(stage) if "mcubes_resolution" in need.flags)
    done = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, cwd=ROOT, check=True)
    assert need.bytes <= float(done.stdout.split()[-1]) <= 1.6 * need.bytes
