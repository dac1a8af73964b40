"""The page of a batch in a real browser: it asks nobody for anything, sorts, and shows models the right way round."""

import json

import numpy as np
import pytest

from batch_jobs import page as pages
from batch_jobs import state
from batch_jobs.jobs import Row, expand
from batch_jobs.state import State
from nerf.core.images import write_video
from nerf.mesh.io import Material, write_glb
from nerf.mesh.mesh import Mesh
from tests.helpers.browser import Browser

pytestmark = pytest.mark.slow
PROMPTS = ("a red car", "a <script>document.title='x'</script> \u2028 mug", "a blue duck", "a cow")
CORNERS = np.array([[-1, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]], float)
TURNED = np.array(
    [[0, 0, 2, 5], [0, 2, 0, 0], [-2, 0, 0, 1], [0, 0, 0, 1.0]]
)  # the square's front is +X, it is larger and moved


def write_square(folder):
    """A square that shows red, green, blue and white in its corners, from above left on."""
    texture = np.zeros((8, 8, 3), np.uint8)
    texture[:4, :4, 0] = texture[:4, 4:, 1] = texture[4:, :4, 2] = 255
    texture[4:, 4:] = 255
    mesh = Mesh(
        CORNERS, np.array([[0, 1, 2], [0, 2, 3]]), np.tile([0.0, 0, 1], (4, 1)), CORNERS[:, :2] / 2 + 0.5, texture=texture
    )
    folder.mkdir()
    write_glb(folder / "mesh.glb", mesh, Material(1.0, 0.0), {}, node=TURNED)


@pytest.fixture(scope="module")
def batch(tmp_path_factory):
    """(folder, jobs): two done, one with a model; one failed; one not begun."""
    out = tmp_path_factory.mktemp("a batch & more")
    jobs = expand([Row(f"line {i}", {"text": text}) for i, text in enumerate(PROMPTS)], ["-O", "--iters", "30"], None)
    folders = [out / job.name for job in jobs]
    state.write(folders[0], State("done", step=30, seconds=9.5, tries=2, scores={"posterior_prior": 0.25}, picked=True))
    state.write(folders[1], State("failed", step=4, seconds=80.0, error="expected <b>more</b>, got less"))
    state.write(folders[2], State("done", step=30, seconds=10.25, scores={"posterior_prior": 0.125}))
    write_square(folders[0] / "mesh")
    (folders[0] / "result.json").write_text(json.dumps({"prompt": PROMPTS[0], "mesh": {"faces": 2}, "image_psnr": 21.5}))
    frames = np.full((6, 16, 16, 3), 128, np.uint8)
    write_video(folders[0] / "results" / "df_step_00000030_rgb.mp4", frames)
    pages.write_page(out, jobs, out.name)
    return out, jobs


@pytest.fixture(scope="module")
def browser():
    with Browser() as found:
        yield found


@pytest.fixture
def page(browser, batch):
    yield (found := browser.open((batch[0] / "index.html").as_uri(), 1200, 900))
    assert found.console == []
    outside = [url for url in found.requests if not url.startswith((batch[0].as_uri(), "blob:", "data:"))]
    assert outside == [] and found.sockets == []
    browser.close_pages()


def names(page):
    return page.value("[...document.querySelectorAll('#rows tr')].map(row => row.dataset.name.split('_')[1])")


def test_every_job_is_a_row_with_its_state_and_its_numbers(page, batch):
    page.wait_for_text("4 jobs: 2 done, 1 failed, 1 waiting")
    assert names(page) == ["red", "script", "blue", "cow"]
    text = page.text()
    assert PROMPTS[1].replace(" \u2028 ", " ") in " ".join(text.split()) and page.value("document.title") == batch[0].name
    assert "failed\nexpected <b>more</b>, got less" in text and "done\nbest of its seeds" in text
    for shown in ("21.5", "0.25", "9.5", "10.25"):
        assert shown in text
    page.value("document.querySelector('details').open = true")
    assert "python main.py -O --iters 30 '--text=a red car' --seed=0 --workspace=a_red_car_seed0" in page.text()


