"""Holes: their boundary loops, caps in the walls of the box, and ear clipping."""

import numpy as np
import pytest

from nerf.mesh import holes
from nerf.mesh import mesh as meshes
from tests.helpers import solids


@pytest.mark.parametrize(
    "distance",
    [
        lambda p: solids.ball(p, (0.8, 0.0, 0.0), 0.5),
        lambda p: solids.ball(p, (0.0, 0.0, -0.9), 0.6),
        lambda p: solids.box(p, (0.0, 0.0, 0.0), (2.0, 0.3, 0.2)),
        lambda p: (solids.ball(p, (0.0, -1.0, 0.0), 0.6)).abs() - 0.15,
    ],
    ids=["ball", "ball at the back", "beam through two walls", "half a shell"],
)
def test_hole_at_the_wall_is_capped_in_the_wall(distance):
    whole = solids.surface(distance)
    opened = solids.without_walls(whole)
    assert not meshes.is_watertight(opened)
    mesh, capped = holes.cap_walls(opened, 1.0, 1e-3)
    assert capped > 0 and meshes.is_watertight(mesh)
    assert meshes.signed_volume(mesh) == pytest.approx(meshes.signed_volume(whole), rel=1e-3)
    area = [np.linalg.norm(np.cross(c[:, 1] - c[:, 0], c[:, 2] - c[:, 0]), axis=1).sum() for c in (mesh.corners, whole.corners)]
    assert area[0] == pytest.approx(area[1], rel=1e-3)  # overlapping caps would have more


@pytest.mark.parametrize("resolution", [24, 32, 40, 48, 64])
def test_hole_over_three_walls_is_closed(resolution):
    corner = solids.surface(lambda p: solids.ball(p, (0.9, 0.9, 0.9), 0.6), resolution)
    assert np.abs(corner.vertices).max() == 1.0  # exactly on the wall
    mesh, capped = holes.cap_walls(solids.without_walls(corner), 1.0, 1e-3)
    assert capped == 1 and meshes.is_watertight(mesh)


def test_a_cut_that_is_taken_is_left_out():
    square = np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
    for taken, other in (((0, 2), {1, 3}), ((1, 3), {0, 2})):
        triangles = holes.ear_clip(square, np.arange(4), {taken})
        assert set.intersection(*map(set, triangles.tolist())) == other
    assert len(holes.ear_clip(square, np.arange(4), {(0, 2), (1, 3)})) == 2  # it is closed all the same


def test_ear_clipping_keeps_the_area_of_a_polygon_that_is_not_convex():
    angle = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    star = np.stack([np.cos(angle), np.sin(angle)], axis=1) * np.where(np.arange(40) % 2, 0.4, 1.0)[:, None]
    triangles = holes.ear_clip(star, np.arange(40))
    parts = [holes._area(star[t]) for t in triangles]
    assert len(triangles) == 38 and min(parts) > 0 and sum(parts) == pytest.approx(holes._area(star))
