"""Photographs in memory: colours, rays and cameras belong together, and broken images are refused."""

import logging
import subprocess

import numpy as np
import pytest
import torch
from PIL import Image

from nerf.core.cameras import project, wrap_degrees
from nerf.core.errors import UserError
from nerf.core.lens import distort
from nerf.data.posed_images import Photographs
from tests.helpers.parts import part_of
from tests.nerf.photo_folders import SIZES, load, options, pattern, poses, write


def part(count=500, **changes):
    return part_of("photos", num_rays=count, seed=5, **changes).request


def test_images_equal_their_files(mixed, device):
    photos = load(mixed, device=device)
    for i, size in enumerate(SIZES):
        expected = torch.from_numpy(pattern(i, *size)).float() / 255
        torch.testing.assert_close(photos.image(i).cpu(), expected)
        assert (photos.view(i).width, photos.view(i).height) == size
    assert photos.alpha(0) is None and photos.background is None


def test_colours_and_rays_of_a_batch_belong_to_the_same_pixel(mixed, device):
    photos = load(mixed, device=device)
    batch = photos.batch(part())
    code = (batch.rgb * 255).round()
    photo = (code[:, 0] / 10).long()
    assert torch.equal(photo, batch.rays.image_index)
    ahead = batch.rays.origins + 2 * batch.rays.directions
    size = torch.tensor(SIZES, device=device)
    for i in range(3):
        chosen = photo == i
        xy, _ = project(photos.view(i), ahead[chosen])
        torch.testing.assert_close(xy[0], code[chosen][:, 1:] + 0.5, atol=1e-3, rtol=0)
        torch.testing.assert_close(batch.rays.uv[chosen] * size[i], xy[0], atol=1e-3, rtol=0)


def test_random_rays_are_uniform_over_the_pixels_of_all_photographs(mixed):
    index = load(mixed).batch(part(20_000)).rays.image_index
    share = torch.bincount(index).float() / len(index)
    pixels = torch.tensor([w * h for w, h in SIZES]).float()
    torch.testing.assert_close(share, pixels / pixels.sum(), atol=0.015, rtol=0)  # four standard errors


def test_the_same_request_gives_the_same_batch(mixed):
    photos = load(mixed)
    assert torch.equal(photos.batch(part()).rays.directions, photos.batch(part()).rays.directions)


def test_alpha_is_composited_over_the_background_of_the_batch(transparent, device):
    batch = load(transparent, device=device).batch(part())
    x, y = (batch.rays.uv * torch.tensor(SIZES, device=device)[batch.rays.image_index]).floor().unbind(-1)
    alpha = (16 * x) % 256 / 255
    colour = torch.stack([10.0 * batch.rays.image_index, x, y], -1) / 255
    torch.testing.assert_close(batch.mask, alpha)
    torch.testing.assert_close(batch.rgb, colour * alpha[:, None] + batch.background * (1 - alpha[:, None]))


def test_random_background_differs_between_rays(transparent):
    assert len(load(transparent).batch(part()).background.unique(dim=0)) == 500


@pytest.mark.parametrize("name, value", [("white", 1.0), ("black", 0.0)])
def test_solid_background_is_used_for_training_and_evaluation(transparent, name, value):
    photos = load(transparent, data_background=name)
    assert (photos.batch(part()).background == value).all()
    assert (photos.image(0)[0, 0] == value).all()  # alpha is 0 in the first column


def test_background_of_the_settings_takes_precedence(transparent):
    grey = torch.full((3,), 0.25)
    assert (load(transparent).batch(part(), grey).background == 0.25).all()


def test_opaque_alpha_channels_are_dropped(tmp_path):
    images = [np.dstack([pattern(i, *s), np.full(s[::-1], 255, np.uint8)]) for i, s in enumerate(SIZES)]
    photos = load(write(tmp_path, images))
    assert photos.background is None and photos.scene_kind == "scene"


def test_photographs_with_alpha_are_normalised_as_an_object_and_others_as_a_scene(transparent, tmp_path_factory):
    assert load(transparent).scene_kind == "object"
    opaque = write(tmp_path_factory.mktemp("opaque"), [pattern(i, *s) for i, s in enumerate(SIZES)])
    assert load(opaque).scene_kind == "scene"


