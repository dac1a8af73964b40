"""Mesh files are read, and signed distances agree with closed forms and with brute force."""

import numpy as np
import pytest

from nerf.core.errors import UserError
from nerf.mesh import sdf
from nerf.mesh.mesh import Mesh, is_watertight, signed_volume
from nerf.mesh.sdf import check_solid, fit, load_mesh, signed_distance, unsigned_distance, winding_number

trimesh = pytest.importorskip("trimesh")

CUBE = trimesh.creation.box((1.0, 1.2, 0.8))
BALL = trimesh.creation.icosphere(4, 0.7)
PLY = (
    "ply\nformat ascii 1.0\nelement vertex 3\nproperty float x\nproperty float y\nproperty float z\nelement face 1\n"
    "property list uchar int vertex_indices\nend_header\n0 0 0\n1 0 0\n0 1 0\n3 0 1 {}\n"
)


def ours(loaded):
    return Mesh(np.array(loaded.vertices, dtype=np.float64), np.array(loaded.faces, dtype=np.int64))


def points(count=400, reach=1.0):
    return np.random.default_rng(0).uniform(-reach, reach, (count, 3))


def box_distance(p, half):
    q = np.abs(p) - half
    return np.linalg.norm(np.maximum(q, 0), axis=1) + np.minimum(q.max(axis=1), 0)


def sheet(n=8):
    x, y = np.meshgrid(np.linspace(-0.5, 0.5, n), np.linspace(-0.5, 0.5, n), indexing="ij")
    low = (np.arange(n - 1)[:, None] * n + np.arange(n - 1)).reshape(-1)
    faces = np.concatenate([np.stack([low, low + n, low + n + 1], 1), np.stack([low, low + n + 1, low + 1], 1)])
    return Mesh(np.stack([x, y, 0 * x], axis=-1).reshape(-1, 3), faces)


def bent_sheet():
    """A sheet along a parabola."""
    flat = sheet()
    return Mesh(flat.vertices + np.square(flat.vertices[:, :1]) * [0, 0, 1], flat.faces)


def without_cap(mesh, height):
    """The mesh without its triangles above a height."""
    return Mesh(mesh.vertices, mesh.faces[mesh.corners[..., 1].max(axis=1) < height])


def test_distance_to_a_box_equals_the_closed_form_on_both_sides():
    p = points()
    np.testing.assert_allclose(signed_distance(ours(CUBE), p), box_distance(p, [0.5, 0.6, 0.4]), atol=1e-9)


def test_distance_to_a_ball_equals_the_closed_form_up_to_its_facets():
    p = points()
    sagitta = 0.7 * (1 - np.cos(0.05))  # half the longest edge spans an angle of 0.04
    np.testing.assert_allclose(signed_distance(ours(BALL), p), np.linalg.norm(p, axis=1) - 0.7, atol=sagitta)


def test_distance_is_exact_for_triangles_of_very_different_sizes():
    """One long thin triangle, one small far one: every region of a triangle, against the definition."""
    mesh = Mesh(
        np.array([[-1, 0, 0], [1, 0, 0], [0.9, 0.05, 0.1], [0.3, 0.3, 0.3], [0.31, 0.3, 0.3], [0.3, 0.32, 0.3]]),
        np.array([[0, 1, 2], [3, 4, 5]]),
    )
    p = points(60)
    fine = np.linspace(0, 1, 201)
    a, b = (g.reshape(-1) for g in np.meshgrid(fine, fine, indexing="ij"))
    weight = np.stack([1 - a - b, a, b], 1)[a + b <= 1 + 1e-12]
    samples = np.einsum("wc,tcd->twd", weight, mesh.corners).reshape(-1, 3)
    brute = np.array([np.linalg.norm(samples - q, axis=1).min() for q in p])
    found = unsigned_distance(mesh, p)
    assert (found <= brute + 1e-12).all()
    np.testing.assert_allclose(found, brute, atol=5e-3)


def test_distance_of_a_triangle_is_to_its_inside_its_edge_or_its_corner():
    mesh = Mesh(np.array([[0.0, 0, 0], [1, 0, 0], [0, 1, 0]]), np.array([[0, 1, 2]]))
    p = np.array([[0.2, 0.2, 0.7], [0.5, -2.0, 0.0], [4.0, -4.0, 0.0]])
    np.testing.assert_allclose(unsigned_distance(mesh, p), [0.7, 2.0, 5.0])


