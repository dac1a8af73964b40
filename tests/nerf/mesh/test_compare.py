"""Distances between surfaces against closed forms: spheres, cubes, clouds; the seed, the alignment, bad files."""

import numpy as np
import pytest

from nerf.core.errors import UserError
from nerf.mesh import compare
from nerf.mesh.mesh import Mesh, transformed, unit
from nerf.mesh.sdf import nearest_triangle
from tests.helpers import solids


def sphere(radius: float, subdivisions: int = 4) -> compare.Shape:
    """A fine sphere."""
    import trimesh

    ball = trimesh.creation.icosphere(subdivisions=subdivisions, radius=radius)
    return shape(Mesh(np.asarray(ball.vertices), np.asarray(ball.faces)))


def shape(mesh: Mesh) -> compare.Shape:
    """A mesh as a shape."""
    return compare.Shape(mesh, mesh.vertices)


def cube(shift: float = 0.0) -> compare.Shape:
    """The unit cube, moved along x."""
    return shape(Mesh(solids.BOX_CORNERS + np.array([shift, 0.0, 0.0]), solids.BOX_FACES))


def test_concentric_spheres_are_apart_by_the_difference_of_their_radii():
    got = compare.compare(sphere(1.1), sphere(1.0), [0.09, 0.11], points=20_000)
    assert got.accuracy == pytest.approx(0.1, rel=0.01) and got.completeness == pytest.approx(0.1, rel=0.01)
    assert got.chamfer == pytest.approx(0.5 * (got.accuracy + got.completeness))
    assert got.chamfer_percent == pytest.approx(100 * got.chamfer / np.sqrt(12), rel=1e-3)
    assert [one.f_score for one in got.thresholds] == [0.0, 1.0]
    assert got.normal_error < 3.0 and got.normal_consistency > 0.998  # flat triangles of 4 degrees
    assert got.hausdorff == pytest.approx(0.1, rel=0.03)


def test_shifted_cube_has_the_distance_of_the_closed_form():
    # Outward face: d. Inward face: min(d, distance to the rim of the unit square). Side faces: an overhang of width d.
    d = 0.1
    expected = (d + (1 - (1 - 2 * d) ** 3) / 6 + 2 * d**2) / 6
    got = compare.compare(cube(d), cube(), [0.05], points=40_000)
    assert got.accuracy == pytest.approx(expected, rel=0.03)  # four standard errors
    assert got.completeness == pytest.approx(expected, rel=0.03)  # by symmetry
    inner = 1 - (1 - 2 * 0.05) ** 2  # of the inward face, less than 0.05 from its rim
    near = (4 * (1 - 0.05) + inner) / 6
    assert got.thresholds[0].precision == pytest.approx(near, abs=0.008)


def test_a_surface_equals_itself_and_its_inside_out_copy_but_for_the_normals():
    ball = sphere(1.0, 2)
    same = compare.compare(ball, ball, [1e-6], points=2_000)
    assert same.chamfer < 1e-12 and same.thresholds[0].f_score == 1 and same.normal_error < 1e-3
    turned = compare.compare(shape(Mesh(ball.mesh.vertices, ball.mesh.faces[:, ::-1])), ball, [1e-6], points=2_000)
    assert turned.chamfer < 1e-12 and turned.normal_error > 179.9 and turned.normal_consistency == pytest.approx(1.0)


def test_missing_half_lowers_completeness_and_recall_alone():
    ball = sphere(1.0)
    upper = ball.mesh.faces[ball.mesh.corners[:, :, 1].mean(axis=1) > 0]
    got = compare.compare(shape(Mesh(ball.mesh.vertices, upper)), ball, [0.01], points=20_000)
    assert got.accuracy < 1e-12 and got.thresholds[0].precision == 1.0
    assert got.thresholds[0].recall == pytest.approx(0.5, abs=0.02)
    # Of the lower half, the distance to the equator is the chord 2 sin(a / 2) with a the angle below it, area cos(a) da.
    a = np.linspace(0, np.pi / 2, 10_001)
    assert got.completeness == pytest.approx(0.5 * np.trapezoid(2 * np.sin(a / 2) * np.cos(a), a), rel=0.02)


def test_clouds_are_measured_with_and_without_normals():
    rng = np.random.default_rng(0)
    inner = unit(rng.normal(size=(40_000, 3)))
    with_normals, without = compare.Shape(None, 1.2 * inner, inner), compare.Shape(None, 1.2 * inner)
    got = compare.compare(with_normals, sphere(1.0), [0.1], points=10_000)
    assert got.accuracy == pytest.approx(0.2, rel=0.01) and got.normal_error < 3 and got.points == (10_000, 10_000)
    assert got.completeness == pytest.approx(0.2, rel=0.02)  # to the nearest point of the cloud
    assert compare.compare(without, sphere(1.0), [0.1], points=1_000).normal_error is None


