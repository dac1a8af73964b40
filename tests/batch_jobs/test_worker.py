"""One process that runs jobs: guidance that stays loaded changes no bit, a job is done once, and errors are sentences."""

import errno
import json

import pytest
import torch

import guidance
import main
from batch_jobs import shared_guidance, state
from batch_jobs.jobs import Row, as_words, expand
from batch_jobs.plan import recipes, unfinished
from batch_jobs.shared_guidance import SharedGuidance
from batch_jobs.state import State
from batch_jobs.worker import Worker, is_final, sentence_of
from nerf.config import config as options
from nerf.core.errors import DivergenceError, ExportError, UserError
from nerf.run import checkpoint, lock

FLAGS = (
    "--sd_version embedded --iters 3 --w 8 --h 8 --W 8 --H 8 --dataset_size_test 2 --num_steps 8 --upsample_steps 0 "
    "--grid_levels 2 --grid_log2 8 --grid_finest 16 --hidden 8 --device cpu --preview_interval 1000 "
    "--eval_interval 1000 --no_prior_detail"
).split()


@pytest.fixture(scope="module")
def jobs():
    return expand([Row("line 1", {"text": "a red car"}), Row("line 2", {"text": "a blue mug"})], FLAGS, None)


def noting(config, read):
    """The same options, which add the name of every one of the guidance group that is read to a set."""

    class Noting(type(config.guidance)):
        def __getattribute__(self, name):
            read.add(name)
            return object.__getattribute__(self, name)

    group, config = object.__new__(Noting), options.with_values(config, {}, "typed")
    group.__dict__.update(config.guidance.__dict__)
    object.__setattr__(config, "guidance", group)
    return config


@pytest.fixture(scope="module")
def ran(jobs, tmp_path_factory):
    """Both jobs run by one worker, and the second by main.py alone; and the options that loading has read."""
    out, worker, read, load = tmp_path_factory.mktemp("out"), Worker(), set(), guidance.load
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(guidance, "load", lambda config, *rest: load(noting(config, read), *rest))
        said = [worker.run(str(out / job.name), as_words(job, out / job.name, 1), list(job.words), 1) for job in jobs]
    alone = as_words(jobs[1], out / "alone", 1)
    assert main.main(alone) == 0
    return out, worker, said, read


def weights(folder):
    path = checkpoint.steps(folder / "checkpoints")[-1][1]
    return checkpoint.load(path)[0]["model"]


def test_guidance_is_loaded_once_and_the_second_job_has_the_bits_of_a_run_alone(ran, jobs):
    out, _, said, _ = ran
    assert [one["error"] for one in said] == ["", ""] and [one["loaded"] for one in said] == [1, 1]
    found, alone = weights(out / jobs[1].name), weights(out / "alone")
    assert found.keys() == alone.keys() and all(torch.equal(found[name], alone[name]) for name in found)
    assert not all(torch.equal(found[name], one) for name, one in weights(out / jobs[0].name).items())


def test_a_job_notes_that_it_is_done_and_is_not_done_twice(ran, jobs):
    out, worker, *_ = ran
    folder, job = out / jobs[0].name, jobs[0]
    found = state.read(folder)
    assert (found.state, found.step, found.total, found.tries, found.words) == ("done", 3, 3, 1, list(job.words))
    assert json.loads((folder / "result.json").read_text())["prompt"] == "a red car"
    before = (folder / "result.json").stat().st_mtime_ns
    assert worker.run(str(folder), as_words(job, folder, 1), list(job.words), 2)["error"] == ""
    assert (folder / "result.json").stat().st_mtime_ns == before and state.read(folder) == found
    assert unfinished(jobs, out) == [] and not lock.is_held(folder)


def test_bad_input_is_final_and_an_error_of_the_program_is_not(tmp_path, monkeypatch):
    worker = Worker()
    said = worker.run(str(tmp_path / "a"), ["--data", str(tmp_path / "none"), "--workspace", str(tmp_path / "a")], [], 1)
    assert said["final"] and str(tmp_path / "none") in said["error"]

    def fail(*_):
        raise KeyError("odd")

    monkeypatch.setattr(main, "make_inputs", fail)
    said = worker.run(str(tmp_path / "b"), ["--text", "a car", *FLAGS, "--workspace", str(tmp_path / "b")], [], 1)
    assert not said["final"] and "an error that was not foreseen (there is no 'odd')" in said["error"]
    assert [is_final(e) for e in (DivergenceError(), ExportError("x"), MemoryError(), UserError("x"))] == [
        False,
        False,
        False,
        True,
    ]


