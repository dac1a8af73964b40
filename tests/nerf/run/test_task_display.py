"""Tasks are shown as bars on a terminal and as lines without one."""

import io

import pytest

from nerf.core import progress
from nerf.core.progress import Task, task, track
from nerf.run import task_display
from nerf.run.logger import Report
from nerf.run.task_display import TaskDisplay


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is set."""
    now = [1000.0]
    monkeypatch.setattr(task_display.time, "monotonic", lambda: now[0])
    return now


def test_a_line_says_all_open_tasks_and_the_time_that_is_left(clock):
    lines = []
    display = TaskDisplay(io.StringIO(), False, lines.append)
    outer, inner = Task("rendering the video", 4, started=1000.0), Task("rendering a view", 10, started=1000.0)
    display.task_begins(outer)
    outer.done = 1
    display.task_begins(inner)
    inner.done = 5
    clock[0] += 9.0
    display.task_advances(inner)
    assert lines == []  # too early
    clock[0] += 3.0
    display.task_advances(inner)
    assert lines == ["rendering the video 1/4 (rendering a view 5/10), 00:20 left"]  # 3/8 took 12 s
    display.task_ends(inner)
    clock[0] += 12.0
    outer.done = 2
    display.task_advances(outer)
    assert lines[1:] == ["rendering the video 2/4, 00:24 left"]


def test_on_a_terminal_there_is_a_bar_and_no_line(monkeypatch):
    monkeypatch.setattr(task_display, "BAR_DELAY", 0.0)
    screen, lines = io.StringIO(), []
    display = TaskDisplay(screen, True, lines.append)
    shown = Task("unwrapping", 3)
    display.task_begins(shown)
    shown.done = 3
    display.task_advances(shown)
    assert [bar.n for _, bar in display._open] == [3]
    display.task_ends(shown)
    assert "unwrapping:   0%" in screen.getvalue() and lines == [] and display._open == []


def test_a_report_shows_tasks_while_it_is_open(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(task_display, "LINE_SECONDS", 0.0)
    monkeypatch.setattr(progress, "_listeners", [])  # those of reports that other tests left open
    with Report(tmp_path, terminal=False):
        list(track("ab", "reading photographs"))
    with task("unseen", 1) as advance:
        advance(1)
    assert "reading photographs 2/2, 00:00 left" in (tmp_path / "log_df.txt").read_text()
    shown = capsys.readouterr().err
    assert "unseen" not in shown and progress._listeners == []
