"""scripts/evaluate_mesh.py: text, JSON, the masks of a folder, the files of DTU, and sentences for bad input."""

import json

import numpy as np
import pytest

from nerf.core.errors import UserError
from tests.helpers.scripts import load_script


@pytest.fixture
def main():
    """The script's main."""
    return load_script("evaluate_mesh").main


@pytest.fixture
def balls(tmp_path):
    """Two concentric spheres."""
    import trimesh

    paths = [tmp_path / "found.ply", tmp_path / "truth.obj"]
    for path, radius in zip(paths, (1.02, 1.0), strict=True):
        trimesh.creation.icosphere(subdivisions=3, radius=radius).export(path)
    return list(map(str, paths))


def test_text_names_every_measure_and_that_nothing_was_aligned(main, balls, capsys):
    assert main([*balls, "--points", "2000"]) == 0
    output = capsys.readouterr().out
    for words in ("closed, genus 0, 1 parts", "alignment                     none", "Chamfer distance", "F-score at", "seed 0"):
        assert words in output


def test_json_has_the_figures_and_thresholds_in_either_unit(main, balls, capsys):
    assert main([*balls, "--points", "2000", "--json", "--thresholds", "1", "--scene_units"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["comparison"]["chamfer"] == pytest.approx(0.02, rel=0.05) and said["surface"]["watertight"]
    assert said["comparison"]["thresholds"][0]["distance"] == 1.0 and said["alignment"] is None
    assert main([*balls, "--points", "2000", "--json", "--thresholds", "1"]) == 0
    scaled = json.loads(capsys.readouterr().out)["comparison"]
    assert scaled["thresholds"][0]["distance"] == pytest.approx(scaled["diagonal"] / 100)


def test_surfaces_that_are_nowhere_near_are_noted(main, balls, tmp_path, capsys):
    import trimesh

    assert main([*balls, "--points", "500"]) == 0
    assert "do not touch" not in capsys.readouterr().out
    far = trimesh.creation.icosphere(subdivisions=1)
    far.apply_translation([0, 0, 5])
    far.export(tmp_path / "far.ply")
    assert main([str(tmp_path / "far.ply"), balls[1], "--points", "500"]) == 0
    assert "do not touch" in capsys.readouterr().out


def test_alignment_is_stated(main, balls, capsys):
    assert main([*balls, "--points", "500", "--icp"]) == 0
    assert "--icp" in capsys.readouterr().out
    assert main([*balls, "--points", "500", "--icp", "--json"]) == 0
    assert np.array(json.loads(capsys.readouterr().out)["alignment"]).shape == (4, 4)


@pytest.mark.parametrize(
    "extra, words",
    [
        (["--plane", "p.mat"], "both --obs_mask and --plane"),
        (["--obs_mask", "o.mat", "--plane", "p.mat"], "there is no file o.mat"),
        (["--data", "nowhere"], "nowhere does not exist"),
    ],
)
def test_bad_requests_are_sentences(main, balls, extra, words):
    with pytest.raises(UserError, match=words):
        main([*balls, "--points", "500", *extra])


def test_a_cloud_cannot_be_culled(main, balls, tmp_path):
    import trimesh

    cloud = tmp_path / "cloud.ply"
    trimesh.PointCloud(np.random.default_rng(0).random((50, 3))).export(cloud)
    with pytest.raises(UserError, match="is a point cloud; give its mesh"):
        main([str(cloud), balls[1], "--data", str(tmp_path)])
