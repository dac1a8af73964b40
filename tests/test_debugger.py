"""``debugpy-run main.py -- ...``: an editor attaches, stops in the training, looks, and the run ends well.

The wrapper of that name starts ``python -Xfrozen_modules=off -m debugpy --listen PORT --wait-for-client main.py -- ...``, which
is what runs here.
"""

import ast
import json
import signal

import numpy as np
import pytest

from nerf.run import checkpoint
from tests.helpers.debug_client import ROOT, DebuggedProgram
from tests.nerf import photo_folders

pytest.importorskip("debugpy")
pytestmark = pytest.mark.slow

TRAINER = ROOT / "nerf" / "utils.py"
TINY = (
    "--seed 3 --num_rays 64 --iters 4 --max_steps 48 --grid_size 16 --grid_levels 4 --grid_log2 10 --grid_finest 32 "
    "--hidden 16 --W 8 --H 8 --dataset_size_test 2 --threads 1 --no_save_mesh"
).split()


@pytest.fixture
def words(tmp_path):
    """A tiny run on photographs, as words after the program."""
    folder, images = tmp_path / "photographs", np.zeros((6, 12, 12, 4), np.uint8)
    folder.mkdir()
    images[:, 4:8, 4:8] = (200, 60, 20, 255)
    photo_folders.write(folder, images)
    return ["main.py", "--", "--data", str(folder), "--workspace", str(tmp_path / "run"), *TINY]


@pytest.fixture(scope="module")
def line():
    """The line of ``train_step`` that makes the plan of a step."""
    for node in ast.walk(ast.parse(TRAINER.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef) and node.name == "train_step":
            return next(part.lineno for part in node.body if ast.unparse(part) == "plan = self.plan(self.step)")
    raise AssertionError("train_step does not make its plan")


def saved(tmp_path):
    """Steps of the checkpoints in the workspace."""
    return [step for step, _ in checkpoint.steps(tmp_path / "run" / "checkpoints")]


def stopped(client, line):
    """Wait until the training stands at the breakpoint; returns its frame and thread."""
    thread = client.wait_for("stopped")["threadId"]
    frames = client.request("stackTrace", threadId=thread)["stackFrames"]
    assert (frames[0]["name"], frames[0]["line"], frames[0]["source"]["path"]) == ("train_step", line, str(TRAINER))
    assert {"_run", "train", "main"} <= {frame["name"] for frame in frames}
    return frames[0]["id"], thread


def test_it_stops_at_a_breakpoint_shows_values_and_runs_to_its_end(words, tmp_path, line):
    with DebuggedProgram(*words) as program:
        client = program.attach({TRAINER: [line]})
        for step in ("0", "1"):
            frame, thread = stopped(client, line)
            assert client.request("evaluate", expression="self.step", frameId=frame, context="watch")["result"] == step
            shown = client.request("evaluate", expression="self.model.field", frameId=frame, context="hover")["result"]
            assert "GridEncoder" in shown
            client.request("continue", threadId=thread)
        frame, thread = stopped(client, line)
        client.set_breakpoints(TRAINER, [])
        client.request("continue", threadId=thread)
        client.wait_for("terminated")
        code, errors = program.end()
    assert code == 0, errors
    assert "Traceback" not in errors and saved(tmp_path) == [4]
    assert json.loads((tmp_path / "run" / "result.json").read_text())["steps"] == 4


def test_an_editor_that_lets_go_lets_the_run_go_on(words, tmp_path, line):
    with DebuggedProgram(*words) as program:
        client = program.attach({TRAINER: [line]})
        stopped(client, line)
        client.request("disconnect", terminateDebuggee=False)
        code, errors = program.end()
    assert code == 0 and saved(tmp_path) == [4], errors


def test_ctrl_c_under_the_debugger_ends_the_run_with_a_checkpoint(words, tmp_path, line):
    with DebuggedProgram(*words) as program:
        client = program.attach({TRAINER: [line]})
        _, thread = stopped(client, line)
        program.process.send_signal(signal.SIGINT)
        client.set_breakpoints(TRAINER, [])
        client.request("continue", threadId=thread)
        code, errors = program.end()
    assert code == 130 and "stopped after step 1, saved" in errors and saved(tmp_path) == [1], errors


def test_a_mistake_is_its_sentence_under_the_debugger_too(tmp_path):
    with DebuggedProgram("main.py", "--", "--text", "a ball", "--itres", "5") as program:
        program.attach({}).wait_for("terminated")
        code, errors = program.end()
    assert code == 2 and "unknown flag --itres; did you mean --iters?" in errors and "Traceback" not in errors
