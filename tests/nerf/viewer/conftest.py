"""Tiny runs with a viewer session: they train in milliseconds a step."""

import time

import numpy as np
import pytest

import main
from nerf.config.config import parse
from nerf.config.resolve import resolve
from nerf.run import workspace
from nerf.run.logger import Report
from nerf.viewer.session import Session
from tests.nerf import photo_folders

TINY = (
    "--seed 5 --max_steps 48 --grid_size 16 --grid_levels 4 --grid_log2 10 --grid_finest 32 --hidden 16 --W 24 --H 16 "
    "--dataset_size_test 2 --threads 1 --cuda_ray --texture_size 64 --mcubes_resolution 24 --mesh_threshold 2 "
    "--tet_grid_size 8"
).split()
PHOTOS = "--num_rays 64 --holdout 4 --w 12 --h 12 --blob_density 4 --blob_radius 0.6".split()
WORDS = "--text,a blue ball,--sd_version,embedded,--w,16,--h,16,--batch_size,2,--max_steps,32".split(",")


@pytest.fixture
def photographs(tmp_path):
    """Eight pictures of a red square on clear ground from all sides."""
    folder, images = tmp_path / "photographs", np.zeros((8, 12, 12, 4), np.uint8)
    folder.mkdir()
    for i in range(8):
        images[i, 4:8, 4:8] = (200, 30 * i, 20, 255)
    return photo_folders.write(folder, images)


@pytest.fixture
def open_run(tmp_path):
    """Make a :class:`main.Run` and its first trainer: (words, folder) -> (run, trainer); closed at the end of the test."""
    reports = []

    def make(*words, folder="run"):
        asked = parse([*TINY, *map(str, words), "--workspace", str(tmp_path / folder)])
        plan = resolve(asked, main.read_disk(asked), main.choose_weights)
        device = main.prepare_machine(plan.config)
        workspace.open_workspace(plan)
        reports.append(Report(plan.config.output.workspace, plan.lines))
        run = main.Run(plan, main.make_inputs(plan, device), device, reports[-1], time.monotonic())
        return run, run.make(plan.pending[0])

    yield make
    for report in reports:
        report.close()


@pytest.fixture
def open_session(open_run):
    """Begin a session of a tiny run: (words, folder) -> session; closed at the end of the test."""
    sessions = []

    def make(*words, folder="run", stopped=False):
        session = Session(*open_run(*words, folder=folder))
        sessions.append(session)
        if stopped:
            session.stop()
        session.begin()
        return session

    yield make
    for session in sessions:
        session.close()


def until(condition, seconds=60.0):
    """Wait until a condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come about in time"
        time.sleep(0.005)
