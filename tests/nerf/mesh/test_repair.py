"""nerf/mesh/repair.py: welding by a hair, caps at the wall of the box, and decimation that keeps its bound."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from nerf.mesh import decimate, isosurface, repair
from nerf.mesh import mesh as meshes
from nerf.mesh.density_grid import sample_lattice
from nerf.mesh.mesh import Mesh
from tests.helpers import solids


def surface(distance, resolution=32):
    """Marching cubes of a solid's density."""
    density = solids.Solid(distance, None).density
    return isosurface.marching_cubes(sample_lattice(density, 1.0, resolution), density)


def opened(mesh, bound=1.0):
    """A surface that the box cut, without the triangles that lie in its walls."""
    flat = (np.abs(mesh.corners) >= bound * (1 - 1e-9)).all(axis=1).any(axis=1)
    return meshes.drop_unused(replace(mesh, faces=mesh.faces[~flat]))


def soup(mesh, noise=0.0):
    """The mesh with corners of its own for every triangle, each moved by up to ``noise``."""
    corners = mesh.corners.reshape(-1, 3)
    moved = corners + np.random.default_rng(0).uniform(-noise, noise, corners.shape)
    return Mesh(moved, np.arange(len(corners)).reshape(-1, 3))


CENTRE = (0.0531, 0.0117, -0.0973)  # off the lattice, or marching cubes makes vertices a hair apart
BALL = surface(lambda p: solids.ball(p, CENTRE, 0.5))


def test_triangle_soup_is_welded_to_the_surface_it_came_from():
    welded, done = repair.clean_surface(soup(BALL, 2e-7), 1.0)
    assert meshes.is_watertight(welded) and len(welded.vertices) == len(BALL.vertices)
    assert len(welded.faces) == len(BALL.faces)
    assert done.welded == 3 * len(BALL.faces) - len(BALL.vertices)


def test_closed_surface_without_slivers_is_left_as_it_is():
    mesh, done = repair.clean_surface(BALL, 1.0)
    np.testing.assert_array_equal(mesh.corners, BALL.corners)
    assert done == repair.Cleaning()


def test_slivers_that_a_file_s_decimals_would_close_are_welded_and_the_surface_stays_closed():
    density = solids.lettered().density
    rough = isosurface.marching_cubes(sample_lattice(density, 1.0, 48), density)
    mesh, done = repair.clean_surface(rough, 1.0)
    rounded = meshes.Mesh(np.round(mesh.vertices, 6), mesh.faces)
    sides = np.linalg.norm(rounded.corners - np.roll(rounded.corners, 1, axis=1), axis=2)
    assert done.welded > 0 and sides.min() > 0 and meshes.is_watertight(mesh)
    assert meshes.signed_volume(mesh) == pytest.approx(meshes.signed_volume(rough), rel=1e-5)


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
def test_opening_at_the_wall_is_capped_in_the_wall(distance):
    whole = surface(distance)
    mesh, done = repair.clean_surface(opened(whole), 1.0)
    assert done.capped > 0 and done.open_rims == () and meshes.is_watertight(mesh)
    assert meshes.signed_volume(mesh) == pytest.approx(meshes.signed_volume(whole), rel=1e-3)
    area = [np.linalg.norm(np.cross(c[:, 1] - c[:, 0], c[:, 2] - c[:, 0]), axis=1).sum() for c in (mesh.corners, whole.corners)]
    assert area[0] == pytest.approx(area[1], rel=1e-3)  # overlapping caps would have more


def test_opening_over_three_walls_is_closed():
    mesh, done = repair.clean_surface(opened(surface(lambda p: solids.ball(p, (0.9, 0.9, 0.9), 0.6))), 1.0)
    assert done.capped == 1 and meshes.is_watertight(mesh)


def test_hole_elsewhere_is_told_and_not_closed():
    torn = replace(BALL, faces=BALL.faces[5:])
    mesh, done = repair.clean_surface(torn, 1.0)
    assert done.capped == 0 and len(done.open_rims) >= 1 and not meshes.is_watertight(mesh)
    assert len(mesh.faces) == len(torn.faces) and 0 < done.open_rims[0] < 1.0


def test_ear_clipping_keeps_the_area_of_a_polygon_that_is_not_convex():
    angle = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    star = np.stack([np.cos(angle), np.sin(angle)], axis=1) * np.where(np.arange(40) % 2, 0.4, 1.0)[:, None]
    triangles = repair.ear_clip(star, np.arange(40))
    parts = [repair._area(star[t]) for t in triangles]
    assert len(triangles) == 38 and min(parts) > 0 and sum(parts) == pytest.approx(repair._area(star))


