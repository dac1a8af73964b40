"""The session of a viewer: training on a thread, commands, frames beside it, and what it leaves behind."""

import json

import pytest
import torch

from nerf.core.errors import UserError
from nerf.run import checkpoint
from nerf.viewer.status import Phase
from tests.nerf.viewer.conftest import PHOTOS, WORDS, until


def trained(session):
    """The training is over."""
    return session.status.phase in (Phase.SHOWING, Phase.FAILED)


def newest(folder, stage="nerf"):
    """Tensors of the newest checkpoint of a stage."""
    return checkpoint.load(checkpoint.latest(folder / "checkpoints", stage))[0]


def assert_equal(one, other):
    """Two trees of tensors have the same bits."""
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert_equal(value, other[name]) if isinstance(value, dict) else torch.testing.assert_close(
            value, other[name], rtol=0, atol=0
        )


def test_a_session_trains_to_the_end_and_writes_what_a_run_writes(open_session, photographs, tmp_path):
    session = open_session("--data", photographs, *PHOTOS, "--iters", 12)
    until(lambda: trained(session))
    assert session.status.phase is Phase.SHOWING and session.status.step == 12, session.messages()
    session.close()
    session.raise_error()
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["steps"] == 12 and result["stages"]["nerf"]["steps"] == 12


def test_training_with_onlookers_has_the_bits_of_training_without(open_session, open_run, photographs, tmp_path):
    run, trainer = open_run("--data", photographs, *PHOTOS, "--iters", 40, folder="alone")
    run.go_through(trainer)
    session = open_session("--data", photographs, *PHOTOS, "--iters", 40)
    view, frames = session.open_view(), 0
    while not trained(session):
        view.show(camera=view.request.camera.orbit(7.0, 1.0))
        frames += view.wait(after=frames, timeout=5.0) is not None
    assert frames > 3
    session.close()
    assert_equal(newest(tmp_path / "run"), newest(tmp_path / "alone"))


def test_exporting_and_saving_in_between_change_no_bit_of_the_training(open_session, open_run, photographs, tmp_path):
    pytest.importorskip("skimage")
    words = ("--data", photographs, *PHOTOS, "--iters", 30)
    run, trainer = open_run(*words, folder="alone")
    run.go_through(trainer)
    session = open_session(*words, stopped=True)
    until(lambda: session.status.phase is Phase.PAUSED)
    session.start()
    until(lambda: session.status.step >= 5)
    report = session.export().result(60)
    assert report.faces > 0 and session.save().result(60).is_file()
    until(lambda: trained(session))
    session.close()
    assert_equal(newest(tmp_path / "run"), newest(tmp_path / "alone"))
    assert json.loads((tmp_path / "run" / "result.json").read_text())["mesh"]["faces"] == report.faces


def test_a_stopped_training_waits_and_goes_on(open_session, photographs):
    session = open_session("--data", photographs, *PHOTOS, "--iters", 100000, stopped=True)
    until(lambda: session.status.phase is Phase.PAUSED)
    assert session.status.step == 0
    session.start()
    until(lambda: session.status.step > 2)
    session.stop()
    until(lambda: session.status.phase is Phase.PAUSED)
    at = session.status.step
    assert session.save().result(60).name == checkpoint.file_name(at)
    assert session.status.step == at


def test_closing_leaves_a_workspace_that_the_same_command_goes_on_from(open_session, open_run, photographs, tmp_path):
    words = ("--data", photographs, *PHOTOS, "--iters", 60)
    run, trainer = open_run(*words, folder="alone")
    run.go_through(trainer)
    session = open_session(*words)
    until(lambda: session.status.step > 3)
    session.close()
    session.raise_error()
    assert 3 < session.status.step < 60 and session.status.phase is Phase.CLOSED
    with pytest.raises(UserError, match="closed"):
        session.save().result(1)
    again, resumed = open_run(*words)
    assert resumed.step == session.status.step
    again.go_through(resumed)
    assert_equal(newest(tmp_path / "run"), newest(tmp_path / "alone"))


