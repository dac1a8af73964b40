"""Who gets which job and what happens to those that fail, with an engine in place of Ray that runs nothing in parallel."""

import os
import signal
import types
from pathlib import Path

import pytest

from batch_jobs import engine, state
from batch_jobs.display import Display
from batch_jobs.engine import Engine, Resources, workers_for
from batch_jobs.jobs import Row, expand
from batch_jobs.scores import Judging
from batch_jobs.state import State
from nerf.core.errors import Stopped, UserError


class Killed(Exception):
    """What a worker's death looks like."""


class FakeRay:
    """Runs each job when its result is asked for; ``script`` maps a job's name to what its tries do, one after the other."""

    exceptions = types.SimpleNamespace(
        RayActorError=Killed,
        WorkerCrashedError=Killed,
        NodeDiedError=Killed,
        OutOfMemoryError=MemoryError,
        RayTaskError=KeyError,
    )

    def __init__(self, script, cpus=2):
        self.script, self.cpus = {name: list(tries) for name, tries in script.items()}, cpus
        self.log, self.started, self.most = [], 0, 0
        self.alive = set()

    def cluster_resources(self):
        return {"CPU": self.cpus}

    def remote(self, kind):
        def make(*_):
            self.started += 1
            number = self.started
            self.alive.add(number)
            self.most = max(self.most, len(self.alive))
            run = types.SimpleNamespace(
                remote=lambda folder, words, key, tries, judging: (number, Path(folder), tuple(key), tries)
            )
            return types.SimpleNamespace(run=run, number=number)

        return types.SimpleNamespace(options=lambda **asked: types.SimpleNamespace(remote=make))

    def wait(self, references, num_returns, timeout):
        assert references, "there is something to wait for"
        return references[:1], references[1:]

    def get(self, reference):
        return self.act(reference)

    def act(self, reference):
        number, folder, key, tries = reference
        assert number in self.alive
        act = self.script[folder.name].pop(0) if self.script.get(folder.name) else "done"
        self.log.append((folder.name, number, act, tries))
        if act == "done":
            state.write(folder, State("done", list(key), tries))
            return {"error": "", "final": False, "loaded": 1}
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        if act.startswith("further"):
            (folder / "checkpoints" / f"df_step_{tries:08d}.safetensors").touch()
        if act.endswith("killed"):
            raise Killed
        return {"error": f"it said {act}", "final": act == "final", "loaded": 1}

    def kill(self, handle):
        self.alive.remove(handle.number)


@pytest.fixture
def batch(tmp_path, monkeypatch):
    """(recipe of each job, script, resources) -> (fake, jobs, states) of a batch that has run."""

    def run(recipes, script, cpus=2, **asked):
        fake = FakeRay(script, cpus)
        monkeypatch.setattr(engine, "require_ray", lambda: fake)
        jobs = expand([Row(f"line {i}", {"text": f"job {i}"}, f"j{i}") for i in range(len(recipes))], [], None)
        Engine(tmp_path, dict(zip(jobs, recipes, strict=True)), Resources(**asked), Display(len(jobs), terminal=False)).run()
        assert not fake.alive, "every worker was ended"
        return fake, jobs, {job.name: state.read(tmp_path / job.name) for job in jobs}

    return run


def test_every_job_is_done_once_and_a_worker_keeps_to_one_recipe(batch):
    fake, jobs, states = batch(["a", "b", "a", "b", "a"], {})
    assert sorted(name for name, *_ in fake.log) == [job.name for job in jobs]
    assert {found.state for found in states.values()} == {"done"}
    recipe = dict(zip((job.name for job in jobs), "ababa", strict=True))
    kept = {}
    for name, worker, *_ in fake.log:
        assert kept.setdefault(worker, recipe[name]) == recipe[name]
    assert fake.started == 2 == fake.most


def test_more_recipes_than_workers_take_turns(batch):
    fake, _, states = batch(["a", "b", "c", "a"], {}, cpus=1)
    assert fake.most == 1 and fake.started == 3 and {found.state for found in states.values()} == {"done"}


def test_a_killed_worker_is_replaced_and_its_job_goes_on(batch, capsys):
    fake, _, states = batch(["a", "a"], {"j0": ["further killed", "killed", "done"]})
    assert states["j0"].state == states["j1"].state == "done" and states["j0"].tries == 3
    first, second, third = (worker for name, worker, *_ in fake.log if name == "j0")
    assert len({first, second, third}) == 3
    assert "memory ran out); it goes on from its newest checkpoint" in capsys.readouterr().err


def test_a_job_fails_for_good_after_tries_that_save_nothing_new(batch, capsys):
    fake, _, states = batch(["a", "a"], {"j0": ["x", "y", "z", "done"]}, tries=3)
    assert states["j0"].state == "failed" and states["j0"].error == "it said z" and states["j0"].tries == 3
    assert states["j1"].state == "done"
    assert "j0: failed, 3 tries: it said z" in capsys.readouterr().err


