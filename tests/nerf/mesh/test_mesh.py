"""nerf/mesh/mesh.py: surfaces of known solids are closed, face outwards, and have the right volume."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from nerf.core.errors import ExportError
from nerf.mesh import decimate, isosurface, uv
from nerf.mesh import mesh as meshes
from nerf.mesh.density_grid import Lattice, sample_lattice
from nerf.mesh.mesh import Mesh
from nerf.mesh.texture import rasterize_uv
from tests.helpers import solids

PI = np.pi
SOLIDS = {
    "ball": (lambda p: solids.ball(p, (0.05, -0.1, 0.02), 0.5), 4 / 3 * PI * 0.5**3),
    "box": (lambda p: solids.box(p, (0.03, 0.0, -0.02), (0.4, 0.3, 0.5)), 8 * 0.4 * 0.3 * 0.5),
    "torus": (lambda p: solids.torus(p), 2 * PI**2 * 0.5 * 0.2**2),
}


def surface(distance, resolution=48):
    """Marching cubes of a solid's density."""
    density = solids.Solid(distance, None).density
    return isosurface.marching_cubes(sample_lattice(density, 1.0, resolution), density)


@cache
def known(name):
    """The surface of a known solid; shared, never changed."""
    return surface(SOLIDS[name][0])


def tetrahedron(at=(0.0, 0.0, 0.0), size=1.0):
    """A tetrahedron with outward faces and volume size^3 / 6."""
    corners = np.array([[0.0, 0.0, 0.0], [1, 0, 0], [0, 1, 0], [0, 0, 1]]) * size + np.array(at)
    return Mesh(corners, np.array([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]]))


def together(*parts):
    """Several meshes as one."""
    offsets = np.cumsum([0] + [len(part.vertices) for part in parts])
    faces = np.concatenate([part.faces + offset for part, offset in zip(parts, offsets, strict=False)])
    return Mesh(np.concatenate([part.vertices for part in parts]), faces)


def test_signed_volume_of_a_tetrahedron_and_of_its_inside_out_twin():
    mesh = tetrahedron()
    assert meshes.signed_volume(mesh) == pytest.approx(1 / 6)
    assert meshes.signed_volume(replace(mesh, faces=mesh.faces[:, ::-1])) == pytest.approx(-1 / 6)


def test_watertight_says_no_to_a_missing_and_to_a_flipped_triangle():
    mesh = tetrahedron()
    flipped = np.concatenate([mesh.faces[:3], mesh.faces[3:, ::-1]])
    assert meshes.is_watertight(mesh)
    assert not meshes.is_watertight(replace(mesh, faces=mesh.faces[:3]))
    assert not meshes.is_watertight(replace(mesh, faces=flipped))


def test_weld_joins_near_vertices_and_drops_what_collapses():
    mesh = tetrahedron()
    soup = mesh.corners.reshape(-1, 3) + 1e-9 * np.random.default_rng(0).uniform(-1, 1, (12, 3))
    faces = np.concatenate([np.arange(12).reshape(-1, 3), [[0, 0, 1]]])
    welded = meshes.weld(Mesh(soup, faces))
    assert len(welded.vertices) == 4 and len(welded.faces) == 4 and meshes.is_watertight(welded)


def test_weld_collapses_nothing_that_is_further_apart_than_its_tolerance():
    mesh = Mesh(np.array([[0.0, 0, 0], [3e-6, 0, 0], [0, 3e-6, 0]]), np.array([[0, 1, 2]]))
    assert len(meshes.weld(mesh, 2e-6).faces) == 1
    assert len(meshes.weld(mesh, 4e-6).faces) == 0


def test_components_counts_what_no_pair_touches():
    count, label = meshes.components(np.array([[0, 2], [2, 4]]), 5)
    assert count == 3 and label[0] == label[2] == label[4] and len(set(label.tolist())) == 3


@pytest.mark.parametrize("name", SOLIDS)
def test_marching_cubes_is_closed_and_has_the_solid_s_volume(name):
    mesh = known(name)
    assert meshes.is_watertight(mesh)
    assert meshes.signed_volume(mesh) == pytest.approx(SOLIDS[name][1], rel=0.015)  # chords of a 48^3 lattice


@pytest.mark.parametrize("name", ["ball", "torus"])
def test_vertices_lie_where_the_field_itself_crosses_the_threshold(name):
    distance = SOLIDS[name][0](torch.from_numpy(known(name).vertices).float())
    assert distance.abs().max() < 2 / 48 / 2**5  # five bisections of a lattice edge


def test_bisection_beats_interpolation_in_a_field_that_rises_steeply():
    density = solids.Solid(SOLIDS["ball"][0], None, steepness=2000.0).density
    lattice = sample_lattice(density, 1.0, 32)

    def worst(mesh):
        return float(SOLIDS["ball"][0](torch.from_numpy(mesh.vertices).float()).abs().max())

    interpolated = worst(isosurface.marching_cubes(lattice))
    assert worst(isosurface.marching_cubes(lattice, density)) < 0.1 * interpolated


