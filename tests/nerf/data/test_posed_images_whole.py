"""Photographs as whole images: resampling, undistortion, masks and normals; and as evaluation targets."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from nerf.core.cameras import project
from nerf.core.errors import UserError
from nerf.core.streams import Random
from tests.helpers.parts import part_of
from tests.nerf.photo_folders import SIZES, load, pattern, poses, write


def whole(num_views=2, height=16, width=24, **changes):
    return part_of("photos", num_views=num_views, height=height, width=width, seed=5, **changes).request


def encoded_position(batch, photos, i, number, size, border=1.0):
    """Positions in photograph ``i`` of the pixels of image ``number`` of a batch, away from the borders: as encoded in the
    colours, and as the projections of the rays. Pixels, [K, 2] each."""
    inside = batch.rays.view_index == number
    rays, code = batch.rays[inside], batch.rgb[inside] * 255
    projected = project(photos.view(i), rays.origins + 2 * rays.directions)[0][0]
    seen = ((projected > border) & (projected < torch.tensor(size, device=projected.device) - border)).all(-1)
    return code[seen][:, 1:3] + 0.5, projected[seen]


def test_whole_photographs_at_their_own_size_equal_their_files(mixed, device):
    photos = load(mixed, device=device)
    width, height = SIZES[0]
    batch = photos.batch(whole(3, height, width))
    image = batch.rgb[batch.rays.image_index == 0].reshape(height, width, 3)
    torch.testing.assert_close(image, photos.image(0))
    assert batch.rays.shape == (3, height, width) and batch.mask is None and batch.background is None


@pytest.mark.parametrize("height, width", [(7, 10), (21, 9), (30, 50)])
def test_resized_photographs_have_the_colours_that_their_rays_project_to(tmp_path, height, width):
    photos = load(write(tmp_path, [pattern(i, 20, 14) for i in range(3)], {"cx": 9.0}))
    batch = photos.batch(whole(2, height, width))
    for number, i in enumerate(batch.rays.image_index[:: height * width].tolist()):
        encoded, projected = encoded_position(batch, photos, i, number, (20, 14), border=3.0)
        assert len(encoded) > 10
        torch.testing.assert_close(encoded, projected, atol=0.05, rtol=0)  # the centroid of a filter of few pixels


def test_views_of_whole_photographs_are_the_cameras_of_their_rays(mixed):
    batch = load(mixed).batch(whole(3))
    point = batch.rays.origins + 3 * batch.rays.directions
    for b in range(3):
        inside = batch.rays.view_index == b
        xy = project(batch.views[b], point[inside])[0][0]
        torch.testing.assert_close(xy / torch.tensor([24.0, 16.0]), batch.rays.uv[inside], atol=1e-4, rtol=0)


def test_whole_photographs_are_undistorted(tmp_path):
    lens = {"k1": 0.06, "k2": -0.02, "p1": -0.01, "p2": 0.02}
    photos = load(write(tmp_path, [pattern(i, 40, 28) for i in range(2)], lens | {"fl_x": 30.0}))
    batch = photos.batch(whole(2, 28, 40))
    assert batch.views.distortion is None
    for number, i in enumerate(batch.rays.image_index[:: 28 * 40].tolist()):
        encoded, projected = encoded_position(batch, photos, i, number, (40, 28), border=2.0)
        torch.testing.assert_close(encoded, projected, atol=0.05, rtol=0)  # bilinear interpolation of the warp
        assert len(encoded) > 600
    as_taken = (batch.rays.uv * torch.tensor([40.0, 28.0]))[batch.rays.view_index == 0]
    encoded_undistorted = (batch.rgb[batch.rays.view_index == 0] * 255)[:, 1:3] + 0.5
    assert (encoded_undistorted - as_taken).norm(dim=-1).max() > 0.5  # the distortion is large enough to be seen


def test_whole_photographs_are_not_repeated_before_all_were_used(mixed):
    photos = load(mixed)
    assert sorted(photos.batch(whole(3)).rays.image_index.unique().tolist()) == [0, 1, 2]
    seven = photos.batch(whole(7)).rays.image_index[:: 16 * 24]
    assert sorted(torch.bincount(seven).tolist()) == [2, 2, 3]
    drawn = {int(photos.batch(replace(whole(1), random=Random(s))).rays.image_index[0]) for s in range(20)}
    assert drawn == {0, 1, 2}


def test_whole_photographs_are_composited_over_one_colour_each(transparent, device):
    batch = load(transparent, device=device).batch(whole(2))
    assert batch.background.shape == (2, 3) and not torch.equal(batch.background[0], batch.background[1])
    behind = batch.background[batch.rays.view_index]
    empty = batch.mask == 0
    assert empty.any() and torch.equal(batch.rgb[empty], behind[empty])
    black = load(transparent, device=device).batch(whole(2), torch.zeros(3))
    torch.testing.assert_close(batch.rgb, black.rgb + (1 - batch.mask)[:, None] * behind)


def test_transparent_pixels_do_not_bleed_their_colour_into_resized_photographs(tmp_path):
    image = np.zeros((16, 16, 4), np.uint8)
    image[..., 0] = 255  # red where it cannot be seen, green where it can
    image[:, 8:] = (0, 255, 0, 255)
    batch = load(write(tmp_path, [image] * 3)).batch(whole(1, 7, 7), torch.zeros(3))
    assert batch.rgb[:, 0].max() == 0 and 0 < batch.mask[batch.mask < 1].max()


def test_masked_pixels_are_transparent_in_whole_photographs(tmp_path):
    mask = np.zeros((12, 20), np.uint8)
    mask[:, 10:] = 255
    photos = load(write(tmp_path, [pattern(i, 20, 12) for i in range(2)], masks=[mask] * 2))
    batch = photos.batch(whole(1, 12, 20), torch.tensor([0.0, 0.0, 1.0]))
    assert torch.equal(batch.mask.reshape(12, 20), torch.from_numpy(mask).float() / 255)
    assert (batch.rgb.reshape(12, 20, 3)[:, :10] == torch.tensor([0.0, 0.0, 1.0])).all()


def test_normals_are_rotated_with_the_scene(tmp_path, device):
    towards_camera = [pose[:3, 2] for pose in poses(3)]  # in the axes of the file, whose up is z
    encoded = [np.tile(((n + 1) * 127.5).round().byte().numpy(), (12, 20, 1)) for n in towards_camera]
    for normal in encoded:
        normal[:, :5] = 0  # black background is no normal
    photos = load(write(tmp_path, [pattern(i, 20, 12) for i in range(3)], normals=encoded), device=device, bound=2.0)
    batch = photos.batch(whole(3, 12, 20))
    normal = batch.normal.reshape(3, 12, 20, 3)
    back = batch.views.pose[:, None, None, :3, 2].expand(3, 12, 15, 3)
    torch.testing.assert_close(normal[:, :, 5:], back, atol=0.01, rtol=0)  # 8 bits
    assert (normal[:, :, :5] == 0).all()


def test_photographs_without_normal_map_have_zero_normals(tmp_path):
    up = np.tile(np.array([128, 128, 255], np.uint8), (12, 20, 1))
    folder = write(tmp_path, [pattern(i, 20, 12) for i in range(3)], normals=[up] * 3)
    document = json.loads((folder / "transforms.json").read_text())
    del document["frames"][1]["normal_path"]
    (folder / "transforms.json").write_text(json.dumps(document))
    batch = load(folder).batch(whole(3, 12, 20))
    length = batch.normal.norm(dim=-1)
    second = batch.rays.image_index == 1
    assert (length[second] == 0).all()
    torch.testing.assert_close(length[~second], torch.ones(480))


def test_normals_of_another_size_are_refused(tmp_path):
    folder = write(tmp_path, [pattern(i, 20, 12) for i in range(2)], normals=[np.zeros((3, 3, 3), np.uint8)] * 2)
    with pytest.raises(UserError, match="normals .*normal_00.png must have its photograph's size, 20x12 .* got 3x3"):
        load(folder)


# ---- evaluation ----


@pytest.mark.parametrize("fixture", ["mixed", "transparent"])
def test_eval_batches_are_whole_photographs_with_their_own_cameras(request, fixture, device):
    photos = load(request.getfixturevalue(fixture), device=device)
    for i, (width, height) in enumerate(SIZES):
        batch, valid = photos.eval_batch(i)
        assert batch.rays.shape == (1, height, width) and valid is None and (batch.rays.image_index == i).all()
        torch.testing.assert_close(batch.rgb.reshape(height, width, 3), photos.image(i))
        assert torch.equal(batch.views.pose[0], photos.cameras.pose[i])
        assert (batch.background is None) == (photos.background is None) == (batch.mask is None)


def test_masked_pixels_are_invalid_in_eval_batches_and_transparent_in_undistorted_ones(tmp_path):
    mask = np.zeros((12, 20), np.uint8)
    mask[:, 10:] = 255
    photos = load(write(tmp_path, [pattern(i, 20, 12) for i in range(2)], masks=[mask] * 2))
    batch, valid = photos.eval_batch(1)
    assert torch.equal(valid.reshape(12, 20), torch.from_numpy(mask) > 0)
    torch.testing.assert_close(batch.rgb.reshape(12, 20, 3), photos.image(1))
    batch, valid = photos.eval_batch(1, undistorted=True)
    image = batch.rgb.reshape(12, 20, 3)
    assert valid is None and (image[:, :10] == 1).all() and (batch.background == 1).all()
    torch.testing.assert_close(image[:, 10:], photos.image(1)[:, 10:])


def test_undistorted_eval_batches_equal_training_images(tmp_path):
    lens = {"k1": 0.06, "k2": -0.02, "fl_x": 30.0}
    photos = load(write(tmp_path, [pattern(i, 40, 28, channels=4) for i in range(2)], lens))
    batch, _ = photos.eval_batch(1, undistorted=True)
    assert batch.views.distortion is None and photos.eval_batch(1)[0].views.distortion is not None
    trained = photos.batch(whole(2, 28, 40), torch.ones(3))
    assert torch.equal(trained.rgb[trained.rays.image_index == 1], batch.rgb)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_batches_do_not_synchronise_with_the_gpu(transparent):
    photos = load(transparent, device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        layouts = ({"layout": "rays"}, {"layout": "patches", "patch_size": 4})
        for wanted in (whole(2), *(replace(whole(), num_rays=100, **layout) for layout in layouts)):
            photos.batch(wanted)
    finally:
        torch.cuda.set_sync_debug_mode("default")
