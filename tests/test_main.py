"""Small complete runs on every device: photographs and text, both stages, in mixed precision, to the mesh."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import guidance
import main
import preprocess_image
from guidance import Family
from guidance.base import CameraRequirements, Guidance, GuidanceOutput
from nerf.config.config import parse
from nerf.core.errors import UserError
from tests.nerf import photo_folders

TINY = (
    "--seed 5 --iters 12 --max_steps 48 --grid_size 16 --grid_levels 4 --grid_log2 10 --grid_finest 32 --hidden 16 --W 8 --H 8 "
    "--dataset_size_test 2 --threads 1 --stages nerf,dmtet --dmtet_iters 6 --tet_grid_size 8 --batch_size 2 --fp16 --cuda_ray "
    "--save_mesh --texture_size 64 --mcubes_resolution 24 --lambda_mesh_sign 0.1 --lambda_mesh_laplacian 0.1"
).split()


@pytest.fixture
def run(tmp_path):
    """Run main.py in this process: words -> what result.json says."""
    for package in ("trimesh", "skimage"):  # which write the mesh
        pytest.importorskip(package)
    before = torch.get_num_threads()
    yield lambda *words: (main.main([*map(str, words), *TINY, "--workspace", str(tmp_path / "run")]),
                          json.loads((tmp_path / "run" / "result.json").read_text()))  # fmt: skip
    torch.set_num_threads(before)


@pytest.fixture
def photographs(tmp_path):
    """Eight pictures of a red square on clear ground, with normals, from all sides."""
    folder, images = tmp_path / "photographs", np.zeros((8, 12, 12, 4), np.uint8)
    folder.mkdir()
    for i in range(8):
        images[i, 4:8, 4:8] = (200, 30 * i, 20, 255)
    return photo_folders.write(folder, images, normals=np.full((8, 12, 12, 3), 200, np.uint8))


def assert_whole(outcome, steps):
    """The run ended well, both stages took their steps, and there is a mesh."""
    code, result = outcome
    assert code == 0 and result["mesh"]["faces"] > 0
    assert {name: stage["steps"] for name, stage in result["stages"].items()} == steps


def test_photographs_become_a_mesh_on_every_device(run, photographs, device):
    words = "--num_rays 64 --holdout 4 --w 12 --h 12 --mesh_threshold 2 --lambda_mask 1 --lambda_normal 0.1 --blob_density 4"
    outcome = run("--data", photographs, "--device", device.type, "--blob_radius", "0.6", *words.split())
    assert_whole(outcome, {"nerf": 12, "dmtet": 6})
    assert 0 < outcome[1]["test_psnr"] < 100


def test_words_become_a_mesh_on_every_device(run, device):
    words = "--sd_version embedded --w 16 --h 16 --mesh_threshold 0.5 --save_guidance --save_guidance_interval 5"
    outcome = run("--text", "a blue house with a red roof", "--device", device.type, *words.split())
    assert_whole(outcome, {"nerf": 12, "dmtet": 6})


NO_DEVICE = [
    (0, "cuda", "sees no CUDA device"),
    (1, "cuda:5", "torch sees 1 CUDA device here; give cuda:0$"),
    (2, "cuda:5", "torch sees 2 CUDA devices here; give cuda:0 to cuda:1$"),
]


@pytest.mark.parametrize(("devices", "name", "answer"), NO_DEVICE)
def test_a_device_that_is_not_there_is_refused(monkeypatch, devices, name, answer):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: devices > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: devices)
    with pytest.raises(UserError, match=answer):
        main.prepare_machine(parse(["--text", "a cone", "--workspace", "run", "--device", name]))


class Lighter(Guidance):
    """Stands in for a model that knows objects from a picture: it wants other views to have the picture's mean colour."""

    name = "zero123"

    def prepare(self, conditions):
        """Keep the pictures."""
        assert conditions.text is None
        image = conditions.images[0].image
        self.colour = (image[:3] * image[3:]).sum((1, 2)) / image[3].sum()

    def requirements(self):
        """Square views."""
        return CameraRequirements(square=True)

    def loss(self, image, views, part, control, *, debug=False):
        """Mean squared distance to the colour over the middle of each view."""
        size = image.shape[-1] // 3
        middle = image[..., size:-size, size:-size]
        return GuidanceOutput((middle - self.colour.to(image)[:, None, None]).square().mean())


def test_a_picture_becomes_a_mesh_on_every_device(run, tmp_path, monkeypatch, device):
    """From a photograph on plain ground: cut out, trained on without words, in both stages, exported, resumed."""
    monkeypatch.setitem(guidance.FAMILIES, "zero123", Family(lambda *_: Lighter(), takes=("image",), requires=("image",)))
    photograph = np.full((40, 60, 3), 235, np.uint8)
    photograph[10:32, 18:42] = (200, 90, 20)
    Image.fromarray(photograph).save(tmp_path / "box.jpg")
    made = preprocess_image.main([str(tmp_path / "box.jpg"), "--size", "48", "--depth", "none", "--normal", "none"])
    assert made == 0
    words = "--w 16 --h 16 --mesh_threshold 2 --density_bias -2.5 --blob_density 5 --lambda_3d_normal_smooth 0"
    image = tmp_path / "box_rgba.png"
    outcome = run("--image", image, "--device", device.type, *words.split())
    assert_whole(outcome, {"nerf": 12, "dmtet": 6})  # the fixture's own words come last
    result = outcome[1]
    assert result["images"] == [str(image)] and result["prompt"] is None and 0 < result["image_psnr"] < 100
    assert (tmp_path / "run" / "mesh" / "mesh.glb").is_file()
    code, again = run("--test", "--device", device.type)
    assert code == 0 and again["mesh"]["faces"] > 0
