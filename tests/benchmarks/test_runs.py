"""Working through a list of runs in a budget."""

import pytest

from benchmarks import runs
from nerf.core.errors import UserError
from nerf.core.script import Parser


@pytest.mark.parametrize("jobs", [1, 2])
def test_every_name_is_run_once_and_reported(jobs):
    seen = {}
    skipped = runs.work_through("abc", lambda name: {"name": name}, seen.__setitem__, 1.0, jobs)
    assert skipped == 0 and seen == {name: {"name": name, "jobs": jobs} for name in "abc"}


def test_nothing_is_started_after_the_budget():
    seen = {}
    assert runs.work_through("abc", lambda name: {}, seen.__setitem__, -1.0, 1) == 3 and not seen


@pytest.mark.parametrize("jobs", [1, 2])
def test_an_error_ends_the_list(jobs):
    seen = {}

    def one(name):
        raise UserError(f"{name} cannot be run")

    with pytest.raises(UserError, match="a cannot be run"):
        runs.work_through("abc", one, seen.__setitem__, 1.0, jobs)
    assert not seen


def test_the_order_is_kept_with_one_job():
    order = []
    runs.work_through("cab", lambda name: order.append(name) or {}, lambda name, result: order.append(name), 1.0, 1)
    assert order == list("ccaabb")


def test_a_run_without_a_mesh_says_why(tmp_path):
    mesh = tmp_path / "mesh.glb"
    assert runs.failure({"returncode": 2}, mesh) == "exit code 2"
    assert runs.failure({"returncode": 0}, mesh) == "mesh.glb was not written"
    mesh.touch()
    assert runs.failure({"returncode": 0}, mesh) is None


def test_main_is_run_in_the_root_with_its_output_in_a_log(tmp_path):
    found = runs.run_main(["--no_such_flag"], tmp_path / "run")
    assert found["returncode"] == 2 and "--no_such_flag" in (tmp_path / "run.log").read_text()
    assert found["command"].startswith("main.py --no_such_flag --workspace")


def test_flags_for_the_program_are_split_as_in_a_shell(capsys):
    parser = Parser(prog="benchmarks.some", description="Some.")
    runs.add_flags(parser, "run", 1.0, "some")
    assert parser.parse_args(["--extra", "--text 'a cow' -O"]).extra == ["--text", "a cow", "-O"]
    with pytest.raises(SystemExit, match="2"):
        parser.parse_args(["--extra", "--text 'a cow"])
    assert "--extra: expected words as in a shell" in capsys.readouterr().err
