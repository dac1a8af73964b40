"""The BCC grid fills its box with good tetrahedra, and its surfaces are closed, oriented and differentiable."""

import math

import numpy as np
import pytest
import torch

from nerf.mesh.mesh import Mesh, is_watertight, signed_volume
from nerf.mesh.tetrahedra import TET_EDGES, close_at_walls, marching_tetrahedra, sum_coarse_sdf, tet_grid

RESOLUTIONS = (2, 4, 10)


def sphere(p):
    return p.norm(dim=1) - 0.6


def torus(p):
    return torch.hypot(torch.hypot(p[:, 0], p[:, 2]) - 0.55, p[:, 1]) - 0.25


def box(p):
    q = p.abs() - torch.tensor([0.5, 0.4, 0.6], dtype=p.dtype)
    return q.clamp(min=0).norm(dim=1) + q.amax(dim=1).clamp(max=0)


# distance, Euler characteristic, volume
SHAPES = {
    "sphere": (sphere, 2, 4 / 3 * math.pi * 0.6**3),
    "torus": (torus, 0, 2 * math.pi**2 * 0.55 * 0.25**2),
    "box": (box, 2, 8 * 0.5 * 0.4 * 0.6),
}


def as_mesh(surface):
    return Mesh(surface.vertices.detach().double().numpy(), surface.faces.numpy())


def corners(grid):
    return grid.vertices.double()[grid.tets.long()]


def volumes(p):
    return torch.linalg.det(p[:, 1:] - p[:, :1]) / 6


def dihedral_angles(p):
    """The six dihedral angles of tetrahedra [K, 4, 3] in degrees, [K, 6]."""
    angles = []
    for a, b in TET_EDGES:
        c, d = (i for i in range(4) if i not in (a, b))
        axis = torch.nn.functional.normalize(p[:, b] - p[:, a], dim=1)
        flat = [p[:, i] - p[:, a] for i in (c, d)]
        u, v = (torch.nn.functional.normalize(f - (f * axis).sum(1, keepdim=True) * axis, dim=1) for f in flat)
        angles.append(torch.rad2deg(torch.arccos((u * v).sum(1).clamp(-1, 1))))
    return torch.stack(angles, dim=1)


@pytest.mark.parametrize("resolution", RESOLUTIONS)
def test_tets_are_congruent_in_volume_and_fill_the_box(resolution):
    grid = tet_grid(resolution)
    h = 4 / resolution
    assert torch.allclose(volumes(corners(grid)), torch.tensor(h**3 / 12, dtype=torch.float64), rtol=1e-5)
    assert len(grid.tets) * h**3 / 12 == pytest.approx(8)


def test_inner_tets_have_angles_of_60_and_90_degrees_and_wall_tets_no_worse_than_45_and_120():
    grid = tet_grid(6)
    angles = dihedral_angles(corners(grid))
    inner = grid.boundary[grid.tets.long()].sum(dim=1) < 3
    assert angles.min() > 44.99 and angles.max() < 120.01
    expected = torch.tensor([60, 60, 60, 60, 90, 90], dtype=torch.float64)
    assert torch.allclose(angles[inner].sort(dim=1).values, expected, atol=1e-3)


@pytest.mark.parametrize("resolution", RESOLUTIONS)
def test_every_face_is_shared_by_two_tets_or_lies_on_a_wall(resolution):
    grid = tet_grid(resolution)
    tets = grid.tets.long()
    faces = torch.cat([tets[:, list(f)] for f in ((0, 1, 2), (0, 1, 3), (0, 2, 3), (1, 2, 3))]).sort(dim=1).values
    unique, count = faces.unique(dim=0, return_counts=True)
    p = grid.vertices[unique]
    on_wall = ((p.abs() == 1) & (p == p[:, :1])).all(dim=1).any(dim=1)
    assert torch.equal(count, torch.where(on_wall, 1, 2))


@pytest.mark.parametrize("resolution", RESOLUTIONS)
def test_edge_tables_agree_with_the_tets(resolution):
    grid = tet_grid(resolution)
    pairs = grid.tets.long()[:, list(map(list, TET_EDGES))].sort(dim=2).values
    assert torch.equal(grid.edges.long()[grid.tet_edges.long()], pairs)
    assert torch.equal(grid.edges.long().unique(dim=0), pairs.reshape(-1, 2).unique(dim=0))
    assert len(grid.edges.unique(dim=0)) == len(grid.edges)