@pytest.mark.parametrize("name", ["ball", "torus"])
def test_vertex_normals_point_outwards_like_the_gradient_of_the_distance(name):
    mesh = known(name)
    points = torch.from_numpy(mesh.vertices).requires_grad_()
    gradient = torch.autograd.grad(SOLIDS[name][0](points.float()).sum(), points)[0].numpy()
    assert ((meshes.vertex_normals(mesh) * gradient).sum(axis=1) > 0.98).all()


def test_vertex_normals_of_a_cube_do_not_depend_on_how_its_sides_are_cut():
    corners = np.array([[x, y, z] for x in (0.0, 1.0) for y in (0.0, 1.0) for z in (0.0, 1.0)])
    quads = [[0, 1, 3, 2], [4, 6, 7, 5], [0, 4, 5, 1], [2, 3, 7, 6], [0, 2, 6, 4], [1, 5, 7, 3]]
    faces = np.array([triangle for a, b, c, d in quads for triangle in ([a, b, c], [a, c, d])])
    mesh = Mesh(corners, faces)
    assert meshes.signed_volume(mesh) == pytest.approx(1.0)
    np.testing.assert_allclose(meshes.vertex_normals(mesh), (2 * corners - 1) / np.sqrt(3), atol=1e-12)


def test_surface_that_meets_the_wall_of_the_box_is_closed_on_the_wall():
    mesh = surface(lambda p: solids.box(p, (0.7, 0.0, 0.0), (0.6, 0.3, 0.3)), 32)
    assert meshes.is_watertight(mesh)
    assert mesh.bounds[1, 0] == 1.0 and mesh.bounds[0, 0] == pytest.approx(0.1, abs=2e-3)
    assert meshes.signed_volume(mesh) == pytest.approx(0.9 * 0.6 * 0.6, rel=0.03)  # marching cubes cuts edges off


def test_random_field_gives_a_closed_surface():
    noise = torch.randn(1, 1, 8, 8, 8)

    def density(points):
        where = points[None, None, None].flip(-1)
        return 10 * torch.exp(2 * torch.nn.functional.grid_sample(noise, where, align_corners=True)[0, 0, 0, 0])

    assert meshes.is_watertight(isosurface.marching_cubes(sample_lattice(density, 1.0, 32), density))


def test_lattice_on_the_threshold_itself_makes_no_triangles_without_area():
    volume = np.zeros((9, 9, 9), dtype=np.float32)
    volume[3:6, 3:6, 3:6], volume[4, 4, 4] = 10.0, 50.0  # 26 points exactly on the threshold
    mesh = isosurface.marching_cubes(Lattice(volume, 1.0, 10.0, 0))
    a, b, c = np.moveaxis(mesh.corners, 1, 0)
    assert meshes.is_watertight(mesh) and np.linalg.norm(np.cross(b - a, c - a), axis=1).min() > 0


def test_empty_field_is_refused_with_its_highest_density_and_a_way_out():
    with pytest.raises(ExportError, match=r"empty: its highest density is 3, and the surface is where it is 10; train"):
        isosurface.marching_cubes(Lattice(np.full((9, 9, 9), 3.0, dtype=np.float32), 1.0, 10.0, 0))


def test_solid_field_is_refused_as_fog():
    with pytest.raises(ExportError, match="solid: 100.0 % of the box .* fog"):
        isosurface.marching_cubes(Lattice(np.full((9, 9, 9), 30.0, dtype=np.float32), 1.0, 10.0, 0))


def test_largest_parts_drops_floaters_and_cavities_and_counts_them():
    cavity = tetrahedron((0.1, 0.1, 0.1), 0.3)
    mesh = together(
        tetrahedron(), replace(cavity, faces=cavity.faces[:, ::-1]), tetrahedron((3, 0, 0), 0.1), tetrahedron((0, 3, 0), 0.5)
    )
    kept, dropped = meshes.largest_parts(mesh, min_part=0.01)
    assert dropped == 2 and len(kept.faces) == 8 and len(kept.vertices) == 8
    assert meshes.signed_volume(kept) == pytest.approx((1 + 0.5**3) / 6)


def test_largest_parts_refuses_a_mesh_that_is_inside_out():
    mesh = tetrahedron()
    with pytest.raises(ExportError, match="inside out"):
        meshes.largest_parts(replace(mesh, faces=mesh.faces[:, ::-1]))


@pytest.mark.parametrize("name", SOLIDS)
def test_decimation_keeps_volume_and_stays_closed(name):
    mesh = known(name)
    small = decimate.decimate(mesh, 1500)
    assert 1300 <= len(small.faces) <= 1501 and meshes.is_watertight(small)
    assert meshes.signed_volume(small) == pytest.approx(meshes.signed_volume(mesh), rel=0.005)


