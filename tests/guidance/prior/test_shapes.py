"""The captioned shapes: distances that are bounds, families, colours, and renders."""

import pytest
import torch

from guidance.prior.camera import random_cameras
from guidance.prior.captions import KIND_NAMES, parse
from guidance.prior.render import render
from guidance.prior.shapes import (
    EMPTY,
    KINDS,
    albedo,
    canonical,
    family,
    occupancy,
    random_proportions,
    signed_distance,
)


def grid(resolution=28, half=0.62):
    axis = (torch.arange(resolution) + 0.5) / resolution * 2 * half - half
    return torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1)


def test_every_caption_kind_has_a_shape_and_no_other():
    assert set(KINDS) == set(KIND_NAMES)


@pytest.mark.parametrize("kind", KIND_NAMES)
def test_a_shape_fills_the_ball_it_is_meant_for_and_no_more(kind):
    points = grid()
    inside = points[occupancy(canonical(f"a {kind.replace(' on ', ' on a ')}"), points)]
    assert len(inside) > 80
    assert 0.36 < inside.norm(dim=-1).max() < 0.61


@pytest.mark.parametrize("kind", KIND_NAMES)
def test_distance_outside_is_a_lower_bound(kind):
    """No two points may differ in distance by more than they lie apart (1.8: thin ellipsoids are first-order)."""
    shape = canonical(parse(f"a {kind.replace(' on ', ' on a ')}").caption)
    generator = torch.Generator().manual_seed(0)
    a = torch.rand(2000, 3, generator=generator) * 1.2 - 0.6
    b = a + 0.01 * torch.randn(2000, 3, generator=generator)
    da, db = signed_distance(shape, a), signed_distance(shape, b)
    slope = (da - db).abs() / (a - b).norm(dim=-1)
    assert slope[(da > 0) & (db > 0)].max() < 1.8


def test_mirror_kinds_are_the_same_left_and_right():
    points = grid(20)
    for kind, spec in KINDS.items():
        if spec.symmetry != "none":
            shape = canonical(parse(f"a {kind.replace(' on ', ' on a ')}").caption)
            torch.testing.assert_close(
                signed_distance(shape, points), signed_distance(shape, points * torch.tensor([-1.0, 1, 1]))
            )


def test_round_kinds_look_the_same_from_everywhere():
    points = grid(20).reshape(-1, 3)
    turned = torch.stack([points[:, 2], points[:, 1], -points[:, 0]], -1)
    for kind, spec in KINDS.items():
        if spec.symmetry == "round":
            shape = canonical(parse(f"a {kind.replace(' on ', ' on a ')}").caption)
            torch.testing.assert_close(signed_distance(shape, points), signed_distance(shape, turned), atol=1e-5, rtol=0)


def test_the_mug_has_its_one_handle_at_plus_x_and_is_hollow():
    mug = canonical("a yellow mug")
    reach = grid(48)[occupancy(mug, grid(48))]
    assert reach[:, 0].max() > -reach[:, 0].min() + 0.02
    assert not occupancy(mug, torch.tensor([[-0.10, 0.1, 0.0]])).item()


def test_the_house_has_a_door_in_front_only():
    house = canonical("a green house with a yellow roof")
    depth = house.proportions["depth"]
    front, back = albedo(house, torch.tensor([[0.0, -0.30, depth + 0.01], [0.0, -0.30, -depth - 0.01]]))
    torch.testing.assert_close(back, house.palette[0])
    assert (front - back).abs().max() > 0.2


def test_a_family_starts_with_its_canonical_member_and_varies():
    members = family("an orange chair", 5, seed=3)
    assert members[0].proportions == canonical("an orange chair").proportions
    assert len({m.proportions["seat"] for m in members}) == 5


def test_shape_of_an_unknown_kind_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="names one of mushroom, tree"):
        canonical("a quantum of solace")


def test_render_of_a_ball_covers_the_disc_that_perspective_gives():
    cameras = {
        "polar": torch.tensor([90.0]),
        "azimuth": torch.tensor([0.0]),
        "radius": torch.tensor([3.2]),
        "fovy": torch.tensor([20.0]),
    }
    material, normal, _ = render("ball", {"radius": torch.tensor([0.4])}, cameras, 32)
    tangent = 0.4 / (3.2**2 - 0.4**2) ** 0.5 / torch.tan(torch.deg2rad(torch.tensor(10.0)))
    share = (material != EMPTY).float().mean()
    torch.testing.assert_close(share, torch.pi * tangent**2 / 4, atol=0.01, rtol=0)
    torch.testing.assert_close(normal[0, 15:17, 15:17].mean((0, 1)), torch.tensor([0.0, 0, 1]), atol=0.02, rtol=0)


def test_render_shows_the_handle_on_the_right_from_the_front_and_on_the_left_from_behind():
    cameras = {
        "polar": torch.tensor([85.0, 85.0]),
        "azimuth": torch.tensor([0.0, 180.0]),
        "radius": torch.tensor([3.2, 3.2]),
        "fovy": torch.tensor([20.0, 20.0]),
    }
    mug = {name: torch.full((2,), value) for name, value in canonical("a mug").proportions.items()}
    covered = (render("mug", mug, cameras, 32)[0] != EMPTY).float()
    columns = covered[:, 32:40].sum(1) > 0
    first = columns.float().argmax(-1), columns.flip(-1).float().argmax(-1)
    assert covered[0].sum() > 300 and len(first) == 2
    rows = covered[:, 16:48].mean(1) > 0.6
    body = rows.float() @ torch.arange(64.0) / rows.sum(-1)
    assert body[0] < 31 < 33 < body[1]


def test_render_is_the_same_for_the_same_generator():
    cameras = random_cameras(2, torch.Generator().manual_seed(0))
    renders = [
        render("chair", random_proportions("chair", 2, torch.Generator().manual_seed(1)), cameras, 16)[0] for _ in range(2)
    ]
    assert torch.equal(*renders)
