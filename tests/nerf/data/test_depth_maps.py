"""Depth maps as supervision: units, sizes, the distance along the ray, and the loss for each kind."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from nerf.core.errors import UserError
from nerf.core.streams import Random
from nerf.core.structs import Batch, Part, RenderOutput, RenderSettings, StepPlan, ViewRequest
from nerf.data.folder import read_folder
from nerf.data.image_store import decode_depth
from nerf.training import losses
from nerf.training.objectives import DepthMaps
from tests.nerf.photo_folders import load, pattern, poses, write

WIDTH, HEIGHT = 20, 14


def sphere_depth(pose, width=WIDTH, height=HEIGHT, focal=15.0, radius=1.0):
    """Depth along the viewing direction [H, W] of a sphere at the origin, 0 beside it: z = (o + z d)^2 = r^2 by hand."""
    y, x = np.mgrid[:height, :width] + 0.5
    local = np.stack([(x - width / 2) / focal, -(y - height / 2) / focal, -np.ones_like(x)], -1)
    direction = local @ pose[:3, :3].numpy().T  # its component along the viewing direction is 1
    origin = pose[:3, 3].numpy()
    a, b, c = (direction**2).sum(-1), direction @ origin, origin @ origin - radius**2
    root = b * b - a * c
    return np.where(root > 0, (-b - np.sqrt(np.maximum(root, 0))) / a, 0.0)


def dataset(folder, kind="png", scale=1000.0, offset=0.0, **top):
    """Photographs of a sphere with depth maps in thousandths of the dataset's unit."""
    write(folder, [pattern(i, WIDTH, HEIGHT) for i in range(3)], top)
    document = json.loads((folder / "transforms.json").read_text())
    for i, (frame, pose) in enumerate(zip(document["frames"], poses(3), strict=True)):
        levels = sphere_depth(pose)
        levels = np.where(levels > 0, scale * levels + offset, 0)
        name = f"depth_{i}.{kind}"
        if kind == "npy":
            np.save(folder / name, levels[..., None])
        else:
            Image.fromarray(levels.round().astype(np.uint16)).save(folder / name)
        frame["depth_file_path"] = name
    (folder / "transforms.json").write_text(json.dumps(document))
    return folder


def batch_of(photos, count=400):
    return photos.batch(ViewRequest("photos", "rays", num_rays=count, random=Random(1)))


@pytest.mark.parametrize("kind", ["png", "npy"])
def test_rays_meet_the_surface_at_the_depth_of_their_pixel(tmp_path, kind):
    photos = load(dataset(tmp_path, kind))
    batch = batch_of(photos)
    known = batch.depth_map > 0
    assert 20 < known.sum() < 400 and not batch.depth_relative
    hit = batch.rays.origins + (batch.depth_map / batch.depth_cosine)[:, None] * batch.rays.directions
    source = hit.double() @ photos.transform[:3, :3].T + photos.transform[:3, 3]
    torch.testing.assert_close(source[known].norm(dim=-1), torch.ones(int(known.sum())).double(), atol=2e-3, rtol=0)