def test_decimation_to_more_triangles_than_there_are_changes_nothing():
    mesh = tetrahedron()
    assert decimate.decimate(mesh, 100) is mesh and decimate.decimate(mesh, 0) is mesh


def test_unpinch_gives_each_of_two_solids_that_share_an_edge_its_own():
    first = tetrahedron()
    turned = first.vertices * [-1, -1, 1]  # half a turn about z, so that the edge along z is shared
    second = np.array([4 if k == 1 else 5 if k == 2 else k for k in range(4)])[first.faces]
    mesh = Mesh(np.concatenate([first.vertices, turned[1:3]]), np.concatenate([first.faces, second]))
    assert not meshes.is_watertight(mesh)
    apart = decimate.unpinch(mesh)
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
    apart = decimate.unpinch(Mesh(vertices, faces[order]))
    owner = order // 4  # which wedge a triangle is of; triangles that were cut come last
    assert meshes.is_watertight(apart) and all(meshes.signed_volume(Mesh(c, t)) > 0 for c, t, _ in wedges)
    label = np.array([set_of.min() for set_of in apart.faces[:12]])
    for k in range(3):
        mine, others = apart.faces[:12][owner == k], apart.faces[:12][owner != k]
        assert not set(mine.reshape(-1)) & set(others.reshape(-1)), label


def test_decimating_a_rough_surface_hard_leaves_it_closed():
    noise = torch.randn(1, 1, 12, 12, 12)

    def density(points):
        where = points[None, None, None].flip(-1)
        return 10 * torch.exp(3 * torch.nn.functional.grid_sample(noise, where, align_corners=True)[0, 0, 0, 0])

    rough = isosurface.marching_cubes(sample_lattice(density, 1.0, 32), density)
    small = decimate.decimate(rough, len(rough.faces) // 8)
    assert meshes.is_watertight(small) and len(small.faces) < len(rough.faces) // 7


def test_unpinch_drops_triangles_that_lie_back_to_back():
    mesh = tetrahedron()
    flap = np.array([[0, 1, 4], [0, 4, 1]])
    mesh = Mesh(np.concatenate([mesh.vertices, [[2.0, 2.0, 2.0]]]), np.concatenate([mesh.faces, flap]))
    clean = decimate.unpinch(mesh)
    assert meshes.is_watertight(clean) and len(clean.faces) == 4 and len(clean.vertices) == 4


def test_unwrap_keeps_triangles_and_normals_and_lies_in_the_unit_square():
    mesh = decimate.decimate(known("torus"), 2500)  # three blocks of xatlas
    mesh = replace(mesh, normals=meshes.vertex_normals(mesh))
    flat = uv.unwrap(mesh, 256)
    np.testing.assert_array_equal(flat.corners, mesh.corners)
    np.testing.assert_array_equal(flat.normals[flat.faces], mesh.normals[mesh.faces])
    assert flat.uv.min() >= 0 and flat.uv.max() <= 1 and meshes.is_watertight(flat)


def test_unwrapped_triangles_do_not_overlap():
    flat = uv.unwrap(decimate.decimate(known("ball"), 1500), 256)
    a, b, c = np.moveaxis(flat.uv[flat.faces], 1, 0)
    area = 0.5 * np.abs((b - a)[:, 0] * (c - a)[:, 1] - (b - a)[:, 1] * (c - a)[:, 0]).sum()
    texels = rasterize_uv(flat.uv, flat.faces, 1024)
    assert len(texels) / 1024**2 == pytest.approx(area, rel=0.01)  # overlap would cover less than the sum of areas


def test_transformed_turns_scales_and_moves_and_normals_stay_unit():
    turn = np.array([[0.0, 0, 1, 0], [0, 1, 0, 0], [-1, 0, 0, 0], [0, 0, 0, 1]])
    matrix = np.diag([2.0, 2, 2, 1]) @ turn
    matrix[:3, 3] = [5, 6, 7]
    mesh = replace(tetrahedron(), normals=np.tile([[0.0, 0.0, 1.0]], (4, 1)))
    moved = meshes.transformed(mesh, matrix)
    np.testing.assert_allclose(moved.vertices[3], [7, 6, 7])
    np.testing.assert_allclose(moved.normals, [[1.0, 0, 0]] * 4, atol=1e-12)
    assert meshes.signed_volume(moved) == pytest.approx(8 / 6)


@pytest.mark.parametrize("matrix", [np.diag([-1.0, 1, 1, 1]), np.diag([1.0, 2, 1, 1])])
def test_transformed_refuses_to_mirror_or_to_stretch(matrix):
    with pytest.raises(ValueError, match="transformed: expected a rotation"):
        meshes.transformed(tetrahedron(), matrix)
