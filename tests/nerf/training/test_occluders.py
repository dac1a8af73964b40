"""What passes before the scene: masks that are learned, errors that stand out, and that neither teaches."""

import numpy as np
import pytest
import torch

from nerf.config.wild import WildConfig
from nerf.core.structs import Batch, Part, Rays, RenderOutput, RenderSettings, StepPlan, ViewRequest
from nerf.training.objectives import DepthMaps, KnownView
from nerf.training.occluders import (
    BLOCK,
    NO_ERROR_YET,
    MaskNetwork,
    RobustTrimming,
    build_occluders,
    robust_weight,
)

WEIGHTS = {"rgb": 1.0, "mask": 1.0, "mask_size": 0.01, "mask_digital": 0.01}


def plan(fraction=1.0, **weights):
    return StepPlan(0, fraction, (), WEIGHTS | weights)


def part():
    return Part(ViewRequest("photos"), RenderSettings("photos"), has_targets=True)


def batch(shape=(2, 16, 16), seed=0, **more):
    count = int(np.prod(shape))
    generator = torch.Generator().manual_seed(seed)
    nothing = torch.zeros(count, 3)
    rays = Rays(
        nothing,
        nothing + torch.tensor([0.0, 0.0, 1.0]),
        torch.zeros(count).long(),
        shape,
        image_index=torch.arange(count) // int(np.prod(shape[1:])),
        uv=torch.rand(count, 2, generator=generator),
    )
    return Batch(rays, rgb=torch.rand(count, 3, generator=generator), **more)


def output(image, opacity=None):
    opacity = torch.ones(len(image)) if opacity is None else opacity
    return RenderOutput(image=image, opacity=opacity, depth=opacity, background=image.detach())


def mask_network(count=3, **options):
    torch.manual_seed(0)
    return MaskNetwork(WildConfig(mask_vector=4, mask_hidden=8, mask_octaves=2, **options), count)


def test_masks_are_shares_that_differ_between_photographs_and_pixels():
    network = mask_network()
    with torch.no_grad():
        network.out.weight.mul_(200.0)
    masks = torch.stack([network.picture(i, 5, 7) for i in range(3)])
    assert masks.shape == (3, 5, 7) and (masks > 0).all() and (masks < 1).all()
    assert masks.std(0).max() > 0.01 and masks[0].std() > 0.01


def test_a_mask_is_small_before_training():
    assert mask_network().picture(0, 16, 16).max() < 0.1


def test_the_picture_of_a_mask_is_the_mask_of_its_pixels():
    network = mask_network()
    uv = torch.tensor([[(3 + 0.5) / 7, (1 + 0.5) / 5]])
    torch.testing.assert_close(network.picture(2, 5, 7)[1, 3], network.mask(torch.tensor([2]), uv)[0])


