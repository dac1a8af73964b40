"""An exception that nobody foresaw is one sentence, and a file with its traceback."""

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

import main
from nerf.core import crash

ROOT = Path(__file__).resolve().parents[3]


class PanicError(BaseException):
    """Not an Exception, as the errors of libraries in Rust."""


@pytest.fixture
def fall(monkeypatch, capfd, tmp_path):
    """Let a run end in an exception: (workspace, exception) -> exit code, what stderr says."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()

    def fall(workspace, error):
        def run(asked):
            raise error

        monkeypatch.setattr(main, "run", run)
        return main.main(["--text", "a", "--workspace", str(workspace)]), capfd.readouterr().err.strip()

    return fall


@pytest.mark.parametrize("error", [RuntimeError("two\nlines"), IndexError(), KeyError("a"), PanicError("called unwrap")])
def test_an_unforeseen_exception_is_one_sentence_with_its_traceback_in_the_workspace(tmp_path, fall, error):
    (tmp_path / "w").mkdir()
    code, said = fall(tmp_path / "w", error)
    (path,) = (tmp_path / "w").iterdir()
    assert code == 1 and len(said.splitlines()) == 1
    assert said.startswith("main.py: an error that was not foreseen (") and str(path) in said
    text = path.read_text()
    assert type(error).__name__ in text and "in run" in text and "torch" in text


def test_without_a_workspace_the_traceback_is_in_the_temporary_folder(tmp_path, fall):
    code, said = fall(tmp_path / "none", RuntimeError("x"))
    (path,) = (tmp_path / "temporary").iterdir()
    assert code == 1 and str(path) in said and not (tmp_path / "none").exists()


def test_where_nothing_can_be_written_the_traceback_is_on_the_terminal(fall, tmp_path, monkeypatch):
    monkeypatch.setattr(crash, "_written", lambda *_: None)
    code, said = fall(tmp_path / "none", RuntimeError("x"))
    assert code == 1 and "Traceback" in said and "nowhere" in said.splitlines()[-1]


def test_help_still_ends_the_program_by_itself(capsys):
    with pytest.raises(SystemExit) as caught:
        main.main(["--help"])
    assert caught.value.code == 0 and "--text" in capsys.readouterr().out


def test_a_torch_that_cannot_be_imported_is_one_sentence_too(tmp_path):
    program = "import sys; sys.modules['torch'] = None; import main; sys.exit(main.main(sys.argv[1:]))"
    words = ["--text", "a", "--workspace", str(tmp_path / "w")]
    done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1 and len(done.stderr.strip().splitlines()) == 1
    assert done.stderr.startswith("main.py: an error that was not foreseen (import of torch halted")


def test_ctrl_c_outside_of_training_says_how_to_go_on(tmp_path, fall):
    assert fall(tmp_path, KeyboardInterrupt()) == (
        130, "main.py: interrupted before the first checkpoint; the same command starts again"
    )  # fmt: skip
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "df_step_00000001.safetensors").touch()
    code, said = fall(tmp_path, KeyboardInterrupt())
    assert code == 130 and said.endswith(f"the same command goes on from the newest checkpoint in {tmp_path / 'checkpoints'}")
