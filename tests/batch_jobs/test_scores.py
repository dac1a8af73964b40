"""Which seed is the best, what is kept of the others, and who cannot be judged."""

import numpy as np
import pytest
import trimesh

from batch_jobs import plan, scores, state
from batch_jobs.jobs import Row, expand
from batch_jobs.scores import Judging, judging_of, keep_best, rank
from batch_jobs.state import State
from batch_jobs.worker import Worker
from guidance import text_weights
from nerf.config import config as options
from nerf.config.kept import StoredRun
from nerf.config.resolve import resolve
from nerf.core.errors import UserError
from nerf.run import workspace
from tests.guidance.tiny import write_clip


def scored(r_precision, posterior, janus):
    return {"r_precision_prior": r_precision, "posterior_prior": posterior, "janus_prior": janus}


def test_what_is_recognised_comes_first_and_then_agreement_less_the_janus_score():
    order = [scored(0.5, 0.9, 0.1), scored(1.0, 0.6, 0.6), scored(1.0, 0.7, 0.6), scored(1.0, 0.6, 0.3)]
    assert sorted(order, key=lambda one: rank(one, "prior")) == order


def test_the_best_seed_of_each_job_is_kept_and_of_the_others_the_pictures(tmp_path):
    jobs = expand([Row("line 1", {"text": "a car"}), Row("line 2", {"text": "a mug"})], [], 3)
    found = [scored(0.5, 0.5, 0.5), scored(1.0, 0.5, 0.5), scored(0.9, 0.5, 0.5), {}, scored(0.1, 0.5, 0.5), None]
    for job, one in zip(jobs, found, strict=True):
        for inside in ("checkpoints", "mesh", "results"):
            (tmp_path / job.name / inside).mkdir(parents=True)
        state.write(tmp_path / job.name, State("failed") if one is None else State("done", scores=one))
    assert keep_best(tmp_path, jobs, "prior") == ["a_car_seed1", "a_mug_seed1"]
    states = [state.read(tmp_path / job.name) for job in jobs]
    assert [one.state for one in states] == ["dropped", "done", "dropped", "done", "done", "failed"]
    assert [one.picked for one in states] == [False, True, False, False, True, False]
    kept = [{path.name for path in (tmp_path / job.name).iterdir() if path.is_dir()} for job in jobs]
    assert kept[0] == kept[2] == {"results"} and all(len(kept[i]) == 3 for i in (1, 3, 4, 5))
    (tmp_path / jobs[0].name / "mesh").mkdir()  # as of a driver that was killed while it removed it
    assert keep_best(tmp_path, jobs, "prior") == ["a_car_seed1", "a_mug_seed1"], "again, nothing changes"
    assert not (tmp_path / jobs[0].name / "mesh").exists()
    assert [job.name for job in plan.unfinished(jobs, tmp_path, "prior")] == ["a_mug_seed0", "a_mug_seed2"]
    assert len(plan.unfinished(jobs, tmp_path, "clip")) == 4, "figures of two models are never compared"
    assert keep_best(tmp_path, jobs, "clip") == []


def test_a_finished_job_is_judged_without_being_run_again(tmp_path, monkeypatch):
    state.write(tmp_path, State("done", tries=1))
    monkeypatch.setattr(scores, "judge", lambda folder, judging: {"posterior_prior": float(len(judging.captions))})
    said = Worker().run(str(tmp_path), ["--no_such_flag"], [], 2, Judging(("a", "b")))
    assert said["error"] == "" and state.read(tmp_path).scores == {"posterior_prior": 2.0} and state.read(tmp_path).tries == 1


@pytest.mark.slow
def test_a_mesh_is_judged_as_the_program_for_evaluation_does(tmp_path):
    write_clip(tmp_path / "clip")
    folder = tmp_path / "run"
    asked = options.parse(["--text", "a red car", "--seed", "0", "--sd_version", "embedded", "--workspace", str(folder)])
    workspace.open_workspace(resolve(asked, StoredRun()))
    judging = judging_of(expand([Row("line 1", {"text": "a red car"})], [], None), str(tmp_path / "clip"))
    with pytest.raises(UserError, match="there is no mesh/mesh.glb"):
        scores.judge(folder, judging)
    (folder / "mesh").mkdir()
    box = trimesh.creation.box((1, 1, 1))
    box.visual.vertex_colors = np.full((8, 3), (200, 30, 30), np.uint8)
    box.export(folder / "mesh" / "mesh.glb")
    found = scores.judge(folder, judging)
    assert found.keys() == {"r_precision_clip", "posterior_clip", "janus_clip"} and all(0 <= one <= 1 for one in found.values())
    assert found == scores.judge(folder, judging) and rank(found, judging.scorer)[0] == found["r_precision_clip"]


def test_a_job_that_cannot_be_judged_says_why_and_is_done(tmp_path, monkeypatch):
    state.write(tmp_path, State("done"))
    assert Worker().run(str(tmp_path), [], [], 2, Judging(("a car", "a mug")))["error"] == ""
    found = state.read(tmp_path)
    assert found.state == "done" and "is no workspace" in found.unjudged
    monkeypatch.setattr(scores, "judge", lambda folder, judging: {"posterior_prior": 1.0})
    Worker().run(str(tmp_path), [], [], 3, Judging(("a car", "a mug")))
    found = state.read(tmp_path)
    assert found.scores and not found.unjudged and state.is_finished(found, "prior"), "the same command judges it again"


def test_who_cannot_be_judged_is_told_before_anything_starts(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="nothing is not a folder; give one, or a hub id"):
        judging_of(expand([Row("a.txt, line 1", {"text": "a red car"})], [], None), str(tmp_path / "nothing"))
    monkeypatch.setattr(text_weights, "from_key", lambda *_: None)
    known, unknown = (expand([Row("a.txt, line 1", {"text": text})], [], None) for text in ("a red car", "a zebra crossing"))
    assert "a hamburger" in judging_of(known, None).captions and judging_of(unknown, "folder").captions[0] == "a zebra crossing"
    with pytest.raises(UserError, match=r"a.txt, line 1: --pick best: .*judge with --clip"):
        judging_of(unknown, None)
    with pytest.raises(UserError, match="a.txt, line 1: --pick best compares renders with a text, and this job has none"):
        judging_of(expand([Row("a.txt, line 1", {"data": "photographs"})], [], None), "folder")
    with pytest.raises(UserError, match="a.txt, line 1: --pick best judges meshes, and this job writes none; add -O"):
        plan.recipes(
            expand([Row("a.txt, line 1", {"text": "a red car"})], ["--sd_version", "embedded"], None), tmp_path, judged=True
        )
