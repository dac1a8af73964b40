"""The table and the page of the text-to-3D benchmark: worst first, means of the halves, bars, failures, and pictures."""

import re

import numpy as np
import pytest
import trimesh
from PIL import Image

from benchmarks import kinds_page, text_to_3d
from benchmarks.kinds_page import table
from benchmarks.records import read_record
from benchmarks.text_to_3d import measure_again, picture_row, slug, workspace_name, write
from nerf.core.images import to_uint8
from tests.benchmarks.test_mesh_measure import mesh_of

GOOD = {
    "prompt": "a purple sofa",
    "group": "judging",
    "seed": 0,
    "seconds": 100.0,
    "iou": 0.8,
    "ball": 0.5,
    "silhouette": 0.9,
    "boundary_f": 0.7,
    "albedo": 0.05,
    "normal": 12.0,
    "genus": 0,
    "true_genus": 0,
    "caves": 0.01,
    "true_caves": 0.0,
    "facing": 1.0,
    "front_back": True,
    "recognised": "sofa",
    "true_recognised": "sofa",
    "proportions": {"width": 0.41, "back": 0.3},
}
FAILED = {"prompt": "a pink car", "group": "tuning", "seed": 0, "seconds": 3.0, "failure": "exit code 1"}
TREE = {**GOOD, "prompt": "a pink tree", "group": "tuning", "iou": 0.6, "recognised": "mushroom", "true_recognised": "tree"}


def test_worst_prompts_stand_first_and_failed_ones_before_them():
    lines = table({"a": GOOD, "b": TREE, "c": FAILED}).splitlines()[2:5]
    assert [line.split(" | ")[0] for line in lines] == ["| a pink car", "| a pink tree", "| a purple sofa"]
    assert "failed: exit code 1" in lines[0] and all(line.count("|") == len(kinds_page.HEAD) + 1 for line in lines)


def test_mean_of_a_half_counts_its_prompts_and_the_first_seed_only():
    results = {"a": GOOD, "b": {**GOOD, "prompt": "a purple cube", "iou": 0.6}, "c": {**GOOD, "seed": 1, "iou": 0.1}, "d": TREE}
    found = table(results)
    assert (
        "**mean of 2, judging** | judging |  | **0.700**" in found and "**mean of 1, tuning** | tuning |  | **0.600**" in found
    )
    assert "mean IoU of the 2 judging prompts 0.700" in found


def test_bars_count_what_is_wrong():
    bad = {**TREE, "genus": 4, "caves": 0.2, "front_back": False, "ball": 0.61, "albedo": 0.25}
    found = table({"a": GOOD, "b": bad, "c": {**GOOD, "seed": 1, "iou": 0.05}})
    assert "worst IoU 0.600, a pink tree (bar: 0.50)" in found and "above the best ball: 1 of 2" in found
    assert "caves of at most 3% of the volume beyond those of the true shape: 1 of 2" in found
    assert "beyond those of the true shape: 1 of 1" in table({"a": {**GOOD, "caves": 1.4, "true_caves": 1.8}})
    assert "genus of the true shape: 1 of 2" in found
    assert "front and back right: 1 of 2" in found and "albedo error 0.150" in found
    assert "recognised among 36 kinds: 1 of 2; of their true shapes, the upper bound: 2 of 2" in found


def test_wrong_front_open_mesh_and_wrong_kind_are_told():
    line = table({"a": {**TREE, "front_back": False, "genus": None, "caves": None, "person": "doubtful"}}).splitlines()[2]
    assert "WRONG" in line and "open (0)" in line and "- (0.0 %)" in line and "as mushroom" in line and "doubtful" in line


def test_workspace_name_contains_prompt_seed_and_stages():
    assert slug("a pink tree", 2) == workspace_name("a pink tree", 2, "nerf") == "a_pink_tree_seed2"
    assert workspace_name("a pink tree", 2, "nerf,dmtet") == "a_pink_tree_seed2_nerf_dmtet"


def test_row_of_pictures_shows_the_truth_above_grey_when_there_is_no_mesh():
    row = picture_row("a pink car", None, views=2, size=16)
    assert row.shape == (32, 32, 3) and (row[16:] == 128).all() and row[:16].std() > 1


@pytest.fixture
def finished(tmp_path):
    """The folder of workspaces, with one in which a true sofa was made in 5 seconds."""
    name = workspace_name("a purple sofa", 0, "nerf,dmtet")
    folder = tmp_path / "work" / name / "mesh"
    folder.mkdir(parents=True)
    found = mesh_of("a purple sofa", 48)
    trimesh.Trimesh(found.vertices, found.faces, vertex_colors=to_uint8(found.color), process=False).export(folder / "mesh.glb")
    (folder.parent / "result.json").write_text('{"seconds": 5.0, "train_seconds": 4.0}')
    return tmp_path / "work", name


