"""Decimation keeps volume and closedness, measures how far it moves the surface, and keeps its bound."""

from dataclasses import replace

import numpy as np
import pytest

from nerf.mesh import decimate
from nerf.mesh import mesh as meshes
from nerf.mesh.isosurface import extract_surface
from tests.helpers import solids

CENTRE = (0.0531, 0.0117, -0.0973)  # off the grid points, or marching cubes makes vertices that almost coincide
SOLIDS = {
    "ball": lambda p: solids.ball(p, (0.05, -0.1, 0.02), 0.5),
    "box": lambda p: solids.box(p, (0.03, 0.0, -0.02), (0.4, 0.3, 0.5)),
    "torus": solids.torus,
}
BALL = solids.surface(lambda p: solids.ball(p, CENTRE, 0.5), 32)
PEBBLE = solids.surface(lambda p: solids.ball(p, CENTRE, 0.5), 16)


@pytest.mark.parametrize("name", SOLIDS)
def test_decimation_keeps_volume_and_stays_closed(name):
    mesh = solids.surface(SOLIDS[name], 48)
    small = decimate.decimate(mesh, 1500)
    assert 1300 <= len(small.faces) <= 1501 and meshes.is_watertight(small)
    assert meshes.signed_volume(small) == pytest.approx(meshes.signed_volume(mesh), rel=0.005)


def test_decimation_to_more_triangles_than_there_are_changes_nothing():
    mesh = solids.tetrahedron()
    assert decimate.decimate(mesh, 100) is mesh and decimate.decimate(mesh, 0) is mesh


def test_decimating_a_rough_surface_hard_leaves_it_closed():
    rough = extract_surface(solids.noise(12, 3.0), 1.0, 32)[0]
    small = decimate.decimate(rough, len(rough.faces) // 8)
    assert meshes.is_watertight(small) and len(small.faces) < len(rough.faces) // 7


def test_distance_of_two_balls_is_the_difference_of_their_radii():
    larger = replace(BALL, vertices=(BALL.vertices - CENTRE) * 1.1 + CENTRE)
    farthest, mean = decimate.surface_distance(BALL, larger)
    assert farthest == pytest.approx(0.05, rel=0.05) and mean == pytest.approx(0.05, rel=0.02)


def test_surface_has_no_distance_from_itself():
    assert decimate.surface_distance(BALL, BALL)[0] < 1e-12


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
