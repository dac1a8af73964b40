"""Mesh files number by number: indices of an OBJ, nodes of a GLB, and sentences for what cannot be painted."""

import numpy as np
import pytest

from nerf.core.errors import UserError
from nerf.mesh.io import read_parts
from nerf.mesh.obj import read_obj
from nerf.mesh.source import digest_of_file, read_source

SHEET = "v 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0.25\n"


def obj(tmp_path, text, name="a.obj"):
    """An OBJ of this text."""
    path = tmp_path / name
    path.write_text(text)
    return path


def test_positions_uv_and_normals_keep_their_own_indices_and_order(tmp_path):
    text = SHEET + "vt 0.1 0.2\nvt 1 0\nvn 0 0 1\n# a comment\nf 3/2/1 1/1/1 2/2/1 # beside\nf -1//-1 -4//-1 -2//-1\n"
    found = read_obj(obj(tmp_path, text))
    assert found.vertices.tolist() == [[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0.25]]
    assert found.uv.tolist() == [[0.1, 0.2], [1, 0]] and found.normals.tolist() == [[0, 0, 1]]
    assert found.corners[0].tolist() == [[2, 1, 0], [0, 0, 0], [1, 1, 0]]
    assert found.corners[1].tolist() == [[3, -1, 0], [0, -1, 0], [2, -1, 0]]


def test_polygons_are_fans_and_remember_which_they_are(tmp_path):
    found = read_obj(obj(tmp_path, SHEET + "f 1 2 3 4\nf 1 2\nf 4 3 \\\n2\n"))
    assert found.corners[:, :, 0].tolist() == [[0, 1, 2], [0, 2, 3], [3, 2, 1]]
    assert found.polygon.tolist() == [0, 0, 1]  # a line of two corners is none


def test_concave_polygon_is_covered_by_its_triangles_and_nothing_else(tmp_path):
    outline = [(0, 0), (3, 0), (3, 1), (1, 1), (1, 2), (3, 2), (3, 3), (0, 3)]  # a C of area 7
    text = "".join(f"v 5 {x} {y}\n" for x, y in outline) + "f 2 3 4 5 6 7 8 1\nf 8 7 6 5 4 3 2 1\nf 1 2 3\n"
    found = read_obj(obj(tmp_path, text))
    a, b, c = np.moveaxis(found.vertices[found.corners[:, :, 0]], 1, 0)
    area = 0.5 * np.cross(b - a, c - a)[:, 0]
    assert np.abs(area[:6]).sum() == pytest.approx(7) and np.abs(area[:12]).sum() == pytest.approx(14)
    assert (area[:6] >= 0).all() and (area[6:12] <= 0).all()  # each side keeps its orientation
    assert found.polygon.tolist() == [0] * 6 + [1] * 6 + [2] and found.place[12].tolist() == [0, 1, 2]
    assert np.array_equal(found.corners[:6, :, 0], np.array([1, 2, 3, 4, 5, 6, 7, 0])[found.place[:6]])


@pytest.mark.parametrize("start", range(4))
def test_quad_with_a_corner_that_points_inwards_is_cut_there(tmp_path, start):
    order = [str((start + i) % 4 + 1) for i in range(4)]
    text = "v 0 0 0\nv 2 2 0\nv 0 1 0\nv -2 2 0\nf " + " ".join(order) + "\n"
    found = read_obj(obj(tmp_path, text))
    assert all({0, 2} <= set(row) for row in found.corners[:, :, 0].tolist())


def test_comments_and_names_in_any_encoding_and_a_byte_order_mark_are_no_matter(tmp_path):
    for name, start in (("a.obj", "# caf\xe9\no w\xfcrfel\n".encode("latin-1")), ("b.obj", b"\xef\xbb\xbf")):
        (tmp_path / name).write_bytes(start + (SHEET + "f 1 2 3 4\n").encode())
        assert read_obj(tmp_path / name).vertices.shape == (4, 3)
        assert sum(len(part.vertices) for part, _ in read_parts(tmp_path / name)) == 4
    (tmp_path / "c.obj").write_bytes(SHEET.encode("utf-16"))
    with pytest.raises(UserError, match="one in UTF-16"):
        read_obj(tmp_path / "c.obj")


def test_numbers_after_the_position_are_colours_or_weights_and_left_out(tmp_path):
    assert read_obj(obj(tmp_path, "v 0 0 0 1 0 0\nv 1 0 0 1\nv 0 1 0\nf 1 2 3\n")).vertices.shape == (3, 3)


