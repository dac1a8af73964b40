"""Unwrapping: triangles are kept, and their uv lie in the unit square without overlap."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from nerf.core.errors import ExportError
from nerf.mesh import mesh as meshes
from nerf.mesh import uv
from nerf.mesh.decimate import decimate
from nerf.mesh.mesh import Mesh
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


FAILURES = {
    "hang": ("import time; time.sleep(60)", "did not end within 1 s"),
    "crash": ("import os; os.abort()", "failed: exit code -6"),
    "exception": ("raise ValueError('Adding mesh failed')", "failed: ValueError: Adding mesh failed"),
    "order": ("import sys; from nerf.mesh import uv_process as u; f = u.charts; "
              "u.charts = lambda v, f0, *a: f(v, f0[:, ::-1], *a); u.main()", "lost triangles or changed their order"),
}  # fmt: skip


def failing(monkeypatch, program, times):
    """The first ``times`` processes run ``program`` instead; returns the list of those that were started."""
    run, started = subprocess.run, []

    def start(command, **options):
        started.append(command)
        if len(started) > times:
            return run(command, **options)
        return run([sys.executable, "-c", program], **options | ({"timeout": 1} if "sleep" in program else {}))

    monkeypatch.setattr(uv.subprocess, "run", start)
    monkeypatch.setattr(uv, "_LEAST_SECONDS", 1.0 if "sleep" in program else 60.0)
    monkeypatch.setattr(uv, "_SECONDS", 0.0 if "sleep" in program else 1.0)
    return started


@pytest.mark.parametrize("failure", ["crash", "order"])
def test_a_failure_of_xatlas_is_tried_again(monkeypatch, failure):
    mesh = solids.surface(solids.ball, 12)
    expected = uv.unwrap(mesh, 64)
    started = failing(monkeypatch, FAILURES[failure][0], 2)
    np.testing.assert_array_equal(uv.unwrap(mesh, 64).uv, expected.uv)
    assert len(started) == 3


@pytest.mark.parametrize("failure", FAILURES)
def test_a_failure_of_xatlas_that_stays_is_said(monkeypatch, failure):
    program, reason = FAILURES[failure]
    started = failing(monkeypatch, program, 3)
    with pytest.raises(ExportError, match=f"{reason}; lower --decimate_target"):
        uv.unwrap(solids.surface(solids.ball, 12), 64)
    assert len(started) == 3


def test_triangles_far_smaller_than_the_surface_get_a_place():
    mesh = decimate(solids.surface(solids.ball, 24), 400)
    corners = mesh.corners[0]
    inner = corners.mean(axis=0) + 3e-4 * (corners - corners.mean(axis=0)) / np.linalg.norm(corners[1] - corners[0])
    n, (a, b, c) = len(mesh.vertices), mesh.faces[0]
    cut = [[n, n + 1, n + 2], [a, b, n], [b, n + 1, n], [b, c, n + 1], [c, n + 2, n + 1], [c, a, n + 2], [a, n, n + 2]]
    split = Mesh(np.concatenate([mesh.vertices, inner]), np.concatenate([mesh.faces[1:], cut]))
    assert meshes.is_watertight(split)
    flat = uv.unwrap(replace(split, normals=meshes.vertex_normals(split)), 256)
    a, b, c = np.moveaxis(flat.uv[flat.faces], 1, 0)
    area = np.abs(np.cross(np.pad(b - a, ((0, 0), (0, 1))), np.pad(c - a, ((0, 0), (0, 1))))[:, 2])
    true = np.linalg.norm(flat.face_normals, axis=1)
    assert 0.5 * true.min() < 1e-7 and area.min() > 0
    assert (area / true).min() > 0.3 * np.median(area / true)
