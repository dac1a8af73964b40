"""A run that ends with an empty field: one sentence, exit code 1, result.json with what is known, and it can go on."""

import json

import numpy as np
import pytest
import torch

import main
from nerf.run import checkpoint
from tests.nerf import photo_folders

TINY = (
    "--seed 5 --iters 3 --num_rays 16 --max_steps 16 --grid_size 8 --grid_levels 2 --grid_log2 6 --grid_finest 16 --hidden 16 "
    "--W 8 --H 8 --dataset_size_test 2 --threads 1 --device cpu --holdout 4 --tet_grid_size 8 --dmtet_iters 2 --w 8 --h 8 "
    "--batch_size 1 --mcubes_resolution 24 --texture_size 32 --blob_density 4 --blob_radius 0.6"
).split()
NOWHERE = ("--mesh_threshold", "1e6")  # a density that the field has nowhere
SOMEWHERE = ("--mesh_threshold", "5")


@pytest.fixture
def run(tmp_path, capfd):
    """Run main.py in this process: words -> (exit code, last line on stderr, result.json)."""
    photos = tmp_path / "photos"
    photos.mkdir()
    images = [np.full((12, 12, 3), 90, np.uint8)] * 8
    photo_folders.write(photos, images)
    before = torch.get_num_threads()

    def run(*words):
        code = main.main(["--data", str(photos), "--workspace", str(tmp_path / "run"), *TINY, *words])
        said = capfd.readouterr().err.strip().splitlines()
        result = tmp_path / "run" / "result.json"
        return code, said[-1], json.loads(result.read_text()) if result.is_file() else None

    yield run
    torch.set_num_threads(before)


def steps(folder):
    """Stage -> newest step."""
    found = {stage: checkpoint.steps(folder / "checkpoints", stage) for stage in ("nerf", "dmtet")}
    return {stage: of_stage[-1][0] for stage, of_stage in found.items() if of_stage}


def test_a_second_stage_without_a_start_leaves_the_results_of_the_first(run, tmp_path):
    code, said, result = run("--stages", "nerf,dmtet", "--save_mesh", *NOWHERE)
    assert code == 1 and said.startswith("main.py: the NeRF is empty: its highest density is ") and "--mesh_threshold" in said
    assert result["error"] == said.removeprefix("main.py: ") and result["stages"]["nerf"]["steps"] == 3
    assert result["test_psnr"] > 0 and result["seed"] == 5 and "mesh" not in result
    assert list((tmp_path / "run" / "results").glob("df_step_00000003_rgb.*")) and steps(tmp_path / "run") == {"nerf": 3}
    code, _, result = run("--stages", "nerf,dmtet", *SOMEWHERE)
    assert code == 0 and "error" not in result and steps(tmp_path / "run") == {"nerf": 3, "dmtet": 2}


def test_a_mesh_stage_of_its_own_that_cannot_start_changes_nothing(run, tmp_path):
    assert run(*SOMEWHERE)[0] == 0
    before = (tmp_path / "run" / "result.json").read_bytes()
    code, said, _ = run("--dmtet", *NOWHERE)
    assert code == 1 and said.startswith("main.py: the NeRF is empty")
    assert (tmp_path / "run" / "result.json").read_bytes() == before
    assert run("--dmtet", *SOMEWHERE)[0] == 0


def test_a_mesh_of_an_empty_field_is_one_sentence_after_everything_else(run, tmp_path):
    code, said, result = run("--save_mesh", *NOWHERE)
    assert code == 1 and said.startswith("main.py: the field is empty") and result["error"] == said.removeprefix("main.py: ")
    assert result["test_psnr"] > 0 and result["steps"] == 3
    code, said, result = run("--test", "--save_mesh", *NOWHERE)
    assert code == 1 and said.startswith("main.py: the field is empty") and result["test_psnr"] > 0
    assert run("--test", "--save_mesh", *SOMEWHERE)[0] == 0
