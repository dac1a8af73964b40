"""Mesh denoising: noise goes, edges, corners, volume and open borders stay."""

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

from nerf.config.groups import OutputConfig
from nerf.config.mesh import MeshConfig
from nerf.mesh import io
from nerf.mesh.denoise import denoise
from nerf.mesh.export import export_level_set
from nerf.mesh.export_options import ExportOptions
from nerf.mesh.intersections import crossing_faces
from nerf.mesh.mesh import Mesh, signed_volume
from tests.helpers import solids

RADIUS, HALF = 0.6, 0.5


def ball() -> Mesh:
    """A ball at the origin."""
    return solids.surface(lambda x: solids.ball(x, radius=RADIUS), 32)


def cube() -> Mesh:
    """A cube at the origin, with sharp edges."""
    box = trimesh.creation.box((2 * HALF,) * 3)
    for _ in range(5):
        box = box.subdivide()
    return Mesh(np.asarray(box.vertices), np.asarray(box.faces))


def bumpy(mesh: Mesh, size: float = 0.01, seed: int = 0) -> Mesh:
    """The mesh with random bumps, each a few triangles wide."""
    shift = torch.randn(1, 3, 30, 30, 30, generator=torch.Generator().manual_seed(seed)) * size
    at = torch.from_numpy(mesh.vertices).float()[None, None, None]
    moved = torch.nn.functional.grid_sample(shift, at, align_corners=True)[0, :, 0, 0].T.numpy()
    return Mesh(mesh.vertices + moved, mesh.faces)


def angles(mesh: Mesh, true: np.ndarray) -> np.ndarray:
    """Degrees [T] between the triangles' normals and true ones [T, 3]."""
    own = mesh.face_normals / np.linalg.norm(mesh.face_normals, axis=1, keepdims=True)
    return np.degrees(np.arccos((own * true).sum(1).clip(-1, 1)))


def off_sphere(mesh: Mesh) -> float:
    """Mean angle of the normals from those of a sphere at the origin."""
    centre = mesh.corners.mean(1)
    size = np.linalg.norm(mesh.face_normals, axis=1)  # slivers have no normal to speak of
    return float(np.average(angles(mesh, centre / np.linalg.norm(centre, axis=1, keepdims=True)), weights=size))


def off_cube(mesh: Mesh) -> float:
    """Mean angle of the normals from those of the cube, of the triangles that lie within a face of it."""
    centre = mesh.corners.mean(1)
    order = np.sort(np.abs(centre), axis=1)
    true = np.where(np.abs(centre) == np.abs(centre).max(1, keepdims=True), np.sign(centre), 0.0)
    within = order[:, 1] < HALF - 0.1
    return float(np.average(angles(mesh, true)[within], weights=np.linalg.norm(mesh.face_normals, axis=1)[within]))


def test_noise_of_a_ball_goes_and_its_volume_stays():
    rough = bumpy(ball())
    smooth = denoise(rough, 0.2)
    assert off_sphere(smooth) < 0.6 * off_sphere(rough)
    assert signed_volume(smooth) == pytest.approx(signed_volume(ball()), rel=0.02)
    assert np.array_equal(smooth.faces, rough.faces)


def to_corners(mesh: Mesh) -> float:
    """Distance of the corner of the cube that is furthest from the mesh's vertices."""
    corners = HALF * (2.0 * np.array(list(np.ndindex(2, 2, 2))) - 1)
    return float(np.linalg.norm(mesh.vertices[None] - corners[:, None], axis=2).min(axis=1).max())


def test_faces_of_a_cube_become_flat_and_its_corners_stay(monkeypatch):
    rough = bumpy(cube())
    smooth = denoise(rough, 0.2)
    assert off_cube(smooth) < 0.4 * off_cube(rough)
    assert to_corners(smooth) < 0.1
    monkeypatch.setattr("nerf.mesh.denoise._ALIKE", 1e3)  # the same averages without regard to edges
    assert to_corners(denoise(rough, 0.2)) > to_corners(smooth) + 0.02