def test_distance_is_zero_on_the_surface():
    mesh = ours(BALL)
    assert unsigned_distance(mesh, mesh.corners[::7].mean(axis=1)).max() < 1e-12
    assert unsigned_distance(mesh, mesh.vertices[::7]).max() < 1e-12


def test_winding_number_is_one_inside_and_zero_outside():
    p = points()
    inside = box_distance(p, [0.5, 0.6, 0.4]) < 0
    np.testing.assert_allclose(winding_number(ours(CUBE), p), inside, atol=1e-3)
    clear = np.abs(np.linalg.norm(p, axis=1) - 0.7) > 0.01
    np.testing.assert_allclose(winding_number(ours(BALL), p)[clear], (np.linalg.norm(p, axis=1) < 0.7)[clear], atol=0.03)


def test_winding_number_of_distant_clusters_agrees_with_the_exact_sum():
    """Dipoles of clusters against the exact sum, which one cluster alone gives."""
    mesh = ours(BALL)
    half = Mesh(mesh.vertices, mesh.faces[: len(mesh.faces) // 2])
    p = points(50)
    exact = sum(winding_number(Mesh(mesh.vertices, part), p) for part in np.array_split(half.faces, len(half.faces)))
    np.testing.assert_allclose(winding_number(half, p), exact, atol=0.03)


def test_mesh_that_is_inside_out_has_the_same_distances():
    p = points()
    mesh = ours(BALL)
    turned = Mesh(mesh.vertices, mesh.faces[:, ::-1])
    np.testing.assert_allclose(signed_distance(turned, p), signed_distance(mesh, p), atol=1e-14)


def test_small_hole_does_not_change_what_is_inside():
    mesh = ours(BALL)
    holed = without_cap(mesh, 0.65)
    assert not is_watertight(holed)
    p = points()
    p = p[np.abs(np.linalg.norm(p, axis=1) - 0.7) > 0.1]
    assert np.array_equal(signed_distance(holed, p) < 0, signed_distance(mesh, p) < 0)


def test_two_parts_that_overlap_are_one_inside():
    other = ours(trimesh.creation.icosphere(3, 0.5))
    ball = ours(trimesh.creation.icosphere(3, 0.5))
    both = Mesh(
        np.concatenate([ball.vertices, other.vertices + [0.4, 0, 0]]),
        np.concatenate([ball.faces, other.faces + len(ball.vertices)]),
    )
    assert (signed_distance(both, np.array([[0.2, 0, 0], [-0.3, 0, 0], [0.7, 0, 0]])) < 0).all()


def test_open_sheet_is_refused_with_the_reason():
    with pytest.raises(UserError, match="open and has no clear inside.*close its holes"):
        signed_distance(bent_sheet(), points(5))


def test_flat_mesh_is_refused_before_anything_is_measured_however_many_triangles_it_has(monkeypatch):
    monkeypatch.setattr(sdf, "winding_number", None)
    squashed = ours(CUBE)
    for mesh in (sheet(), Mesh(squashed.vertices * [1, 1, 1e-9], squashed.faces)):
        with pytest.raises(UserError, match="the mesh is flat.*thickness"):
            check_solid(mesh)


def test_closed_sheet_without_thickness_is_refused():
    bent = bent_sheet()
    with pytest.raises(UserError, match="has no clear inside|encloses a volume of .*thickness"):
        check_solid(Mesh(bent.vertices, np.concatenate([bent.faces, bent.faces[:, ::-1]])))


def test_thin_closed_plate_is_accepted():
    check_solid(ours(trimesh.creation.box((1, 1, 0.001))))


@pytest.mark.parametrize(
    "mesh", [Mesh(np.zeros((0, 3)), np.zeros((0, 3), dtype=np.int64)), Mesh(np.full((3, 3), np.nan), np.array([[0, 1, 2]]))]
)
def test_mesh_without_triangles_or_with_nan_is_refused(mesh):
    with pytest.raises(UserError, match="give one with a surface"):
        check_solid(mesh)


@pytest.mark.parametrize("bad", [np.zeros(3), np.zeros((2, 2)), np.array([[0, np.nan, 0]])])
def test_points_of_another_shape_are_refused(bad):
    with pytest.raises(ValueError, match=r"expected finite points \[M, 3\]"):
        signed_distance(ours(CUBE), bad)


def test_fit_centres_the_mesh_and_its_matrix_is_the_inverse():
    mesh = Mesh(ours(CUBE).vertices * 30 + [5, 6, 7], ours(CUBE).faces)
    fitted, back = fit(mesh, 0.8)
    np.testing.assert_allclose(fitted.bounds, [[-0.8 / 1.2, -0.8, -0.8 / 1.5], [0.8 / 1.2, 0.8, 0.8 / 1.5]])
    np.testing.assert_allclose(fitted.vertices @ back[:3, :3].T + back[:3, 3], mesh.vertices)


@pytest.mark.parametrize("suffix", ["obj", "glb", "ply"])
def test_load_reads_what_was_written(tmp_path, suffix):
    CUBE.export(tmp_path / f"cube.{suffix}")
    mesh = load_mesh(tmp_path / f"cube.{suffix}")
    assert is_watertight(mesh)
    assert signed_volume(mesh) == pytest.approx(1.0 * 1.2 * 0.8, rel=1e-6)


def test_load_transforms_the_parts_of_a_scene(tmp_path):
    scene = trimesh.Scene()
    scene.add_geometry(CUBE)
    move = np.eye(4)
    move[:3, 3] = [3.0, 0.0, 0.0]
    scene.add_geometry(CUBE, transform=move)
    scene.export(tmp_path / "two.glb")
    mesh = load_mesh(tmp_path / "two.glb")
    np.testing.assert_allclose(mesh.bounds, [[-0.5, -0.6, -0.4], [3.5, 0.6, 0.4]], atol=1e-6)
    assert len(mesh.faces) == 24


@pytest.mark.parametrize(
    "name, text, sentence",
    [
        ("no.stl", "", "expected one of .obj, .glb"),
        ("none", "", "no suffix"),
        ("points.obj", "v 0 0 0\nv 1 0 0\n", "holds no triangles"),
        ("nan.obj", "v nan 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n", "not finite|cannot be read"),
        ("huge.obj", "v 1e300 0 0\nv 0 1e300 0\nv 0 0 1e300\nf 1 2 3\n", "reaches 1e\\+300"),
        ("far.obj", "v 1e6 0 0\nv 1e6 0.1 0\nv 1e6 0 0.1\nf 1 2 3\n", "0.1 large and reaches 1e\\+06.*move it to the origin"),
        ("dot.obj", "v 1 2 3\nv 1 2 3\nv 1 2 3\nf 1 2 3\n", "has no size"),
        ("zero.obj", "v 0 0 0\nv 1 0 0\nv 0 1 0\nf 0 1 2\n", "line 4 has a face with the index 0, and the indices of an OBJ"),
        ("uv.obj", "v 0 0 0\nv 1 0 0\nv 0 1 0\nvt 0 0\nf 1/1 2/0 3/1", "line 5 has a face with the index 0"),
        ("line.obj", "v 0 0 0\nv 1 0 0\nv 0 0 0\nf 1 2 3\n", "no triangle with an area"),
        ("beyond.ply", PLY.format(3), "refer to vertices up to 3, and it has 3"),
        ("noise.glb", "this is no glTF", "cannot be read"),
        ("noise.ply", "this is no PLY", "cannot be read"),
    ],
)
def test_load_reports_what_is_wrong_with_a_file(tmp_path, name, text, sentence):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=sentence):
        load_mesh(tmp_path / name)


def test_load_reports_a_glb_without_buffer_views(tmp_path):
    (tmp_path / "cube.glb").write_bytes(CUBE.export(file_type="glb").replace(b"bufferViews", b"bufferVxxxs"))
    with pytest.raises(UserError, match="cannot be read .*export it again"):
        load_mesh(tmp_path / "cube.glb")


def test_load_reports_a_missing_file(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        load_mesh(tmp_path / "nowhere.obj")


def test_inside_of_the_bunny_is_right_though_its_base_is_open(test_data):
    mesh, _ = fit(load_mesh(test_data / "mesh" / "bunny.obj"), 0.8)
    assert not is_watertight(mesh)
    hole = np.array([0.31, -0.772, 0.141])  # the middle of one of the four in its base
    p = np.stack([[0.2, -0.3, 0.0], hole + [0, 0.05, 0], hole - [0, 0.05, 0], [-0.9, 0.9, 0.9]])
    assert (np.sign(signed_distance(mesh, p)) == [-1, -1, 1, 1]).all()
