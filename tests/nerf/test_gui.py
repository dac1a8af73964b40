"""The window of the viewer, opened on a virtual display and driven by synthetic input; skipped without Xvfb or xdotool."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

import main
from benchmarks.virtual_display import virtual_display
from nerf import gui
from nerf.config.config import parse
from nerf.core.errors import UserError
from nerf.run import checkpoint
from nerf.viewer import display
from tests.nerf.viewer.conftest import PHOTOS, TINY, WORDS, open_run, photographs

SOLID = [*PHOTOS, "--blob_density", "300", "--blob_radius", "0.4"]  # a ball that hides what is behind it, which is fast
ROOT = Path(__file__).resolve().parents[2]
__all__ = ["open_run", "photographs"]


@pytest.fixture(scope="session")
def screen():
    """The name of a display with OpenGL, made for these tests."""
    for program in ("Xvfb", "xdotool"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed; make system-deps installs it")
    pytest.importorskip("dearpygui")
    with virtual_display() as name:
        yield name


@pytest.fixture
def use(screen, tmp_path):
    """Run main.py with a window that a script drives: (script, flags) -> the finished process."""

    def run(script, *flags, workspace="run"):
        words = [*map(str, flags), "--workspace", str(tmp_path / workspace)]
        environment = os.environ | {"DISPLAY": screen, "LIBGL_ALWAYS_SOFTWARE": "1"}
        command = [sys.executable, "-m", "tests.helpers.window", script, *TINY, *words]
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280)

    return run


@pytest.mark.slow
@pytest.mark.timeout(300)  # windows draw slowly without a GPU
def test_the_scene_is_turned_shifted_and_zoomed_with_the_mouse(use, open_run, photographs, tmp_path):
    run, trainer = open_run("--data", photographs, *SOLID, "--iters", 12)
    run.go_through(trainer)
    before = json.loads((tmp_path / "run" / "result.json").read_text())
    ended = use("look_around", "--test", "--gui")
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert json.loads((tmp_path / "run" / "result.json").read_text()) == before


@pytest.mark.slow
@pytest.mark.timeout(300)  # windows draw slowly without a GPU
def test_a_training_is_stopped_edited_exported_and_begun_anew_by_clicks(use, tmp_path):
    pytest.importorskip("diffusers")
    ended = use("train", *WORDS, "--iters", 100000, "--viewer", "desktop", "--mesh_threshold", "1.0")
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert "the viewer was closed after step" in ended.stderr
    assert (tmp_path / "run" / "mesh" / "mesh.glb").is_file()
    left = checkpoint.latest(tmp_path / "run" / "checkpoints")
    assert checkpoint.read_meta(left)["step"] >= 3
    assert json.loads((tmp_path / "run" / "config.json").read_text())["options"]["text"]["value"] == "a red cone"


@pytest.mark.slow
@pytest.mark.timeout(300)  # windows draw slowly without a GPU
def test_a_signal_closes_the_window_and_saves(use, photographs, tmp_path):
    ended = use("be_stopped", "--data", photographs, *SOLID, "--iters", 100000, "--gui")
    assert ended.returncode == 143, ended.stderr[-3000:]
    assert checkpoint.latest(tmp_path / "run" / "checkpoints") is not None


@pytest.mark.slow
@pytest.mark.timeout(300)  # windows draw slowly without a GPU
def test_an_error_in_rendering_is_shown_in_the_window(use, open_run, photographs):
    run, trainer = open_run("--data", photographs, *SOLID, "--iters", 12)
    run.go_through(trainer)
    ended = use("fail_to_render", "--test", "--gui")
    assert ended.returncode == 0, ended.stderr[-3000:]


def opening(tmp_path, photographs, monkeypatch, value):
    """A run that would open a window, with this DISPLAY."""
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.delenv("DISPLAY", raising=False)
    if value is not None:
        monkeypatch.setenv("DISPLAY", value)
    return main.main(["--data", str(photographs), *PHOTOS, *TINY, "--gui", "--workspace", str(tmp_path / "run")])


@pytest.mark.skipif(not display.is_x11(), reason="windows of this system are not X11's")
@pytest.mark.parametrize(("value", "said"), [(None, "DISPLAY is not set"), (":937", "cannot be opened"), ("no", "cannot be")])
def test_without_a_display_the_web_viewer_is_offered(tmp_path, photographs, monkeypatch, capfd, value, said):
    pytest.importorskip("dearpygui")
    code = opening(tmp_path, photographs, monkeypatch, value)
    printed = capfd.readouterr().err
    assert code == 2 and said in printed and "--viewer web" in printed, printed
    assert len([line for line in printed.splitlines() if line.startswith("main.py:")]) == 1
    assert not (tmp_path / "run").exists()


def test_a_missing_dearpygui_is_one_sentence(monkeypatch):
    monkeypatch.setattr(gui.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install dearpygui"):
        gui.check(parse(["--text", "a cone"]))


def test_a_display_without_opengl_is_named(monkeypatch):
    monkeypatch.setenv("DISPLAY", ":1")
    monkeypatch.setattr(display, "is_x11", lambda: True)
    monkeypatch.setattr(display.subprocess, "run", lambda *a, **k: subprocess.CompletedProcess(a, 4))
    assert "no OpenGL" in display.problem()


def test_a_plain_run_imports_nothing_of_the_viewer(tmp_path, photographs):
    script = (
        "import sys, main; code = main.main(sys.argv[1:]); "
        "print(code, [name for name in sys.modules if name.startswith(('nerf.viewer', 'nerf.gui', 'dearpygui', 'viser'))])"
    )
    words = ["--data", str(photographs), *PHOTOS, *TINY, "--iters", "2", "--workspace", str(tmp_path / "run")]
    ended = subprocess.run([sys.executable, "-c", script, *words], cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert ended.stdout.strip().endswith("0 []"), (ended.stdout, ended.stderr[-2000:])


def test_gui_is_a_short_form_of_the_desktop_viewer():
    assert parse(["--text", "a", "--gui"]).gui.viewer == "desktop"
    assert parse(["--text", "a"]).gui.viewer == "none"
    with pytest.raises(UserError, match="contradict"):
        parse(["--text", "a", "--gui", "--viewer", "none"])


def test_the_probe_leaves_a_window_watch_without_a_server_alone(monkeypatch):
    monkeypatch.setenv("DISPLAY", ":937")
    began = time.monotonic()
    watch = display.WindowWatch("nothing")
    assert not watch.minimised and time.monotonic() - began < 5
    watch.close()
