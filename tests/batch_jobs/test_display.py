"""What is printed while a batch runs: a line a job, with or without a terminal."""

from batch_jobs import display
from batch_jobs.display import Display
from batch_jobs.jobs import Row, expand
from batch_jobs.state import State

JOBS = expand([Row("a", {"text": "a car"}), Row("b", {"text": "a mug"})], [], None)
HALF = State("running", step=60, total=120, stage="nerf", rate=2.0)


def test_without_a_terminal_there_is_a_line_a_job_every_few_seconds(capsys, monkeypatch):
    shown = Display(2, terminal=False)
    shown.update({JOBS[0]: HALF})
    assert capsys.readouterr().err == "", "not at once"
    monkeypatch.setattr(display, "LINE_SECONDS", 0.0)
    shown.update({JOBS[0]: HALF, JOBS[1]: None})
    said = capsys.readouterr().err
    assert said == "a_car_seed0: nerf 60/120 steps, 2 it/s, 00:30 left\na_mug_seed0: starting\n"
    shown.update({JOBS[0]: HALF, JOBS[1]: HALF})
    assert capsys.readouterr().err == "a_mug_seed0: nerf 60/120 steps, 2 it/s, 00:30 left\n", "nothing is said twice"


def test_on_a_terminal_there_is_a_bar_a_job_that_goes_when_it_ends(capsys):
    shown = Display(2, terminal=True)
    shown.update({JOBS[0]: HALF, JOBS[1]: None})
    said = capsys.readouterr().err
    assert "a_car_seed0" in said and "60/120" in said and "00:30 left" in said and "a_mug_seed0" in said
    shown.ended(JOBS[0], State("done", seconds=61, tries=2))
    assert "a_car_seed0: done in 01:01, 2 tries (1 of 2)" in capsys.readouterr().err and set(shown._bars) == {"a_mug_seed0"}
    shown.close()
    assert shown._bars == {}


def test_what_happens_to_a_job_is_a_line(capsys):
    shown = Display(3, done=1, terminal=False)
    shown.ended(JOBS[0], State("done", seconds=5.0, scores={"posterior_prior": 0.98765}))
    shown.ended(JOBS[1], State("failed", tries=3, error="expected\x1b[2J more"))
    assert capsys.readouterr().err == (
        "a_car_seed0: done in 00:05, posterior_prior 0.988 (2 of 3)\n"
        "a_mug_seed0: failed, 3 tries: expected\\x1b[2J more (3 of 3)\n"
    )
    assert shown.failed == 1


def test_the_words_of_a_state_say_what_a_job_does():
    assert display.progress_of(None) == "starting"
    assert display.progress_of(State("running", step=5, total=5, stage="writing the results")) == "writing the results"
    assert display.progress_of(State("done")) == "being judged"