def test_a_click_on_a_column_sorts_by_it_and_another_one_turns_the_order(page):
    page.wait_for_text("4 jobs")
    page.click("seconds")
    assert names(page) == ["cow", "red", "blue", "script"]
    page.click("seconds")
    assert names(page) == ["script", "blue", "red", "cow"]
    page.click("posterior_prior")
    assert names(page)[:2] == ["blue", "red"], "those without a value come last"
    page.click("posterior_prior")
    assert names(page)[:2] == ["red", "blue"]


def test_words_filter_the_rows(page):
    page.wait_for_text("4 jobs")
    for words, found in (("failed", ["script"]), ("a duck", ["blue"]), ("", ["red", "script", "blue", "cow"])):
        page.value(f"element('filter').value = {words!r}; element('filter').dispatchEvent(new Event('input'))")
        assert names(page) == found


def test_the_turntable_plays(page):
    page.wait("(document.querySelector('video') || {}).readyState >= 2")
    assert page.value("document.querySelector('video').videoWidth") == 16


def corners(page, azimuth):
    """The colours above left, above right, below left and below right, from an azimuth, without light."""
    return page.value(
        f"""(() => {{
        Object.assign(viewer, {{azimuth: {azimuth}, elevation: 0, lit: false, turning: false}});
        viewer.draw();
        const gl = viewer.gl, w = gl.canvas.width, h = gl.canvas.height, pixel = new Uint8Array(4);
        return [[-1, 1], [1, 1], [-1, -1], [1, -1]].map(([x, y]) => {{
            gl.readPixels(w / 2 + x * h / 10, h / 2 + y * h / 10, 1, 1, gl.RGBA, gl.UNSIGNED_BYTE, pixel);
            return [...pixel.slice(0, 3)];
        }});
    }})()"""
    )


RED, GREEN, BLUE, WHITE = [255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]


def show(page):
    page.wait_for_text("4 jobs")
    page.click("3D view")
    page.wait("viewer && viewer.frames > 0")
    assert page.value("viewer.triangles") == 2 and page.value("element('trouble').textContent") == ""


def test_a_model_is_shown_the_right_way_round(page):
    show(page)
    assert corners(page, 90) == [RED, GREEN, BLUE, WHITE], "its front is +X"
    assert corners(page, 270) == [GREEN, RED, WHITE, BLUE], "from behind, left is right"
    page.value("element('close').click()")
    page.wait("viewer.parts.length === 0 && viewer.held.length === 0")


def test_dragging_turns_a_model_and_the_wheel_brings_it_closer(page):
    show(page)
    page.value("viewer.turning = false; viewer.azimuth = 90")
    page.drag((600, 450), (640, 450))
    assert page.value("viewer.azimuth") == pytest.approx(70)
    page.mouse("mouseWheel", 600, 450, deltaX=0, deltaY=-100)
    page.wait("viewer.zoom > 1.05")


def test_files_too_large_for_the_page_lie_beside_it_and_are_shown_all_the_same(browser, batch, tmp_path, monkeypatch):
    out, jobs = batch
    whole = (out / "index.html").stat().st_size
    monkeypatch.setattr(pages, "LIMIT", 0)
    pages.write_page(out, jobs, out.name)
    beside = sorted(path.name for path in (out / "index_files").iterdir())
    assert len(beside) == 2 and (out / "index.html").stat().st_size < whole
    found = browser.open((out / "index.html").as_uri(), 1200, 900)
    show(found)
    assert corners(found, 90) == [RED, GREEN, BLUE, WHITE] and found.console == []
    browser.close_pages()
    monkeypatch.undo()
    pages.write_page(out, jobs, out.name)
    assert not (out / "index_files").exists() and (out / "index.html").stat().st_size == whole
