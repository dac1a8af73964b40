"""The viewer in a browser: a training that is looked at and controlled in headless Chromium."""

import io
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request

import numpy as np
import pytest
from PIL import Image

import nerf.web as web
from nerf.config.config import parse
from nerf.core.errors import UserError
from nerf.run import checkpoint
from nerf.viewer import renderer
from nerf.viewer.web_access import Access, listen
from tests.helpers.browser import Browser, until
from tests.helpers.processes import wait_for
from tests.helpers.scripts import ROOT
from tests.nerf.viewer.conftest import PHOTOS, TINY, WORDS

pytest.importorskip("viser")
pytestmark = pytest.mark.slow

LONG = ["--iters", "100000"]


@pytest.fixture(scope="module")
def chromium():
    """A browser for all tests."""
    with Browser() as found:
        yield found


@pytest.fixture
def browser(chromium):
    """The browser without the pages of the test before."""
    yield chromium
    chromium.close_pages()


@pytest.fixture
def shown(open_session, photographs, monkeypatch):
    """Begin a session and its page: (words) -> session; ``session.url`` is its address. Closed at the end of the test."""
    ends = []

    def make(*words, host="127.0.0.1", text=False, stopped=False):
        given = WORDS if text else ["--data", photographs, *PHOTOS]
        session = open_session(*given, *LONG, *words, "--viewer", "web", "--viewer_port", "0", stopped=stopped)
        addresses, over = [], threading.Event()
        monkeypatch.setattr(web, "_announce", addresses.append)
        monkeypatch.setattr(
            Access, "to", staticmethod(lambda _, port: Access(host, port, "abc" if host == "0.0.0.0" else None))
        )
        thread = threading.Thread(target=web.show, args=(session, session.job.config, over.is_set))
        thread.start()
        until(lambda: addresses)
        session.url, session.thread = addresses[0].url.replace(addresses[0].host, "127.0.0.1"), thread
        if host == "0.0.0.0":
            session.url = f"http://127.0.0.1:{addresses[0].port}/?token=abc"
        ends.append((over, thread))
        return session

    yield make
    for over, thread in ends:
        over.set()
        thread.join(30)
        assert not thread.is_alive()


def picture(page):
    """The middle of what a page shows beside its panel, uint8 [h, w, 3]."""
    image = np.asarray(Image.open(io.BytesIO(page.screenshot())).convert("RGB"))
    return image[200:650, 50:550]


def shows_something(page):
    """Whether there is a scene in the picture."""
    return picture(page).std() > 4


def ready(page):
    """Wait until a page has its panel and a picture."""
    page.wait_for_text("Export and download GLB")
    until(lambda: shows_something(page))
    return page


def test_a_training_is_seen_and_nothing_is_loaded_from_elsewhere(shown, browser):
    session = shown()
    page = ready(browser.open(session.url))
    step = session.status.step
    until(lambda: re.search(r"step (\d+) of 100000", page.text()) and session.status.step > step + 3)
    until(lambda: int(re.search(r"step (\d+) of 100000", page.text())[1]) > step)
    page.wait_for_text("rgb")  # the legend of the losses
    origin = session.url.rstrip("/")
    assert [url for url in page.requests if not url.startswith((origin, "data:", "blob:"))] == []
    assert page.requests and all(url.startswith(origin.replace("http", "ws")) for url in page.sockets)
    assert page.console == []


def test_the_camera_follows_the_hand_and_the_shading_its_control(shown, browser):
    session = shown(stopped=True)
    page = ready(browser.open(session.url))
    (view,) = session.renderer._views
    before, seen = view.request.camera, picture(page).astype(int)
    page.drag((300, 350), (420, 300))
    until(lambda: abs(view.request.camera.azimuth - before.azimuth) > 5)
    until(lambda: view.frame.request == view.request and view.frame.scale == 1.0)
    until(lambda: np.abs(picture(page).astype(int) - seen).mean() > 0.5)
    page.click("back")
    until(lambda: abs(abs(view.request.camera.azimuth) - 180.0) < 1e-3)
    page.click("Light and background")
    page.wait("[...document.querySelectorAll('label')].some(e => e.innerText.trim() === 'Plain background')")
    page.click("Plain background")
    until(lambda: view.request.settings.background == (1.0, 1.0, 1.0))
    shape = page.value("(c => c.clientWidth / c.clientHeight)(document.querySelector('canvas'))")
    assert view.request.width / view.request.height == pytest.approx(shape, rel=0.01)


def test_buttons_pause_save_and_go_on(shown, browser, tmp_path):
    session = shown()
    page = ready(browser.open(session.url))
    page.click("Pause")
    until(lambda: session.status.phase == "paused")
    page.wait_for_text("Resume")
    step = session.status.step
    page.click("Save checkpoint")
    until(lambda: checkpoint.steps(tmp_path / "run" / "checkpoints"))
    page.wait_for_text("saved ")
    page.click("Resume")
    until(lambda: session.status.step > step)


def test_the_exported_mesh_arrives_in_the_browser(shown, browser, tmp_path):
    session = shown(stopped=True)
    page = ready(browser.open(session.url))
    page.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path / "downloads"))
    page.click("Export and download GLB")
    there = tmp_path / "downloads" / "run.glb"
    until(there.exists)
    assert there.read_bytes() == (tmp_path / "run" / "mesh" / "mesh.glb").read_bytes()