def test_a_mask_is_learned_where_a_photograph_is_wrong_and_the_scene_stops_learning_there():
    """A square before one of two photographs of one grey wall: the mask finds it, and the wall stays grey."""
    network = MaskNetwork(WildConfig(mask_octaves=4), 2)
    objective, wall = KnownView(occluders=network), torch.full((3,), 0.4, requires_grad=True)
    groups = [{"params": [wall], "lr": 1e-2}, *objective.param_groups(1e-2)]
    optimizer = torch.optim.Adam(groups)

    def occluded(item):
        inside = (item.rays.uv - 0.5).abs().amax(-1) < 0.2
        return inside & (item.rays.image_index == 1)

    for step in range(200):
        item = batch((2, 16, 16), seed=step)
        item.rgb[:] = torch.where(occluded(item)[:, None], torch.tensor([1.0, 0.0, 0.9]), torch.tensor([0.5, 0.5, 0.5]))
        out = objective(output(wall.expand(len(item.rgb), 3)), item, part(), plan(mask_size=0.02, mask=0.0))
        loss = out.terms["rgb"] + 0.02 * out.terms["mask_size"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    side = (torch.arange(40) + 0.5) / 40
    truth = ((side - 0.5).abs() < 0.2)[:, None] & ((side - 0.5).abs() < 0.2)
    found = network.picture(1, 40, 40) > 0.5
    assert float((found & truth).sum() / (found | truth).sum()) > 0.8 and network.picture(0, 40, 40).max() < 0.3
    assert (wall.detach() - 0.5).abs().max() < 0.02


def test_masked_rays_teach_neither_colour_nor_opacity():
    class Half(MaskNetwork):
        def mask(self, image_index, uv):
            return (image_index == 0).float()

    objective = KnownView(occluders=Half(WildConfig(), 2))
    image = torch.rand(512, 3, requires_grad=True)
    opacity = torch.rand(512, requires_grad=True)
    terms = objective(output(image, opacity), batch(mask=torch.zeros(512)), part(), plan()).terms
    (terms["rgb"] + terms["mask"]).backward()
    for gradient in (image.grad, opacity.grad):
        assert not gradient[:256].any() and gradient[256:].any()


def test_pixels_that_are_masked_out_in_their_photograph_teach_nothing():
    valid = torch.arange(512) % 2 == 0
    image = torch.rand(512, 3, requires_grad=True)
    KnownView()(output(image), batch(valid=valid), part(), plan()).terms["rgb"].backward()
    assert not image.grad[~valid].any() and image.grad[valid].any(-1).all()


def test_before_their_start_occluders_leave_nothing_out_and_learn_nothing():
    occluders = build_occluders(WildConfig(occluders="mask", occluders_start=0.5), 2)
    objective = KnownView(occluders=occluders)
    image = torch.rand(512, 3)
    early, late = (objective(output(image), batch(), part(), plan(fraction)).terms for fraction in (0.4, 0.6))
    assert "mask_size" not in early and "mask_size" in late and early["rgb"] > late["rgb"]


def naive_robust(error, threshold):
    """The rule pixel by pixel."""
    size = len(error)
    small = error < threshold
    good = small.copy()
    for y in range(size):
        for x in range(size):
            near = small[max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2]
            good[y, x] |= near.mean() > 0.5
    result = good.copy()
    for y in range(0, size, BLOCK):
        for x in range(0, size, BLOCK):
            around = good[max(y - 4, 0) : y + 12, max(x - 4, 0) : x + 12]
            if around.mean() > 0.5:
                result[y : y + BLOCK, x : x + BLOCK] = True
    return result


@pytest.mark.parametrize("size", [4, 8, 13, 16, 32])
def test_robust_weights_are_those_of_the_rule(size):
    error = torch.rand(3, size, size, generator=torch.Generator().manual_seed(size)) ** 2
    error[0, : size // 2] += 1.0
    for threshold in (0.1, 0.3, 2.0):
        expected = np.stack([naive_robust(patch, threshold) for patch in error.numpy()])
        assert np.array_equal(robust_weight(error, threshold).numpy() > 0, expected)


def test_the_threshold_is_the_quantile_of_the_step_before():
    trimming, item = RobustTrimming(0.8), batch()
    first = torch.linspace(0, 1, 512)
    assert trimming.threshold == NO_ERROR_YET and (trimming.keep(first, item, plan()).weight == 1).all()
    assert float(trimming.threshold) == pytest.approx(0.8, abs=1e-6)
    error = torch.full((512,), 0.79)
    error[256:] = 0.81
    weight = trimming.keep(error, item, plan()).weight
    assert (weight[:256] == 1).all() and (weight[256:] == 0).all()


@pytest.mark.parametrize("kind", ["mask", "robust"])
def test_what_is_known_of_occluders_is_kept_and_comes_back(kind):
    config = WildConfig(occluders=kind, mask_vector=4, mask_hidden=8)
    one, other = (KnownView(occluders=build_occluders(config, 3)) for _ in range(2))
    one(output(torch.rand(512, 3)), batch(), part(), plan())
    assert one.state_dict()
    other.load_state_dict({name: value.clone() for name, value in one.state_dict().items()})
    assert all(torch.equal(other.state_dict()[name], value) for name, value in one.state_dict().items())
    assert bool(one.param_groups(1e-2)) == (kind == "mask")


def test_without_occluders_there_is_nothing_to_learn():
    assert build_occluders(WildConfig(), 3) is None and build_occluders(WildConfig(occluders="mask"), 0) is None


def test_masked_rays_teach_no_depth_either():
    class Half(MaskNetwork):
        def mask(self, image_index, uv):
            return (image_index == 0).float()

    occluders = Half(WildConfig(), 2)
    item = batch(depth_map=torch.ones(512), depth_cosine=torch.ones(512))
    depth = torch.rand(512, requires_grad=True)
    out = RenderOutput(image=torch.rand(512, 3), opacity=torch.ones(512), depth=depth, background=torch.rand(512, 3))
    objective = DepthMaps(2, occluders)
    KnownView(occluders=occluders)(out, item, part(), plan())
    objective(out, item, part(), plan()).terms["depth_map"].backward()
    assert not depth.grad[:256].any() and depth.grad[256:].all()