def test_the_unit_of_the_flag_and_of_instant_ngp_scale_the_depths(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
    ours = batch_of(load(dataset(tmp_path / "a", scale=100.0), depth_unit=0.01))
    path = dataset(tmp_path / "b", scale=500.0, integer_depth_scale=0.002) / "transforms.json"
    path.write_text(path.read_text().replace("depth_file_path", "depth_path"))
    theirs = batch_of(load(tmp_path / "b"))
    known = ours.depth_map > 0
    torch.testing.assert_close(ours.depth_map[known], theirs.depth_map[known], atol=0.01, rtol=0)


def test_patches_have_depths_and_whole_images_none(tmp_path):
    photos = load(dataset(tmp_path))
    patches = photos.batch(ViewRequest("photos", "patches", num_rays=64, patch_size=4, random=Random(1)))
    assert patches.depth_map.shape == (64,) and (patches.depth_cosine > 0).all()
    assert photos.batch(ViewRequest("photos", "image", height=7, width=10, random=Random(1))).depth_map is None


def test_depth_maps_of_another_size_are_read_at_the_nearest_pixel(tmp_path):
    Image.fromarray(np.array([[1, 2], [3, 0]], np.uint16)).save(tmp_path / "a.png")
    above, below = [1.0, 1, 2, 2], [3.0, 3, 0, 0]
    assert decode_depth(tmp_path / "a.png", (4, 4)).tolist() == [above, above, below, below]
    assert decode_depth(tmp_path / "a.png", (2, 1)).tolist() == [[2], [0]]


def test_values_that_are_no_depths_are_unknown(tmp_path):
    np.save(tmp_path / "a.npy", np.array([[np.nan, -1.0], [np.inf, 2.0]]))
    assert decode_depth(tmp_path / "a.npy", (2, 2)).tolist() == [[0, 0], [0, 2]]


@pytest.mark.parametrize("array, words", [
    (np.zeros((2, 2, 3)), r"must be a plane of numbers, got float64 \[2, 2, 3\]"),
    (np.array([["a"]]), "must be a plane of numbers, got <U1"),
    (np.array([[{}]], dtype=object), "cannot be read"),
])  # fmt: skip
def test_broken_depth_maps_are_refused(tmp_path, array, words):
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(UserError, match=f"depth map .*a.npy {words}"):
        decode_depth(tmp_path / "a.npy", (2, 2))


def test_a_depth_map_that_does_not_exist_is_refused(tmp_path):
    (dataset(tmp_path) / "depth_1.png").unlink()
    with pytest.raises(UserError, match=r'frame 1 \(01.png\): its "depth_file_path" depth_1.png does not exist'):
        read_folder(tmp_path, 0)


@pytest.mark.parametrize("changes", [{"depth_maps": "off"}, {"lambda_depth_map": 0.0}])
def test_depth_maps_can_be_left_out(tmp_path, changes):
    assert batch_of(load(dataset(tmp_path), **changes)).depth_map is None


def term(photos, batch, rendered, num_images=3):
    """The loss of rendered distances [N] along the rays."""
    n = len(batch.rays)
    out = RenderOutput(image=torch.zeros(n, 3), opacity=torch.ones(n), depth=rendered, background=torch.zeros(n, 3))
    part = Part(ViewRequest("photos"), RenderSettings(source="photos"), has_targets=True)
    plan = StepPlan(0, 0.0, (part,), {"depth_map": 1.0})
    objective = DepthMaps(num_images)
    assert objective.applies(part, plan)
    return objective(out, batch, part, plan).terms["depth_map"]


def test_metric_depths_are_compared_along_the_ray(tmp_path):
    photos = load(dataset(tmp_path))
    batch = batch_of(photos)
    true = batch.depth_map / batch.depth_cosine
    assert term(photos, batch, true).item() == pytest.approx(0.0, abs=1e-6)
    assert term(photos, batch, true + 0.25).item() == pytest.approx(0.25, rel=1e-4)
    assert term(photos, batch, batch.depth_map).item() > 1e-3  # the depth along the viewing direction is another one


def test_relative_depths_are_blind_to_a_scale_and_an_offset_of_each_photograph(tmp_path):
    photos = load(dataset(tmp_path, scale=3000.0, offset=500.0), depth_maps="relative")
    batch = batch_of(photos)
    assert batch.depth_relative
    scale = torch.tensor([0.5, 2.0, 7.0])[batch.rays.image_index]
    shifted = (scale * batch.depth_map + scale) / batch.depth_cosine
    assert term(photos, batch, shifted).item() == pytest.approx(0.0, abs=1e-4)
    assert term(photos, batch, 9 - batch.depth_map / batch.depth_cosine * 1e-3).item() == pytest.approx(2.0, abs=1e-3)


def test_relative_loss_is_one_minus_the_correlation_of_each_photograph_by_hand():
    random = torch.Generator().manual_seed(0)
    depth, target = torch.rand(60, generator=random).double(), torch.rand(60, generator=random).double()
    group = torch.arange(60) % 4
    known = torch.rand(60, generator=random) > 0.2
    total, rays = 0.0, 0
    for g in range(4):
        inside = known & (group == g)
        if inside.sum() >= losses.MIN_GROUP:
            correlation = np.corrcoef(depth[inside], target[inside])[0, 1]
            total, rays = total + (1 - correlation) * int(inside.sum()), rays + int(inside.sum())
    loss = losses.depth_correlation(depth, target, known, group, 5)
    assert loss.item() == pytest.approx(total / rays, abs=1e-10)
    assert torch.autograd.gradcheck(lambda d: losses.depth_correlation(d, target, known, group, 5), (depth.requires_grad_(),))


def test_nothing_known_and_flat_depths_give_zero_with_finite_gradients():
    depth = torch.ones(20, requires_grad=True)
    for known in (torch.zeros(20, dtype=torch.bool), torch.ones(20, dtype=torch.bool)):
        loss = losses.depth_correlation(depth, torch.ones(20), known, torch.zeros(20, dtype=torch.int64), 1)
        loss.backward()
        assert loss == 0 and depth.grad.isfinite().all()
    assert losses.depth_l1(depth, torch.full((20,), torch.nan), torch.zeros(20, dtype=torch.bool)) == 0


def test_a_batch_without_depth_maps_makes_no_term(tmp_path):
    photos = load(write(tmp_path, [pattern(0, 8, 8), pattern(1, 8, 8)]))
    batch = batch_of(photos, 8)
    assert isinstance(batch, Batch) and batch.depth_map is None
    part = Part(ViewRequest("photos"), RenderSettings(source="photos"), has_targets=True)
    assert DepthMaps(2)(None, batch, part, StepPlan(0, 0.0, (part,), {"depth_map": 1.0})).terms == {}
