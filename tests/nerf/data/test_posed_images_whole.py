"""Photographs as whole images: resized, freed of their lens, with masks and normals; and as measures of renderings."""

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


def told_position(batch, photos, i, number, size, border=1.0):
    """What image ``number`` of a batch, photograph ``i``, shows away from its borders: the position that its colours
    tell, and the one that its rays have in the photograph as it was taken. Pixels, [K, 2] each."""
    inside = batch.rays.view_index == number
    rays, code = batch.rays[inside], batch.rgb[inside] * 255
    taken = project(photos.view(i), rays.origins + 2 * rays.directions)[0][0]
    seen = ((taken > border) & (taken < torch.tensor(size, device=taken.device) - border)).all(-1)
    return code[seen][:, 1:3] + 0.5, taken[seen]


def test_whole_photographs_at_their_own_size_are_their_files(mixed, device):
    photos = load(mixed, device=device)
    width, height = SIZES[0]
    batch = photos.batch(whole(3, height, width))
    image = batch.rgb[batch.rays.image_index == 0].reshape(height, width, 3)
    torch.testing.assert_close(image, photos.image(0))
    assert batch.rays.shape == (3, height, width) and batch.mask is None and batch.background is None


@pytest.mark.parametrize("height, width", [(7, 10), (21, 9), (30, 50)])
def test_resized_photographs_show_at_every_ray_what_stood_there(tmp_path, height, width):
    photos = load(write(tmp_path, [pattern(i, 20, 14) for i in range(3)], {"cx": 9.0}))
    batch = photos.batch(whole(2, height, width))
    for number, i in enumerate(batch.rays.image_index[:: height * width].tolist()):
        told, taken = told_position(batch, photos, i, number, (20, 14), border=3.0)
        assert len(told) > 10
        torch.testing.assert_close(told, taken, atol=0.05, rtol=0)  # where a triangle of few pixels has its middle


def test_views_of_whole_photographs_are_the_cameras_of_their_rays(mixed):
    batch = load(mixed).batch(whole(3))
    point = batch.rays.origins + 3 * batch.rays.directions
    for b in range(3):
        inside = batch.rays.view_index == b
        xy = project(batch.views[b], point[inside])[0][0]
        torch.testing.assert_close(xy / torch.tensor([24.0, 16.0]), batch.rays.uv[inside], atol=1e-4, rtol=0)


def test_whole_photographs_are_freed_of_their_lens(tmp_path):
    lens = {"k1": 0.06, "k2": -0.02, "p1": -0.01, "p2": 0.02}
    photos = load(write(tmp_path, [pattern(i, 40, 28) for i in range(2)], lens | {"fl_x": 30.0}))
    batch = photos.batch(whole(2, 28, 40))
    assert batch.views.distortion is None
    for number, i in enumerate(batch.rays.image_index[:: 28 * 40].tolist()):
        told, taken = told_position(batch, photos, i, number, (40, 28), border=2.0)
        torch.testing.assert_close(told, taken, atol=0.05, rtol=0)  # straight pieces between pixels of a curve
        assert len(told) > 600
    as_taken = (batch.rays.uv * torch.tensor([40.0, 28.0]))[batch.rays.view_index == 0]
    told_at_ideal = (batch.rgb[batch.rays.view_index == 0] * 255)[:, 1:3] + 0.5
    assert (told_at_ideal - as_taken).norm(dim=-1).max() > 0.5  # the lens was worth undoing


def test_whole_photographs_of_a_step_are_different_ones_until_all_were_there(mixed):
    photos = load(mixed)
    assert sorted(photos.batch(whole(3)).rays.image_index.unique().tolist()) == [0, 1, 2]
    seven = photos.batch(whole(7)).rays.image_index[:: 16 * 24]
    assert sorted(torch.bincount(seven).tolist()) == [2, 2, 3]
    drawn = {int(photos.batch(replace(whole(1), random=Random(s))).rays.image_index[0]) for s in range(20)}
    assert drawn == {0, 1, 2}


def test_whole_photographs_are_composited_over_one_colour_each(clear, device):
    batch = load(clear, device=device).batch(whole(2))
    assert batch.background.shape == (2, 3) and not torch.equal(batch.background[0], batch.background[1])
    behind = batch.background[batch.rays.view_index]
    clear_pixels = batch.mask == 0
    assert clear_pixels.any() and torch.equal(batch.rgb[clear_pixels], behind[clear_pixels])
    black = load(clear, device=device).batch(whole(2), torch.zeros(3))
    torch.testing.assert_close(batch.rgb, black.rgb + (1 - batch.mask)[:, None] * behind)