def test_spacing_is_the_shortest_edge():
    grid = tet_grid(8)
    a, b = grid.vertices[grid.edges.long()].unbind(1)
    assert (b - a).norm(dim=1).min().item() == pytest.approx(grid.spacing, rel=1e-5)


def test_boundary_marks_the_vertices_on_the_walls():
    grid = tet_grid(10)
    assert torch.equal(grid.boundary, (grid.vertices.abs() == 1).any(dim=1))


def test_grid_at_128_takes_less_memory_than_is_stated():
    assert tet_grid(128).nbytes < 155 * 2**20


def test_grid_is_cached():
    assert tet_grid(4) is tet_grid(4)


@pytest.mark.parametrize("resolution", [0, 3, -2, 2.0, True, 1024])
def test_resolution_that_is_not_even_is_refused(resolution):
    with pytest.raises(ValueError, match="even resolution from 2 to 512"):
        tet_grid(resolution)


@pytest.mark.parametrize("name", SHAPES)
def test_surface_is_closed_oriented_and_of_the_right_genus(name):
    distance, euler, volume = SHAPES[name]
    grid = tet_grid(32)
    mesh = as_mesh(marching_tetrahedra(grid.vertices, distance(grid.vertices), grid))
    assert is_watertight(mesh)
    assert len(mesh.vertices) - len(mesh.faces) // 2 == euler  # a closed surface has 3 T / 2 edges
    assert signed_volume(mesh) == pytest.approx(volume, rel=0.05)


@pytest.mark.parametrize("name", ["sphere", "torus"])
def test_volume_error_falls_with_the_square_of_the_spacing(name):
    distance, _, volume = SHAPES[name]
    grids = [tet_grid(16), tet_grid(64)]
    meshes = [as_mesh(marching_tetrahedra(g.vertices, distance(g.vertices), g)) for g in grids]
    coarse, fine = (abs(signed_volume(mesh) - volume) for mesh in meshes)
    assert coarse / fine > 10  # 16 for exactly second order at a fourth of the spacing


def test_surface_of_a_plane_lies_on_it():
    grid = tet_grid(8)
    normal = torch.nn.functional.normalize(torch.tensor([0.3, -0.5, 0.8], dtype=torch.float64), dim=0)
    p = grid.vertices.double()
    surface = marching_tetrahedra(p, p @ normal - 0.123, grid)
    assert (surface.vertices @ normal - 0.123).abs().max() < 1e-12
    a, b, c = surface.vertices[surface.faces].unbind(1)
    assert ((b - a).cross(c - a, dim=1) @ normal > 0).all()


def test_surface_is_closed_when_distances_are_exactly_zero():
    grid = tet_grid(8)
    sdf = grid.vertices.abs().amax(dim=1) - 0.5
    assert (sdf == 0).any()
    mesh = as_mesh(marching_tetrahedra(grid.vertices, sdf, grid))
    assert is_watertight(mesh) and np.isfinite(mesh.vertices).all()
    assert signed_volume(mesh) == pytest.approx(1, rel=0.15)


def test_surface_of_random_signs_is_closed():
    grid = tet_grid(10)
    sdf = close_at_walls(torch.randn(len(grid.vertices)), grid, 0.01)
    mesh = as_mesh(marching_tetrahedra(grid.vertices, sdf, grid))
    assert is_watertight(mesh) and signed_volume(mesh) > 0


def test_object_that_the_box_cuts_is_closed_just_inside_the_walls():
    grid = tet_grid(16)
    mesh = as_mesh(marching_tetrahedra(grid.vertices, close_at_walls(-torch.ones(len(grid.vertices)), grid, 0.01), grid))
    assert is_watertight(mesh)
    assert 7.9 < signed_volume(mesh) < 8


def test_closing_does_not_change_other_distances_and_their_gradients():
    grid = tet_grid(4)
    sdf = torch.full((len(grid.vertices),), -1.0, requires_grad=True)
    closed = close_at_walls(sdf, grid, margin=0.5)
    closed.sum().backward()
    assert torch.equal(closed, torch.where(grid.boundary, 0.5, -1.0))
    assert torch.equal(sdf.grad, (~grid.boundary).float())


