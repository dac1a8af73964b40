"""Wild runs from the command line on: half images, masks, other lights, and one sentence for each kind of bad input."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import main
from nerf.run.half_images import MEASURES
from tests.nerf import photo_folders
from tests.nerf.test_wild_runs import TINY, run, tourists
from tests.nerf.tours import ROWS, rows_of, write_tour

pytestmark = pytest.mark.usefixtures("short_fits")


def again(workspace, *flags):
    """Show a finished run."""
    return main.main(["--workspace", str(workspace), *TINY.split(), "--test", *map(str, flags)])


def picture(path, colour):
    Image.new("RGB", (30, 20), colour).save(path)
    return path


@pytest.mark.parametrize("kind", ["encoder", "embedding"])
def test_results_hold_the_protocol_of_half_images_and_the_masks(tmp_path, kind, capsys):
    folder, workspace = tourists(tmp_path / "photos"), tmp_path / "w"
    assert run(folder, workspace, "--appearance", kind) == 0
    said = json.loads((workspace / "result.json").read_text())
    for light in ("left", "whole"):
        for part in ("right", "whole"):
            assert set(said["wild"][light][part]) == set(MEASURES) and said["wild"][light][part]["psnr"] > 0
    assert said["wild"]["leak"] == pytest.approx(said["wild"]["whole"]["right"]["psnr"] - said["wild"]["left"]["right"]["psnr"])
    assert said["masks"] == 4 and 0 < said["masked"] < 1
    assert sorted(path.name for path in (workspace / "results" / "masks").iterdir()) == [f"{i:02d}.png" for i in (1, 2, 3, 5)]
    assert Image.open(workspace / "results" / "masks" / "01.png").size == (16, 20)
    log = "".join(path.read_text() for path in workspace.glob("log*.txt"))
    assert "left half   right halves" in log and "LPIPS is left out" in log


def test_a_plain_run_has_neither(tmp_path):
    folder, workspace = tourists(tmp_path / "photos"), tmp_path / "w"
    assert run(folder, workspace, "--no_wild") == 0
    assert "wild" not in json.loads((workspace / "result.json").read_text()) and not (workspace / "results" / "masks").exists()


def test_a_finished_run_is_shown_in_the_light_of_any_picture(tmp_path):
    folder, workspace = tourists(tmp_path / "photos"), tmp_path / "w"
    assert run(folder, workspace) == 0
    masks = {path: path.read_bytes() for path in (workspace / "results" / "masks").iterdir()}
    inside = tmp_path / "pictures"
    inside.mkdir()
    picture(inside / "dusk.png", (200, 90, 40)), picture(inside / "noon.jpg", (240, 240, 255))
    other = picture(tmp_path / "painting.png", (0, 60, 0))
    assert again(workspace, "--hallucinate", inside, other, "--light_walk", 3) == 0
    made = {path.name.partition("_light")[2] for path in (workspace / "results").glob("*_light*")}
    assert made == {"_dusk.mp4", "_noon.mp4", "_painting.mp4", "_walk.mp4", "s.png"}
    assert masks == {path: path.read_bytes() for path in (workspace / "results" / "masks").iterdir()}, "they stay"


def test_a_training_run_may_hallucinate_at_its_end(tmp_path):
    folder, workspace = tourists(tmp_path / "photos"), tmp_path / "w"
    assert run(folder, workspace, "--hallucinate", picture(tmp_path / "a.png", (9, 9, 9)), "--light_walk", 0) == 0
    assert len(list((workspace / "results").glob("*_light_*.mp4"))) == 1


# ---- bad input: exit code 2 and one sentence ----


def refused(capsys, code):
    """The sentence of a refused run."""
    assert code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("main.py: ")]
    assert len(lines) == 1
    return lines[0]


def test_pictures_that_do_not_exist_and_scenes_without_appearance_are_refused(tmp_path, capsys):
    folder, workspace = tourists(tmp_path / "photos"), tmp_path / "w"
    assert run(folder, workspace, "--no_wild") == 0
    capsys.readouterr()
    assert "gone.png does not exist" in refused(capsys, again(workspace, "--no_wild", "--hallucinate", tmp_path / "gone.png"))
    one = picture(tmp_path / "a.png", (9, 9, 9))
    assert "was trained without; train it with --wild" in refused(capsys, again(workspace, "--no_wild", "--hallucinate", one))


def test_a_damaged_picture_is_refused(tmp_path, capsys):
    folder, workspace = tourists(tmp_path / "photos"), tmp_path / "w"
    assert run(folder, workspace) == 0
    capsys.readouterr()
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    assert "a.png cannot be read" in refused(capsys, again(workspace, "--hallucinate", tmp_path / "a.png"))


def wild_run(folder, tmp_path, *flags):
    return main.main(["--data", str(folder), "--workspace", str(tmp_path / "w"), *TINY.split(), *flags])


def test_a_table_with_unknown_names_is_refused(tmp_path, capsys):
    folder = write_tour(tmp_path / "tour", [*rows_of(ROWS), "stranger.jpg\t77\ttrain\tplace"])
    assert "has no pose for, first stranger.jpg" in refused(capsys, wild_run(folder, tmp_path))


def test_an_empty_split_is_refused(tmp_path, capsys):
    folder = write_tour(tmp_path / "tour", rows_of(["test"] * 6))
    assert "it lists no photograph for training that exists" in refused(capsys, wild_run(folder, tmp_path))


def test_a_mask_of_another_size_is_refused(tmp_path, capsys):
    folder = write_tour(tmp_path / "tour", rows_of(ROWS))
    (folder / "dense" / "masks").mkdir()
    Image.new("L", (5, 5), 255).save(folder / "dense" / "masks" / "01.png")
    assert "must have its photograph's size, 30x40 pixels" in refused(capsys, wild_run(folder, tmp_path))


@pytest.mark.parametrize(
    "holdout, words",
    [("4", "there is a single photograph"), ("0", "learn what differs between photographs, and there is a single one")],
)
def test_one_photograph_alone_is_refused(tmp_path, capsys, holdout, words):
    (tmp_path / "photos").mkdir()
    folder = photo_folders.write(tmp_path / "photos", [np.full((20, 20, 3), 99, np.uint8)])
    assert words in refused(capsys, wild_run(folder, tmp_path, "--holdout", holdout))


def test_a_photograph_without_a_pose_is_refused_where_it_is_listed(tmp_path, capsys):
    folder = tourists(tmp_path / "photos")
    document = json.loads((folder / "transforms.json").read_text())
    del document["frames"][2]["transform_matrix"]
    (folder / "transforms.json").write_text(json.dumps(document))
    assert 'frame 2 (02.png): it has no "transform_matrix"' in refused(capsys, wild_run(folder, tmp_path))


def test_a_tour_trains_with_mixed_sizes_and_its_own_split(tmp_path):
    folder = write_tour(tmp_path / "tour", rows_of(ROWS))
    assert wild_run(folder, tmp_path) == 0
    said = json.loads((tmp_path / "w" / "result.json").read_text())
    assert said["test_photographs"] == 2 and torch.isfinite(torch.tensor(said["test_psnr"]))
