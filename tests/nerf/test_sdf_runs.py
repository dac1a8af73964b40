"""Runs of a signed distance from the command line on: photographs with and without masks, resumed, to a mesh."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image
from safetensors.torch import load_file

import main
from nerf.data.folder import read_folder
from tests.nerf import photo_folders

TINY = (
    "--backbone sdf --seed 3 --iters 12 --num_rays 64 --ray_samples 1500 --max_steps 64 --grid_size 16 --grid_levels 4 "
    "--grid_log2 10 --grid_finest 32 --level_start 2 --sdf_init_steps 20 --W 12 --H 12 --dataset_size_test 2 --holdout 0 "
    "--preview_interval 1000 --device cpu --threads 1 --update_extra_interval 4"
)


def ball_photographs(folder: Path, masks: bool, value: int | None = None) -> Path:
    """Photographs of a ball of radius 0.8 at the origin, with alpha; or alpha of one value everywhere."""
    folder.mkdir()
    size = 24
    photo_folders.write(folder, [np.zeros((size, size, 4), np.uint8)] * 8, {"fl_x": 40.0})
    for frame in read_folder(folder, 0).frames:
        y, x = np.mgrid[:size, :size] + 0.5
        towards = np.stack([(x - size / 2) / 40, (size / 2 - y) / 40, -np.ones_like(x)], -1) @ frame.pose[:3, :3].numpy().T
        towards /= np.linalg.norm(towards, axis=-1, keepdims=True)
        origin = frame.pose[:3, 3].numpy()
        middle = -(towards @ origin)
        hit = np.linalg.norm(origin + middle[..., None] * towards, axis=-1) < 0.8
        pixels = np.zeros((size, size, 4), np.uint8)
        pixels[..., 0], pixels[..., 1] = 200 * hit, 60
        pixels[..., 3] = 255 * hit if value is None else value
        Image.fromarray(pixels if masks else pixels[..., :3]).save(frame.image)
    return folder


def run(folder, workspace, *flags):
    return main.main(["--data", str(folder), "--workspace", str(workspace), *TINY.split(), *map(str, flags)])


def newest(workspace):
    return load_file(sorted((workspace / "checkpoints").glob("*.safetensors"))[-1])


def test_photographs_with_masks_become_a_closed_mesh_by_the_preset_that_is_said(tmp_path, capfd):
    folder = ball_photographs(tmp_path / "photos", masks=True)
    assert run(folder, tmp_path / "w", "--iters", 40, "--save_mesh", "--mcubes_resolution", 24) == 0
    assert "--preset neus: photographs with masks (or alpha)" in capfd.readouterr().err
    config = json.loads((tmp_path / "w" / "config.json").read_text())
    assert config["options"]["preset"] == {"value": "neus", "source": "preset"}
    mesh = trimesh.load(tmp_path / "w" / "mesh" / "mesh.obj", force="mesh")
    mesh.merge_vertices(merge_tex=True, merge_norm=True)
    assert mesh.is_watertight


def test_the_texture_shows_photographs_unless_the_field_is_asked_for(tmp_path, capfd):
    folder = ball_photographs(tmp_path / "photos", masks=True)
    words = ("--mcubes_resolution", 24, "--texture_size", 128, "--save_mesh")
    albedo = {}
    for asked in ("auto", "photographs", "field"):
        assert (
            run(folder, tmp_path / "w", "--iters", 40, "--test" if albedo else "--no_test", "--texture_from", asked, *words)
            == 0
        )
        said = capfd.readouterr().err
        assert ("photographs, " in said.partition("baked 128^2 texels")[2].partition("\n")[0]) == (asked != "field")
        albedo[asked] = np.asarray(Image.open(tmp_path / "w" / "mesh" / "albedo.png")).astype(float)
    np.testing.assert_array_equal(albedo["auto"], albedo["photographs"])
    red, green, _ = np.median(albedo["auto"], axis=(0, 1))
    assert abs(red - 200) < 10 and abs(green - 60) < 10  # the colours of the pictures
    assert np.abs(albedo["field"] - albedo["auto"]).mean() > 5  # after 40 steps


def test_without_masks_a_background_stands_behind(tmp_path, capfd):
    folder = ball_photographs(tmp_path / "photos", masks=False)
    assert run(folder, tmp_path / "w", "--iters", 2) == 0
    assert "--preset neus-unmasked: photographs without masks" in capfd.readouterr().err
    assert any(name.startswith("model/background.") for name in newest(tmp_path / "w"))


def test_a_stopped_run_goes_on_with_the_same_bits(tmp_path):
    folder = ball_photographs(tmp_path / "photos", masks=True)
    assert run(folder, tmp_path / "a") == 0
    assert run(folder, tmp_path / "b", "--iters", 12, "--minutes", 1e-6) == 0  # one step
    assert run(folder, tmp_path / "b") == 0
    one, two = newest(tmp_path / "a"), newest(tmp_path / "b")
    assert any(name.startswith("sources/photos/rays") for name in one)
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("value", [0, 255])
def test_masks_all_black_or_all_white_train_without_breaking(tmp_path, value):
    folder = ball_photographs(tmp_path / "photos", masks=True, value=value)
    assert run(folder, tmp_path / "w", "--preset", "neus") == 0
    assert all(tensor.isfinite().all() for tensor in newest(tmp_path / "w").values() if tensor.is_floating_point())


def test_the_mesh_stage_starts_from_a_signed_distance(tmp_path):
    folder = ball_photographs(tmp_path / "photos", masks=True)
    assert run(folder, tmp_path / "w") == 0
    words = f"--data {folder} --workspace {tmp_path / 'm'} --dmtet --init_with {tmp_path / 'w'} --tet_grid_size 8 --iters 2"
    sizes = "--w 12 --h 12 --batch_size 1 --W 12 --H 12 --dataset_size_test 2 --holdout 0 --device cpu"
    assert main.main([*words.split(), *sizes.split()]) == 0


@pytest.mark.parametrize("masks", [True, False])
def test_another_preset_can_be_asked_for_and_has_a_background_where_there_are_no_masks(tmp_path, capfd, masks):
    folder = ball_photographs(tmp_path / "photos", masks=masks)
    for steps in (2, 3):  # from the start, and resumed
        assert run(folder, tmp_path / "w", "--preset", "neuralangelo", "--iters", steps) == 0
    options = json.loads((tmp_path / "w" / "config.json").read_text())["options"]
    assert options["sdf_gradient"]["value"] == "taps4" and options["lambda_curvature"]["value"].count(":") == 2
    assert options["background"]["value"] == ("auto" if masks else "contracted")
    assert any(name.startswith("model/background.field") for name in newest(tmp_path / "w")) != masks
    assert "warning: --preset" not in capfd.readouterr().err


def test_a_preset_for_photographs_with_masks_is_warned_about_without_them(tmp_path, capfd):
    folder = ball_photographs(tmp_path / "photos", masks=False)
    assert run(folder, tmp_path / "w", "--preset", "neus", "--iters", 1) == 0
    assert "warning: --preset neus is for photographs with masks" in capfd.readouterr().err


@pytest.mark.parametrize(("preset", "loss", "weight"), [("neus", "mse", 10.0), ("neus-unmasked", "l1", 1.0)])
def test_photographs_of_an_object_are_compared_by_squares_and_those_of_a_scene_by_absolute_differences(
    tmp_path, preset, loss, weight
):
    folder = ball_photographs(tmp_path / "photos", masks=preset == "neus")
    assert run(folder, tmp_path / "w", "--iters", 1) == 0
    options = json.loads((tmp_path / "w" / "config.json").read_text())["options"]
    assert [options[name]["value"] for name in ("preset", "rgb_loss", "lambda_rgb")] == [preset, loss, weight]