def test_uv_count_only_where_every_corner_has_one(tmp_path):
    whole = read_source(obj(tmp_path, SHEET + "vt 0 0\nf 1/1 2/1 3/1\n"))
    partly = read_source(obj(tmp_path, SHEET + "vt 0 0\nf 1/1 2/1 3/1\nf 1 3 4\n", "b.obj"))
    assert len(whole.uv_faces) == 1 and len(partly.uv_faces) == 0 and len(partly.uv) == 0


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (SHEET, "holds no triangles"),
        (SHEET + "f 1 2 5\n", "line 5 refers to number 5 of 4"),
        (SHEET + "f 1 2 -5\n", "line 5 refers to number -5 of 4"),
        (SHEET + "vt 0 0\nf 1 2 /1\n", "line 6 has a corner without a position"),
        ("v 0 0\n", "line 1 has 2 numbers in a v"),
        ("v 0 0 zero\n", "cannot be read: could not convert"),
        ("v 0 0 nan\nv 1 0 0\nv 0 1 0\nf 1 2 3\n", r"vertices that are not finite numbers \(1 of 3\)"),
        ("v 0 0 1e400\nv 1 0 0\nv 0 1 0\nf 1 2 3\n", "not finite numbers"),
        (SHEET + "vt inf 0\nf 1/1 2/1 3/1\n", "has uv that are not finite"),
        ("v 1 1 1\nv 1 1 1\nv 1 1 1\nf 1 2 3\n", "has no size: all its triangles are at"),
        ("v 0 0 0\nv 1 0 0\nv 2 0 0\nf 1 2 3\n", "no triangle with an area"),
        ("v 0 0 0\nv 1e35 0 0\nv 0 1e35 0\nf 1 2 3\n", "reaches 1e.35 from the origin"),
    ],
)
def test_what_cannot_be_painted_is_refused_with_a_sentence(tmp_path, text, sentence):
    with pytest.raises(UserError, match=sentence):
        read_source(obj(tmp_path, text))


def test_another_kind_of_file_is_refused(tmp_path):
    with pytest.raises(UserError, match="expected one of .obj, .glb"):
        read_source(obj(tmp_path, SHEET, "a.stl"))


def glb(path, *matrices):
    """A GLB with a textured box at each of the matrices."""
    import trimesh

    scene = trimesh.Scene()
    for i, matrix in enumerate(matrices):
        box = trimesh.creation.box((1, 2, 3))
        box.visual = trimesh.visual.TextureVisuals(uv=np.random.default_rng(i).random((8, 2)).astype(np.float32))
        scene.add_geometry(box, transform=matrix, geom_name=f"box{i}")
    path.write_bytes(scene.export(file_type="glb"))
    return path


def moved(x, scale=1.0):
    """A matrix that scales and moves along x."""
    matrix = np.diag([scale, scale, scale, 1.0])
    matrix[0, 3] = x
    return matrix


def test_node_that_all_parts_share_is_kept_beside_their_vertices(tmp_path):
    found = read_source(glb(tmp_path / "a.glb", moved(5, 2)))
    assert np.array_equal(found.node, moved(5, 2)) and np.abs(found.vertices).max() == 1.5
    assert found.placed[:, 0].max() == 6 and found.uv.shape == (8, 2)


def test_parts_at_different_nodes_are_joined_where_they_lie(tmp_path):
    found = read_source(glb(tmp_path / "a.glb", moved(5), moved(-5)))
    assert np.array_equal(found.node, np.eye(4)) and found.faces.shape == (24, 3)
    assert found.vertices[:, 0].max() == 5.5 and found.vertices[:, 0].min() == -5.5


def test_normals_are_those_of_the_file_or_none(tmp_path):
    import trimesh

    box = trimesh.creation.box()
    bare, own = tmp_path / "bare.ply", tmp_path / "own.ply"
    box.export(bare, vertex_normal=False)
    box.export(own, vertex_normal=True)
    assert len(read_source(bare).normals) == 0 and len(read_source(own).normals) == 8


def test_digest_changes_with_any_byte(tmp_path):
    one, other = obj(tmp_path, SHEET), obj(tmp_path, SHEET + " ", "b.obj")
    assert digest_of_file(one).shape == (32,) and not np.array_equal(digest_of_file(one), digest_of_file(other))
