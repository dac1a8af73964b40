"""scripts/make_tourists.py: posed photographs that the reader takes, whose truth fits, and sentences for bad input."""

import json

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

from nerf.config.inputs import DataConfig
from nerf.core.cameras import project
from nerf.core.errors import UserError
from nerf.data.folder import read_folder
from nerf.data.posed_images import Photographs
from tests.helpers.scripts import load_script


@pytest.fixture
def main():
    """The script's main."""
    return load_script("make_tourists").main


@pytest.fixture
def ball(tmp_path):
    """A sphere of radius 1 above the plaza."""
    trimesh.creation.icosphere(subdivisions=3).export(tmp_path / "ball.obj")
    return tmp_path / "ball.obj"


def test_the_folder_is_phototourism_with_a_camera_for_each(main, ball, tmp_path):
    out = tmp_path / "tourists"
    assert main([str(ball), str(out), "--photographs", "51", "--size", "64x48"]) == 0
    dataset = read_folder(out)
    assert len(dataset.splits["train"]) == 50 and len(dataset.splits["test"]) == 1
    sizes = {(frame.intrinsics.width, frame.intrinsics.height) for frame in dataset.frames}
    assert len(sizes) > 10 and any(w < h for w, h in sizes) and any(w > h for w, h in sizes)
    assert len({frame.intrinsics.fx for frame in dataset.frames}) > 40
    assert len(json.loads((out / "truth" / "lights.json").read_text())) == 51
    covered = [np.asarray(Image.open(path)) > 0 for path in sorted((out / "truth" / "occluders").glob("*.png"))]
    assert len(covered) == 51 and 0.3 < np.mean([one.any() for one in covered]) < 1.0


def test_cameras_see_the_mesh_where_the_pictures_show_it(tmp_path):
    """The silhouette of a black ball in noon light lies around its projected centre, in the program's own cameras."""
    from benchmarks import tourists

    ball = trimesh.creation.icosphere(subdivisions=3)
    place = tourists.place_of(ball, lambda triangle, points: np.zeros_like(points))
    light = tourists.Light(np.array([0.0, 1.0, 0.0]), np.ones(3), np.ones(3), np.ones(3), 1.0)
    (tmp_path / "dense" / "images").mkdir(parents=True)
    (tmp_path / "dense" / "sparse").mkdir()
    shots = []
    for i in range(4):
        pose, lens = tourists.draw_camera(place, (90, 60), np.random.default_rng(i))
        picture = tourists.photograph(place, pose, lens, light)
        Image.fromarray(np.rint(255 * picture).astype(np.uint8)).save(tmp_path / "dense" / "images" / f"{i}.png")
        shots.append((f"{i}.png", pose, lens))
    tourists.write_model(tmp_path / "dense" / "sparse", shots, tourists.scene_points(place, np.random.default_rng(0)))
    photos = Photographs.splits_of(tmp_path, DataConfig(holdout=0))["train"]
    middle = torch.linalg.inv(photos.transform)[:3, 3].float()[None]  # the ball's centre is the source's origin
    for i in range(4):
        black = (photos.image(i).amax(-1) < 0.01).nonzero().float()
        seen = black.mean(0) + 0.5
        (xy,), _ = project(photos.cameras[i], middle)
        assert len(black) > 50 and (xy[0].flip(-1) - seen).abs().max() < 2.5, "pixels: perspective shifts a ball's outline"


def test_the_same_seed_makes_the_same_photographs_and_another_does_not(main, ball, tmp_path):
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        main([str(ball), str(tmp_path / name), "--photographs", "3", "--size", "40x32", "--seed", seed])
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file())
    assert all((tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes() for file in files)
    assert (tmp_path / "a/dense/images/00001.jpg").read_bytes() != (tmp_path / "c/dense/images/00001.jpg").read_bytes()


def test_bad_input_is_one_sentence_and_leaves_nothing(main, ball, tmp_path):
    out = str(tmp_path / "tourists")
    for size in ("640", "10x10", "640x480x3", "axb"):
        with pytest.raises(UserError, match="--size must be WxH with sides between 32 and 8192"):
            main([str(ball), out, "--size", size])
    (tmp_path / "broken.obj").write_text("no mesh")
    with pytest.raises(UserError, match=r"broken.obj"):
        main([str(tmp_path / "broken.obj"), out, "--photographs", "3"])
    for corners, said in (("nan 0 0", "not finite"), ("1e300 0 0", "beyond"), ("1 0 0", "no size")):
        (tmp_path / "broken.obj").write_text("".join(f"v {corner}\n" for corner in (corners, "1 0 0", "1 0 0")) + "f 1 2 3\n")
        with pytest.raises(UserError, match=f"broken.obj.*{said}"):
            main([str(tmp_path / "broken.obj"), out, "--photographs", "3"])
    trimesh.PointCloud(np.eye(3)).export(tmp_path / "cloud.ply")
    with pytest.raises(UserError, match="cloud.ply is a point cloud"):
        main([str(tmp_path / "cloud.ply"), out, "--photographs", "3"])
    with pytest.raises(UserError, match="is not empty"):
        main([str(ball), str(tmp_path), "--photographs", "3"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ball.obj", "broken.obj", "cloud.ply"]
