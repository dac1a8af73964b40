"""Degradations: each changes an image by as much as its constant says, and some images stay clean."""

import math

import pytest
import torch

from guidance.prior import degrade as degradation

SIZE = 64


def square(colour=(0.2, 0.5, 0.9)):
    layers = torch.zeros(1, 4, SIZE, SIZE)
    layers[:, :, 16:48, 16:48] = torch.tensor([*colour, 1.0])[:, None, None]
    return layers


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def off(monkeypatch):
    """All degradations off, and no image left clean."""
    for name in ("BLUR", "THICKNESS", "WARP", "CAST", "CLEAN_FRACTION"):
        monkeypatch.setattr(degradation, name, 0.0)
    return monkeypatch


def test_without_strength_nothing_changes(off):
    torch.testing.assert_close(degradation.degrade(square(), generator()), square(), atol=1e-5, rtol=0)


def test_blurring_rounds_corners_and_keeps_sides(off):
    off.setattr(degradation, "BLUR", 5.0)
    masks = torch.stack([degradation.degrade(square(), generator(seed))[0, 3] for seed in range(12)])
    assert (masks[:, 16, 16] == 0).sum() >= 6 and (masks[:, 16, 32] == 1).all() and (masks[:, 15, 32] == 0).all()


def test_thickness_moves_a_straight_side_by_at_most_what_the_blur_allows(off):
    off.setattr(degradation, "BLUR", 4.0)
    off.setattr(degradation, "THICKNESS", 0.3)
    areas = torch.stack([degradation.degrade(square(), generator(seed))[0, 3].sum() for seed in range(40)])
    furthest = 4.5 * math.sqrt(2) * float(torch.erfinv(torch.tensor(2 * 0.3)))  # where a blurred step is 0.5 - 0.3
    assert areas.max() > 33.5**2 and areas.min() < 31**2
    assert areas.max() <= (32 + 2 * furthest + 2) ** 2 and areas.min() >= (32 - 2 * furthest - 8) ** 2


def test_warping_moves_pixels_and_creates_no_new_colours(off):
    off.setattr(degradation, "WARP", 3.0)
    degraded = torch.cat([degradation.degrade(square(), generator(seed)) for seed in range(8)])
    inside = degraded[:, 3] > 0
    moved = (degraded[:, 3] != square()[:, 3]).flatten(1).any(1)
    assert moved.sum() >= 4 and ((inside.sum((1, 2)) / 32**2 - 1).abs() < 0.4).all()
    colours = degraded[:, :3].movedim(1, -1)[inside]
    torch.testing.assert_close(colours, torch.tensor([0.2, 0.5, 0.9]).expand_as(colours), atol=1e-3, rtol=0)


def test_a_warp_by_whole_pixels_is_a_shift():
    offset = torch.zeros(1, 2, SIZE, SIZE)
    offset[:, 0] = 3
    torch.testing.assert_close(
        degradation._warped(square(), offset)[..., 8:56], square().roll(-3, -1)[..., 8:56], atol=1e-4, rtol=0
    )


def test_a_blurred_step_is_the_error_function():
    step = torch.zeros(1, 1, SIZE, SIZE)
    step[..., 32:] = 1
    row = degradation._blurred(step, torch.tensor([3.0]))[0, 0, 32]
    at = (torch.arange(SIZE) - 31.5) / (3 * math.sqrt(2))
    torch.testing.assert_close(row[10:54], ((1 + torch.erf(at)) / 2)[10:54], atol=6e-3, rtol=0)


def test_a_colour_cast_changes_no_outline(off):
    off.setattr(degradation, "CAST", 0.3)
    degraded = degradation.degrade(square(), generator())
    torch.testing.assert_close(degraded[:, 3], square()[:, 3])
    assert (degraded[:, :3] - square()[:, :3]).abs().max() > 0.01 and degraded.min() >= 0 and degraded.max() <= 1


def test_some_images_stay_clean_and_layers_stay_premultiplied():
    layers = square().expand(200, -1, -1, -1)
    degraded = degradation.degrade(layers, generator())
    clean = (degraded == layers).flatten(1).all(1).float().mean()
    assert abs(clean - degradation.CLEAN_FRACTION) < 0.1
    assert (
        ((degraded[:, 3] == 0) | (degraded[:, 3] == 1)).all()
        and (degraded[:, :3] <= degraded[:, 3:]).all()
        and degraded.min() >= 0
    )


def test_the_same_seed_gives_the_same_degradation():
    assert torch.equal(degradation.degrade(square(), generator(1)), degradation.degrade(square(), generator(1)))
    assert not torch.equal(degradation.degrade(square(), generator(1)), degradation.degrade(square(), generator(2)))
