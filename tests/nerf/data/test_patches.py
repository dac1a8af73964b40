"""Patches as regular grids over a part of a photograph: exact pixels, also of late photographs, inside, of the asked scale."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from nerf.core.streams import Random
from nerf.core.structs import ViewRequest
from nerf.data.image_store import ImageStore
from nerf.data.patches import grid_patches, small_picture
from tests.nerf import photo_folders


def store_of(width, height):
    return SimpleNamespace(width=torch.tensor(width), height=torch.tensor(height), pixels=torch.zeros(1))


def draw(store, count, size, least, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return grid_patches(store, torch.randint(len(store.width), (count,), generator=generator), size, least, generator)


def test_a_patch_of_full_scale_is_every_pixel_of_a_photograph_of_its_size():
    patch = draw(store_of([8], [8]), 5, 8, 1.0)
    assert torch.equal(patch.column, torch.arange(8).expand(5, 8, 8))
    assert torch.equal(patch.row, torch.arange(8)[:, None].expand(5, 8, 8))


def test_a_patch_spans_the_share_of_both_sides_that_is_asked_for_and_lies_anywhere():
    patch = draw(store_of([401], [201]), 4000, 5, 0.5)
    width = (patch.column[:, 0, -1] - patch.column[:, 0, 0]) / 400
    height = (patch.row[:, -1, 0] - patch.row[:, 0, 0]) / 200
    assert width.min() >= 0.5 - 3e-3 and width.max() <= 1 and abs(float(width.mean()) - 0.75) < 0.01
    assert (width - height).abs().max() < 1e-2  # one scale for both, each rounded to pixels
    assert patch.column.min() == 0 and patch.column.max() == 400 and patch.row.max() == 200
    place = patch.column[:, 0, 0] / (400 * (1 - width)).clamp(min=1)
    assert abs(float(place[width < 0.9].mean()) - 0.5) < 0.03


def test_no_pixel_is_drawn_twice_where_the_photograph_has_enough():
    patch = draw(store_of([40, 33], [36, 80]), 500, 32, 0.1)
    assert (patch.column.diff(dim=-1) >= 1).all() and (patch.row.diff(dim=-2) >= 1).all()


def test_a_scale_of_zero_is_neighbouring_pixels():
    patch = draw(store_of([40, 33], [36, 80]), 500, 16, 0.0)
    assert (patch.column.diff(dim=-1) == 1).all() and (patch.row.diff(dim=-2) == 1).all()
    assert patch.column.min() == 0 and patch.row.max() == 79


def test_small_photographs_repeat_their_pixels():
    patch = draw(store_of([3], [1]), 10, 6, 0.5)
    assert set(patch.column.unique().tolist()) == {0, 1, 2} and not patch.row.any()


def test_pixels_of_late_photographs_are_exact():
    """The peer adds up the pixels of photographs in single precision: on late ones its grid is eight times as coarse."""
    count, side = 763, 600
    store = store_of([side] * count, [side] * count)
    store.ends = torch.cumsum(store.width * store.height, 0)
    patch = draw(store, 400, 32, 0.1)
    pixel = ImageStore.pixel_index(store, *patch.flat())
    assert int(pixel.max()) > 2**24 and pixel.dtype == torch.int64
    image, column, row = ImageStore.locate(store, pixel)
    assert torch.equal(torch.stack([image, column, row]), torch.stack(patch.flat()))
    assert len(pixel.view(400, -1)[-1].unique()) == 32 * 32


def test_batches_of_patches_have_the_pixels_of_their_photographs(tmp_path):
    sizes = [(40, 34), (36, 50), (9, 7)]
    photos = photo_folders.load(
        photo_folders.write(tmp_path, [photo_folders.pattern(i, *size) for i, size in enumerate(sizes)])
    )
    request = ViewRequest("photos", layout="patches", num_rays=600, patch_size=8, patch_scale=0.4, random=Random(1))
    batch = photos.batch(request)
    assert batch.rays.patch_images == tuple(batch.rays.image_index[::64].tolist())
    assert batch.rays.shape == (9, 8, 8) and len(batch.rays) == 576 and batch.valid is None
    size = torch.tensor(sizes)[batch.rays.image_index]
    xy = batch.rays.uv * size - 0.5
    expected = torch.cat([10 * batch.rays.image_index[:, None], xy], -1) / 255
    torch.testing.assert_close(batch.rgb, expected, atol=1e-5, rtol=0)
    assert (batch.rays.image_index.view(9, -1) == batch.rays.image_index.view(9, -1)[:, :1]).all()
    assert torch.equal(batch.rgb, photos.batch(request).rgb)
    many = photos.batch(replace(request, num_rays=1200, patch_size=2)).rays.patch_images
    assert min(many.count(i) for i in range(3)) > 70  # with equal chances, whatever their size


def test_batches_of_patches_say_which_pixels_are_masked_out(tmp_path):
    mask = photo_folders.pattern(0, 20, 20)[..., 1] >= 10
    folder = photo_folders.write(tmp_path, [photo_folders.pattern(0, 20, 20)], masks=[(mask * 255).astype("uint8")])
    photos = photo_folders.load(folder)
    batch = photos.batch(ViewRequest("photos", layout="patches", num_rays=64, patch_size=8, patch_scale=0.5, random=Random(1)))
    assert torch.equal(batch.valid, batch.rays.uv[:, 0] * 20 - 0.5 >= 9.99) and not batch.valid.all()


@pytest.mark.parametrize(("size", "made"), [((80, 40), (32, 16)), ((20, 32), (20, 32)), ((400, 2), (32, 1)), ((5, 4), (5, 4))])
def test_small_pictures_keep_their_proportions(size, made):
    picture = small_picture(torch.rand(size[1], size[0], 3), 32)
    assert picture.shape == (3, made[1], made[0]) and picture.min() >= 0 and picture.max() <= 1


def test_a_small_picture_is_the_mean_of_its_parts():
    image = torch.rand(64, 64, 3)
    small = small_picture(image, 16)
    assert (small.mean((1, 2)) - image.mean((0, 1))).abs().max() < 0.01