@pytest.mark.parametrize("value", [-1.0, 0.0, 1.0])
def test_field_of_one_sign_gives_an_empty_surface_that_can_be_differentiated(value):
    grid = tet_grid(4)
    sdf = torch.full((len(grid.vertices),), value, requires_grad=True)
    surface = marching_tetrahedra(grid.vertices, sdf, grid)
    assert surface.vertices.shape == (0, 3) and surface.faces.shape == (0, 3) and surface.edges.shape == (0, 2)
    surface.vertices.sum().backward()
    assert torch.equal(sdf.grad, torch.zeros_like(sdf))


def test_marching_tetrahedra_gradcheck():
    grid = tet_grid(4)
    positions = grid.vertices.double() + 0.05 * torch.randn(len(grid.vertices), 3, dtype=torch.float64)
    sdf = sphere(positions)
    away = torch.where(sdf < 0, sdf - 0.05, sdf + 0.05)  # so that no sign changes within a finite difference

    def cut(p, s):
        return marching_tetrahedra(p, s, grid).vertices

    assert torch.autograd.gradcheck(cut, (positions.requires_grad_(), away.requires_grad_()))


def test_lowering_the_distance_moves_the_surface_outwards():
    grid = tet_grid(16)
    sdf = sphere(grid.vertices).requires_grad_()
    surface = marching_tetrahedra(grid.vertices, sdf, grid)
    surface.vertices.norm(dim=1).sum().backward()
    assert (sdf.grad <= 0).all() and (sdf.grad < 0).any()


def test_edges_of_the_surface_are_all_that_change_sign():
    grid = tet_grid(10)
    sdf = torch.randn(len(grid.vertices))
    surface = marching_tetrahedra(grid.vertices, sdf, grid)
    inside = sdf[grid.edges.long()] < 0
    assert torch.equal(surface.edges, grid.edges[inside[:, 0] != inside[:, 1]].long())


def test_surface_uses_every_vertex():
    grid = tet_grid(10)
    surface = marching_tetrahedra(grid.vertices, torch.randn(len(grid.vertices)), grid)
    assert torch.equal(surface.faces.unique(), torch.arange(len(surface.vertices)))


def test_tensors_of_another_grid_are_refused():
    grid = tet_grid(4)
    with pytest.raises(ValueError, match=r"expected positions \[35, 3\] and sdf \[35\]"):
        marching_tetrahedra(grid.vertices[:5], torch.zeros(5), grid)


def test_grid_moves_to_a_device_whole(device):
    grid = tet_grid(4).to(device)
    surface = marching_tetrahedra(grid.vertices, sphere(grid.vertices), grid)
    assert surface.faces.device.type == device.type and len(surface.faces) > 0


def linear(side):
    """Values of 1 + 2 x - 3 y + 0.5 z on a regular grid over the box, [side, side, side]."""
    axis = torch.linspace(-1, 1, side, dtype=torch.float64)
    x, y, z = torch.meshgrid(axis, axis, axis, indexing="ij")
    return 1 + 2 * x - 3 * y + 0.5 * z


@pytest.mark.parametrize("sides", [(2,), (3, 5), (2, 4, 7)])
def test_sum_of_coarse_linear_values_is_exact(sides):
    grid = tet_grid(10)
    x, y, z = grid.vertices.double().unbind(1)
    found = sum_coarse_sdf([linear(side) for side in sides], grid)
    torch.testing.assert_close(found, len(sides) * (1 + 2 * x - 3 * y + 0.5 * z), atol=1e-6, rtol=0)


def test_point_of_a_coarse_grid_has_an_effect_in_its_own_cubes_only():
    grid, coarse = tet_grid(16), torch.zeros(5, 5, 5)
    coarse[2, 2, 2] = 1.0
    away = grid.vertices.abs().amax(1)
    found = sum_coarse_sdf([coarse], grid)
    assert (found[away >= 0.5] == 0).all() and (found[away < 0.49] > 0).all() and float(found.max()) == 1.0


def test_sum_of_coarse_distances_gradcheck():
    coarse = [torch.randn(side, side, side, dtype=torch.float64, requires_grad=True) for side in (2, 3)]
    assert torch.autograd.gradcheck(lambda *given: sum_coarse_sdf(given, tet_grid(6)), coarse)