def test_a_prompt_is_shown_and_edited(shown, browser):
    session = shown(text=True, stopped=True)
    page = ready(browser.open(session.url))
    assert page.value("document.querySelector('textarea').value") == "a blue ball"
    page.value("document.querySelector('textarea').focus(); document.querySelector('textarea').select()")
    page.call("Input.insertText", text="a red ball <b>{x}")
    time.sleep(0.5)
    page.click("Train with this prompt")
    until(lambda: session.status.prompt == "a red ball <b>{x}" or session.status.error)
    assert not session.status.error or "red ball" in session.status.error
    page.wait_for_text("{x}")


def test_two_browsers_see_their_own_views_and_one_may_leave_in_mid_render(shown, browser, monkeypatch):
    session = shown(stopped=True)
    first = ready(browser.open(session.url))
    second = ready(browser.open(session.url))
    one, other = session.renderer._views
    before = other.request
    first.click("side")
    until(lambda: abs(one.request.camera.azimuth - 90.0) < 1e-3)
    assert other.request == before
    until(lambda: one.frame.request.camera.azimuth == one.request.camera.azimuth)
    assert not np.array_equal(one.frame.pixels, other.frame.pixels) or one.frame.pixels.shape != other.frame.pixels.shape
    began, go_on, real = threading.Event(), threading.Event(), renderer.frames.render

    def slow(*arguments):
        began.set()
        go_on.wait(20)
        return real(*arguments)

    monkeypatch.setattr(renderer.frames, "render", slow)
    second.click("back")
    assert began.wait(20)
    second.go("about:blank")
    until(lambda: other.closed)
    go_on.set()
    first.click("top")
    until(lambda: one.frame.request.camera.polar < 2.0)
    assert session.status.error == "" and len(session.renderer._views) == 1


def test_an_exception_of_a_picture_is_shown_and_the_training_goes_on(shown, browser, monkeypatch):
    session = shown()
    page = ready(browser.open(session.url))

    def broken(*_):
        raise RuntimeError("the picture broke <here>")

    with monkeypatch.context() as patch:
        patch.setattr(renderer.frames, "render", broken)
        until(lambda: page.text().count("the picture broke <here>") == 2)  # above the controls, and among the messages
        step = session.status.step
        until(lambda: session.status.step > step + 3)
    until(lambda: page.text().count("the picture broke") < 2)
    assert shows_something(page)


def test_a_page_with_a_token_works_and_one_without_it_does_not(shown, browser):
    session = shown(host="0.0.0.0", stopped=True)
    plain = session.url.partition("?")[0]
    refused = browser.open(plain)
    refused.wait_for_text("needs the address with the token")
    assert session.renderer._views == []
    ready(browser.open(session.url))
    assert len(session.renderer._views) == 1
    ready(browser.open(plain))  # this browser has the cookie now


def test_the_viewer_ends_from_the_page_and_asks_before(shown, browser):
    session = shown()
    page = ready(browser.open(session.url))
    page.click("End the viewer ...")
    page.wait_for_text("All browsers are closed")
    page.click("Cancel")
    time.sleep(0.5)
    assert session.thread.is_alive()
    page.click("End the viewer ...")
    page.click("End the viewer")
    session.thread.join(30)
    assert not session.thread.is_alive()


def test_nothing_is_printed_to_standard_output_and_a_taken_port_is_refused_before_anything_is_read(shown, capsys):
    session = shown(stopped=True)
    port = int(session.url.rsplit(":")[-1].strip("/"))
    config = parse(["--text", "a ball", "--viewer", "web", "--viewer_port", str(port)])
    with pytest.raises(UserError, match=f"--viewer_port {port} on 127.0.0.1 is taken"):
        web.check(config)
    assert capsys.readouterr().out == ""
    listen("127.0.0.1", 0).close()


def test_without_viser_the_sentence_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(web.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="--viewer web needs viser: pip install"):
        web.check(parse(["--text", "a ball", "--viewer", "web"]))


def test_ctrl_c_on_the_command_line_saves_and_ends_it(photographs, tmp_path):
    words = ["--data", str(photographs), *TINY, *PHOTOS, *LONG, "--viewer", "web", "--viewer_port", "0"]
    command = [sys.executable, "main.py", *words, "--workspace", str(tmp_path / "run")]
    with (tmp_path / "errors").open("w") as errors:
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=errors, text=True)
    try:
        wait_for(lambda: "viewer: http" in (tmp_path / "errors").read_text(), process)
        address = re.search(r"viewer: (\S+)", (tmp_path / "errors").read_text())[1]
        with urllib.request.urlopen(address, timeout=30) as page:
            assert page.status == 200 and b"<html" in page.read().lower()
        wait_for(lambda: (tmp_path / "run" / "metrics.jsonl").exists(), process)
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=60)[0] == "" and process.returncode == 130
    finally:
        process.kill()
        process.wait()
    said = (tmp_path / "errors").read_text()
    assert "the viewer was closed after step" in said and "Traceback" not in said
    assert checkpoint.steps(tmp_path / "run" / "checkpoints")
