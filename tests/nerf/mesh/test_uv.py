"""Unwrapping: triangles are kept, and their uv lie in the unit square without overlap."""

from dataclasses import replace

import numpy as np
import pytest

from nerf.mesh import mesh as meshes
from nerf.mesh import uv
from nerf.mesh.decimate import decimate
from nerf.mesh.texture import rasterize_uv
from tests.helpers import solids


def test_unwrap_keeps_triangles_and_normals_and_lies_in_the_unit_square():
    mesh = decimate(solids.surface(solids.torus, 48), 2500)  # three blocks of xatlas
    mesh = replace(mesh, normals=meshes.vertex_normals(mesh))
    flat = uv.unwrap(mesh, 256)
    np.testing.assert_array_equal(flat.corners, mesh.corners)
    np.testing.assert_array_equal(flat.normals[flat.faces], mesh.normals[mesh.faces])
    assert flat.uv.min() >= 0 and flat.uv.max() <= 1 and meshes.is_watertight(flat)


def test_unwrapped_triangles_do_not_overlap():
    flat = uv.unwrap(decimate(solids.surface(solids.ball, 48), 1500), 256)
    a, b, c = np.moveaxis(flat.uv[flat.faces], 1, 0)
    area = 0.5 * np.abs((b - a)[:, 0] * (c - a)[:, 1] - (b - a)[:, 1] * (c - a)[:, 0]).sum()
    texels = rasterize_uv(flat.uv, flat.faces, 1024)
    assert len(texels) / 1024**2 == pytest.approx(area, rel=0.01)  # overlap would cover less than the sum of areas


@pytest.mark.parametrize("size", [1e-6, 1e-3, 1e5])
def test_a_surface_of_any_size_is_unwrapped(size):
    mesh = solids.surface(solids.ball, 12)
    scaled = replace(mesh, vertices=mesh.vertices * size)
    flat, reference = uv.unwrap(scaled, 64), uv.unwrap(mesh, 64)
    assert np.array_equal(flat.vertices, scaled.vertices[flat.weld]) and len(flat.faces) == len(mesh.faces)
    assert np.ptp(flat.uv, axis=0).min() > 0.5 * np.ptp(reference.uv, axis=0).min()
