"""Manifold repair: sheets that share edges or vertices are separated, and move by a tiny distance at most."""

from dataclasses import replace

import numpy as np
import pytest

from nerf.mesh import manifold
from nerf.mesh import mesh as meshes
from nerf.mesh.intersections import crossing_faces
from nerf.mesh.mesh import Mesh
from tests.helpers import solids

BALL = solids.surface(lambda p: solids.ball(p, (0.0531, 0.0117, -0.0973), 0.5), 32)


def test_unpinch_gives_each_of_two_solids_that_share_an_edge_its_own():
    first = solids.tetrahedron()
    rotated = first.vertices * [-1, -1, 1]  # half a turn about z, so that the edge along z is shared
    second = np.array([4 if k == 1 else 5 if k == 2 else k for k in range(4)])[first.faces]
    mesh = Mesh(np.concatenate([first.vertices, rotated[1:3]]), np.concatenate([first.faces, second]))
    assert not meshes.is_watertight(mesh)
    apart = manifold.unpinch(mesh)
    assert meshes.is_watertight(apart) and len(apart.vertices) == 8
    np.testing.assert_array_equal(apart.corners, mesh.corners)


@pytest.mark.parametrize("turn", range(6))
def test_unpinch_gives_bodies_that_share_an_edge_back_their_own_triangles_however_they_lie(turn):
    rng = np.random.default_rng(turn)
    wedges, edge = [], np.array([[0.0, 0, 0], [0, 0, 1]])
    for k, low in enumerate(np.arange(3) * 2.0 + rng.random()):  # three wedges about the z axis
        rim = np.array([[np.cos(low), np.sin(low), 0.5], [np.cos(low + 1.2), np.sin(low + 1.2), 0.5]])
        wedges.append((np.concatenate([edge, rim]), np.array([[0, 3, 2], [1, 2, 3], [0, 2, 1], [0, 1, 3]]), k))
    vertices = np.concatenate([edge, *(corners[2:] for corners, _, _ in wedges)])
    faces = np.concatenate([np.where(tris < 2, tris, tris + 2 * k) for _, tris, k in wedges])
    order = rng.permutation(len(faces))
    apart = manifold.unpinch(Mesh(vertices, faces[order]))
    owner = order // 4  # which wedge a triangle is of; triangles that were cut come last
    assert meshes.is_watertight(apart) and all(meshes.signed_volume(Mesh(c, t)) > 0 for c, t, _ in wedges)
    label = np.array([set_of.min() for set_of in apart.faces[:12]])
    for k in range(3):
        mine, others = apart.faces[:12][owner == k], apart.faces[:12][owner != k]
        assert not set(mine.reshape(-1)) & set(others.reshape(-1)), label


def test_unpinch_drops_triangles_that_lie_back_to_back():
    mesh = solids.tetrahedron()
    flap = np.array([[0, 1, 4], [0, 4, 1]])
    mesh = Mesh(np.concatenate([mesh.vertices, [[2.0, 2.0, 2.0]]]), np.concatenate([mesh.faces, flap]))
    clean = manifold.unpinch(mesh)
    assert meshes.is_watertight(clean) and len(clean.faces) == 4 and len(clean.vertices) == 4


def test_sheets_that_touch_at_a_vertex_move_apart_and_nothing_else_does():
    first = replace(BALL, normals=meshes.vertex_normals(BALL))
    rotated = replace(first, vertices=2 * BALL.vertices[0] - BALL.vertices, normals=-first.normals)
    count = len(BALL.vertices)
    both = Mesh(
        np.concatenate([first.vertices, rotated.vertices]),
        np.concatenate([BALL.faces, BALL.faces[:, ::-1] + count]),
        np.concatenate([first.normals, rotated.normals]),
    )
    apart = manifold.separate(both, 1e-4)
    moved = np.linalg.norm(apart.vertices - both.vertices, axis=1)
    assert set(np.flatnonzero(moved)) == {0, count}
    assert np.linalg.norm(apart.vertices[0] - apart.vertices[count]) == pytest.approx(3e-4)


