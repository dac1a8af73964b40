"""The benchmark of batches: its prompts are known, a worker and the driver are killed, and its throughput is arithmetic."""

import subprocess
import sys
import types

import pytest

from batch_jobs import state
from batch_jobs.state import State
from benchmarks import batch
from guidance.prior.captions import parse
from nerf.core.errors import UserError
from nerf.core.script import Parser


def test_every_prompt_is_known_to_the_prior_and_no_kind_is_there_twice():
    kinds = [parse(prompt).caption.kind for prompt in batch.PROMPTS]
    assert len(set(kinds)) == len(kinds) >= batch.parser_of().get_default("prompts")


@pytest.fixture
def args(tmp_path):
    args = batch.parser_of().parse_args(["--prompts", "2", "--baseline", "1", "--work", str(tmp_path), "--no_kill"])
    assert isinstance(batch.parser_of(), Parser)
    return args


def finish(folder, name, seconds):
    state.write(folder / "out" / name, State("done", seconds=seconds))


def test_the_throughput_counts_idle_workers_and_slower_jobs(args, monkeypatch):
    clock = iter((0.0, 100.0, 100.0, 350.0))
    monkeypatch.setattr(batch.time, "monotonic", lambda: next(clock))

    def start(folder, prompts, seeds, workers, extra):
        alone = workers == 1
        for name in prompts if alone else [f"{prompt}{seed}" for prompt in prompts for seed in range(seeds)]:
            finish(folder, name.replace(" ", "_") + ("0" if alone else ""), 100.0 if alone else 110.0)
        return types.SimpleNamespace(wait=lambda: 0)

    monkeypatch.setattr(batch, "start", start)
    figures = batch.measure(args)
    assert (figures["jobs"], figures["done"], figures["seconds"]) == (4, 4, 250.0)
    # Two workers were busy for 440 of 500 seconds, with jobs that took 1.1 times as long as alone.
    assert figures["slower_beside_others"] == 1.1 and figures["busy"] == 0.88 and figures["throughput"] == 1.6
    assert "| **throughput, as a multiple of one worker with one thread** | **1.60** |" in batch.page(figures)
    with pytest.raises(UserError, match="holds a batch, whose times would not count; remove it, or choose another --work"):
        batch.measure(args)


def test_a_worker_and_the_driver_are_killed_once(tmp_path):
    sleeping = [subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) for _ in range(2)]
    worker, driver = sleeping
    finish(tmp_path, "a", 1.0)
    finish(tmp_path, "b", 1.0)
    state.write(tmp_path / "out" / "c", State("running", step=5, total=9, process=worker.pid))
    drivers = iter((driver, types.SimpleNamespace(wait=lambda: 0)))
    said = batch.disturbed(tmp_path, lambda: next(drivers), 4)
    assert said == ["killed the worker of c at step 5", "killed the driver after 2 jobs"]
    assert worker.wait(timeout=10) == -9 and driver.wait(timeout=10) == -9 and next(drivers, None) is None
