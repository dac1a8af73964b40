"""A run and its exit code do not depend on the standard streams: closed, full, broken by a reader, or of a closed terminal."""

import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nerf.run import checkpoint
from tests.helpers.processes import wait_for
from tests.nerf import photo_folders

ROOT = Path(__file__).resolve().parent.parent
FLAGS = (
    "--num_rays 16 --grid_levels 2 --grid_log2 6 --grid_finest 16 --grid_size 8 --max_steps 16 --W 8 --H 8 "
    "--dataset_size_test 2 --seed 1 --threads 1 --device cpu"
)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """A folder with eight small photographs."""
    return photo_folders.write(tmp_path_factory.mktemp("photos"), [photo_folders.pattern(i, 12, 12) for i in range(8)])


def command(photographs, workspace, *words):
    """A tiny run as words of a command line."""
    return [sys.executable, "main.py", "--data", photographs, "--workspace", workspace, *FLAGS.split(), *words]


def shell(text, **options):
    """Run a line of the shell in the project; returns the finished process."""
    return subprocess.run(["bash", "-c", text], cwd=ROOT, capture_output=True, text=True, timeout=100, check=False, **options)


STREAMS = {
    "closed stderr": "2>&-",
    "both closed": ">&- 2>&-",
    "all closed": "<&- >&- 2>&-",
    "full": ">/dev/full 2>&1",
    "a reader that leaves": "2>&1 | head -n 1 >/dev/null; exit ${PIPESTATUS[0]}",
}


@pytest.mark.slow
@pytest.mark.parametrize("redirection", STREAMS.values(), ids=STREAMS)
def test_a_run_ends_well_whatever_becomes_of_its_streams(photographs, tmp_path, redirection):
    words = " ".join(map(str, command(photographs, tmp_path / "run", "--iters", "3")))
    assert shell(f"{words} {redirection}").returncode == 0
    log = (tmp_path / "run" / "log_df.txt").read_text()
    assert "step 3/3" in log and "done in" in log
    checkpoint.load(tmp_path / "run" / "checkpoints" / "df_step_00000003.safetensors")


@pytest.mark.parametrize("redirection", STREAMS.values(), ids=STREAMS)
def test_the_exit_code_of_a_refusal_and_of_help_is_the_same(redirection):
    assert shell(f"{sys.executable} main.py --help {redirection}").returncode == 0
    assert shell(f"{sys.executable} main.py --text '' {redirection}").returncode == 2


def start_on_terminal(words, *, nohup=False):
    """Start a program as the leader of a terminal of its own; returns the process and our end of the terminal."""
    ours, theirs = pty.openpty()

    def become_leader():
        os.setsid()
        import fcntl
        import termios

        fcntl.ioctl(theirs, termios.TIOCSCTTY, 0)
        signal.signal(signal.SIGHUP, signal.SIG_IGN if nohup else signal.SIG_DFL)  # also where the tests run under nohup

    process = subprocess.Popen(words, cwd=ROOT, stdin=theirs, stdout=theirs, stderr=theirs, preexec_fn=become_leader)
    os.close(theirs)
    return process, ours


def has_checkpoint(workspace):
    """Whether a run has written one."""
    return any((workspace / "checkpoints").glob("df_*"))


@pytest.mark.slow
def test_a_closed_terminal_saves_and_ends_a_run(photographs, tmp_path):
    words = command(photographs, tmp_path / "run", "--iters", "100000", "--checkpoint_seconds", "0.1")
    process, terminal = start_on_terminal(words)
    wait_for(lambda: has_checkpoint(tmp_path / "run"), process)
    os.close(terminal)
    assert process.wait(60) == 128 + signal.SIGHUP
    assert "stopped after step" in (tmp_path / "run" / "log_df.txt").read_text()


@pytest.mark.slow
def test_nohup_outlives_its_terminal(photographs, tmp_path):
    words = command(photographs, tmp_path / "run", "--iters", "60", "--checkpoint_seconds", "0.01")
    process, terminal = start_on_terminal(words, nohup=True)
    wait_for(lambda: has_checkpoint(tmp_path / "run"), process)
    os.close(terminal)
    assert process.wait(60) == 0
    assert "done in" in (tmp_path / "run" / "log_df.txt").read_text()