def test_sheets_that_would_cross_something_stay_where_they_are():
    sheet = np.array([[0.0, 0, 0], [1, 0, 0], [0, 1, 0]])
    below = np.array([[-1.0, -1, -1e-5], [3, -1, -1e-5], [-1, 3, -1e-5]])  # the first sheet would dip into this one
    normals = np.array([[0.0, 0, 1], [1, 0, 0], [0, 1, 0], *[[0, 0, -1]] * 3, *[[0, 0, 1]] * 3])
    mesh = Mesh(np.concatenate([sheet, sheet, below]), np.array([[0, 1, 2], [3, 5, 4], [6, 7, 8]]), normals)
    moved = manifold.separate(mesh, 2e-5)
    assert not crossing_faces(moved, np.arange(3)).any()
    np.testing.assert_array_equal(np.linalg.norm(moved.vertices - mesh.vertices, axis=1) > 0, np.arange(9) // 3 == 1)


def two_bodies(first, second):
    """Tetrahedra that share the edge from 0 0 0 to 0 0 1, each with vertices of its own there."""
    bodies = []
    for rest in (first, second):
        body = Mesh(np.array([[0.0, 0, 0], [0, 0, 1], *rest]), solids.tetrahedron().faces)
        bodies.append(body if meshes.signed_volume(body) > 0 else replace(body, faces=body.faces[:, ::-1]))
    both = Mesh(np.concatenate([b.vertices for b in bodies]), np.concatenate([bodies[0].faces, bodies[1].faces + 4]))
    return replace(both, normals=meshes.vertex_normals(both))


LEANING = ([[0.3, -0.5, -0.9], [-1.0, 0.6, 0.8]], [[0.2, 0.5, 0.1], [0.9, 0.6, -1.0]])


@pytest.mark.parametrize("swapped", [False, True])
def test_where_two_bodies_at_an_edge_cannot_both_move_one_of_them_does(swapped):
    mesh = two_bodies(*LEANING[:: -1 if swapped else 1])
    apart = manifold.separate(mesh, 1e-3)
    still = 4 if swapped else 0  # the second of the pair leans over the first, which would dip into it
    moved = np.flatnonzero(np.abs(apart.vertices - mesh.vertices).max(axis=1))
    assert moved.tolist() == [4 - still, 5 - still] and not crossing_faces(apart, np.arange(8)).any()
    assert len(np.unique(apart.vertices.astype(np.float32), axis=0)) == 8


APART = two_bodies([[1.0, 0.1, 0.5], [1.0, -0.1, 0.5]], [[-1.0, 0.1, 0.5], [-1.0, -0.1, 0.5]])
THROUGH = np.array([[0.6, -1.0, 0.4], [0.6, 1.0, 0.4], [0.6, 0.0, 2.0]])  # a sheet that passes through the first of them


def with_sheets(mesh, *sheets):
    """A mesh and further triangles [3, 3]."""
    first = len(mesh.vertices)
    return Mesh(
        np.concatenate([mesh.vertices, *sheets]),
        np.concatenate([mesh.faces, np.arange(first, first + 3 * len(sheets)).reshape(-1, 3)]),
        np.concatenate([mesh.require("normals"), np.tile([0.0, 1, 0], (3 * len(sheets), 1))]),
    )


def test_triangles_that_cross_others_already_are_no_hindrance():
    mesh = with_sheets(APART, THROUGH, THROUGH * [-1, 1, 1])
    assert crossing_faces(mesh, np.arange(8)).any()
    assert len(np.unique(manifold.separate(mesh, 1e-3).vertices.astype(np.float32), axis=0)) == 14


def test_a_triangle_that_crosses_another_already_does_not_come_to_cross_one_that_touches():
    needle = np.array([[0.004, 0.0002, 0.5], [0.2, 0.004, 0.5], [0.2, 0.004, 0.51]])  # in the body, just behind its edge
    touching = np.array([needle[1], [0.3, 0.004, 0.52], [0.3, 0.004, 0.48]])
    mesh = with_sheets(APART, THROUGH, needle, touching)
    apart = manifold.separate(mesh, 1e-2)
    assert not crossing_faces(apart, np.array([9, 10])).any()