def test_finished_workspaces_are_measured_without_training_and_shown(finished, tmp_path, monkeypatch):
    work, name = finished
    monkeypatch.setattr(text_to_3d.runs, "run_main", lambda *_: pytest.fail("it trained"))
    monkeypatch.setattr(text_to_3d, "BALL_FAMILY", 1)
    monkeypatch.setattr(kinds_page, "SIZE", 32)
    taken = {"recognised": "sofa", "true_recognised": "sofa"}  # what is measured in test_shape_measure.py
    monkeypatch.setattr(text_to_3d.shape_measure, "recognition", lambda *_: taken)
    results = {"lost": {**FAILED}}
    measure_again(results, {name: ("a purple sofa", 0), "other": ("a pink tree", 0)}, work)
    row = results[name]
    assert list(results) == ["lost", name] and row["seconds"] == 5.0 and row["group"] == "judging"
    assert row["iou"] > 0.9 and row["genus"] == row["true_genus"] == 0 and row["recognised"] == "sofa"
    page = tmp_path / "docs" / "kinds.md"
    page.parent.mkdir()
    write(results, tmp_path, work, page, results)
    assert list(read_record(tmp_path / "kinds.json")) == ["lost", name] and (tmp_path / "kinds.md").read_text() == table(
        results
    )
    text = page.read_text()
    assert "2 of 36 kinds" in text and text.index("## a pink car") < text.index("## a purple sofa")
    for prompt in ("a_pink_car", "a_purple_sofa"):
        assert f"(kinds/{prompt}_seed0.jpg)" in text
        with Image.open(page.parent / "kinds" / f"{prompt}_seed0.jpg") as picture:
            assert picture.size == (6 * 32, 32)
    with Image.open(page.parent / "kinds" / kinds_page.OVERVIEW) as picture:
        assert picture.size == (2 * kinds_page.TILE, 2 * kinds_page.TILE)  # the car, which failed, then the sofa
        truth, own = np.split(np.asarray(picture, dtype=float)[:, kinds_page.TILE :], 2)
    assert np.abs(truth - own).mean() < 8 and truth.std() > 20
    assert table(results) in text


def test_seeds_of_a_prompt_are_compared_with_each_other(tmp_path):
    results, meshes = {}, {}
    for seed, half in enumerate((0.3, 0.24)):
        name = f"seed {seed}"
        results[name] = {**GOOD, "prompt": "a purple cube", "seed": seed, "recognised": ("cube", "ball")[seed]}
        meshes[name] = tmp_path / f"{seed}.glb"
        trimesh.creation.box(extents=[2 * half] * 3).export(meshes[name])
    (line,) = kinds_page.between_seeds({**results, "other": TREE}, meshes)
    found = re.fullmatch(r"a purple cube: mean IoU between 2 seeds (.*) \(bar: below 0.95\), 1 of 2 recognised.\n", line)
    assert float(found[1]) == pytest.approx(0.8**3, abs=0.04)  # within a voxel


def test_lit_pictures_show_the_sides_apart_and_unlit_ones_do_not():
    row = {**GOOD, "prompt": "a purple cube", "proportions": {"half": 0.3}}
    light, plain = (kinds_page.picture(row, None, 48, light)[:, 3 * 48 :] for light in (True, False))
    inside = np.abs(plain - kinds_page.GREY).max(-1) > 0.2
    assert inside.mean() > 0.2 and light[inside].std(0).max() > 2 * plain[inside].std(0).max()


def test_pictures_frame_the_object_and_cut_nothing_off():
    row = {**GOOD, "prompt": "a pink cone", "proportions": {"radius": 0.3, "half": 0.4}}
    truth = kinds_page.picture(row, None, 48)[:, 3 * 48 :].reshape(48, 3, 48, 3).swapaxes(0, 1)
    seen = np.abs(truth - kinds_page.GREY).max(-1) > 0.02
    assert not seen[:, [0, -1]].any() and not seen[:, :, [0, -1]].any()
    assert max(int(one.any(axis).sum()) for one in seen for axis in (0, 1)) >= 38  # of 48 pixels


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--prompts", "a purple sofa", "a zeppelin"], "does not know 'zeppelin'"),
        (["--prompts", ""], "needs an object"),
        (["--extra=--itres 4"], "unknown flag --itres"),
        (["--extra=--iters many"], "--iters must be"),
        (["--page", "kinds"], "--page must be a file of Markdown"),
        (["--measure", "--work", "work", "--out", "out"], "no workspace in work has a mesh of these prompts"),
        (["--person", "a purple sofa", "yes", "--work", "work", "--out", "out"], "has no measurement of this prompt"),
    ],
)
def test_what_could_not_be_measured_is_refused_and_no_page_is_written(flags, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(text_to_3d, "write", lambda *_: pytest.fail("it wrote a record"))
    monkeypatch.setattr(text_to_3d, "one_run", lambda *_: pytest.fail("it trained"))
    monkeypatch.setattr("sys.argv", ["text_to_3d.py", *flags])
    assert text_to_3d.run(text_to_3d.main) == 2
    found = capsys.readouterr().err
    assert said in found and found.count("\n") == 1
