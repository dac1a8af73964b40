"""Whole runs of main.py on captures: formats, depth maps, lenses, own camera paths, crop boxes, and what is refused."""

import json
import shutil

import imageio.v3 as iio
import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

import main
from tests.nerf.data import test_capture_formats as formats
from tests.nerf.data import test_depth_maps as depth_maps
from tests.nerf.data.captures import photographs, poses

TINY = (
    "--iters 2 --num_rays 16 --grid_levels 2 --grid_log2 6 --grid_finest 16 --grid_size 8 --max_steps 16 --W 8 --H 8 "
    "--dataset_size_test 2 --seed 1 --device cpu"
).split()


@pytest.fixture
def run(capfd):
    """Run main.py: words -> (exit code, last line on stderr)."""
    before = torch.get_num_threads()

    def run(folder, *words):
        code = main.main(["--threads", "1", "--data", str(folder), *TINY, *map(str, words)])
        return code, capfd.readouterr().err.strip().splitlines()[-1]

    yield run
    torch.set_num_threads(before)


def log_of(folder):
    return (folder / "log_df.txt").read_text()


@pytest.mark.parametrize("write", [formats.llff, formats.polycam, formats.record3d, formats.metashape, formats.reality_capture])
def test_every_format_trains_and_is_measured_on_photographs_that_were_held_out(run, tmp_path, write):
    (tmp_path / "data").mkdir()
    assert run(write(tmp_path / "data"), "--workspace", tmp_path / "w", "--holdout", 3)[0] == 0
    result = json.loads((tmp_path / "w" / "result.json").read_text())
    assert result["test_photographs"] == 2 and result["test_psnr"] > 0
    assert "is in the format of" in log_of(tmp_path / "w")


def test_dtu_has_held_out_views(run, tmp_path):
    from tests.nerf.data import test_neus as neus

    neus.write(tmp_path)
    for path in [*(tmp_path / "image").iterdir(), *(tmp_path / "mask").iterdir()]:
        Image.new("L", (8, 6), 255).save(path)
    assert run(tmp_path, "--workspace", tmp_path / "w", "--holdout", 2)[0] == 0
    assert json.loads((tmp_path / "w" / "result.json").read_text())["test_photographs"] == 2


def test_a_fisheye_capture_trains_in_both_stages(run, tmp_path):
    words = ("--workspace", tmp_path / "w", "--stages", "nerf,dmtet", "--tet_grid_size", 4, "--w", 8, "--h", 8)
    (tmp_path / "data").mkdir()
    code, said = run(formats.metashape(tmp_path / "data", "fisheye"), *words, "--bound", 2)
    assert code == 0 or "surface" in said  # two steps make no surface to begin the mesh from


def test_depth_maps_are_a_term_of_the_loss(run, tmp_path):
    (tmp_path / "data").mkdir()
    depth_maps.dataset(tmp_path / "data")
    assert run(tmp_path / "data", "--workspace", tmp_path / "a")[0] == 0
    assert "depth_map 0." in log_of(tmp_path / "a")
    assert run(tmp_path / "data", "--workspace", tmp_path / "b", "--depth_maps", "off")[0] == 0
    assert "depth_map 0." not in log_of(tmp_path / "b")
    assert "2 with metric depth maps" in log_of(tmp_path / "a") and "depth maps" not in log_of(tmp_path / "b")


def camera_path(file, count=3, **changes):
    entries = [{"camera_to_world": pose.reshape(-1).tolist(), "fov": 40.0} for pose in poses(count)]
    document = {"render_height": 6, "render_width": 10, "fps": 5, "camera_path": entries}
    file.write_text(json.dumps(document | changes))
    return file


def test_a_camera_path_gives_the_frames_the_size_and_the_rate_of_the_video(run, tmp_path):
    (tmp_path / "data").mkdir()
    path = camera_path(tmp_path / "path.json")
    code, _ = run(formats.polycam(tmp_path / "data"), "--workspace", tmp_path / "w", "--camera_path", path, "--holdout", 0)
    video = tmp_path / "w" / "results" / "df_step_00000002_rgb.mp4"
    assert code == 0 and iio.imread(video).shape == (3, 6, 10, 3) and iio.immeta(video)["fps"] == 5