def test_distance_of_two_balls_is_the_difference_of_their_radii():
    larger = replace(BALL, vertices=(BALL.vertices - CENTRE) * 1.1 + CENTRE)
    farthest, mean = decimate.surface_distance(BALL, larger)
    assert farthest == pytest.approx(0.05, rel=0.05) and mean == pytest.approx(0.05, rel=0.02)


def test_surface_has_no_distance_from_itself():
    assert decimate.surface_distance(BALL, BALL)[0] < 1e-12


PEBBLE = surface(lambda p: solids.ball(p, CENTRE, 0.5), 16)


def test_decimation_reports_how_far_it_moved_the_surface():
    small, done = decimate.decimate_within(PEBBLE, 120)
    assert len(small.faces) <= 120 and done.tries == 1
    assert done.farthest == pytest.approx(decimate.surface_distance(PEBBLE, small, 9_000, seed=1)[0], rel=0.25)
    assert 0 < done.mean < done.farthest


def test_decimation_takes_more_triangles_until_it_keeps_its_bound():
    free = decimate.decimate_within(PEBBLE, 100)[1]
    small, done = decimate.decimate_within(PEBBLE, 100, max_error=free.farthest / 4)
    assert done.farthest <= free.farthest / 4 and done.tries > 1
    assert 100 < len(small.faces) < len(PEBBLE.faces) and meshes.is_watertight(small)


def test_decimation_that_cannot_keep_its_bound_keeps_the_surface():
    rough = replace(PEBBLE, vertices=PEBBLE.vertices + np.random.default_rng(0).normal(size=PEBBLE.vertices.shape) * 0.01)
    same, done = decimate.decimate_within(rough, 100, max_error=1e-9)
    assert same is rough and done.farthest == 0.0 and done.tries > 1


def test_negative_bound_is_refused():
    with pytest.raises(ValueError, match="max_error >= 0"):
        decimate.decimate_within(BALL, 100, max_error=-1.0)


def test_noise_of_a_field_is_welded_and_capped_without_loss():
    noise = torch.randn(1, 1, 6, 6, 6, generator=torch.Generator().manual_seed(3))

    def density(points):
        where = points[None, None, None].flip(-1)
        return 10 * torch.exp(2 * torch.nn.functional.grid_sample(noise, where, align_corners=True)[0, 0, 0, 0])

    whole = isosurface.marching_cubes(sample_lattice(density, 1.0, 24), density)
    mesh, done = repair.clean_surface(soup(opened(whole)), 1.0)
    assert meshes.is_watertight(mesh) and done.capped >= 5


def test_sheets_that_touch_at_a_vertex_move_apart_and_nothing_else_does():
    first = replace(BALL, normals=meshes.vertex_normals(BALL))
    turned = replace(first, vertices=2 * BALL.vertices[0] - BALL.vertices, normals=-first.normals)
    count = len(BALL.vertices)
    both = Mesh(
        np.concatenate([first.vertices, turned.vertices]),
        np.concatenate([BALL.faces, BALL.faces[:, ::-1] + count]),
        np.concatenate([first.normals, turned.normals]),
    )
    apart = repair.separate(both, 1e-4)
    moved = np.linalg.norm(apart.vertices - both.vertices, axis=1)
    assert set(np.flatnonzero(moved)) == {0, count}
    assert np.linalg.norm(apart.vertices[0] - apart.vertices[count]) == pytest.approx(3e-4)


def test_sheets_that_would_cross_something_stay_where_they_are():
    sheet = np.array([[0.0, 0, 0], [1, 0, 0], [0, 1, 0]])
    below = np.array([[-1.0, -1, -1e-5], [3, -1, -1e-5], [-1, 3, -1e-5]])  # the first sheet would dip into this one
    normals = np.array([[0.0, 0, 1], [1, 0, 0], [0, 1, 0], *[[0, 0, -1]] * 3, *[[0, 0, 1]] * 3])
    mesh = Mesh(np.concatenate([sheet, sheet, below]), np.array([[0, 1, 2], [3, 5, 4], [6, 7, 8]]), normals)
    moved = repair.separate(mesh, 2e-5)
    assert not repair.crossing_faces(moved, np.arange(3)).any()
    np.testing.assert_array_equal(np.linalg.norm(moved.vertices - mesh.vertices, axis=1) > 0, np.arange(9) // 3 == 1)
