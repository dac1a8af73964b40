"""scripts/batch.py on a real Ray: a worker and the driver are killed, nothing is lost, and the bits are those of main.py."""

import json
import os
import signal
import subprocess
import sys
import types

import pytest
import torch

from batch_jobs import state
from nerf.core.errors import UserError
from nerf.run import checkpoint, lock
from tests.helpers.processes import wait_for
from tests.helpers.scripts import ROOT, load_script

FLAGS = (
    "--iters 60 --num_rays 64 --max_steps 48 --grid_size 16 --grid_levels 4 --grid_log2 10 --grid_finest 32 --hidden 16 "
    "--W 8 --H 8 --dataset_size_test 2 --checkpoint_seconds 0.05 --preview_interval 1000 --eval_interval 1000 --device cpu"
).split()


pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]  # Ray's processes are many for a machine that is busy
SECONDS = 180


@pytest.fixture(scope="module")
def cluster():
    """A Ray for all tests of this module, with room for one job at a time."""
    ray = pytest.importorskip("ray", reason="ray is not installed; the extra batch has it")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR"}
    context = ray.init(num_cpus=1, object_store_memory=96 << 20, **quiet)
    yield context.address_info["address"]
    ray.shutdown()


def start(cluster, folder, *more):
    command = [
        sys.executable,
        "scripts/batch.py",
        str(folder / "jobs.csv"),
        "--out",
        str(folder / "out"),
        "--tries",
        "2",
        *more,
    ]
    command += ["--address", cluster, "--", *FLAGS]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, env=environment)


def refused(folder):
    """What a second driver says, in this process."""
    script = load_script("batch")
    args = script.parser_of().parse_args([str(folder / "jobs.csv"), "--out", str(folder / "out"), "--tries", "2"])
    with pytest.raises(UserError) as caught:
        script.batch(args, FLAGS)
    return str(caught.value)


def begun(folder, steps):
    """Whether a job runs and has saved so many steps."""
    found = state.read(folder)
    saved = checkpoint.steps(folder / "checkpoints")
    return found is not None and found.state == "running" and bool(saved) and saved[-1][0] >= steps


@pytest.fixture(scope="module")
def disturbed(cluster, tmp_path_factory):
    """A batch of four jobs, one of which cannot succeed; its worker is killed, then the driver, and it is started again."""
    folder = tmp_path_factory.mktemp("batch")
    load_script("soak").make_photographs(folder / "photographs")
    load_script("soak").make_photographs(folder / "damaged")
    next((folder / "damaged").rglob("*.png")).write_bytes(b"no picture")
    rows = [
        "name,data,seed",
        *(f"run{seed},{folder / 'photographs'},{seed}" for seed in (1, 2, 3)),
        f"bad,{folder / 'damaged'},1",
    ]
    (folder / "jobs.csv").write_text("\n".join(rows))
    out = folder / "out"
    driver = start(cluster, folder)
    wait_for(lambda: begun(out / "run1", 3), driver, SECONDS)
    os.kill(state.read(out / "run1").process, signal.SIGKILL)
    wait_for(lambda: begun(out / "run2", 3) or begun(out / "run3", 3), driver, SECONDS)
    first, second = state.read(out / "run1"), refused(folder)
    driver.kill()
    said = [driver.communicate()[1], second]
    again = start(cluster, folder)
    said.append(again.communicate(timeout=SECONDS)[1])
    return types.SimpleNamespace(folder=folder, out=out, first=first, said=said, code=again.returncode)


def test_a_killed_worker_and_a_killed_driver_lose_nothing_and_do_nothing_twice(disturbed):
    found = {name: state.read(disturbed.out / name) for name in ("run1", "run2", "run3", "bad")}
    assert [one.state for one in found.values()] == ["done", "done", "done", "failed"], disturbed.said
    assert disturbed.code == 1, "a job has failed"
    assert found["run1"].tries == 2 and sum(one.tries for one in found.values()) == 6, "one more for each kill"
    assert found["run1"] == disturbed.first, "it was done before the driver was killed, and not done again"
    assert "run1: its process was killed (by the system, if its memory ran out); it goes on" in disturbed.said[0]
    assert "run1" not in disturbed.said[2] and "run3: done in" in disturbed.said[2]


@pytest.mark.parametrize("seed", [1, 2])
def test_the_weights_are_those_of_an_undisturbed_run(disturbed, tmp_path, seed):
    import main

    words = ["--data", str(disturbed.folder / "photographs"), "--seed", str(seed), "--threads", "1", *FLAGS]
    assert main.main([*words, "--workspace", str(tmp_path / "alone")]) == 0
    alone, found = (
        checkpoint.load(checkpoint.steps(folder / "checkpoints")[-1][1])[0]["model"]
        for folder in (tmp_path / "alone", disturbed.out / f"run{seed}")
    )
    assert alone.keys() == found.keys() and all(torch.equal(alone[name], found[name]) for name in alone)


def test_a_second_driver_of_the_same_batch_is_refused(disturbed):
    assert "out is in use by process" in disturbed.said[1] and "choose another --out" in disturbed.said[1]
    assert not lock.is_held(disturbed.out)


def test_what_failed_for_good_is_a_row_of_the_page_with_its_sentence(disturbed):
    page = (disturbed.out / "index.html").read_text()
    data = json.loads(page.partition('id="data">')[2].partition("</script>")[0])
    rows = {row["name"]: row for row in data["jobs"]}
    assert data["summary"] == "4 jobs: 3 done, 1 failed"
    assert rows["bad"]["state"] == "failed" and "damaged" in rows["bad"]["error"]
    assert rows["run3"]["numbers"]["steps"] == 60 and rows["run3"]["turntable"] is not None