def test_without_held_out_photographs_the_video_still_follows_the_cameras(run, tmp_path, monkeypatch):
    monkeypatch.setattr("nerf.run.showing.turntable", lambda *_: pytest.fail("a turntable"))
    (tmp_path / "data").mkdir()
    assert run(formats.polycam(tmp_path / "data"), "--workspace", tmp_path / "w", "--holdout", 0)[0] == 0


def test_the_mesh_is_cut_to_the_box(run, tmp_path):
    (tmp_path / "data").mkdir()
    folder = formats.polycam(tmp_path / "data")
    mesh = ("--save_mesh", "--mcubes_resolution", 16, "--texture_size", 32, "--mesh_threshold", 0.1, "--export_frame", "source")
    words = ("--workspace", tmp_path / "w", *mesh)
    box = (-0.5, -0.6, -0.7, 0.4, 0.5, 0.6)
    assert run(folder, *words, "--mesh_crop", *box)[0] == 0
    bounds = trimesh.load(tmp_path / "w" / "mesh" / "mesh.glb", force="mesh").bounds
    assert (bounds[0] >= np.array(box[:3]) - 0.05).all() and (bounds[1] <= np.array(box[3:]) + 0.05).all()


def test_where_the_scene_lies_is_kept_and_said(run, tmp_path):
    (tmp_path / "data").mkdir()
    folder = formats.polycam(tmp_path / "data")
    words = ("--workspace", tmp_path / "w")
    assert run(folder, *words, "--scene_center", "cameras", "--scene_scale", 4, "--scene_up", "y")[0] == 0
    assert "scene box from --scene_center and --scene_scale, scaled by 0.25" in log_of(tmp_path / "w")
    code, said = run(folder, *words, "--scene_scale", 5)
    assert code == 2 and "--scene_scale" in said and "--ckpt scratch" in said


@pytest.mark.parametrize("words, sentence", [
    (("--camera_path", "none.json"), "none.json"),
    (("--mesh_crop", *"50 50 50 60 60 60".split()), "--mesh_crop 50 50 50 60 60 60 has nothing in common with the scene's box"),
    (("--scene_up", "plane"), "--scene_up plane needs the sparse points"),
    (("--scene_center", "points"), "--scene_center points needs at least 30 sparse points"),
])  # fmt: skip
def test_what_a_capture_lacks_is_one_sentence_and_nothing_is_written(run, tmp_path, words, sentence):
    (tmp_path / "data").mkdir()
    code, said = run(formats.polycam(tmp_path / "data"), "--workspace", tmp_path / "w", *words)
    assert code == 2 and said.startswith("main.py: ") and sentence in said
    assert not (tmp_path / "w" / "config.json").exists()


def test_plain_pictures_need_sfm_and_too_few_are_refused(run, tmp_path):
    photographs(tmp_path / "p", ["a.png", "b.png"])
    assert "add --sfm" in run(tmp_path / "p", "--workspace", tmp_path / "w")[1]
    assert "--sfm needs at least 3 pictures" in run(tmp_path / "p", "--workspace", tmp_path / "w", "--sfm")[1]


@pytest.mark.slow
def test_plain_pictures_train_with_sfm_and_resume_without_it(run, tmp_path, test_data):
    pytest.importorskip("pycolmap")
    (tmp_path / "p").mkdir()
    for path in sorted((test_data / "lund_door" / "images").iterdir())[:4]:
        shutil.copy(path, tmp_path / "p")
    words = (tmp_path / "p", "--workspace", tmp_path / "w", "--holdout", 0)
    assert run(*words, "--sfm", "--sfm_size", 400)[0] == 0
    assert "structure from motion found the cameras of 4 of 4 pictures" in log_of(tmp_path / "w")
    assert run(*words, "--iters", 3)[0] == 0
