"""The benchmark of surfaces: its photographs, its background, its silhouettes, its table and its command line."""

import json
import shutil
from argparse import Namespace

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import scenes, surfaces
from benchmarks.inverse_rendering import DISTANCE, camera_poses
from nerf.config.groups import OutputConfig
from nerf.core.cameras import project
from nerf.core.errors import UserError
from nerf.core.structs import LevelSet
from nerf.data.silhouettes import read_silhouettes
from nerf.mesh.export import export_level_set
from nerf.mesh.export_options import ExportOptions
from nerf.mesh.source import read_source
from nerf.run.mesh_init import interpolated, visual_hull
from tests.nerf.photo_folders import load


@pytest.fixture(scope="module")
def block():
    """A closed mesh that is longer in one direction."""
    import trimesh

    return trimesh.creation.box((2.0, 1.0, 0.6))


def painted(triangle, points):
    """Colours that follow the place."""
    return np.clip(0.5 + 0.3 * points / np.array([2.0, 1.0, 0.6]), 0, 1)


@pytest.fixture(scope="module")
def scene(block, tmp_path_factory):
    """Photographs with alpha."""
    return scenes.write_scene(block, tmp_path_factory.mktemp("scene"), painted, True, 6, 2, 32)


def test_photographs_have_alpha_and_splits_and_cameras_below(scene):
    frames = {split: json.loads((scene / f"transforms_{split}.json").read_text())["frames"] for split in scenes.SPLITS}
    assert {split: len(found) for split, found in frames.items()} == {"train": 6, "test": 2}
    heights = [np.array(frame["transform_matrix"])[1, 3] for frame in frames["train"]]
    assert min(heights) < -1 and max(heights) > 1
    with Image.open(scene / "train" / "000.png") as picture:
        assert picture.mode == "RGBA" and picture.getextrema()[3] == (0, 255)


def test_silhouettes_of_the_photographs_are_those_of_the_mesh_by_ray_casting(scene, block):
    for seen in read_silhouettes(scene):
        cast = scenes.cast_silhouette(block, seen.projection, seen.mask.shape)
        assert (cast ^ seen.mask).sum() <= 0.02 * cast.size and cast.any()  # pixels that are half covered


def test_the_trainer_reads_them_where_they_are(scene, block):
    photos = load(scene)
    corner = (torch.linalg.inv(photos.transform.double()) @ torch.tensor([1.0, 0.5, 0.3, 1.0]).double())[:3]
    pose = np.array(json.loads((scene / "transforms_train.json").read_text())["frames"][0]["transform_matrix"])
    local = np.linalg.inv(pose) @ np.array([1.0, 0.5, 0.3, 1.0])
    focal = 16 / np.tan(np.radians(20))
    expected = [16 + focal * local[0] / -local[2], 16 - focal * local[1] / -local[2]]
    np.testing.assert_allclose(project(photos.view(0), corner[None].float())[0][0, 0], expected, atol=1e-3)


def test_opaque_photographs_have_a_background_with_parallax(block, tmp_path):
    folder = scenes.write_scene(block, tmp_path, painted, False, 4, 2, 32)
    with Image.open(folder / "train" / "000.png") as picture:
        assert picture.mode == "RGB"
    centre, pose = np.zeros(3), np.eye(4)
    pose[2, 3] = 3.0
    still = scenes.backdrop(pose, 16, centre, 3.0)
    assert still.std() > 0.05 and np.array_equal(still, scenes.backdrop(pose, 16, centre, 3.0))
    moved = pose.copy()
    moved[0, 3] = 1.0  # the same direction from elsewhere shows another place of the sphere
    assert np.abs(scenes.backdrop(moved, 16, centre, 3.0) - still).max() > 0.05
    far = scenes.backdrop(moved, 16, centre, 3e4)
    assert np.abs(far - scenes.backdrop(pose, 16, centre, 3e4)).max() < 1e-3  # but not if it is very far


def test_a_folder_without_masks_refers_to_the_photographs(tmp_path):
    source = tmp_path / "scan"
    (source / "image").mkdir(parents=True)
    (source / "mask").mkdir()
    (source / "image" / "0.png").write_bytes(b"picture")
    (source / "cameras_sphere.npz").write_bytes(b"cameras")
    folder = scenes.without_masks(source, tmp_path / "bare")
    assert sorted(path.name for path in folder.iterdir()) == ["cameras_sphere.npz", "image"]
    assert (folder / "image").is_symlink() and (folder / "image" / "0.png").read_bytes() == b"picture"
    assert scenes.without_masks(source, folder) == folder  # once more


def test_silhouette_by_ray_casting_is_that_of_the_closed_form():
    import trimesh

    ball, pose = trimesh.creation.icosphere(subdivisions=5), camera_poses(4, np.zeros(3), 3.0)[1]
    camera = np.array([[60.0, 0, 32], [0, 60.0, 32], [0, 0, 1]])
    projection = camera @ (np.diag([1.0, -1, -1, 1]) @ np.linalg.inv(pose))[:3]
    found = scenes.cast_silhouette(ball, projection, (64, 64))
    y, x = np.mgrid[:64, :64] + 0.5
    cosine = 1 / np.sqrt(1 + ((x - 32) ** 2 + (y - 32) ** 2) / 60**2)
    assert (found ^ (cosine > np.sqrt(1 - 1 / 9))).sum() <= 4


