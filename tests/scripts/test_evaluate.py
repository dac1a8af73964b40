"""scripts/evaluate.py: rows of finished runs by CLIP in its real layout, a true surface, sentences for what is wrong."""

import json
import os

import numpy as np
import pytest
import trimesh

from guidance.prior.shapes import canonical
from nerf.config.config import parse
from nerf.config.kept import StoredRun
from nerf.config.resolve import resolve
from nerf.run import workspace
from tests.guidance.tiny import write_clip
from tests.helpers.scripts import load_script
from tests.nerf.evaluation.meshes import mesh_of

PROMPTS = ("a yellow mug", "a pink car")


def write_run(folder, prompt, seed, mesh=None):
    """A workspace as a run leaves it; without a mesh, one that failed."""
    asked = parse(["--text", prompt, "--seed", str(seed), "--sd_version", "embedded", "--workspace", str(folder)])
    workspace.open_workspace(resolve(asked, StoredRun()))
    (folder / "mesh").mkdir(exist_ok=True)
    result = {"steps": 10, "train_seconds": 1.5} if mesh is not None else {"error": "the field is empty"}
    (folder / "result.json").write_text(json.dumps(result))
    if mesh is not None:
        colors = np.round(255 * mesh.uv.numpy()).astype(np.uint8)
        whole = trimesh.Trimesh(mesh.vertices.numpy(), mesh.faces.numpy(), vertex_colors=colors, process=False)
        whole.export(folder / "mesh" / "mesh.glb")
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two mugs, a car, a car that failed, and one whose mesh was cut off."""
    root = tmp_path_factory.mktemp("runs")
    mug, car = (mesh_of(canonical(prompt)) for prompt in PROMPTS)
    named = [("mug0", PROMPTS[0], 0, mug), ("mug1", PROMPTS[0], 1, mug), ("car0", PROMPTS[1], 0, car)]
    torn = write_run(root / "car2", PROMPTS[1], 2, car)
    os.truncate(torn / "mesh" / "mesh.glb", 3000)
    return [write_run(root / name, *rest) for name, *rest in named] + [write_run(root / "car1", PROMPTS[1], 1), torn]


@pytest.fixture(scope="module")
def main():
    """The script's main."""
    return load_script("evaluate").main


@pytest.fixture(scope="module")
def report(runs, main, tmp_path_factory):
    """What is written of them: JSON and Markdown, with CLIP, a list of captions and the true mug."""
    out = tmp_path_factory.mktemp("report")
    write_clip(out / "clip")
    (out / "captions.txt").write_text("a lion\na yellow mug\n")
    words = [*map(str, runs), "--clip", str(out / "clip"), "--captions", str(out / "captions.txt"), "--views", "4"]
    truth = runs[0] / "mesh" / "mesh.glb"
    flags = ["--truth", str(truth), "--points", "500", "--region", "0", "--background", "grey", "--crop", "object"]
    assert main([*words, *flags, "--out", str(out / "made" / "here")]) == 1, "two failed"
    made = out / "made" / "here"
    return json.loads((made / "evaluation.json").read_text()), (made / "evaluation.md").read_text()


def test_every_run_has_a_row_with_its_figures(report):
    rows = report[0]["rows"]
    assert [(row["prompt"], row["seed"]) for row in rows] == [
        (PROMPTS[0], 0),
        (PROMPTS[0], 1),
        (PROMPTS[1], 0),
        (PROMPTS[1], 1),
        (PROMPTS[1], 2),
    ]
    figures = rows[0]["figures"]
    assert {"r_precision_clip", "clip_score", "janus_clip", "region_clip", "drift_clip", "drift_ssim", "watertight"} <= set(
        figures
    )
    assert figures["r_precision_clip_chance"] == 0.5 and rows[2]["figures"]["r_precision_clip_chance"] == pytest.approx(1 / 3)
    assert all(-1 <= row["figures"]["clip_score"] <= 1 for row in rows[:3]) and figures["train_seconds"] == 1.5
    assert len(rows[0]["taken_for"]["CLIP"]) == 4


def test_a_mesh_is_compared_with_the_true_surface(report):
    mug, _, car, *_ = (row["figures"] for row in report[0]["rows"])
    assert mug["iou"] == 1 and mug["chamfer"] < 1e-6 and mug["f_score"] == 1
    assert car["iou"] < 0.6 and car["chamfer"] > 1


def test_the_figures_of_a_true_shape_stand_beside_those_of_the_same_mesh(report):
    figures = report[0]["rows"][0]["figures"]
    assert figures["janus_clip_true"] == pytest.approx(figures["janus_clip"], abs=0.1)


def test_a_run_that_failed_is_a_row_and_counts_nowhere_else(report):
    found, text = report
    assert found["failures"] == 2 and found["rows"][3]["failure"] == "the field is empty"
    assert "mesh.glb cannot be read as a mesh: it was cut off" in found["rows"][4]["failure"]
    assert found["all"]["clip_score"]["count"] == 3 and "| failed: the field is empty |" in text
    assert found["all"]["train_seconds"]["count"] == 3, "nor does what the last one wrote itself"


def test_means_have_intervals_over_the_seeds_of_a_prompt_and_over_all(report):
    found = report[0]
    seeds = found["prompts"][PROMPTS[0]]["clip_score"]
    assert seeds["count"] == 2 and seeds["low"] == pytest.approx(seeds["mean"]) == pytest.approx(seeds["high"])
    everything = found["all"]["clip_score"]
    assert everything["low"] < everything["mean"] < everything["high"]


def test_what_a_figure_depends_on_is_printed_with_it(report):
    text = report[1]
    for said in (
        "- background: grey",
        "- crop: object",
        "- views: 4",
        "- model, CLIP: CLIP clip, pictures of 32 x 32",
        "- captions: 2",
    ):
        assert said in text
    assert report[0]["settings"]["captions"] == ["a lion", "a yellow mug"]


def test_without_a_model_the_surface_is_measured(main, runs, capsys):
    assert main([str(runs[2]), "--json", "--no_bound"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["rows"][0]["figures"]["watertight"] == 1 and "janus_clip" not in found["rows"][0]["figures"]


@pytest.mark.parametrize(
    "words, said",
    [
        (["nowhere"], "there is no workspace nowhere"),
        (["tests"], "is no workspace, as it has no config.json"),
        (["RUN", "--no_bound", "--captions", __file__, "--clip", "nowhere/at/all"], "is not a folder"),
        (["RUN", "--truth", "none.ply", "--clip", "x"], "there is no true surface none.ply"),
        (["RUN", "--truth", "none.ply"], "there is no true surface none.ply"),
        (["RUN", "--truth", __file__], "expected a mesh or point cloud"),
        (["RUN", "--clip", "."], "needs others to be told from"),
        (["RUN", "RUN"], "is given twice, and would count twice"),
        (["RUN", "--region", "1"], "--region needs a model that judges pictures; add --prior or --clip"),
        (["RUN", "--out", f"{__file__}/x"], "--out .* cannot be written to .* is not a folder"),
    ],
)
def test_what_is_wrong_is_a_sentence_before_anything_is_rendered(main, runs, words, said, monkeypatch):
    from nerf.core.errors import UserError

    monkeypatch.setattr("nerf.evaluation.judge.Judge.row", lambda *_: pytest.fail("rendered"))
    with pytest.raises(UserError, match=said):
        main([str(runs[0]) if word == "RUN" else word for word in words])
