"""The vanilla backbone."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from nerf.config.config import Config
from nerf.core.structs import SceneInfo
from nerf.network import FREQUENCIES, ResidualBlock, VanillaField
from tests.nerf import photo_folders


def test_a_residual_block_that_adds_nothing_is_its_activation():
    block = ResidualBlock(8)
    torch.nn.init.zeros_(block.norm.weight)
    x = torch.randn(5, 8)
    torch.testing.assert_close(block(x), torch.nn.functional.silu(x))


def test_high_frequencies_are_zero_until_their_level_is_active():
    field = VanillaField(Config().field, SceneInfo())
    encoded = field.encoder(torch.rand(4, 3), max_level=0.5)
    assert encoded.shape == (4, 3 + 6 * FREQUENCIES)
    assert (encoded[:, 3 + 3 * FREQUENCIES :] == 0).all() and (encoded[:, : 3 + 3 * FREQUENCIES] != 0).any()


def test_the_field_has_far_fewer_parameters_than_a_grid():
    assert sum(p.numel() for p in VanillaField(Config().field, SceneInfo()).parameters()) < 40_000


BARE = """
import sys
sys.modules.update(dict.fromkeys({packages!r}))  # they look as if they were not installed
import main
code = main.main(sys.argv[1:])
from extension import build
assert not [key for key, found in build._loaded.items() if not isinstance(found, build.BuildError)], "a kernel was loaded"
sys.exit(code)
"""
OPTIONAL = (
    "accelerate deodr dearpygui debugpy diffusers embreex imageio_ffmpeg onnxruntime peft pycolmap sentencepiece taichi "
    "tensorboard tinycudann transformers viser"
).split()


@pytest.mark.slow
def test_it_needs_torch_alone(tmp_path):
    """No compiler, no kernels, none of the optional packages but those that write a mesh: train, show, export."""
    for package in ("trimesh", "skimage", "xatlas", "fast_simplification"):
        pytest.importorskip(package)
    folder, images = tmp_path / "photographs", np.zeros((6, 12, 12, 4), np.uint8)
    folder.mkdir()
    images[:, 4:8, 4:8] = (200, 60, 20, 255)
    photo_folders.write(folder, images)
    tiny = "--num_rays 64 --hidden 16 --num_steps 16 --upsample_steps 8 --W 8 --H 8 --dataset_size_test 2 --threads 1 --seed 1"
    run = ["--workspace", str(tmp_path / "run"), *tiny.split()]
    environment = {"PATH": str(tmp_path), "SOMNIA_KERNEL_CACHE": str(tmp_path / "kernels"), "HOME": str(tmp_path)}

    def spawn(*words):
        command = [sys.executable, "-c", BARE.format(packages=OPTIONAL), *words, *run]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)

    blob = "--density_bias -2 --blob_density 4 --blob_radius 0.6".split()
    trained = spawn("--data", str(folder), "-O2", "--iters", "2", "--no_save_mesh", *blob)
    assert trained.returncode == 0, trained.stderr
    assert "backend torch, plain PyTorch" in trained.stderr and "no C++ compiler was found" in trained.stderr
    mesh = "--mcubes_resolution 16 --texture_size 64 --decimate_target 500 --mesh_threshold 1".split()
    shown = spawn("--test", "--save_mesh", *mesh)
    assert shown.returncode == 0, shown.stderr
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["steps"] == 2 and result["mesh"]["faces"] > 0
    assert (tmp_path / "run" / "mesh" / "mesh.glb").is_file() and not (tmp_path / "kernels").exists()
