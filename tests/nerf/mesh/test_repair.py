"""Cleaning: near vertices are welded, holes at the walls of the box are closed, and nothing else changes."""

from dataclasses import replace

import numpy as np
import pytest

from nerf.mesh import mesh as meshes
from nerf.mesh import repair
from nerf.mesh.isosurface import extract_surface
from nerf.mesh.mesh import Mesh
from tests.helpers import solids

CENTRE = (0.0531, 0.0117, -0.0973)  # off the grid points, or marching cubes makes vertices that almost coincide
BALL = solids.surface(lambda p: solids.ball(p, CENTRE, 0.5), 32)


def test_triangle_soup_is_welded_to_the_surface_it_came_from():
    welded, done = repair.clean_surface(solids.soup(BALL, 2e-7), 1.0)
    assert meshes.is_watertight(welded) and len(welded.vertices) == len(BALL.vertices)
    assert len(welded.faces) == len(BALL.faces)
    assert done.welded == 3 * len(BALL.faces) - len(BALL.vertices)


def test_closed_surface_without_slivers_is_left_as_it_is():
    mesh, done = repair.clean_surface(BALL, 1.0)
    np.testing.assert_array_equal(mesh.corners, BALL.corners)
    assert done == repair.Cleaning()


def test_edges_below_the_resolution_of_a_file_are_welded_and_the_surface_stays_closed():
    rough = extract_surface(solids.lettered().as_density(), 1.0, 48)[0]
    mesh, done = repair.clean_surface(rough, 1.0)
    rounded = Mesh(np.round(mesh.vertices, 6), mesh.faces)
    sides = np.linalg.norm(rounded.corners - np.roll(rounded.corners, 1, axis=1), axis=2)
    assert done.welded > 0 and sides.min() > 0 and meshes.is_watertight(mesh)
    assert meshes.signed_volume(mesh) == pytest.approx(meshes.signed_volume(rough), rel=1e-5)


def test_hole_away_from_the_walls_is_reported_and_left_open():
    torn = replace(BALL, faces=BALL.faces[5:])
    mesh, done = repair.clean_surface(torn, 1.0)
    assert done.capped == 0 and len(done.open_loops) >= 1 and not meshes.is_watertight(mesh)
    assert len(mesh.faces) == len(torn.faces) and 0 < done.open_loops[0] < 1.0


def test_noise_of_a_field_is_welded_and_capped_without_loss():
    whole = extract_surface(solids.noise(6, 2.0, seed=3), 1.0, 24)[0]
    mesh, done = repair.clean_surface(solids.soup(solids.without_walls(whole)), 1.0)
    assert meshes.is_watertight(mesh) and done.capped >= 5