def test_points_follow_from_the_seed():
    shapes = cube(0.1), cube()
    one, again, other = (compare.compare(*shapes, [0.05], points=500, seed=seed) for seed in (3, 3, 4))
    assert one == again and one.accuracy != other.accuracy


def test_exact_distances_equal_those_to_all_triangles():
    rng = np.random.default_rng(1)
    mesh, points = sphere(1.0, 2).mesh, rng.uniform(-3, 3, size=(300, 3))
    from nerf.mesh.sdf import _to_triangles

    every = _to_triangles(points[:, None], mesh.corners[None])
    distance, face = nearest_triangle(mesh, points, exact_within=np.inf)
    np.testing.assert_allclose(distance, every.min(axis=1), rtol=1e-12)
    np.testing.assert_allclose(every[np.arange(300), face], distance, rtol=1e-12)


def test_alignment_undoes_a_rigid_motion():
    truth = shape(solids.surface(solids.lettered().distance, 32))
    angle = np.radians(8)
    motion = np.eye(4)
    motion[:3, :3] = [[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]]
    motion[:3, 3] = 0.03, -0.02, 0.01
    away = shape(transformed(truth.mesh, motion))
    before = compare.compare(away, truth, [0.01], points=5_000).chamfer
    back, found = compare.aligned(away, truth)
    assert compare.compare(back, truth, [0.01], points=5_000).chamfer < 0.1 * before
    np.testing.assert_allclose(found @ motion, np.eye(4), atol=0.01)


def ply(path, rows, properties="xyz", extra=""):
    """A PLY of points alone."""
    head = "".join(f"property float {name}\n" for name in properties.split() or [])
    text = f"ply\nformat ascii 1.0\nelement vertex {len(rows)}\n{head}{extra}end_header\n"
    path.write_text(text + "".join(" ".join(map(str, row)) + "\n" for row in rows))
    return path


def test_a_ply_without_faces_is_a_cloud(tmp_path):
    rows = [[0, 0, 0, 0, 0, 2], [1, 0, 0, 0, 3, 0], [0, 1, 0, 1, 0, 0]]
    got = compare.read_shape(ply(tmp_path / "a.ply", rows, "x y z nx ny nz"))
    assert got.mesh is None and got.points.tolist() == [row[:3] for row in rows]
    assert got.normals.tolist() == [[0, 0, 1], [0, 1, 0], [1, 0, 0]]
    assert compare.read_shape(ply(tmp_path / "b.ply", [row[:3] for row in rows], "x y z")).normals is None
    head, _, _ = (tmp_path / "a.ply").read_bytes().partition(b"0 0 0 0 0 2")
    (tmp_path / "c.ply").write_bytes(head.replace(b"ascii", b"binary_little_endian") + np.array(rows, "<f4").tobytes())
    binary = compare.read_shape(tmp_path / "c.ply")
    assert np.array_equal(binary.points, got.points) and np.array_equal(binary.normals, got.normals)


@pytest.mark.parametrize("suffix", ["obj", "glb", "ply", "stl"])
def test_meshes_of_all_formats_are_read(tmp_path, suffix):
    import trimesh

    path = tmp_path / f"box.{suffix}"
    trimesh.creation.box().export(path)
    got = compare.read_shape(path)
    assert got.mesh is not None and len(got.mesh.faces) == 12 and got.diagonal == pytest.approx(np.sqrt(3))


EMPTY_PLY = """ply
format ascii 1.0
element vertex 0
property float x
property float y
property float z
element face 0
property list uchar int vertex_indices
end_header
"""


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("a.xyz", "0 0 0", "expected a mesh or point cloud"),
        ("missing.ply", None, "there is no file"),
        ("a.ply", "ply\nformat ascii 1.0\nelement vertex 0\nproperty float x\nend_header\n", "export it again"),
        ("b.ply", "rubbish", "export it again"),
        ("c.obj", "v 0 0 0\n", "holds no triangles"),
        ("d.obj", "v 0 0 0\nv 1 0 0\nv 2 0 0\nf 1 2 3\n", "no triangle with an area"),
        ("e.obj", "v 0 0 0\nv 1 0 nan\nv 0 1 0\nf 1 2 3\n", "e.obj"),
        ("f.obj", "v 0 0 0\nv 1e300 0 0\nv 0 1e300 0\nf 1 2 3\n", "f.obj has 2 of 3 points that are not finite or beyond"),
        ("g.ply", EMPTY_PLY, "g.ply holds no points"),
    ],
)
def test_files_that_cannot_be_measured_are_refused_in_a_sentence(tmp_path, name, content, words):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=words):
        compare.read_shape(tmp_path / name)


def test_a_cloud_that_was_cut_off_is_refused(tmp_path):
    path = ply(tmp_path / "a.ply", [[0, 0, 0], [1, 1, 1]], "x y z")
    path.write_text(path.read_text().replace("vertex 2", "vertex 5"))
    with pytest.raises(UserError, match=r"a\.ply"):
        compare.read_shape(path)