def test_masked_pixels_are_never_sampled(tmp_path):
    masks = []
    for width, height in SIZES:
        mask = np.zeros((height, width), np.uint8)
        mask[:, 4:] = 255
        masks.append(mask)
    photos = load(write(tmp_path, [pattern(i, *s) for i, s in enumerate(SIZES)], masks=masks))
    column = (photos.batch(part(2000)).rgb * 255).round()[:, 1]
    assert column.min() == 4
    assert photos.valid_mask(1).shape == (16, 9) and photos.valid_mask(1)[:, 4:].all() and not photos.valid_mask(1)[:, :4].any()


def test_downscaling_averages_pixels_and_scales_the_intrinsics(tmp_path):
    folder = write(tmp_path, [pattern(i, 20, 12) for i in range(3)], {"cx": 9.0})
    full, half = load(folder), load(folder, downscale=2)
    expected = full.image(1).reshape(6, 2, 10, 2, 3).mean((1, 3))
    torch.testing.assert_close(half.image(1), expected, atol=1.01 / 255, rtol=0)  # PIL rounds to whole bytes
    point = torch.tensor([0.1, 0.2, 0.05])
    torch.testing.assert_close(project(half.view(1), point)[0] * 2, project(full.view(1), point)[0])


def test_grey_images_of_8_and_16_bits_are_read_as_colours(tmp_path):
    write(tmp_path, [pattern(i, 12, 12) for i in range(3)])
    grey = np.arange(144, dtype=np.uint8).reshape(12, 12)
    Image.fromarray(grey).save(tmp_path / "00.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "01.png")
    photos = load(tmp_path)
    for i in (0, 1):
        expected = torch.from_numpy(grey).float()[..., None].expand(-1, -1, 3)
        assert torch.equal((photos.image(i) * 255).round(), expected)


def test_lens_distortion_is_undone_in_the_rays(tmp_path):
    lens = {"k1": 0.06, "k2": -0.08, "p1": -0.001, "p2": 0.0002}
    folder = write(tmp_path, [pattern(i, 20, 14) for i in range(3)], lens)
    photos = load(folder)
    batch = photos.batch(part(100))
    i = batch.rays.image_index
    local = (photos.cameras.pose[i, :3, :3].mT @ batch.rays.directions[..., None])[..., 0]
    undistorted = torch.stack([local[:, 0], -local[:, 1]], -1) / -local[:, 2:]
    seen = distort(undistorted, torch.tensor([0.06, -0.08, 0.0, 0.0, -0.001, 0.0002]))
    torch.testing.assert_close(seen * 15 + torch.tensor([10.0, 7.0]), batch.rays.uv * torch.tensor([20.0, 14.0]))


def test_noninvertible_distortion_is_warned_of(tmp_path, caplog):
    folder = write(tmp_path, [pattern(i, 40, 40) for i in range(3)], {"k1": -0.5})
    with caplog.at_level(logging.WARNING, "somnia.photographs"):
        load(folder)
    assert "the lens distortion of 3 photographs is not invertible" in caplog.text


def test_splits_of_one_folder_share_one_normalised_world(mixed):
    train, test = load(mixed, "train", holdout=2), load(mixed, "test", holdout=2)
    whole = load(mixed)
    assert torch.equal(train.transform, test.transform)
    assert (len(train), len(test), train.num_images) == (1, 2, 3)
    to_world = [torch.linalg.inv(p.transform) for p in (train, whole)]
    back = torch.linalg.inv(to_world[0]) @ torch.cat([train.cameras.pose[0, :3, 3], torch.ones(1)]).double()
    other = torch.linalg.inv(to_world[1]) @ torch.cat([whole.cameras.pose[1, :3, 3], torch.ones(1)]).double()
    torch.testing.assert_close(back, other, atol=1e-5, rtol=0)


def test_splits_are_loaded_together_and_validation_does_not_repeat_the_test(mixed):
    splits = Photographs.splits_of(mixed, options(holdout=2))
    assert {name: len(photos) for name, photos in splits.items()} == {"train": 1, "test": 2}
    assert list(Photographs.splits_of(mixed, options(holdout=0))) == ["train"]


def test_image_indices_are_unique_over_the_splits(mixed):
    numbers = torch.cat([load(mixed, split, holdout=2).image_index for split in ("train", "test")])
    assert torch.equal(numbers, torch.arange(3))


def test_transform_maps_the_normalised_world_to_the_datasets(mixed):
    photos = load(mixed, bound=2.0)
    ours = torch.cat([photos.cameras.pose[:, :3, 3], torch.ones(3, 1)], -1).double()
    torch.testing.assert_close((ours @ photos.transform.T)[:, :3], poses(3)[:, :3, 3], atol=1e-5, rtol=0)


def test_summary_is_one_line_with_the_missing_photographs(mixed, caplog):
    (mixed / "01.png").unlink()
    with caplog.at_level(logging.INFO, "somnia.photographs"):
        load(mixed)
    assert "2 of 2 photographs for train, 13x13 to 20x14 pixels" in caplog.text
    assert "1 listed photograph does not exist (the first is 01.png)" in caplog.text
    assert [line.split()[-1] for line in caplog.text.splitlines()] == ["transforms.json", "01.png)"]


def test_camera_path_around_an_object_is_a_circle_at_the_cameras_distance(transparent):
    photos = load(write(transparent, [pattern(i, *SIZES[0], channels=4) for i in range(12)]))
    path = photos.scene_cameras.path(8, 10, 30)
    steps = wrap_degrees(path.azimuth.diff())
    torch.testing.assert_close(steps, torch.full((7,), 45.0), atol=0.1, rtol=0)
    torch.testing.assert_close(path.radius, photos.cameras.pose[:8, :3, 3].norm(dim=-1), rtol=0.02, atol=0)
    assert torch.linalg.det(path.pose[:, :3, :3]).min() > 0.99


def test_camera_path_of_a_one_sided_scene_stays_on_the_side_of_the_cameras(tmp_path):
    photos = load(write(tmp_path, [pattern(i, *SIZES[0]) for i in range(10)], span=70.0))
    azimuth = photos.scene_cameras.path(20, 10, 10).azimuth
    assert azimuth.abs().max() < 36 and azimuth.max() > 20 and azimuth.min() < -20
    assert abs(azimuth[0] - azimuth[-1]) < 15


@pytest.mark.parametrize("height, width", [(10, 10), (10, 40), (40, 10)])
def test_camera_path_has_no_larger_field_of_view_than_the_photographs(mixed, height, width):
    photos = load(write(mixed, [pattern(i, 20, 14) for i in range(3)]))
    path = photos.scene_cameras.path(2, height, width)
    assert width / path.fx[0] <= 20 / 15 + 1e-4 and height / path.fy[0] <= 14 / 15 + 1e-4


# ---- other formats ----


def test_lund_door_is_upright_and_seen_from_the_front(test_data):
    photos = load(test_data / "lund_door", holdout=4)
    assert (len(photos), photos.num_images, photos.scene_kind) == (9, 12, "points")
    assert (photos.cameras.pose[:, 1, 1] > 0.95).all() and photos.cameras.azimuth.abs().max() < 30
    assert photos.cameras.distortion is not None and photos.view(0).fx.item() == pytest.approx(2435.38 / 4)


def test_masks_of_neus_are_the_alpha_of_its_photographs(test_data):
    photos = load(test_data / "dtu_scan24", holdout=12, downscale=4)
    assert (len(photos), photos.num_images, photos.scene_kind) == (44, 49, "box")
    share = photos.alpha(0).mean()
    assert 0.5 < share < 0.7 and photos.valid_mask(0) is None
    transparent = photos.alpha(0) == 0
    assert (photos.image(0)[transparent] == 1).all() and not (photos.image(0)[~transparent] == 1).all()
    assert (photos.cameras.pose[:, 1, 1] > 0.4).all() and photos.cameras.radius.sub(2.9).abs().max() < 0.2


# ---- refusals ----


def test_a_broken_image_is_refused_by_name(mixed):
    (mixed / "01.png").write_bytes(b"not an image")
    with pytest.raises(UserError, match="photograph .*01.png cannot be read"):
        load(mixed)


def test_a_truncated_image_is_refused_by_name(mixed):
    whole = (mixed / "01.png").read_bytes()
    (mixed / "01.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="photograph .*01.png cannot be read"):
        load(mixed)


def test_an_image_of_another_aspect_ratio_than_its_camera_is_refused(tmp_path):
    folder = write(tmp_path, [pattern(i, 20, 12) for i in range(3)], {"w": 12, "h": 20})
    with pytest.raises(UserError, match="photograph .*00.png: it is 20x12 pixels, but its camera is for 12x20"):
        load(folder)


def test_downscaling_to_nothing_is_refused(mixed):
    with pytest.raises(UserError, match="--downscale 16 leaves nothing of .*00.png, which is 20x14 pixels"):
        load(mixed, downscale=16)


def test_masks_of_another_size_are_refused(tmp_path):
    masks = [np.zeros((3, 3), np.uint8)] * 3
    folder = write(tmp_path, [pattern(i, *s) for i, s in enumerate(SIZES)], masks=masks)
    with pytest.raises(UserError, match="must have its photograph's size, 20x14 pixels after --downscale, got 3x3"):
        load(folder)


def test_masks_that_are_black_everywhere_are_refused(tmp_path):
    masks = [np.zeros(s[::-1], np.uint8) for s in SIZES]
    with pytest.raises(UserError, match="all masks are black everywhere"):
        load(write(tmp_path, [pattern(i, *s) for i, s in enumerate(SIZES)], masks=masks))


def test_lego_cameras_look_at_the_origin_and_its_visual_hull_is_in_the_box(test_data):
    photos = load(test_data / "lego", "test")
    xy, _ = project(photos.view(3), torch.zeros(3))
    torch.testing.assert_close(xy[0], torch.tensor([100.0, 100.0]), atol=1e-2, rtol=0)
    axis = (torch.arange(24) + 0.5) / 12 - 1
    points = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)
    inside = torch.ones(len(points), dtype=torch.bool)
    for i in range(len(photos)):
        column, row = project(photos.view(i), points)[0][0].floor().long().clamp(0, 199).unbind(-1)
        inside &= photos.alpha(i)[row, column] > 0.5
    hull = points[inside]  # the bulldozer is longer (z) than wide (x) and lies within the box
    extent = hull.amax(0) - hull.amin(0)
    assert len(hull) > 200 and hull.abs().max() < 0.95 and extent[2] > 1.4 * extent[0]


def test_fox_skips_photographs_that_do_not_exist_and_is_seen_from_the_front(test_data, caplog):
    with caplog.at_level(logging.INFO, "somnia.photographs"):
        photos = load(test_data / "fox", "test", holdout=8)
    assert len(photos) == 7 and photos.num_images == 50 and "17 listed photographs do not exist" in caplog.text
    assert photos.scene_kind == "limit" and photos.view(0).azimuth.abs() < 60
    assert (photos.cameras.pose[:, 1, 1] > 0.8).all()  # upright


def test_reichstag_has_intrinsics_per_photograph_and_is_upright(test_data):
    photos = load(test_data / "reichstag", "train")
    assert len(photos) == 10 and len({float(photos.view(i).fx) for i in range(10)}) == 10
    assert (photos.cameras.pose[:, 1, 1] > 0.95).all() and photos.cameras.pose[:, :3, 3].abs().max() <= 1


# ---- pictures as they come ----


def test_masks_of_zeros_and_ones_are_read_as_valid_where_they_are_one(tmp_path):
    masks = [np.zeros((14, 20), np.uint8) for _ in range(2)]
    for mask in masks:
        mask[4:8, 4:10] = 1
    for factor in (1, 2):
        photos = load(write(tmp_path, [pattern(i, 20, 14) for i in range(2)], masks=masks), downscale=factor)
        expected = torch.zeros(14 // factor, 20 // factor, dtype=torch.bool)
        expected[4 // factor : 8 // factor, 4 // factor : 10 // factor] = True
        torch.testing.assert_close(photos.valid_mask(0), expected)


def test_photographs_that_are_all_transparent_are_a_warning(tmp_path, caplog):
    images = [np.zeros((8, 8, 4), np.uint8) for _ in range(3)]
    load(write(tmp_path, images))
    assert "all 3 photographs are transparent everywhere" in caplog.text


def test_an_eps_called_png_starts_no_program(tmp_path, monkeypatch):
    write(tmp_path, [pattern(i, 20, 14) for i in range(2)])
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a photograph started a program"))
    (tmp_path / "01.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\nshowpage\n")
    with pytest.raises(UserError, match="photograph .*01.png cannot be read: it is not a picture"):
        load(tmp_path)
