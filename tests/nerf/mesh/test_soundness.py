"""What a surface hides: handles, caves, the base that it stands on, thin walls."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import trimesh

from guidance.prior.captions import Caption
from guidance.prior.shapes import canonical, signed_distance
from nerf.mesh.base import find_base, flattened
from nerf.mesh.intersections import pierced
from nerf.mesh.mesh import Mesh, is_watertight, signed_volume, weld
from nerf.mesh.soundness import Soundness, soundness
from nerf.mesh.voxels import caves, voxelize

GRID = 64


def surface(distance, half=0.7, cells=GRID):
    """The closed surface of a signed distance, a function of points [..., 3]."""
    from skimage.measure import marching_cubes

    axis = np.linspace(-half, half, cells)
    points = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1)
    vertices, faces, _, _ = marching_cubes(distance(points), 0.0, spacing=(axis[1] - axis[0],) * 3)
    mesh = weld(Mesh(vertices.astype(np.float64) - half, faces.astype(np.int64)))
    assert signed_volume(mesh) > 0 and is_watertight(mesh)
    return mesh


def box(points, size, centre=(0.0, 0.0, 0.0)):
    """Signed distance of a box with half sides."""
    return (np.abs(points - np.array(centre)) - np.array(size)).max(-1)


def kind(name):
    """The surface of a kind of the embedded prior."""
    shape = canonical(Caption(name))
    return surface(lambda points: signed_distance(shape, torch.from_numpy(points).float()).double().numpy())


SOLID = surface(lambda p: box(p, (0.4, 0.4, 0.4)))


def carved(*holes):
    """A cube with boxes taken out of it."""
    return surface(lambda p: np.maximum.reduce([box(p, (0.4, 0.4, 0.4)), *(-box(p, *hole) for hole in holes)]))


def as_mesh(found):
    """A mesh of trimesh's."""
    return Mesh(np.asarray(found.vertices, dtype=np.float64), np.asarray(found.faces, dtype=np.int64))


def test_voxels_are_the_volume_of_the_mesh_and_a_closed_cavity_is_outside():
    hollow = carved(((0.2, 0.2, 0.2),))
    cell = 1.4 / 70
    inside = voxelize(hollow.vertices, hollow.faces, np.full(3, -0.7), cell, 70)
    assert inside.sum() * cell**3 == pytest.approx(signed_volume(hollow), rel=0.03) and not inside[35, 35, 35]


@pytest.mark.parametrize(("holes", "share"), [
    ((), 0.0),
    ((((0.2, 0.2, 0.2),),), 0.4**3 / (0.8**3 - 0.4**3)),  # an enclosed pocket
    ((((0.2, 0.2, 0.2), (0.0, -0.25, 0.0)),), 0.4 * 0.4 * 0.35 / (0.8**3 - 0.4 * 0.4 * 0.35)),  # opens downwards
    ((((0.2, 0.2, 0.2), (0.0, 0.25, 0.0)),), 0.0),  # opens upwards, as a mug
    ((((0.2, 0.2, 0.5), (0.0, 0.0, 0.0)),), 0.0),  # a tunnel that one looks through
    ((((0.2, 0.2, 0.2),), ((0.03, 0.03, 0.5),)), 0.4**3 / (0.8**3 - 0.4**3)),  # a pocket behind two small holes
])  # fmt: skip
def test_caves_are_what_no_camera_level_with_the_object_or_above_it_sees(holes, share):
    assert caves(carved(*holes)) == pytest.approx(share, abs=0.02 if share else 2e-3)


@pytest.mark.parametrize("name", ["house", "table", "chair", "mug", "donut", "car", "duck", "ball on cube"])
def test_the_true_shapes_have_no_caves_and_their_own_genus(name):
    found = soundness(kind(name))
    assert found.caves < 0.01 and found.genus == {"mug": 1, "donut": 1}.get(name, 0) and found.thin_walls < 0.02


def test_the_cave_of_an_umbrella_opens_downwards():
    assert soundness(kind("umbrella")).caves > 1


def test_caves_do_not_depend_on_place_and_scale():
    hollow = carved(((0.2, 0.2, 0.2),))
    assert caves(replace(hollow, vertices=1000 * hollow.vertices + [5e4, -3, 7])) == pytest.approx(caves(hollow), rel=0.02)