def test_open_borders_stay():
    rough = bumpy(ball())
    keep = rough.corners[:, :, 1].max(1) < 0.2
    half = Mesh(rough.vertices, rough.faces[keep])
    smooth = denoise(half, 0.2)
    start, end = half.faces.reshape(-1), np.roll(half.faces, -1, 1).reshape(-1)
    edges, count = np.unique(np.sort(np.stack([start, end], 1), 1), axis=0, return_counts=True)
    border = np.unique(edges[count == 1])
    assert len(border) > 20
    assert np.array_equal(smooth.vertices[border], half.vertices[border])
    assert not np.allclose(smooth.vertices, half.vertices)


def test_turning_and_scaling_commute_with_it():
    rough = bumpy(ball(), 0.003)  # so flat that no triangles would cross, which is decided by rounding
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    turn *= np.sign(np.linalg.det(turn))
    there = denoise(Mesh(3.0 * rough.vertices @ turn.T + 1.0, rough.faces), 0.3)
    here = denoise(rough, 0.1)
    assert np.allclose(there.vertices, 3.0 * here.vertices @ turn.T + 1.0, atol=2e-3)  # the error of the solver


def test_what_it_leaves_alone():
    mesh, empty = ball(), Mesh(np.zeros((0, 3)), np.zeros((0, 3), dtype=np.int64))
    assert denoise(mesh, 0.0) is mesh
    assert denoise(empty, 0.1) is empty
    flat = Mesh(np.array([[0.0, 0, 0], [1, 0, 0], [2, 0, 0]]), np.array([[0, 1, 2]]))  # a triangle without an area
    assert np.array_equal(denoise(flat, 0.1).vertices, flat.vertices)


def test_a_tiny_triangle_beside_the_length_costs_no_more():
    """The number of rounds is bounded."""
    assert np.isfinite(denoise(bumpy(ball()), 10.0).vertices).all()


def test_no_triangles_come_to_cross(monkeypatch):
    rough = bumpy(ball(), 0.006)
    every = np.arange(len(rough.faces))
    assert not crossing_faces(rough, every).any()
    assert not crossing_faces(denoise(rough, 0.2), every).any()
    monkeypatch.setattr("nerf.mesh.denoise._untangled", lambda mesh, moved: Mesh(moved, mesh.faces))
    assert crossing_faces(denoise(rough, 0.2), every).any()


def test_denoising_smooths_what_is_written_and_its_normal_map(tmp_path):
    def wavy(points):
        return solids.ball(points, radius=0.6) + 0.02 * torch.sin(40.0 * points).prod(-1)

    def roughness(name, mesh):
        output = OutputConfig(mcubes_resolution=32, decimate_target=0, texture_size=128, normal_map=True)
        solid = solids.Solid(wavy, lambda x: 0.5 + 0 * x)
        export_level_set(solid.as_density(), solid.albedo, 1.0, tmp_path / name, ExportOptions.from_config(output, mesh))
        found = io.read_mesh(tmp_path / name / "mesh.glb")
        own = found.face_normals / np.linalg.norm(found.face_normals, axis=1, keepdims=True)
        centre = found.corners.mean(axis=1)
        map_of = np.asarray(Image.open(tmp_path / name / "normal.png"), dtype=float)[..., :2]
        return np.median((own * centre).sum(axis=1) / np.linalg.norm(centre, axis=1)), np.abs(map_of - 127.5).mean()

    rough, rough_map = roughness("rough", MeshConfig())
    smooth, smooth_map = roughness("smooth", MeshConfig(mesh_denoise=0.3))
    assert smooth > rough and 1 - smooth < 0.5 * (1 - rough)
    assert smooth_map < 0.7 * rough_map  # 0.79 where the surface before decimation keeps its bumps
