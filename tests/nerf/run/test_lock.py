"""One program at a time writes to a workspace; a dead one does not keep others out."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nerf.core.errors import UserError
from nerf.run import lock

ROOT = Path(__file__).resolve().parents[3]
HOLDER = "import sys, time; from nerf.run import lock\nwith lock.hold(sys.argv[1]): print('held', flush=True); time.sleep(60)"


@pytest.fixture
def holder(tmp_path):
    """A process that holds the workspace ``w``."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path / "w")], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_program_is_told_who_holds_the_workspace(tmp_path, holder):
    before = {path.name: path.read_bytes() for path in (tmp_path / "w").iterdir()}
    with pytest.raises(UserError) as refused, lock.hold(tmp_path / "w"):
        pytest.fail("it holds it, too")
    words = rf"workspace {re.escape(str(tmp_path / 'w'))} is in use by process {holder.pid} on {socket.gethostname()}, since 20"
    assert re.match(words, str(refused.value)) and "--workspace" in str(refused.value)
    assert {path.name: path.read_bytes() for path in (tmp_path / "w").iterdir()} == before


def test_the_lock_of_a_killed_process_is_taken_over(tmp_path, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with lock.hold(tmp_path / "w"):
        assert json.loads((tmp_path / "w" / lock.OWNER_FILE).read_text())["pid"] == os.getpid()


def test_the_note_of_a_dead_process_is_not_believed(tmp_path, holder, monkeypatch):
    monkeypatch.setattr(lock, "OWNER_SECONDS", 0.2)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    note = {"pid": gone.pid, "host": socket.gethostname(), "since": "yesterday"}
    for content in (json.dumps(note), "{", "[]", '{"pid": "x"}'):
        (tmp_path / "w" / lock.OWNER_FILE).write_text(content)
        with pytest.raises(UserError, match="in use by another program, which"), lock.hold(tmp_path / "w"):
            pytest.fail("it holds it, too")


def test_a_workspace_that_stays_empty_leaves_nothing(tmp_path):
    with lock.hold(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b").is_dir()
    assert list(tmp_path.iterdir()) == []


def test_a_workspace_with_files_keeps_them_and_no_lock(tmp_path):
    with pytest.raises(KeyError), lock.hold(tmp_path / "w"):
        (tmp_path / "w" / "x").touch()
        raise KeyError
    assert [path.name for path in (tmp_path / "w").iterdir()] == ["x"]


def test_a_folder_that_stood_there_stays_though_it_is_empty(tmp_path):
    with lock.hold(tmp_path):
        pass
    assert tmp_path.is_dir() and list(tmp_path.iterdir()) == []


def test_a_lock_that_cannot_be_made_is_a_sentence(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written to"), lock.hold(tmp_path / "file"):
        pytest.fail("it holds a file")


def test_of_many_programs_at_once_one_at_a_time_holds_the_workspace(tmp_path):
    """Each holder notes its entrance and exit; those that are refused say so."""
    script = (
        "import sys, time; from nerf.core.errors import UserError; from nerf.run import lock\n"
        "sys.stdin.read()\n"
        "for i in range(20):\n"
        "    try:\n"
        "        with lock.hold(sys.argv[1]):\n"
        "            open(sys.argv[1] + '/inside', 'x').close(); time.sleep(0.002)\n"
        "            import os; os.unlink(sys.argv[1] + '/inside'); print('held')\n"
        "    except UserError as error: print('refused' if 'in use by' in str(error) else error)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "w")]
    crowd = [subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    for process in crowd:
        process.stdin.close()
        process.stdin = None
    said = [line for process in crowd for line in process.communicate(timeout=100)[0].splitlines()]
    assert [process.returncode for process in crowd] == [0, 0, 0]
    assert len(said) == 60 and set(said) <= {"held", "refused"} and "held" in said
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_another_rank_holds_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "is_main", lambda: False)
    with lock.hold(tmp_path / "w"):
        assert list(tmp_path.iterdir()) == []


def test_the_time_to_refuse_is_short(tmp_path, holder):
    began = time.monotonic()
    with pytest.raises(UserError), lock.hold(tmp_path / "w"):
        pytest.fail("it holds it, too")
    assert time.monotonic() - began < 1.0


def test_a_block_inside_another_one_does_nothing(tmp_path):
    with lock.hold(tmp_path / "run"):
        with lock.hold(tmp_path / "run"):
            pass
        assert (tmp_path / "run" / lock.LOCK_FILE).exists()
    assert not (tmp_path / "run").exists()
