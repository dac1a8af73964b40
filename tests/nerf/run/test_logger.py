"""What a run writes is complete, parses, and survives being interrupted."""

import contextlib
import errno
import json
import logging
import math
import os
import shutil

import pytest
import torch

from nerf.config.config import parse
from nerf.config.kept import StoredRun
from nerf.config.resolve import resolve
from nerf.config.stages import DMTET
from nerf.core.errors import UserError
from nerf.run import logger
from nerf.run.logger import Report


@pytest.fixture(autouse=True)
def without_tensorboard(monkeypatch):
    """TensorBoard takes a second to import; the one test that is about it turns it on again."""
    monkeypatch.setattr(Report, "_tensorboard", lambda self: None)


@pytest.fixture
def report(tmp_path):
    """A report without a terminal."""
    with Report(tmp_path, terminal=False) as made:
        yield made


def rows(folder):
    """The objects of metrics.jsonl."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_lines_go_to_the_screen_and_to_the_log(report, tmp_path, capsys):
    report.log("the oven is hot")
    assert "the oven is hot" in capsys.readouterr().err
    assert "the oven is hot" in (tmp_path / "log_df.txt").read_text()


def test_the_log_says_where_the_options_came_from(tmp_path):
    with Report(tmp_path, resolve(parse(["--text", "a hamburger", "-O"]), StoredRun()).lines, terminal=False):
        log = (tmp_path / "log_df.txt").read_text()
    assert "typed: --text 'a hamburger' -O" in log
    assert "preset (-O): --cuda_ray --fp16 --save_mesh" in log


def test_scalars_are_written_every_few_steps_and_at_the_end(report, tmp_path):
    for step in range(1, 24):
        report.scalars(step, {"sds": torch.tensor(float(step)), "opacity": 0.5}, total=23)
    assert [(row["step"], row["train/sds"]) for row in rows(tmp_path)] == [(10, 10.0), (20, 20.0), (23, 23.0)]


def test_terms_are_not_read_between_the_steps_that_write_them(report):
    class Unreadable:
        def __float__(self):
            raise AssertionError("read back")

    report.scalars(1, {"sds": Unreadable()}, total=100)


def test_a_resumed_run_replaces_the_steps_it_takes_again(tmp_path):
    with Report(tmp_path, terminal=False) as first:
        for step in range(1, 41):
            first.scalars(step, {"sds": 1.0}, total=60)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write("[" * 10**5 + "\n" + '{"step": ' + "9" * 5000 + "}\n[]\n")  # not by this program
        file.write('{"step": 4')  # the process was killed in mid-line
    with open(tmp_path / "metrics.jsonl", "ab") as file:
        file.write(b"\xff")
    with Report(tmp_path, terminal=False) as second:
        for step in range(21, 61):
            second.scalars(step, {"sds": 2.0}, total=60)
    assert [(r["step"], r["train/sds"]) for r in rows(tmp_path)] == [
        (10, 1),
        (20, 1),
        (30, 2),
        (40, 2),
        (50, 2),
        (60, 2),
    ]


def test_measuring_a_finished_run_keeps_all_that_was_written_of_it(tmp_path):
    with Report(tmp_path, terminal=False) as training:
        training.scalars(10, {"sds": 1.0}, total=10)
    with Report(tmp_path, terminal=False) as testing:
        testing.metrics(10, {"test_psnr": 30.0})
    assert [set(row) - {"step", "time"} for row in rows(tmp_path)] == [{"train/sds"}, {"eval/test_psnr"}]


def test_without_a_terminal_the_last_step_says_rate_and_losses(report, capsys):
    for step in range(1, 8):
        report.scalars(step, {"sds": 0.25}, total=7)
    assert "step 7/7" in (printed := capsys.readouterr().err)
    assert "it/s" in printed and "sds 0.25" in printed


def test_without_a_terminal_a_line_comes_after_some_seconds(report, capsys, monkeypatch):
    monkeypatch.setattr(logger, "LINE_SECONDS", 0.0)
    report.scalars(1, {"sds": 0.25}, total=100)
    assert "step 1/100" in capsys.readouterr().err


@pytest.mark.parametrize(("complete", "shown"), [(True, "run 1:02:05 left, sds"), (False, "run 1:02:05+ left, sds")])
def test_the_time_left_of_the_run_includes_what_comes_after_training(report, capsys, monkeypatch, complete, shown):
    monkeypatch.setattr(logger, "LINE_SECONDS", 0.0)
    monkeypatch.setattr(logger._Rate, "per_second", 20.0)
    report.after_training = lambda: logger.AfterTraining(3720.0, complete)
    report.scalars(1, {"sds": 0.25}, total=101)  # 100 steps in 5 seconds, then an hour and two minutes
    assert shown in capsys.readouterr().err


@pytest.mark.parametrize("terminal", [False, True])
def test_the_rate_counts_steps_whose_time_was_seen(tmp_path, capsys, monkeypatch, terminal):
    now = [1000.0]
    monkeypatch.setattr(logger.time, "monotonic", lambda: now[0])
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])
    with Report(tmp_path, terminal=terminal) as report:
        for step in (31, 32):  # a minute each; how long the first took is not known
            report.scalars(step, {"sds": 0.25}, total=40)
            first = capsys.readouterr().err if step == 31 else ""
            now[0] += 60.0 if step == 31 else 0.0
        assert "it/s, " not in first and "0.0 it/s" not in first
        said = capsys.readouterr().err
        assert (
            ("08:00<" not in said and "01:00<08:00, 60.00s/it" in said) if terminal else "0.0167 it/s, 08:00 left, sds" in said
        )


def test_a_run_of_one_step_says_no_rate(report, capsys):
    report.scalars(1, {"sds": 0.25}, total=1)
    assert capsys.readouterr().err.splitlines()[-1] == "step 1/1 sds 0.25"


def test_on_a_terminal_a_bar_counts_from_where_the_run_goes_on(tmp_path, capsys):
    with Report(tmp_path, terminal=True) as report:
        report.scalars(51, {"sds": 1.0}, total=100)
        assert (report._bar.n, report._bar.total) == (51, 100)
    assert "it/s" in capsys.readouterr().err


def test_what_follows_training_does_not_draw_its_bar_again(tmp_path, capsys):
    with Report(tmp_path, terminal=True) as report:
        report.scalars(1, {"sds": 1.0}, total=2)
        report.scalars(2, {"sds": 1.0}, total=2)
        report.end_training()
        assert "2/2" in capsys.readouterr().err
        report.log("wrote the video")
    assert capsys.readouterr().err == "wrote the video\n"


def test_metrics_are_said_and_written(report, tmp_path, capsys):
    report.metrics(100, {"test_psnr": 28.25})
    assert "step 100: test_psnr 28.25 dB" in capsys.readouterr().err
    assert rows(tmp_path)[0]["eval/test_psnr"] == 28.25


def test_result_gathers_and_is_valid_json_even_with_nan(report, tmp_path):
    report.result(seconds=1.5, psnr=math.nan, mesh={"file": tmp_path / "mesh.glb", "sizes": (1, math.inf)})
    report.result(steps=3)
    found = json.loads((tmp_path / "result.json").read_text(), parse_constant=lambda word: pytest.fail(word))
    mesh = {"file": str(tmp_path / "mesh.glb"), "sizes": [1, None]}
    assert found == {"seconds": 1.5, "psnr": None, "mesh": mesh, "steps": 3}


def test_what_other_modules_log_reaches_the_file_while_the_report_is_open(tmp_path):
    logger = logging.getLogger("somnia.extension")
    with Report(tmp_path, terminal=False):
        logger.info("backend: cpu")
        logger.warning("slow")
    logger.info("too late")
    log = (tmp_path / "log_df.txt").read_text()
    assert "backend: cpu" in log and "warning: slow" in log and "too late" not in log


def test_tensorboard_gets_scalars_under_run_df(tmp_path, monkeypatch):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    monkeypatch.undo()
    with Report(tmp_path, terminal=False) as report:
        report.scalars(1, {"sds": 0.5}, total=1)
    events = list((tmp_path / "run" / "df").glob("events.*"))
    assert events and b"train/sds" in events[0].read_bytes()


def test_what_ended_a_run_is_in_the_log_and_not_said_twice(tmp_path, capsys):
    with pytest.raises(UserError), Report(tmp_path, terminal=False):
        raise UserError("the file is no mesh")
    assert "ended by UserError: the file is no mesh" in (tmp_path / "log_df.txt").read_text()
    assert capsys.readouterr().err == ""


def test_a_disk_too_full_for_the_log_does_not_hide_what_ended_the_run(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(UserError, match="no mesh"), Report(tmp_path, terminal=False):
        monkeypatch.setattr(logger.os, "write", full)
        raise UserError("the file is no mesh")


def test_a_report_that_is_held_writes_nothing_until_it_is_opened(tmp_path, capsys):
    with Report(tmp_path / "run", ["first"], terminal=False, hold=True) as report:
        report.log("second")
        assert list(tmp_path.iterdir()) == [] and "first\nsecond" in capsys.readouterr().err
        (tmp_path / "run").mkdir()
        report.open()
        report.log("third")
    lines = (tmp_path / "run" / "log_df.txt").read_text().splitlines()
    assert [line.split()[-1] for line in lines] == ["first", "second", "third"]


def test_a_report_that_is_never_opened_leaves_nothing(tmp_path):
    with pytest.raises(UserError), Report(tmp_path / "run", ["first"], terminal=False, hold=True):
        raise UserError("bad data")
    assert list(tmp_path.iterdir()) == []


def test_steps_of_a_later_stage_carry_its_name_and_leave_those_before_it(report, tmp_path):
    report.scalars(10, {"sds": 1.0}, total=10)
    report.begin_stage(DMTET)
    report.scalars(10, {"sds": 2.0}, total=10)
    assert [(row.get("stage"), row["train/sds"]) for row in rows(tmp_path)] == [(None, 1.0), ("dmtet", 2.0)]


def written_mesh(folder):
    """A result.json with a mesh that exists."""
    (folder / "mesh.glb").write_bytes(b"x")
    with Report(folder, terminal=False) as first:
        first.result(steps=5, mesh={"files": {"glb": folder / "mesh.glb"}, "step": 5})


def test_a_run_without_an_export_keeps_what_the_result_says_of_the_mesh(tmp_path):
    written_mesh(tmp_path)
    with Report(tmp_path, terminal=False) as second:
        second.result(steps=9)
    assert json.loads((tmp_path / "result.json").read_text()) == {
        "mesh": {"files": {"glb": str(tmp_path / "mesh.glb")}, "step": 5},
        "steps": 9,
    }


@pytest.mark.parametrize("content", [None, "{", "[]", '{"mesh": 3}', '{"mesh": {"files": []}}', '{"mesh": null}'])
def test_a_mesh_that_is_gone_and_a_broken_result_are_forgotten(tmp_path, content):
    written_mesh(tmp_path)
    (tmp_path / "mesh.glb").unlink() if content is None else (tmp_path / "result.json").write_text(content)
    with Report(tmp_path, terminal=False) as second:
        second.result(steps=9)
    assert json.loads((tmp_path / "result.json").read_text()) == {"steps": 9}


def test_a_bad_byte_in_the_metrics_loses_its_line_alone_and_is_logged(tmp_path, capfd):
    lines = [
        b'{"step": 1}',
        b'{"step": 2, "a": "\xff"}',
        b"[" * 9000,
        b"3",
        b'{"step": "4"}',
        b'{"step": 5}',
        b'{"step": 60}',
        b'{"st',
    ]
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join(lines))
    with Report(tmp_path, terminal=False) as report:
        report.scalars(10, {"loss": 1.0}, total=20)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 5, 10]
    assert "metrics.jsonl: 5 damaged lines are left out, first line 2" in capfd.readouterr().err


def test_a_line_with_a_path_that_is_not_utf8_is_logged(tmp_path):
    with Report(tmp_path, terminal=False) as report:
        report.log(f"read {os.fsdecode(bytes([0x74, 0xFF]))}")
    assert "read t\\udcff" in (tmp_path / "log_df.txt").read_text()


def test_lines_with_control_characters_do_not_change_the_terminal(tmp_path, capsys):
    with Report(tmp_path, ["typed: --text 'a\x1b[2J\rred\nhouse \u202e'"]) as report:
        report.log("wrote \x07.png")
    said = capsys.readouterr().err
    assert said == "typed: --text 'a\\x1b[2J\\rred\\nhouse \\u202e'\nwrote \\x07.png\n"
    assert len((tmp_path / "log_df.txt").read_text(encoding="utf-8").splitlines()) == 2


@pytest.mark.parametrize("again", [False, True])
def test_a_workspace_that_is_removed_or_moved_in_a_run_ends_it_with_a_sentence_and_is_not_made_again(tmp_path, again):
    folder, moved = tmp_path / "run", tmp_path / "moved"
    folder.mkdir()
    with Report(folder, terminal=False) as report:
        report.scalars(0, {"sds": 1.0}, 40)
        folder.rename(moved)
        if again:
            folder.mkdir()
        for act in (lambda: report.scalars(1, {"sds": 1.0}, 40), lambda: report.result(steps=3)):
            with pytest.raises(UserError, match=r"workspace .*run was removed or moved .*--workspace"):
                act()
    assert (not folder.exists() or not list(folder.iterdir())) and (moved / "log_df.txt").exists()


def test_training_goes_on_where_the_files_of_tensorboard_were_removed(tmp_path, monkeypatch, capsys):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    monkeypatch.undo()
    with Report(tmp_path, terminal=False) as report:
        report.scalars(10, {"sds": 1.0}, 40)
        board = report._board
        board.flush()
        shutil.rmtree(tmp_path / "run")
        for step in (20, 30):
            report.scalars(step, {"sds": 1.0}, 40)
            with contextlib.suppress(OSError):
                board.flush()
        report.scalars(40, {"sds": 1.0}, 40)
    said = capsys.readouterr().err
    assert said.count("nothing more is written for TensorBoard (No such file or directory)") == 1 and "Traceback" not in said
    assert [row["step"] for row in rows(tmp_path)] == [10, 20, 30, 40]
