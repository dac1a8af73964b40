"""Wear: what rounds, bends, thickens and colours does so by as much as it says, and some pictures are left alone."""

import math

import pytest
import torch

from guidance.prior import wear

SIZE = 64


def square(colour=(0.2, 0.5, 0.9)):
    layers = torch.zeros(1, 4, SIZE, SIZE)
    layers[:, :, 16:48, 16:48] = torch.tensor([*colour, 1.0])[:, None, None]
    return layers


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def still(monkeypatch):
    """No way of wear, and no picture left alone."""
    for name in ("ROUNDING", "THICKNESS", "BENDING", "CAST", "INTACT"):
        monkeypatch.setattr(wear, name, 0.0)
    return monkeypatch


def test_without_strength_nothing_changes(still):
    torch.testing.assert_close(wear.worn(square(), generator()), square(), atol=1e-5, rtol=0)


def test_rounding_takes_the_corners_and_keeps_the_sides(still):
    still.setattr(wear, "ROUNDING", 5.0)
    masks = torch.stack([wear.worn(square(), generator(seed))[0, 3] for seed in range(12)])
    assert (masks[:, 16, 16] == 0).sum() >= 6 and (masks[:, 16, 32] == 1).all() and (masks[:, 15, 32] == 0).all()


def test_thickness_moves_a_straight_side_as_far_as_the_blur_says(still):
    still.setattr(wear, "ROUNDING", 4.0)
    still.setattr(wear, "THICKNESS", 0.3)
    areas = torch.stack([wear.worn(square(), generator(seed))[0, 3].sum() for seed in range(40)])
    furthest = 4.5 * math.sqrt(2) * float(torch.erfinv(torch.tensor(2 * 0.3)))  # where a blurred step is 0.5 - 0.3
    assert areas.max() > 33.5**2 and areas.min() < 31**2
    assert areas.max() <= (32 + 2 * furthest + 2) ** 2 and areas.min() >= (32 - 2 * furthest - 8) ** 2


def test_bending_moves_pixels_and_makes_no_new_colours(still):
    still.setattr(wear, "BENDING", 3.0)
    worn = torch.cat([wear.worn(square(), generator(seed)) for seed in range(8)])
    inside = worn[:, 3] > 0
    moved = (worn[:, 3] != square()[:, 3]).flatten(1).any(1)
    assert moved.sum() >= 4 and ((inside.sum((1, 2)) / 32**2 - 1).abs() < 0.4).all()
    colours = worn[:, :3].movedim(1, -1)[inside]
    torch.testing.assert_close(colours, torch.tensor([0.2, 0.5, 0.9]).expand_as(colours), atol=1e-3, rtol=0)


def test_a_bend_by_whole_pixels_is_a_shift():
    by = torch.zeros(1, 2, SIZE, SIZE)
    by[:, 0] = 3
    torch.testing.assert_close(wear._bent(square(), by)[..., 8:56], square().roll(-3, -1)[..., 8:56], atol=1e-4, rtol=0)


def test_a_blurred_step_is_the_error_function():
    step = torch.zeros(1, 1, SIZE, SIZE)
    step[..., 32:] = 1
    row = wear._blur(step, torch.tensor([3.0]))[0, 0, 32]
    at = (torch.arange(SIZE) - 31.5) / (3 * math.sqrt(2))
    torch.testing.assert_close(row[10:54], ((1 + torch.erf(at)) / 2)[10:54], atol=6e-3, rtol=0)


def test_a_cast_changes_colours_and_no_outline(still):
    still.setattr(wear, "CAST", 0.3)
    worn = wear.worn(square(), generator())
    torch.testing.assert_close(worn[:, 3], square()[:, 3])
    assert (worn[:, :3] - square()[:, :3]).abs().max() > 0.01 and worn.min() >= 0 and worn.max() <= 1


def test_some_pictures_are_left_alone_and_layers_stay_layers():
    layers = square().expand(200, -1, -1, -1)
    worn = wear.worn(layers, generator())
    alone = (worn == layers).flatten(1).all(1).float().mean()
    assert abs(alone - wear.INTACT) < 0.1
    assert ((worn[:, 3] == 0) | (worn[:, 3] == 1)).all() and (worn[:, :3] <= worn[:, 3:]).all() and worn.min() >= 0


def test_the_seed_decides():
    assert torch.equal(wear.worn(square(), generator(1)), wear.worn(square(), generator(1)))
    assert not torch.equal(wear.worn(square(), generator(1)), wear.worn(square(), generator(2)))