def arguments(tmp_path, **changes):
    """What the command line gives."""
    known = dict(
        data=tmp_path / "data", work=tmp_path / "work", out=tmp_path, backbone="sdf", training_minutes=2.0, threads=1, seed=3,
        count=6, size=24, extra=["--iters", "5"],
    )  # fmt: skip
    (tmp_path / "work").mkdir(exist_ok=True)
    return Namespace(**known | changes)


def test_command_line_of_a_run(tmp_path):
    args = arguments(tmp_path)
    words = surfaces.flags("dtu", tmp_path, args)
    assert words[words.index("--holdout") + 1] == "8" and words[-2:] == ["--iters", "5"] and "source" in words
    assert surfaces.flags("spot", tmp_path, args)[words.index("--holdout") + 1] == "0"


def test_a_run_is_measured_against_the_truth_and_a_failure_is_a_row(tmp_path, monkeypatch):
    import trimesh
    from trimesh.visual import TextureVisuals
    from trimesh.visual.material import PBRMaterial

    args = arguments(tmp_path)
    (tmp_path / "data" / "mesh").mkdir(parents=True)
    ball = trimesh.creation.icosphere(subdivisions=3)
    ball.export(tmp_path / "data" / "mesh" / "bunny.obj")

    def fake(words, workspace):
        assert (tmp_path / "work" / "photographs" / "bunny_6_24" / "transforms_test.json").is_file()
        (workspace / "mesh").mkdir(parents=True)
        (workspace / "result.json").write_text(json.dumps({"steps": 5, "train_seconds": 1.5, "test_psnr": 20.0, "seconds": 2}))
        look = PBRMaterial(baseColorTexture=Image.new("RGB", (8, 8), (200, 100, 50)))
        uv = 0.5 + 0.4 * ball.vertices[:, :2]
        found = trimesh.Trimesh(1.01 * ball.vertices, ball.faces, visual=TextureVisuals(uv=uv, material=look), process=False)
        found.export(workspace / "mesh" / "mesh.glb")
        Image.new("RGB", (8, 8), (200, 100, 50)).save(workspace / "mesh" / "albedo.png")
        return {"seconds": 2.0, "cpu_seconds": 1.0, "returncode": 0, "command": "main.py", "megabytes": 100}

    monkeypatch.setattr(surfaces, "run_main", fake)
    row = surfaces.one_run("bunny", args)
    assert row["chamfer_percent"] == pytest.approx(100 * 0.01 / np.sqrt(12), rel=0.05) and row["genus"] == 0
    assert row["watertight"] and row["normal_error"] < 1.0 and row["test_psnr"] == 20.0
    assert (tmp_path / "surfaces_bunny.png").is_file()
    shutil.rmtree(tmp_path / "work" / "bunny_sdf_3")
    monkeypatch.setattr(surfaces, "run_main", lambda *_: {"seconds": 1.0, "returncode": 1, "command": ""})
    failed = surfaces.one_run("bunny", args)
    text = surfaces.table({"bunny": row, "spot": failed})
    assert failed["failure"] == "exit code 1" and "spot: exit code 1" in text and "| yes | 0 |" in text


def test_a_folder_that_is_missing_is_said(monkeypatch, tmp_path):
    words = ["surfaces", "spot", "--data", str(tmp_path / "none"), "--work", str(tmp_path / "w"), "--out", str(tmp_path)]
    monkeypatch.setattr("sys.argv", words)
    with pytest.raises(UserError, match="SOMNIA_TEST_DATA"):
        surfaces.main()


def test_cameras_see_all_of_the_mesh(block):
    assert DISTANCE * np.tan(np.radians(20)) > 0.5  # half the diagonal, at the distance of the middle


def test_hull_of_dtu_in_the_source_frame_has_the_silhouettes_of_the_masks(test_data, tmp_path):
    photos = load(test_data / "dtu_scan24")
    axis = torch.linspace(-1, 1, 81)
    places = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)
    values = visual_hull(photos, places).reshape(81, 81, 81).numpy()
    hull = LevelSet(lambda points: interpolated(values, 1.0, points), 0.0, "below", logarithmic=False)
    output = OutputConfig(mcubes_resolution=96, decimate_target=20_000, texture_size=64, export_frame="source")
    files = export_level_set(
        hull, torch.zeros_like, 1.0, tmp_path / "mesh", ExportOptions.from_config(output), transform=photos.transform
    ).files
    span = np.ptp(read_source(files["obj"]).vertices, axis=0)
    assert 300 < span.max() < 1200  # millimetres: scale_mat is undone
    assert surfaces.mask_iou(files["obj"], test_data / "dtu_scan24") > 0.95