def test_a_job_saves_and_ends_when_its_batch_is_stopped_and_goes_on_to_the_same_bits(ran, jobs, tmp_path, monkeypatch):
    monkeypatch.setattr("batch_jobs.worker.WRITE_SECONDS", 0.0)
    (tmp_path / state.STOP_FILE).touch()
    folder, worker = tmp_path / "job", Worker()
    said = worker.run(str(folder), as_words(jobs[1], folder, 1), list(jobs[1].words), 1)
    assert said["error"] == "stopped by signal 15" and not said["final"]
    assert [step for step, _ in checkpoint.steps(folder / "checkpoints")] == [1]
    (tmp_path / state.STOP_FILE).unlink()
    assert worker.run(str(folder), as_words(jobs[1], folder, 1), list(jobs[1].words), 2)["error"] == ""
    found, alone = weights(folder), weights(ran[0] / "alone")
    assert all(torch.equal(found[name], alone[name]) for name in alone) and state.read(folder).tries == 2


def test_a_full_disk_is_a_sentence(tmp_path):
    error = OSError(errno.ENOSPC, "No space left on device", "x.png")
    assert sentence_of(error, tmp_path).startswith(
        "x.png could not be read or written: No space left on device; free some space"
    )
    assert not is_final(error) and not is_final(lock.InUseError(tmp_path, "another program"))


def test_a_recipe_is_the_same_where_the_same_models_are_loaded(tmp_path):
    rows = [
        {"text": "a car"},
        {"text": "a mug", "guidance_scale": "7", "iters": "9"},
        {"text": "a car", "prior_views": "words"},
    ]
    found = list(recipes(expand([Row("a", row) for row in rows], FLAGS, None), tmp_path).values())
    assert found[0] == found[1] != found[2]
    assert not any(tmp_path.iterdir())


def test_no_option_that_jobs_of_one_recipe_may_differ_in_is_read_while_models_are_loaded(ran):
    read = ran[-1]
    assert "prior_views" in read and not read & shared_guidance.PER_RUN


def test_a_model_that_learns_is_loaded_anew(monkeypatch):
    class Learning:
        def state_dict(self):
            return {"lora": torch.zeros(1)}

    monkeypatch.setattr(guidance, "load", lambda *_: [Learning()])
    monkeypatch.setattr(guidance, "prepare", lambda *_: None)
    shared, config = SharedGuidance(), options.parse(["--text", "a"])
    first, second = (shared.build(config, "cpu", {}, ())[0] for _ in range(2))
    assert first is not second and shared.loaded == 2


def test_a_job_that_would_be_refused_is_named_with_its_line(tmp_path, monkeypatch):
    jobs = expand([Row("a.txt, line 7", {"text": "a car", "guidance": "zero123"})], FLAGS, None)
    with pytest.raises(UserError, match="a.txt, line 7: --guidance zero123 needs a prompt of another kind"):
        recipes(jobs, tmp_path)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    jobs = expand([Row("a.txt, line 8", {"text": "a car", "device": "cuda"})], ["--sd_version", "embedded"], None)
    with pytest.raises(UserError, match="a.txt, line 8: --device cuda: torch sees no CUDA device here"):
        recipes(jobs, tmp_path)
    assert recipes(jobs, tmp_path, here=False), "a cluster may have one"


def test_jobs_of_another_batch_in_the_folder_are_refused(tmp_path):
    (old,) = expand([Row("a.txt, line 1", {"text": "a car"})], ["--iters", "30"], None)
    (new,) = expand([Row("a.txt, line 1", {"text": "a car"})], ["--iters", "40"], None)
    state.record_jobs(tmp_path, [old])
    state.check_folder(tmp_path)
    state.check_jobs(tmp_path, [old])
    with pytest.raises(UserError, match=r"the job a_car_seed0 was begun in .* with 30, and now has 40; give the same flags"):
        state.check_jobs(tmp_path, [new])
    (tmp_path / "batch.json").write_text("{")
    with pytest.raises(UserError, match="batch.json is not valid JSON"):
        state.check_jobs(tmp_path, [old])


def test_a_folder_that_is_no_batch_is_refused(tmp_path):
    (tmp_path / "letter.txt").touch()
    letter = tmp_path / "letter.txt"
    refused = {
        tmp_path: "is not empty and holds no batch",
        letter: "letter.txt is not a folder",
        letter / "x": "letter.txt is not a folder",
    }
    for folder, said in refused.items():
        with pytest.raises(UserError, match=said):
            state.check_folder(folder)
    assert state.read(tmp_path) is None
    state.write(tmp_path, State("failed", error="why"))
    assert state.read(tmp_path).error == "why"
    (tmp_path / "job.json").write_text('{"state": "flying"}')
    assert state.read(tmp_path) is None
