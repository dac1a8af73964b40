"""Masks of occluders as pictures: where they come from, how they are named, and which photographs have one."""

import numpy as np
import pytest
import torch
from PIL import Image

from nerf.config.wild import WildConfig
from nerf.core.structs import RenderSettings
from nerf.provider import PhotographSource
from nerf.run import occluder_masks
from nerf.run.occluder_masks import file_name, mask_of, write
from nerf.training.objectives import KnownView
from nerf.training.occluders import MaskNetwork, build_occluders
from tests.nerf import wild
from tests.nerf.photo_folders import SIZES, load, pattern
from tests.nerf.photo_folders import write as write_folder


@pytest.fixture
def photos(tmp_path):
    """Three photographs of different sizes."""
    (tmp_path / "photos").mkdir()
    return load(write_folder(tmp_path / "photos", [pattern(i, *size) for i, size in enumerate(SIZES)]))


def objectives(kind, count=3):
    torch.manual_seed(0)
    occluders = build_occluders(WildConfig(occluders=kind, mask_vector=4, mask_hidden=8, patch_grid=8), count)
    if isinstance(occluders, MaskNetwork):
        torch.nn.init.normal_(occluders.out.weight, 0, 3)
    return {"known_view": KnownView(occluders=occluders)}


def test_the_picture_is_the_mask_of_each_pixel_in_training(photos, tmp_path):
    found = objectives("mask")
    said = write(found, {"photos": PhotographSource(photos)}, wild.model()[0], tmp_path / "masks")
    occluders, shares = found["known_view"].occluders, []
    for i, name in enumerate(photos.names):
        picture = np.asarray(Image.open(tmp_path / "masks" / f"{file_name(name)}.png"))
        assert picture.shape == (*photos.store.size(i), 3)
        image, column, row = (torch.tensor(v) for v in ([i] * 2, [3, 8], [2, 7]))
        rays = photos._pixel_rays(image, column, row)
        mask = occluders.mask(rays.image_index, rays.uv)
        assert np.abs(picture[[2, 7], [3, 8], 0] - 255 * mask.detach().numpy()).max() <= 1
        shares.append(picture.mean() / 255)
    assert said["masks"] == 3 and said["masked"] == pytest.approx(np.mean(shares), abs=0.01)


def test_robust_masks_are_white_where_errors_stand_out(tmp_path):
    (tmp_path / "large").mkdir()
    photos = load(write_folder(tmp_path / "large", [pattern(i, 48, 48) for i in range(3)]))
    model, occluders = wild.model()[0], objectives("robust")["known_view"].occluders
    vector = model.appearance.of_photographs(torch.tensor([0]))[0]
    settings = RenderSettings(training=False, view_dependent=True, appearance=vector)
    picture = (model.render(photos.eval_batch(0)[0].rays, settings).image * 255).round().byte()
    picture.view(48, 48, 3)[8:26, 8:26] = 255 - picture.view(48, 48, 3)[8:26, 8:26]  # stands before the scene
    photos.store.pixels[: 48 * 48] = picture
    mask = mask_of(occluders, photos, 0, model)
    assert set(mask.unique().tolist()) == {0.0, 1.0}
    assert mask[9:23, 9:23].all() and mask.mean() < 0.25 and not mask[30:].any()


def test_runs_that_look_for_no_occluders_write_none(photos, tmp_path):
    assert write({"known_view": KnownView()}, {"photos": PhotographSource(photos)}, wild.model()[0], tmp_path / "masks") == {}
    assert write({}, {}, wild.model()[0], tmp_path / "masks") == {} and not (tmp_path / "masks").exists()


def test_of_many_photographs_evenly_chosen_ones_have_a_mask(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(occluder_masks, "PIXELS", 300)
    said = write(objectives("mask"), {"photos": PhotographSource(photos)}, wild.model()[0], tmp_path / "masks")
    assert said["masks"] == 1


@pytest.mark.parametrize(
    "name, word", [("./train/r_3.png", "train_r_3"), ("a.jpg", "a"), ("../other/b", "other_b"), ("c.d.jpg", "c.d")]
)
def test_names_are_one_word(name, word):
    assert file_name(name).lstrip("_") == word