def test_clear_pixels_do_not_bleed_their_colour_into_resized_photographs(tmp_path):
    picture = np.zeros((16, 16, 4), np.uint8)
    picture[..., 0] = 255  # red where it cannot be seen, green where it can
    picture[:, 8:] = (0, 255, 0, 255)
    batch = load(write(tmp_path, [picture] * 3)).batch(whole(1, 7, 7), torch.zeros(3))
    assert batch.rgb[:, 0].max() == 0 and 0 < batch.mask[batch.mask < 1].max()


def test_what_a_mask_leaves_out_is_clear_ground_in_whole_photographs(tmp_path):
    mask = np.zeros((12, 20), np.uint8)
    mask[:, 10:] = 255
    photos = load(write(tmp_path, [pattern(i, 20, 12) for i in range(2)], masks=[mask] * 2))
    batch = photos.batch(whole(1, 12, 20), torch.tensor([0.0, 0.0, 1.0]))
    assert torch.equal(batch.mask.reshape(12, 20), torch.from_numpy(mask).float() / 255)
    assert (batch.rgb.reshape(12, 20, 3)[:, :10] == torch.tensor([0.0, 0.0, 1.0])).all()


def test_normals_turn_with_the_world_of_their_photographs(tmp_path, device):
    towards_camera = [pose[:3, 2] for pose in poses(3)]  # in the axes of the file, whose up is z
    encoded = [np.tile(((n + 1) * 127.5).round().byte().numpy(), (12, 20, 1)) for n in towards_camera]
    for normal in encoded:
        normal[:, :5] = 0  # black ground is no direction
    photos = load(write(tmp_path, [pattern(i, 20, 12) for i in range(3)], normals=encoded), device=device, bound=2.0)
    batch = photos.batch(whole(3, 12, 20))
    normal = batch.normal.reshape(3, 12, 20, 3)
    back = batch.views.pose[:, None, None, :3, 2].expand(3, 12, 15, 3)
    torch.testing.assert_close(normal[:, :, 5:], back, atol=0.01, rtol=0)  # 8 bits
    assert (normal[:, :, :5] == 0).all()


def test_photographs_without_normals_among_others_have_none_of_any_direction(tmp_path):
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


# ---- measuring ----


@pytest.mark.parametrize("fixture", ["mixed", "clear"])
def test_measured_photographs_are_the_whole_ones_with_their_own_cameras(request, fixture, device):
    photos = load(request.getfixturevalue(fixture), device=device)
    for i, (width, height) in enumerate(SIZES):
        batch, usable = photos.measured(i)
        assert batch.rays.shape == (1, height, width) and usable is None and (batch.rays.image_index == i).all()
        torch.testing.assert_close(batch.rgb.reshape(height, width, 3), photos.image(i))
        assert torch.equal(batch.views.pose[0], photos.cameras.pose[i])
        assert (batch.background is None) == (photos.background is None) == (batch.mask is None)


def test_masked_pixels_are_not_measured_as_taken_and_are_clear_ground_in_ideal_photographs(tmp_path):
    mask = np.zeros((12, 20), np.uint8)
    mask[:, 10:] = 255
    photos = load(write(tmp_path, [pattern(i, 20, 12) for i in range(2)], masks=[mask] * 2))
    batch, usable = photos.measured(1)
    assert torch.equal(usable.reshape(12, 20), torch.from_numpy(mask) > 0)
    torch.testing.assert_close(batch.rgb.reshape(12, 20, 3), photos.image(1))
    batch, usable = photos.measured(1, ideal=True)
    image = batch.rgb.reshape(12, 20, 3)
    assert usable is None and (image[:, :10] == 1).all() and (batch.background == 1).all()
    torch.testing.assert_close(image[:, 10:], photos.image(1)[:, 10:])


def test_ideal_photographs_are_what_training_shows_of_them(tmp_path):
    lens = {"k1": 0.06, "k2": -0.02, "fl_x": 30.0}
    photos = load(write(tmp_path, [pattern(i, 40, 28, channels=4) for i in range(2)], lens))
    batch, _ = photos.measured(1, ideal=True)
    assert batch.views.distortion is None and photos.measured(1)[0].views.distortion is not None
    trained = photos.batch(whole(2, 28, 40), torch.ones(3))
    assert torch.equal(trained.rgb[trained.rays.image_index == 1], batch.rgb)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="only a GPU can be waited for, and there is none here")
def test_batches_wait_for_no_gpu(clear):
    photos = load(clear, device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        for wanted in (whole(2), replace(whole(), num_rays=100)):
            photos.batch(wanted)
    finally:
        torch.cuda.set_sync_debug_mode("default")