def test_tries_that_get_further_are_not_counted_together(batch):
    _, _, states = batch(["a"], {"j0": ["further x"] * 6}, tries=2)
    assert states["j0"].state == "done" and states["j0"].tries == 7


def test_bad_input_is_not_tried_again_and_the_worker_lives_on(batch):
    fake, _, states = batch(["a", "a"], {"j0": ["final", "done"]}, cpus=1)
    assert states["j0"].state == "failed" and states["j0"].tries == 1 and states["j1"].state == "done"
    assert fake.started == 1


def test_a_worker_killed_after_it_finished_its_job_has_finished_it(batch, tmp_path, monkeypatch):
    def get(self, reference):
        state.write(reference[1], State("done", list(reference[2]), reference[3]))
        raise Killed

    monkeypatch.setattr(FakeRay, "get", get)
    _, _, states = batch(["a"], {})
    assert states["j0"].state == "done" and states["j0"].tries == 1


def test_a_signal_stops_the_batch_with_what_runs_asked_to_save(batch, tmp_path, monkeypatch, capsys):
    seen = []

    def get(self, reference):
        os.kill(os.getpid(), signal.SIGTERM)
        return FakeRay.act(self, reference)

    def wait(self, references, num_returns, timeout):
        seen.append((tmp_path / state.STOP_FILE).exists())
        return references[:1], references[1:]

    monkeypatch.setattr(FakeRay, "get", get)
    monkeypatch.setattr(FakeRay, "wait", wait)
    with pytest.raises(Stopped) as caught:
        batch(["a", "a", "a"], {}, cpus=2)
    assert caught.value.exit_code == 143 and seen == [False, True] and not (tmp_path / state.STOP_FILE).exists()
    assert "stopping: the jobs that run save a checkpoint first" in capsys.readouterr().err
    assert [state.read(tmp_path / name) is not None for name in ("j0", "j1", "j2")] == [True, False, False]


def test_a_job_whose_judging_fails_for_good_is_done_and_says_why(batch, monkeypatch):
    def get(self, reference):
        state.write(reference[1], State("done", list(reference[2]), reference[3]))
        raise Killed

    monkeypatch.setattr(FakeRay, "get", get)
    fake, _, states = batch(["a"], {}, judging=Judging(("a car",)), tries=2)
    assert states["j0"].state == "done" and "its process was killed" in states["j0"].unjudged and fake.started == 2


@pytest.mark.parametrize(
    ("asked", "have", "found"),
    [
        (Resources(), {"CPU": 8.0}, (8, 0.0)),
        (Resources(cpus=2), {"CPU": 9.0}, (4, 0.0)),
        (Resources(cpus=0.5), {"CPU": 2.0}, (4, 0.0)),
        (Resources(), {"CPU": 16.0, "GPU": 4.0}, (4, 1.0)),
        (Resources(gpus=0.5), {"CPU": 16.0, "GPU": 4.0}, (8, 0.5)),
        (Resources(gpus=0), {"CPU": 16.0, "GPU": 4.0}, (16, 0.0)),
        (Resources(workers=3), {"CPU": 8.0}, (3, 0.0)),
    ],
)
def test_there_are_as_many_workers_as_fit(asked, have, found):
    assert workers_for(asked, have, fixed=True) == found


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        (Resources(workers=3), "3 workers of --cpus_per_job 1 need 3 CPUs, and Ray has 2 CPUs and 0 GPUs"),
        (Resources(cpus=4), "1 worker of --cpus_per_job 4 need 4 CPUs, and Ray has 2 CPUs"),
        (Resources(gpus=1), "1 worker of --cpus_per_job 1 and --gpus_per_job 1 need 1 CPUs and 1 GPUs"),
    ],
)
def test_what_does_not_fit_on_this_machine_is_refused_and_may_come_to_a_cluster(asked, sentence):
    with pytest.raises(UserError, match=sentence):
        workers_for(asked, {"CPU": 2.0}, fixed=True)
    assert workers_for(asked, {"CPU": 2.0}, fixed=False)[0] >= 1


def test_a_cluster_that_does_not_answer_is_a_sentence_at_once(monkeypatch):
    monkeypatch.setattr(engine, "require_ray", lambda: None)
    for address in ("127.0.0.1:1", "ray://127.0.0.1:99999"):
        with pytest.raises(UserError, match=f"--address {address}: nobody answers there .*ray start --head"):
            engine.connected(address, True).__enter__()


def test_without_ray_there_is_a_sentence(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(UserError, match=r"a batch runs on Ray, which is not installed .*somnia\[batch\]"):
        engine.require_ray()
