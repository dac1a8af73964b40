"""Runs on photographs in the wild from the command line on: every kind trains, resumes with the same bits, and is shown."""

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
from tests.nerf.test_sdf_runs import ball_photographs

pytestmark = pytest.mark.usefixtures("short_fits")
TINY = (
    "--wild --seed 3 --iters 8 --num_rays 128 --patch_grid 8 --max_steps 32 --grid_size 16 --grid_levels 4 --grid_log2 10 "
    "--grid_finest 32 --W 12 --H 12 --dataset_size_test 2 --holdout 4 --preview_interval 1000 --device cpu --threads 1 "
    "--update_extra_interval 4 --appearance_size 6 --appearance_side 16 --mask_vector 4 --mask_hidden 8 --mask_octaves 3"
)
KINDS = (
    "",
    "--appearance embedding --occluders robust",
    "--appearance none --occluders mask --lambda_mask_digital 0.001 --patch_scale_decay 0.1",
    "--occluders none --background network",
    "--backbone sdf --preset neus-unmasked --sdf_init_steps 5 --ray_samples 1000",
)


def tourists(folder: Path, channels: int = 3) -> Path:
    """Six photographs of two sizes, each darker than the one before, with a block before every other one."""
    folder.mkdir()
    images = []
    for i in range(6):
        width, height = ((20, 16), (16, 20))[i % 2]
        image = np.full((height, width, channels), 255, np.uint8)
        image[..., :3] = (200 - 20 * i, 120, 60 + 20 * i)
        if i % 2:
            image[4:9, 5:10, :3] = (0, 255, 0)
        images.append(image)
    return photo_folders.write(folder, images)


def run(folder, workspace, *flags):
    return main.main(["--data", str(folder), "--workspace", str(workspace), *TINY.split(), *map(str, flags)])


def newest(workspace):
    return load_file(sorted((workspace / "checkpoints").glob("*.safetensors"))[-1])


@pytest.mark.parametrize("kind", KINDS)
def test_a_stopped_run_goes_on_with_the_same_bits(tmp_path, kind):
    folder = tourists(tmp_path / "photos")
    words = kind.split()
    assert run(folder, tmp_path / "a", *words) == 0
    assert run(folder, tmp_path / "b", *words, "--minutes", 1e-6) == 0  # one step
    assert len([name for name in newest(tmp_path / "b") if name.startswith("objectives/")]) > 0
    assert run(folder, tmp_path / "b", *words) == 0
    one, two = newest(tmp_path / "a"), newest(tmp_path / "b")
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_the_checkpoint_remembers_the_appearances_of_photographs_and_their_masks(tmp_path):
    folder = tourists(tmp_path / "photos")
    assert run(folder, tmp_path / "w") == 0
    kept = newest(tmp_path / "w")
    known, last = kept["objectives/appearance/known"], kept["objectives/appearance/last"]
    assert known.any() and last.shape == (4, 6) and not last[~known].any() and last[known].any(-1).all()
    assert "objectives/known_view/occluders.vectors.weight" in kept and "model/appearance.encoder.out.weight" in kept


def test_every_term_of_the_paper_is_logged_and_weighs_relative_to_colours(tmp_path):
    folder = tourists(tmp_path / "photos")
    assert run(folder, tmp_path / "w", "--lambda_mask_digital", 0.001) == 0
    log = "".join(path.read_text() for path in (tmp_path / "w").glob("log*.txt"))
    for term in ("rgb", "mask_size", "mask_digital", "appearance_norm", "appearance_match", "mode_seeking", "masked"):
        assert f"{term} " in log, term


def test_two_lights_of_one_run_differ_and_the_name_of_a_photograph_is_one(tmp_path):
    folder = tourists(tmp_path / "photos")
    assert run(folder, tmp_path / "w", "--iters", 60, "--appearance", "embedding", "--lr", 0.05) == 0

    def shown(light):
        assert run(folder, tmp_path / "w", "--test", "--shown_light", light, "--appearance", "embedding") == 0
        (sheet,) = (tmp_path / "w" / "results").glob("*_sheet.png")
        return np.asarray(Image.open(sheet)).astype(int)

    names = [frame.name for frame in read_folder(folder, 4).frames]
    first, last = shown("0"), shown("3")
    assert np.abs(first - last).max() > 3
    assert np.array_equal(shown(str(Path(names[read_folder(folder, 4).splits["train"][3]]))), last)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--shown_light 9", "there are 4 training photographs"),
        ("--shown_light nobody.png", "no training photograph has this name"),
        ("--exposure", "give one of them"),
        ("--dmtet --init_with x.obj", "need rays"),
        ("--occluders robust --patch_grid 0", "--patch_grid 16"),
        ("--num_rays 60", "must hold a patch of 8x8 rays"),
        ("--mask_size_min 1", "at most --mask_size_max"),
    ],
)
def test_what_cannot_work_is_refused_in_a_sentence(tmp_path, capfd, flags, said):
    folder = tourists(tmp_path / "photos")
    (tmp_path / "x.obj").touch()
    assert run(folder, tmp_path / "w", *flags.replace("x.obj", str(tmp_path / "x.obj")).split()) == 2
    assert said in capfd.readouterr().err and not (tmp_path / "w" / "checkpoints").exists()


def test_photographs_smaller_than_a_patch_are_trained_on(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    photo_folders.write(folder, [photo_folders.pattern(i, 5, 3) for i in range(4)])
    assert run(folder, tmp_path / "w") == 0


def test_the_mesh_has_the_shown_light(tmp_path):
    folder = ball_photographs(tmp_path / "photos", masks=True)
    for i, path in enumerate(sorted(folder.glob("*.png"))):
        pixels = np.asarray(Image.open(path)).copy()
        pixels[..., 2] = 30 * i
        Image.fromarray(pixels).save(path)
    surface = ("--backbone", "sdf", "--occluders", "none", "--appearance", "embedding", "--iters", 40, "--lr", 0.03)
    assert run(folder, tmp_path / "w", *surface) == 0
    colours = []
    for light in ("0", "3"):
        words = ("--test", "--save_mesh", "--mcubes_resolution", 16, "--texture_size", 64, "--shown_light", light)
        assert run(folder, tmp_path / "w", *surface, *words) == 0
        colours.append(trimesh.load(tmp_path / "w" / "mesh" / "mesh.obj", force="mesh").visual.material.image)
    one, other = (np.asarray(image.convert("RGB")).astype(int) for image in colours)
    assert one.shape == other.shape and np.abs(one - other).max() > 5


def test_options_of_a_wild_run_are_kept(tmp_path):
    folder = tourists(tmp_path / "photos")
    assert run(folder, tmp_path / "w", "--iters", 1) == 0
    words = "--test --W 12 --H 12 --dataset_size_test 2 --device cpu --max_steps 32 --threads 1".split()
    assert main.main(["--workspace", str(tmp_path / "w"), *words]) == 0
    options = json.loads((tmp_path / "w" / "config.json").read_text())["options"]
    assert options["appearance"]["value"] == "encoder" and options["occluders"]["value"] == "mask"
