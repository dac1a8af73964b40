"""Photographs as square patches: where they are, which pixels and rays they have, and what is refused."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from nerf.core.cameras import project
from nerf.core.errors import UserError
from nerf.core.streams import Random
from nerf.core.structs import RenderOutput
from tests.helpers.parts import part_of
from tests.nerf.photo_folders import SIZES, load, pattern, write

SIZE = 4  # side of a patch, pixels


def patches(count=50, size=SIZE, seed=5):
    request = part_of("photos", layout="patches", num_rays=count * size * size, patch_size=size).request
    return replace(request, random=Random(seed))


def corners(batch, size=SIZE):
    """Photograph, column and row [P, 3] of the first pixel of each patch, from the colours of ``pattern``."""
    code = (batch.rgb * 255).round().long().reshape(-1, size, size, 3)
    return torch.stack([code[:, 0, 0, 0] // 10, code[:, 0, 0, 1], code[:, 0, 0, 2]], -1)


def output_of(batch):
    """A render output that equals the targets of the batch."""
    nothing = torch.zeros(len(batch.rays))
    behind = torch.zeros_like(batch.rgb)
    return RenderOutput(image=batch.rgb, opacity=nothing, depth=nothing, background=behind, shape=batch.rays.shape)


@pytest.mark.parametrize("size", [1, 4, 9])
def test_a_patch_as_an_image_is_a_crop_of_one_photograph(mixed, device, size):
    photos = load(mixed, device=device)
    batch = photos.batch(patches(20, size))
    assert batch.rays.shape == (20, size, size) and (batch.rays.view_index == 0).all() and batch.views is None
    crops = output_of(batch).as_images(batch.rgb)
    index = batch.rays.image_index.reshape(20, -1)
    assert (index == index[:, :1]).all()
    for crop, (i, column, row) in zip(crops, corners(batch, size).tolist(), strict=True):
        expected = photos.image(i)[row : row + size, column : column + size]
        torch.testing.assert_close(crop.permute(1, 2, 0), expected)


def test_rays_of_a_patch_pass_through_its_pixels(mixed, device):
    photos = load(write(mixed, [pattern(i, *size) for i, size in enumerate(SIZES)], {"k1": 0.05}), device=device)
    batch = photos.batch(patches())
    code = (batch.rgb * 255).round()
    assert torch.equal((code[:, 0] / 10).long(), batch.rays.image_index)
    for i, size in enumerate(SIZES):
        chosen = batch.rays.image_index == i
        xy, _ = project(photos.view(i), (batch.rays.origins + 2 * batch.rays.directions)[chosen])
        torch.testing.assert_close(xy[0], code[chosen][:, 1:] + 0.5, atol=1e-3, rtol=0)
        torch.testing.assert_close(batch.rays.uv[chosen] * torch.tensor(size, device=device), xy[0], atol=1e-3, rtol=0)


def test_positions_of_patches_are_uniform_over_all_that_are_inside_a_photograph(mixed):
    count = 40_000
    found = corners(load(mixed).batch(patches(count)))
    positions = torch.cat([found.new_tensor([[i, x, y] for y in range(h - 3) for x in range(w - 3)])
                           for i, (w, h) in enumerate(SIZES)])  # fmt: skip
    unique, times = found.unique(dim=0, return_counts=True)
    assert torch.equal(unique, positions.unique(dim=0))  # all of them and no other
    expected = count / len(positions)
    chi_square = ((times - expected).square() / expected).sum() / (len(positions) - 1)
    assert abs(chi_square - 1) < 4 * (2 / (len(positions) - 1)) ** 0.5  # four standard deviations


def test_patches_depend_on_the_seed_alone(mixed):
    photos = load(mixed)
    first, again, other = (photos.batch(patches(seed=seed)) for seed in (5, 5, 6))
    assert torch.equal(first.rays.directions, again.rays.directions) and torch.equal(first.rgb, again.rgb)
    assert not torch.equal(first.rgb, other.rgb)


def test_rays_that_fill_no_patch_are_left_out(mixed):
    request = replace(patches(), num_rays=3 * SIZE * SIZE + 7)
    assert load(mixed).batch(request).rays.shape == (3, SIZE, SIZE)


def test_patches_with_alpha_are_composited_over_the_background_of_the_batch(transparent, device):
    batch = load(transparent, device=device).batch(patches())
    x, y = (batch.rays.uv * torch.tensor(SIZES, device=device)[batch.rays.image_index]).floor().unbind(-1)
    alpha = (16 * x) % 256 / 255
    colour = torch.stack([10.0 * batch.rays.image_index, x, y], -1) / 255
    torch.testing.assert_close(batch.mask, alpha)
    torch.testing.assert_close(batch.rgb, colour * alpha[:, None] + batch.background * (1 - alpha[:, None]))
    black = load(transparent, device=device).batch(patches(), torch.zeros(3, device=device))
    torch.testing.assert_close(black.rgb, colour * alpha[:, None])


@pytest.mark.parametrize("size", [3, 4])
def test_centres_of_patches_are_valid_and_uniform_over_the_masks(tmp_path, size):
    masks = [np.zeros((h, w), np.uint8) for w, h in SIZES]
    masks[0][:, 6:9] = 255
    masks[2][2:4] = 255
    photos = load(write(tmp_path, [pattern(i, *s) for i, s in enumerate(SIZES)], masks=masks))
    found = corners(photos.batch(patches(5000, size)), size)
    half = size // 2
    centres = {(i, x, y) for i in (0, 2) for y, x in np.argwhere(masks[i] > 0).tolist()
               if 0 <= x - half <= SIZES[i][0] - size and 0 <= y - half <= SIZES[i][1] - size}  # fmt: skip
    unique, times = found.unique(dim=0, return_counts=True)
    assert {(i, x + half, y + half) for i, x, y in unique.tolist()} == centres
    expected = 5000 / len(centres)
    assert (times - expected).abs().max() < 5 * expected**0.5  # standard deviations


def test_a_photograph_that_is_smaller_than_a_patch_is_refused(mixed):
    with pytest.raises(UserError, match="photograph 01.png is 9x16 pixels after --downscale, smaller than a patch of 10x10"):
        load(mixed).batch(patches(size=10))


def test_masks_without_room_for_a_patch_are_refused(tmp_path):
    masks = [np.zeros((h, w), np.uint8) for w, h in SIZES]
    masks[0][0] = 255
    photos = load(write(tmp_path, [pattern(i, *s) for i, s in enumerate(SIZES)], masks=masks))
    with pytest.raises(UserError, match="no patch of 4x4 pixels has a valid centre"):
        photos.batch(patches())


@pytest.mark.parametrize("num_rays, size", [(15, 4), (100, 0)])
def test_too_few_rays_for_a_patch_are_refused(mixed, num_rays, size):
    request = replace(patches(), num_rays=num_rays, patch_size=size)
    with pytest.raises(ValueError, match=f"got num_rays {num_rays} and patch_size {size}"):
        load(mixed).batch(request)
