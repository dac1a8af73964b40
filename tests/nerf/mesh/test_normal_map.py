"""Normal maps: frames along the texture, and maps that decode to the normals of the fine surface."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from nerf.mesh import decimate, normal_map, uv
from nerf.mesh import mesh as meshes
from nerf.mesh.mesh import Mesh
from nerf.mesh.texture import rasterize_uv
from tests.helpers import solids
from tests.helpers.glb_render import bilinear
from tests.helpers.seams import along_seams

SIZE = 256


def square(mirrored=False):
    """The unit square of the plane z = 0, mapped to the whole texture, perhaps with u running along -x."""
    corners = np.array([[0.0, 0.0], [1, 0], [1, 1], [0, 1]])
    uv = corners * [-1, 1] + [1, 0] if mirrored else corners
    mesh = Mesh(np.pad(corners, ((0, 0), (0, 1))), np.array([[0, 1, 2], [0, 2, 3]]), np.tile([[0.0, 0, 1]], (4, 1)), uv=uv)
    return replace(mesh, tangents=normal_map.vertex_tangents(mesh))


@cache
def torus():
    """A fine torus, and a coarse one unwrapped, both with normals; the coarse one with tangents."""
    fine = solids.surface(solids.torus, 64)
    fine = replace(fine, normals=meshes.vertex_normals(fine))
    coarse = decimate.decimate(replace(fine, normals=None), 600)
    flat = uv.unwrap(replace(coarse, normals=meshes.vertex_normals(coarse)), SIZE)
    return fine, replace(flat, tangents=normal_map.vertex_tangents(flat))


def decoded(mesh, picture, texels):
    """Normals [P, 3] as a viewer reads them from a normal map at texels."""
    tangent, bitangent, normal = normal_map.frames(mesh, texels)
    x, y, z = (picture.reshape(-1, 3)[texels.index] / 255.0 * 2 - 1).T
    mixed = x[:, None] * tangent + y[:, None] * bitangent + z[:, None] * normal
    return mixed / np.linalg.norm(mixed, axis=1, keepdims=True)


def true_normals(points):
    """Unit normals [P, 3] of the torus nearest to points."""
    ring = points * [1, 0, 1]
    ring *= 0.5 / np.linalg.norm(ring, axis=1, keepdims=True)
    return (points - ring) / np.linalg.norm(points - ring, axis=1, keepdims=True)


def degrees(a, b):
    """Angles between unit vectors [P, 3]."""
    return np.degrees(np.arccos(np.clip((a * b).sum(axis=1), -1, 1)))


@pytest.mark.parametrize("mirrored", [False, True])
def test_tangent_points_along_u_and_its_sign_gives_the_direction_of_v(mirrored):
    mesh = square(mirrored)
    np.testing.assert_allclose(mesh.tangents, [[-1.0 if mirrored else 1, 0, 0, -1.0 if mirrored else 1]] * 4, atol=1e-12)
    bitangent = mesh.tangents[:, 3:] * np.cross(mesh.normals, mesh.tangents[:, :3])
    np.testing.assert_allclose(bitangent, [[0.0, 1, 0]] * 4, atol=1e-12)


def test_tangents_are_unit_and_orthogonal_to_the_normals():
    mesh = torus()[1]
    np.testing.assert_allclose(np.linalg.norm(mesh.tangents[:, :3], axis=1), 1.0, atol=1e-9)
    assert np.abs((mesh.tangents[:, :3] * mesh.normals).sum(axis=1)).max() < 1e-9
    assert set(mesh.tangents[:, 3]) <= {-1.0, 1.0}


def test_all_triangles_of_a_chart_have_one_orientation():
    mesh = torus()[1]
    a, b, c = np.moveaxis(mesh.uv[mesh.faces], 1, 0)
    area = (b - a)[:, 0] * (c - a)[:, 1] - (b - a)[:, 1] * (c - a)[:, 0]
    signs = mesh.tangents[mesh.faces, 3]
    assert (signs == signs[:, :1]).all()
    assert (np.sign(area) == signs[:, 0])[np.abs(area) > 1e-9].all()


@pytest.mark.parametrize("mirrored", [False, True])
def test_green_points_up_in_the_picture_and_red_to_its_right(mirrored):
    tilted = np.array([0.6, 0.0, 0.8]), np.array([0.0, 0.6, 0.8])
    x, y = (normal_map.bake_normals(square(mirrored), lambda p, n, t=t: np.tile(t, (len(p), 1)), 8) for t in tilted)
    side = 51 if mirrored else 204
    assert (x == [side, 128, 230]).all() and (y == [128, 204, 230]).all()


def test_normals_of_the_mesh_itself_give_a_flat_map():
    mesh = torus()[1]
    picture = normal_map.bake_normals(mesh, lambda points, rough: rough, SIZE)
    assert np.abs(picture.astype(int) - [128, 128, 255]).max() <= 1


def test_viewer_reconstructs_the_given_normals_to_a_byte():
    mesh = torus()[1]
    picture = normal_map.bake_normals(mesh, lambda points, rough: true_normals(points), SIZE)
    texels = rasterize_uv(mesh.uv, mesh.faces, SIZE)
    points = texels.interpolate(mesh, mesh.vertices)
    assert np.percentile(degrees(decoded(mesh, picture, texels), true_normals(points)), 99) < 1.0  # half a byte: 0.3


def test_normal_map_restores_the_normals_of_the_fine_surface_on_the_coarse_one():
    fine, mesh = torus()
    picture = normal_map.bake_normals(mesh, normal_map.nearest_normals(fine), SIZE)
    texels = rasterize_uv(mesh.uv, mesh.faces, SIZE)
    truth = true_normals(texels.interpolate(mesh, mesh.vertices))
    coarse = degrees(normal_map.frames(mesh, texels)[2], truth)
    mapped = degrees(decoded(mesh, picture, texels), truth)
    assert mapped.mean() < 0.5 * coarse.mean() and mapped.mean() < 2.0


def test_viewer_sees_no_seam_in_the_normals():
    fine, mesh = torus()
    picture = normal_map.bake_normals(mesh, normal_map.nearest_normals(fine), SIZE)
    uv, frame = along_seams(mesh, mesh.uv), along_seams(mesh, np.concatenate([mesh.normals, mesh.tangents], axis=1))
    seen = []
    for side in (0, 1):
        normal, tangent = (
            part / np.linalg.norm(part, axis=1, keepdims=True) for part in (frame[:, side, :3], frame[:, side, 3:6])
        )
        x, y, z = (bilinear(picture, uv[:, side]) / 255.0 * 2 - 1).T[..., None]
        mixed = x * tangent + y * frame[:, side, 6:] * np.cross(normal, tangent) + z * normal
        seen.append(mixed / np.linalg.norm(mixed, axis=1, keepdims=True))
    apart = degrees(*seen)
    assert len(apart) > 500 and apart.mean() < 1.0 and np.percentile(apart, 99) < 2.5


def test_nearest_normals_do_not_leak_through_a_thin_sheet():
    grid = np.stack(np.meshgrid(np.linspace(-1, 1, 9), np.linspace(-1, 1, 9)), -1).reshape(-1, 2)
    sides = [np.pad(grid, ((0, 0), (0, 1)), constant_values=z) for z in (0.001, -0.001)]
    normals = np.repeat([[0.0, 0, 1], [0, 0, -1]], len(grid), axis=0)
    sheet = Mesh(np.concatenate(sides), np.array([[0, 1, 2]]), normals)
    points, rough = np.array([[0.1, 0.1, -0.001]]), np.array([[0.0, 0.6, 0.8]])
    np.testing.assert_allclose(normal_map.nearest_normals(sheet)(points, rough), [[0.0, 0, 1]])


@pytest.mark.parametrize("bound", [1e-4, 1e4])
def test_nearest_normals_do_not_depend_on_the_unit_of_length(bound):
    fine, mesh = torus()
    scaled = replace(fine, vertices=fine.vertices * bound)
    points, rough = mesh.vertices + 1e-3 * mesh.normals, mesh.normals
    found = normal_map.nearest_normals(scaled, bound)(points * bound, rough)
    np.testing.assert_allclose(found, normal_map.nearest_normals(fine)(points, rough), atol=1e-9)