def test_a_reset_begins_the_training_that_a_fresh_run_begins(open_session, open_run, photographs, tmp_path):
    words = ("--data", photographs, *PHOTOS, "--iters", 25)
    run, trainer = open_run(*words, folder="alone")
    run.go_through(trainer)
    session = open_session(*words, stopped=True)
    session.start()
    until(lambda: session.status.step > 7)
    session.stop()
    before = session.save().result(60)
    session.reset().result(60)
    until(lambda: session.status.phase is Phase.PAUSED)
    assert session.status.step == 0 and session.history.points == {}
    assert not before.exists() and (tmp_path / "run" / "checkpoints" / "replaced").is_dir()
    session.start()
    until(lambda: trained(session))
    session.reset().result(60)  # also when everything is done
    until(lambda: trained(session) and session.status.step == 25)
    session.close()
    assert_equal(newest(tmp_path / "run"), newest(tmp_path / "alone"))
    steps = [json.loads(line)["step"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(steps)


def test_both_stages_are_trained_and_shown(open_session, photographs, tmp_path):
    pytest.importorskip("skimage")
    words = ("--iters", 10, "--stages", "nerf,dmtet", "--dmtet_iters", 6, "--lambda_mask", 1)
    session = open_session("--data", photographs, *PHOTOS, *words)
    view = session.open_view()
    until(lambda: trained(session))
    assert session.status.stage == "dmtet" and session.status.step == 6, session.messages()
    version = view.show(camera=view.request.camera.orbit(3.0, 0.0))
    until(lambda: view.frame is not None and view.frame.version == version and view.frame.scale == 1.0)
    assert view.error is None and view.frame.pixels.std() > 0
    session.reset().result(60)
    until(lambda: trained(session) and session.status.step == 6)
    assert session.status.stage == "dmtet"


def test_an_error_in_training_is_shown_and_raised_when_the_window_is_closed(open_session, photographs, monkeypatch):
    session = open_session("--data", photographs, *PHOTOS, "--iters", 1000, stopped=True)
    until(lambda: session.status.phase is Phase.PAUSED)
    trainer = session._trainer
    monkeypatch.setattr(trainer, "train_step", lambda: (_ for _ in ()).throw(UserError("the disk is gone")))
    view = session.open_view()
    session.start()
    until(lambda: session.status.phase is Phase.FAILED)
    assert "the disk is gone" in session.status.error and session.messages()[-1].error
    session.start()
    assert session.messages()[-1].text == "the training ended with an error: start over, or close the viewer"
    version = view.show(camera=view.request.camera.zoom(1.0))
    until(lambda: view.frame is not None and view.frame.version == version)  # what was reached can still be looked at
    session.close()
    with pytest.raises(UserError, match="disk is gone"):
        session.raise_error()


def test_a_reset_after_an_error_trains_again(open_session, photographs, monkeypatch):
    session = open_session("--data", photographs, *PHOTOS, "--iters", 8, stopped=True)
    until(lambda: session.status.phase is Phase.PAUSED)
    monkeypatch.setattr(session._trainer, "train_step", lambda: (_ for _ in ()).throw(UserError("the disk is gone")))
    session.start()
    until(lambda: session.status.phase is Phase.FAILED)
    session.reset().result(60)
    until(lambda: session.status.phase is Phase.SHOWING)
    session.close()
    session.raise_error()


def test_an_error_in_a_command_is_shown_and_the_training_goes_on(open_session, photographs, monkeypatch, tmp_path):
    session = open_session("--data", photographs, *PHOTOS, "--iters", 100000)
    monkeypatch.setattr(session.job, "export", lambda trainer: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        session.export().result(60)
    assert "exporting the mesh failed" in session.messages()[-1].text and "not foreseen" in session.status.error
    at = session.status.step
    until(lambda: session.status.step > at + 2)
    assert len(list((tmp_path / "run").glob("crash_*.txt"))) == 1


def test_an_error_in_rendering_is_shown_and_the_training_goes_on(open_session, photographs, tmp_path, monkeypatch):
    session = open_session("--data", photographs, *PHOTOS, "--iters", 100000)
    view = session.open_view()
    assert view.wait(timeout=30) is not None
    with monkeypatch.context() as patch:
        patch.setattr("nerf.viewer.frames.picture", lambda out, mode: 1 / 0)
        view.show(camera=view.request.camera.orbit(1.0, 1.0))
        until(lambda: view.error is not None)
        assert "not foreseen" in view.error
        at = session.status.step
        until(lambda: session.status.step > at + 2)
    version = view.show(camera=view.request.camera.orbit(1.0, 1.0))
    until(lambda: view.frame.version == version and view.error is None)
    assert len(list((tmp_path / "run").glob("crash_*.txt"))) == 1


def test_a_run_that_only_shows_trains_nothing_and_exports(open_session, open_run, photographs, tmp_path):
    pytest.importorskip("skimage")
    run, trainer = open_run("--data", photographs, *PHOTOS, "--iters", 12)
    run.go_through(trainer)
    before = {path: path.read_bytes() for path in (tmp_path / "run" / "checkpoints").iterdir()}
    session = open_session("--test")
    view = session.open_view()
    assert view.wait(timeout=30).step == 12
    assert session.status.phase is Phase.SHOWING and not session.status.trains and session.status.prompt is None
    assert session.export().result(60).faces > 0
    with pytest.raises(UserError, match="only shows"):
        session.edit_prompt("a cone").result(60)
    session.close()
    assert {path: path.read_bytes() for path in (tmp_path / "run" / "checkpoints").iterdir()} == before


def test_an_edited_prompt_is_embedded_kept_and_resumed(open_session, open_run, tmp_path):
    pytest.importorskip("diffusers")
    words = (*WORDS, "--iters", 1000)
    session = open_session(*words)
    until(lambda: session.status.step > 1)
    guidance = session._trainer.guidance[0]
    before = guidance.text["text"].clone()
    session.edit_prompt("a red cone", "a ball").result(60)
    assert session.status.prompt == "a red cone" and not torch.equal(before, guidance.text["text"])
    with pytest.raises(UserError):
        session.edit_prompt("  ").result(60)
    assert session.status.prompt == "a red cone"
    session.close()
    kept = json.loads((tmp_path / "run" / "config.json").read_text())
    (event,) = kept["events"]
    assert kept["options"]["text"]["value"] == "a red cone" and event["after"] == {"text": "a red cone", "negative": "a ball"}
    assert event["before"] == {"text": "a blue ball", "negative": ""} and event["step"] > 1 and event["stage"] == "nerf"
    for again in (words, ("--iters", 1000)):  # the command that began it, and one without the prompt
        run, trainer = open_run(*again)
        assert trainer.config.prompt.text == "a red cone" and trainer.config.prompt.negative == "a ball"
        assert torch.equal(trainer.guidance[0].text["text"], guidance.text["text"])
        assert json.loads((tmp_path / "run" / "config.json").read_text())["events"] == [event]
    with pytest.raises(UserError, match="holds a run with"):
        open_run("--text", "a torus", *words[2:])
    run, trainer = open_run(*words, "--ckpt", "scratch")
    assert trainer.config.prompt.text == "a blue ball"
    assert json.loads((tmp_path / "run" / "config.json").read_text())["events"] == []


def test_a_prompt_that_a_model_refuses_leaves_all_as_it_was(open_session, monkeypatch):
    pytest.importorskip("diffusers")
    session = open_session(*WORDS, "--iters", 1000, stopped=True)
    until(lambda: session.status.phase is Phase.PAUSED)
    guidance = session._trainer.guidance[0]
    before, real = guidance.text["text"].clone(), guidance.prepare

    def refusing(conditions):
        real(conditions)
        if conditions.text == "a red cone":
            raise UserError("no such thing")

    monkeypatch.setattr(guidance, "prepare", refusing)
    with pytest.raises(UserError, match="no such thing"):
        session.edit_prompt("a red cone").result(60)
    assert torch.equal(guidance.text["text"], before) and session.status.prompt == "a blue ball"
    assert "no such thing" in session.status.error


def test_a_prompt_with_a_word_that_the_prior_does_not_know_is_refused_and_the_old_one_stays(open_session):
    pytest.importorskip("diffusers")
    session = open_session(*WORDS, "--iters", 1000, stopped=True)
    until(lambda: session.status.phase is Phase.PAUSED)
    guidance = session._trainer.guidance[0]
    before = guidance.text["text"].clone()
    for words, said in (("a steampunk ball", "does not know 'steampunk'"), ("a ball on a table", 'try --text "a ball"')):
        with pytest.raises(UserError, match=said):
            session.edit_prompt(words).result(60)
        assert said in session.status.error and session.status.prompt == "a blue ball"
    assert torch.equal(guidance.text["text"], before) and guidance.understood == "a ball, blue"


def test_starting_what_is_finished_says_that_nothing_is_left(open_session, photographs):
    session = open_session("--data", photographs, *PHOTOS, "--iters", 3)
    until(lambda: trained(session))
    session.start()
    assert "nothing is left to train" in session.messages()[-1].text and session.status.phase is Phase.SHOWING


def test_the_light_of_a_window_is_within_the_range_of_its_slider(open_session, photographs):
    session = open_session("--data", photographs, *PHOTOS, "--iters", "1", "--light_phi", "300")
    assert session.start_request().settings.light_azimuth == -60.0
