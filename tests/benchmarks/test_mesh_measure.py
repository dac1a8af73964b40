"""Measures of meshes: closed forms for a box and a ball, and true shapes that match themselves."""

import numpy as np
import pytest
import torch

from benchmarks.mesh_measure import (
    HALF,
    ColoredMesh,
    best_ball,
    facing,
    family_voxels,
    front_likeness,
    iou,
    measure,
    read_mesh,
    true_views,
    true_voxels,
    view_angles,
    voxel_centres,
    voxelize,
)
from guidance.prior.captions import parse
from guidance.prior.shapes import albedo, canonical, signed_distance


def mesh_of(prompt, grid=96):
    """Marching cubes of the true distance, vertex colours from the true albedo."""
    from skimage.measure import marching_cubes

    shape = canonical(prompt)
    points = voxel_centres(grid)
    volume = signed_distance(shape, points).numpy()
    vertices, faces, _, _ = marching_cubes(volume, 0.0, gradient_direction="descent")
    vertices = (vertices + 0.5) / grid * 2 * HALF - HALF
    color = albedo(shape, torch.tensor(vertices.copy(), dtype=torch.float32)).numpy()
    return ColoredMesh(vertices, faces.astype(np.int64), color=color)


def box(half):
    """A white cube with half the side ``half``."""
    import trimesh

    mesh = trimesh.creation.box(extents=[2 * half] * 3)
    return ColoredMesh(np.asarray(mesh.vertices), np.asarray(mesh.faces), color=np.ones((8, 3)))


def test_voxels_of_a_box_have_the_volume_of_the_box():
    voxels = voxelize(box(0.35))
    assert voxels.mean() == pytest.approx((0.35 / HALF) ** 3, rel=0.02)


def test_voxels_do_not_depend_on_the_orientation_of_the_triangles():
    mesh = box(0.3)
    flipped = ColoredMesh(mesh.vertices, mesh.faces[:, ::-1], color=mesh.color)
    assert np.array_equal(voxelize(mesh), voxelize(flipped))


def test_voxels_of_a_mesh_with_a_hole_do_not_leak():
    mesh = mesh_of("a ball", 48)
    holed = ColoredMesh(mesh.vertices, mesh.faces[3:], color=mesh.color)
    assert iou(voxelize(mesh), voxelize(holed)) > 0.98


def test_hollow_ball_counts_as_filled():
    outer, inner = mesh_of("a ball", 48), mesh_of("a ball", 48)
    both = np.concatenate([outer.vertices, 0.5 * inner.vertices])
    faces = np.concatenate([outer.faces, inner.faces[:, ::-1] + len(outer.vertices)])
    hollow = ColoredMesh(both, faces, color=np.ones_like(both))
    assert np.array_equal(voxelize(hollow), voxelize(outer))


@pytest.mark.parametrize("prompt", ["an orange chair", "a yellow mug", "a green house with a yellow roof"])
def test_true_shape_matches_itself(prompt):
    found = measure(mesh_of(prompt), parse(prompt).caption, members=3)
    assert found["iou"] > 0.93 and found["silhouette"] > 0.93 and found["albedo"] < 0.03
    assert found["facing"] == 1.0


def test_car_that_faces_backwards_is_detected():
    cameras = view_angles()
    truth, _ = true_views(canonical("a pink car"), cameras)
    assert facing(truth, truth) == (1.0, True)
    assert facing(np.roll(truth, 4, 0), truth)[1] is False


def test_car_with_two_fronts_is_detected():
    truth, _ = true_views(canonical("a pink car"), view_angles())
    janus = truth.copy()
    janus[3:6] = truth[[1, 0, 7]]
    assert facing(janus, truth)[1] is False


def test_equal_front_and_back_are_not_compared():
    truth, _ = true_views(canonical("a mushroom"), view_angles())
    assert facing(truth, truth)[1] is None


def test_best_ball_for_a_ball_is_that_ball():
    assert best_ball([true_voxels(canonical("a ball"), 32)]) > 0.97


def test_best_ball_for_a_chair_is_poor():
    assert best_ball([true_voxels(canonical("a chair"), 32)]) < 0.4


def test_family_contains_its_canonical_member_first():
    members, truths = family_voxels(parse("a table").caption, count=2)
    assert np.array_equal(truths[0], true_voxels(canonical("a table"))) and len(members) == 2


def test_textured_glb_is_read_with_its_texture(tmp_path):
    import trimesh
    from PIL import Image

    picture = Image.new("RGB", (4, 4), (200, 30, 30))
    material = trimesh.visual.material.PBRMaterial(baseColorTexture=picture)
    mesh = trimesh.creation.box()
    mesh.visual = trimesh.visual.TextureVisuals(uv=np.full((8, 2), 0.5), material=material)
    mesh.export(tmp_path / "mesh.glb")
    again = read_mesh(tmp_path / "mesh.glb")
    assert again.texture.shape == (4, 4, 3) and len(again.faces) == 12
    np.testing.assert_allclose(again.texture[0, 0], np.array([200, 30, 30]) / 255, atol=0.02)


def test_front_likeness_is_zero_for_the_true_shape_and_one_for_two_fronts():
    truth, _ = true_views(canonical("a pink car"), view_angles(8), 48)
    janus = truth.copy()
    janus[4] = truth[0]
    assert front_likeness(truth, truth) == 0 and front_likeness(janus, truth) == 1
    middle = truth.copy()
    middle[4] = (truth[0] + truth[4]) / 2
    assert front_likeness(middle, truth) == pytest.approx(0.5)


def test_front_likeness_is_not_defined_where_front_and_back_look_the_same():
    truth, _ = true_views(canonical("a purple mushroom"), view_angles(8), 48)
    assert front_likeness(truth, truth) is None