def test_an_open_surface_has_no_caves_to_measure_and_an_empty_one_neither():
    found = soundness(Mesh(SOLID.vertices, SOLID.faces[1:]))
    assert (found.genus, found.caves, found.thin_walls) == (None, None, None) and "no closed solid" in str(found.lines())
    flat = Mesh(np.eye(3), np.array([[0, 1, 2], [2, 1, 0]]))
    assert soundness(flat).caves is None


@pytest.mark.parametrize(("half", "thin"), [(0.004, 1.0), (0.05, 0.0)])
def test_thin_walls_are_those_whose_ray_leaves_within_a_hundredth_of_the_diagonal(half, thin):
    plate = as_mesh(trimesh.creation.box((1.0, 2 * half, 1.0)))
    assert soundness(plate).thin_walls == pytest.approx(thin, abs=0.03)


def test_segments_that_pass_through_a_triangle_are_found():
    cube = as_mesh(trimesh.creation.box((1.0, 1.0, 1.0)))
    start = np.array([[0.1, 0.2, 0.0], [0.1, 0.2, 0.0], [0.7, 0.2, 0.1]])
    assert pierced(cube, start, start + [[0.0, 0.0, 0.6], [0.0, 0.0, 0.4], [0.0, 0.3, 0.0]]).tolist() == [True, False, False]


def wobbly(mesh, amount=0.003):
    """The mesh with an uneven surface: smooth waves up and down."""
    wave = amount * np.sin(23 * mesh.vertices[:, 0]) * np.cos(19 * mesh.vertices[:, 2])
    return replace(mesh, vertices=mesh.vertices + np.stack([0 * wave, wave, 0 * wave], axis=1))


@pytest.mark.parametrize(
    ("name", "share"), [("house", 0.65), ("cube", 0.85), ("table", 0.02), ("cylinder", 0.85), ("lamp", 0.3)]
)
def test_a_flat_base_is_found_and_made_even(name, share):
    mesh = wobbly(kind(name))
    base = find_base(mesh)
    assert base.share >= share and 0.002 < base.deviation < 0.01
    even = flattened(mesh)
    after = find_base(even)
    assert after.deviation < 1e-6 and after.share == pytest.approx(base.share, rel=0.2)
    assert even.vertices[:, 1].min() == mesh.vertices[:, 1].min() and is_watertight(even)
    assert np.array_equal(even.vertices[:, [0, 2]], mesh.vertices[:, [0, 2]])
    assert (even.vertices[:, 1] <= mesh.vertices[:, 1]).all()
    assert ((even.face_normals * mesh.face_normals).sum(axis=1) >= 0).all()


@pytest.mark.parametrize("name", ["ball", "duck", "teddy bear", "donut", "snowman", "ice cream"])
def test_a_round_underside_is_no_base_and_stays_as_it_is(name):
    for mesh in (kind(name), wobbly(kind(name), 0.001)):
        assert find_base(mesh) is None and flattened(mesh) is mesh


@pytest.mark.parametrize("faces", [120, 500, 4000])
def test_a_coarse_ball_has_no_base(faces):
    ball = trimesh.creation.uv_sphere(0.5, count=(int(faces**0.5), int(faces**0.5)))
    turned = as_mesh(ball).vertices @ trimesh.transformations.rotation_matrix(1.1, [1, 2, 3])[:3, :3]
    assert find_base(Mesh(turned, as_mesh(ball).faces)) is None


def test_notes_say_what_a_closed_surface_hides():
    bad = Soundness(genus=4, caves=0.12, base_share=0.8, base_deviation=0.003, thin_walls=0.2)
    assert bad.said() == ", genus 4, caves of 12 % of its volume"
    notes = bad.notes(0.77, grounded=False)
    for note, words in zip(
        notes, ("caves that no camera", "4 holes", "uneven by 0.003; --ground", "thinner than 1 %"), strict=True
    ):
        assert words in note
    assert len(bad.notes(0.77, grounded=True)) == 3 and Soundness(0, 0.01, 0.8, 0.0005, 0.01).notes(0.77, False) == ()
