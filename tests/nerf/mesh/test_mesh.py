"""Meshes: volume, orientation, closedness, welding, components, normals and similarity transforms."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from nerf.core.errors import ExportError
from nerf.mesh import mesh as meshes
from nerf.mesh.mesh import Mesh
from tests.helpers import solids

SMOOTH = {"ball": lambda p: solids.ball(p, (0.05, -0.1, 0.02), 0.5), "torus": solids.torus}


def test_signed_volume_of_a_tetrahedron_and_of_its_inside_out_twin():
    mesh = solids.tetrahedron()
    assert meshes.signed_volume(mesh) == pytest.approx(1 / 6)
    assert meshes.signed_volume(replace(mesh, faces=mesh.faces[:, ::-1])) == pytest.approx(-1 / 6)


def test_surface_with_a_missing_or_a_flipped_triangle_is_not_watertight():
    mesh = solids.tetrahedron()
    flipped = np.concatenate([mesh.faces[:3], mesh.faces[3:, ::-1]])
    assert meshes.is_watertight(mesh)
    assert not meshes.is_watertight(replace(mesh, faces=mesh.faces[:3]))
    assert not meshes.is_watertight(replace(mesh, faces=flipped))


def test_weld_joins_near_vertices_and_drops_triangles_that_collapse():
    mesh = solids.tetrahedron()
    soup = mesh.corners.reshape(-1, 3) + 1e-9 * np.random.default_rng(0).uniform(-1, 1, (12, 3))
    faces = np.concatenate([np.arange(12).reshape(-1, 3), [[0, 0, 1]]])
    welded = meshes.weld(Mesh(soup, faces))
    assert len(welded.vertices) == 4 and len(welded.faces) == 4 and meshes.is_watertight(welded)


def test_weld_leaves_vertices_further_apart_than_its_tolerance():
    mesh = Mesh(np.array([[0.0, 0, 0], [3e-6, 0, 0], [0, 3e-6, 0]]), np.array([[0, 1, 2]]))
    assert len(meshes.weld(mesh, 2e-6).faces) == 1
    assert len(meshes.weld(mesh, 4e-6).faces) == 0


def test_components_counts_nodes_without_edges():
    count, label = meshes.components(np.array([[0, 2], [2, 4]]), 5)
    assert count == 3 and label[0] == label[2] == label[4] and len(set(label.tolist())) == 3


@pytest.mark.parametrize("name", SMOOTH)
def test_vertex_normals_point_outwards_like_the_gradient_of_the_distance(name):
    mesh = solids.surface(SMOOTH[name], 48)
    points = torch.from_numpy(mesh.vertices).requires_grad_()
    gradient = torch.autograd.grad(SMOOTH[name](points.float()).sum(), points)[0].numpy()
    assert ((meshes.vertex_normals(mesh) * gradient).sum(axis=1) > 0.98).all()


def test_vertex_normals_of_a_cube_do_not_depend_on_the_triangulation_of_its_sides():
    mesh = solids.box_mesh((1.0, 1.0, 1.0))
    assert meshes.signed_volume(mesh) == pytest.approx(1.0)
    np.testing.assert_allclose(meshes.vertex_normals(mesh), (2 * mesh.vertices - 1) / np.sqrt(3), atol=1e-12)


def test_largest_parts_drops_floaters_and_cavities_and_counts_them():
    cavity = solids.tetrahedron((0.1, 0.1, 0.1), 0.3)
    mesh = solids.joined(
        solids.tetrahedron(),
        replace(cavity, faces=cavity.faces[:, ::-1]),
        solids.tetrahedron((3, 0, 0), 0.1),
        solids.tetrahedron((0, 3, 0), 0.5),
    )
    kept, dropped = meshes.largest_parts(mesh, min_part=0.01)
    assert dropped == 2 and len(kept.faces) == 8 and len(kept.vertices) == 8
    assert meshes.signed_volume(kept) == pytest.approx((1 + 0.5**3) / 6)


def test_largest_parts_refuses_a_mesh_that_is_inside_out():
    mesh = solids.tetrahedron()
    with pytest.raises(ExportError, match="inside out"):
        meshes.largest_parts(replace(mesh, faces=mesh.faces[:, ::-1]))


def test_transformed_rotates_scales_and_translates_and_normals_stay_unit():
    turn = np.array([[0.0, 0, 1, 0], [0, 1, 0, 0], [-1, 0, 0, 0], [0, 0, 0, 1]])
    matrix = np.diag([2.0, 2, 2, 1]) @ turn
    matrix[:3, 3] = [5, 6, 7]
    mesh = replace(solids.tetrahedron(), normals=np.tile([[0.0, 0.0, 1.0]], (4, 1)))
    moved = meshes.transformed(mesh, matrix)
    np.testing.assert_allclose(moved.vertices[3], [7, 6, 7])
    np.testing.assert_allclose(moved.normals, [[1.0, 0, 0]] * 4, atol=1e-12)
    assert meshes.signed_volume(moved) == pytest.approx(8 / 6)


@pytest.mark.parametrize("matrix", [np.diag([-1.0, 1, 1, 1]), np.diag([1.0, 2, 1, 1])])
def test_transformed_refuses_to_mirror_or_to_stretch(matrix):
    with pytest.raises(ValueError, match="transformed: expected a rotation"):
        meshes.transformed(solids.tetrahedron(), matrix)
