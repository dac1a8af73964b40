"""Painted meshes: nothing of the file changes but its texture, and which uv layouts can hold one."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from nerf.config.groups import OutputConfig
from nerf.core.errors import ExportError
from nerf.mesh import paint
from nerf.mesh.export_options import ExportOptions
from nerf.mesh.gltf import open_gltf
from nerf.mesh.io import read_mesh
from nerf.mesh.source import read_source
from nerf.mesh.surface_colors import lookup
from tests.nerf.mesh.test_source import glb, moved

OPTIONS = replace(ExportOptions.from_config(OutputConfig()), texture_size=64, normal_map=False)
# Two triangles and a quad that share edges, an unused vertex, numbers without short binary forms, and minus zero.
SHEET = """v 0.1 0.2 -0
v 0.7 0.1 0.3
v 0.9 0.93333333333333333 1e-7
v 99 99 99
v 0.05 0.8 0.123456789012
v -0.4 0.5 0.2
vt 0.05 0.05
vt 0.45 0.05
vt 0.45 0.95
vt 0.05 0.95
vt 0.6 0.1
vt 0.9 0.1
vt 0.9 0.4
f 1/1 2/2 3/3 5/4
f 1/5 5/6 6/7
"""


def color(points):
    """A colour that says where a point is."""
    return (points * 0.3 + 0.4).clamp(0, 1)


def painted(tmp_path, path, to_box=None, **options):
    """The report of a file, its source, and the folder."""
    source = read_source(path)
    given = np.eye(4) if to_box is None else to_box
    report = paint.export_painted(source, given, color, tmp_path / "out", replace(OPTIONS, **options), bound=1.0)
    return report, source, tmp_path / "out"


def sheet(tmp_path, text=SHEET):
    """An OBJ of this text."""
    path = tmp_path / "sheet.obj"
    path.write_text(text)
    return path


def lines(path, keyword):
    """The lines of an OBJ that begin with a keyword, as numbers or words."""
    return [line.split()[1:] for line in path.read_text().splitlines() if line.split()[:1] == [keyword]]


def test_every_number_and_polygon_of_an_obj_is_written_again(tmp_path):
    path = sheet(tmp_path)
    report, source, out = painted(tmp_path, path)
    read = read_source(out / "mesh.obj")
    for name in ("vertices", "uv"):
        assert getattr(read, name).tobytes() == getattr(source, name).tobytes()
    assert [[float(x) for x in row] for row in lines(out / "mesh.obj", "v")] == source.vertices.tolist()
    polygons = [[word.split("/")[:2] for word in row] for row in lines(out / "mesh.obj", "f")]
    assert polygons == [[word.split("/") for word in row] for row in lines(path, "f")]
    assert report.vertices == 6 and report.faces == 3 and report.notes == () and not report.watertight


def test_glb_has_the_vertices_of_the_file_first_and_repeats_those_with_two_uv(tmp_path):
    _, source, out = painted(tmp_path, sheet(tmp_path))
    read = read_source(out / "mesh.glb")
    assert np.array_equal(read.vertices[:6], source.vertices.astype(np.float32))
    assert len(read.vertices) == 8  # corners 1 and 5 have two uv each
    assert np.array_equal(read.vertices[read.faces], source.vertices.astype(np.float32)[source.faces])
    np.testing.assert_allclose(read.uv[read.uv_faces], source.uv[source.uv_faces], atol=1e-7)


@pytest.mark.parametrize("name", ["mesh.obj", "mesh.glb"])
def test_texture_shows_the_colour_of_each_point(tmp_path, name):
    _, source, out = painted(tmp_path, sheet(tmp_path), texture_size=256)
    read = read_mesh(out / name)
    weights = np.random.default_rng(0).dirichlet(np.ones(3), (len(read.faces), 50))
    where = np.einsum("tpc,tcd->tpd", weights, read.vertices[read.faces]).reshape(-1, 3)
    uv = np.einsum("tpc,tcd->tpd", weights, read.uv[read.faces]).reshape(-1, 2)
    found = lookup(read.texture / 255.0, uv)
    assert np.abs(found - color(torch.from_numpy(where)).numpy()).max() < 0.01


def test_colours_are_asked_for_in_the_box_and_the_file_keeps_its_place(tmp_path):
    to_box = np.diag([0.5, 0.5, 0.5, 1.0])
    to_box[:3, 3] = 0.1
    _, source, out = painted(tmp_path, sheet(tmp_path), to_box)
    texture = read_mesh(out / "mesh.glb").texture / 255.0
    middle = source.vertices[source.faces[2]].mean(0)
    found = lookup(texture, source.uv[source.uv_faces[2]].mean(0)[None])[0]
    np.testing.assert_allclose(found, (middle * 0.5 + 0.1) * 0.3 + 0.4, atol=0.01)
    assert np.array_equal(read_source(out / "mesh.obj").vertices, source.vertices)


def test_glb_keeps_its_bits_and_its_node(tmp_path):
    path = glb(tmp_path / "a.glb", moved(5, 2))
    _, source, out = painted(tmp_path, path, np.linalg.inv(moved(5, 8)))
    read = read_source(out / "mesh.glb")
    assert read.vertices[:8].tobytes() == source.vertices.tobytes() and np.array_equal(read.node, source.node)
    assert np.array_equal(read.vertices[read.faces], source.vertices[source.faces])
    assert np.array_equal(read_source(out / "mesh.obj").vertices, source.placed)


def test_shape_of_a_mesh_far_from_the_origin_survives_float32(tmp_path):
    text = "".join(f"v {1e7 + x} {y} 0\n" for x, y in ((0, 0), (1, 0), (1, 1), (0.3, 1))) + "f 1 2 3\nf 1 3 4\n"
    path = sheet(tmp_path, text)
    _, source, out = painted(tmp_path, path, np.linalg.inv(moved(1e7)))
    read = read_source(out / "mesh.glb")
    np.testing.assert_allclose(read.placed[read.faces], source.vertices[source.faces], atol=1e-6)
    assert float(np.float32(1e7 + 0.3)) != 1e7 + 0.3  # what would have been written
    assert np.array_equal(read_source(out / "mesh.obj").vertices, source.vertices)


WHOLE = "f 1/1 2/2 3/3\n"
CORNERS = "v 0 0 0\nv 1 0 0\nv 0 1 0\nv 0 0 1\n"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (CORNERS + "f 1 2 3\n", "it has no uv"),
        (CORNERS + "vt 0 0\nvt 1 0\nvt 0 1\n" + WHOLE + "f 1 2 4\n", "not for all of its triangles"),
        (CORNERS + "vt 0 0\nvt 1.5 0\nvt 0 1\n" + WHOLE, "1 of its triangles are larger than the texture"),
        (CORNERS + "vt 0 0\nvt 1 0\nvt 0 1\nvt .5 .5\n" + WHOLE + "f 1/4 2/4 4/4\n", "% of its surface has no area"),
        (CORNERS + "vt 0 0\nvt 1 0\nvt 0 1\n" + WHOLE + "f 1/1 2/2 4/3\n", "100 % of its texels belong to several places"),
        (CORNERS + "vt 0 0\nvt 1 0\nvt 0 1\nvt 3 0\nvt 4 0\nvt 3 1\n" + WHOLE + "f 1/4 2/5 4/6\n", "100 % of its texels"),
    ],
)
def test_layout_without_texels_for_every_point_is_replaced_and_the_report_says_why(tmp_path, text, reason):
    report, source, out = painted(tmp_path, sheet(tmp_path, text))
    assert any("unwrapped anew" in note and reason in note for note in report.notes)
    read = read_source(out / "mesh.obj")
    assert np.array_equal(read.vertices, source.vertices) and np.array_equal(read.faces, source.faces)
    assert paint.uv_layout(read, read.vertices)[0] is not None


def test_uv_in_another_tile_and_across_its_border_are_kept(tmp_path):
    text = CORNERS + "vt 3.2 -1.9\nvt 3.9 -1.9\nvt 3.2 -1.1\nvt 0.8 0.5\nvt 1.15 0.5\nvt 0.9 0.95\n" + WHOLE + "f 1/4 2/5 4/6\n"
    report, source, out = painted(tmp_path, sheet(tmp_path, text.replace("3.9 -1.9", "3.5 -1.9")), texture_size=256)
    assert report.notes == ()
    read = read_mesh(out / "mesh.glb")
    assert read.uv.max() > 3
    weights = np.random.default_rng(0).dirichlet(np.ones(3), (2, 200))
    where = np.einsum("tpc,tcd->tpd", weights, source.vertices[source.faces]).reshape(-1, 3)
    uv = np.einsum("tpc,tcd->tpd", weights, source.uv[source.uv_faces]).reshape(-1, 2)
    assert np.abs(lookup(read.texture / 255.0, uv) - color(torch.from_numpy(where)).numpy()).max() < 0.02


def test_triangle_across_the_border_of_the_texture_is_in_it_once_for_each_side():
    layout = paint.UvLayout(
        np.array([[0.9, 0.9], [1.1, 0.9], [0.9, 1.1], [0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), np.arange(6).reshape(2, 3)
    )
    triangle, uv = layout.copies()
    assert sorted(triangle.tolist()) == [0, 0, 0, 0, 1]
    assert np.array_equal(uv[triangle == 1][0], layout.uv[3:])


def test_split_puts_the_vertices_of_the_file_first():
    faces = np.array([[2, 1, 0], [0, 1, 3]])
    split = paint._split(5, faces, np.array([[0, 1, 2], [3, 1, 4]]), faces)
    assert split.vertex[:5].tolist() == [0, 1, 2, 3, 4] and split.vertex[5:].tolist() == [0]
    assert np.array_equal(split.vertex[split.faces], faces)
    assert split.uv[split.faces].tolist() == [[0, 1, 2], [3, 1, 4]]


def test_closed_mesh_is_called_closed_and_vertex_colours_are_written(tmp_path):
    report, source, out = painted(tmp_path, glb(tmp_path / "a.glb", np.eye(4)), moved(0, 0.3), ply=True)
    assert report.watertight and report.volume == pytest.approx(6.0)
    colors = read_mesh(out / "mesh.ply").colors
    expected = (source.vertices * 0.3 * 0.3 + 0.4).clip(0, 1) * 255
    assert np.abs(colors - expected).max() <= 0.51


def test_an_stl_has_the_triangles_of_the_file_and_one_that_lost_some_is_refused(tmp_path, monkeypatch):
    report, source, out = painted(tmp_path, glb(tmp_path / "a.glb", np.eye(4)), moved(0, 0.3), stl=True)
    assert np.array_equal(read_mesh(out / "mesh.stl").corners, source.vertices[source.faces].astype(np.float32))
    assert report.files["stl"] == out / "mesh.stl" and report.soundness.genus == 0
    real = paint.write_stl
    monkeypatch.setattr(paint, "write_stl", lambda path, mesh: real(path, replace(mesh, faces=mesh.faces[:, [1, 2, 0]])))
    with pytest.raises(ExportError, match="mesh.stl was read back with other triangles"):
        painted(tmp_path, tmp_path / "a.glb", moved(0, 0.3), stl=True)


def test_sheet_is_shown_from_behind_and_a_solid_is_not(tmp_path):
    _, _, out = painted(tmp_path, sheet(tmp_path))
    assert open_gltf(out / "mesh.glb").content.materials[0].doubleSided
    _, _, out = painted(tmp_path, glb(tmp_path / "a.glb", np.eye(4)), moved(0, 0.3))
    assert not open_gltf(out / "mesh.glb").content.materials[0].doubleSided


def test_edge_of_three_triangles_and_a_triangle_twice_are_kept(tmp_path):
    text = CORNERS + "v 0 -1 0\nf 1 2 3\nf 1 2 4\nf 1 2 5\nf 1 2 5\nf 2 1 5\n"
    _, source, out = painted(tmp_path, sheet(tmp_path, text))
    assert np.array_equal(read_source(out / "mesh.obj").faces, source.faces)
    assert np.array_equal(
        read_source(out / "mesh.glb").vertices[read_source(out / "mesh.glb").faces], source.vertices[source.faces]
    )


def test_file_that_is_read_back_otherwise_is_refused_and_the_old_export_stays(tmp_path, monkeypatch):
    _, _, out = painted(tmp_path, sheet(tmp_path))
    before = (out / "mesh.obj").read_bytes()
    monkeypatch.setattr(
        paint, "text_rows", lambda pattern, values: (pattern.replace("%r", "%.4f") * len(values)) % tuple(values.reshape(-1))
    )
    with pytest.raises(ExportError, match="read back with another position"):
        painted(tmp_path, sheet(tmp_path))
    assert (out / "mesh.obj").read_bytes() == before


def quads(side=30):
    """The OBJ of a dome of quads without uv, more than xatlas is given at once."""
    at = np.linspace(-1, 1, side)
    rows = "".join(f"v {x} {y} {1 - 0.4 * (x * x + y * y)}\n" for y in at.tolist() for x in at.tolist())
    corner = [(j * side + i + 1, j * side + i + 2, (j + 1) * side + i + 2, (j + 1) * side + i + 1)
              for j in range(side - 1) for i in range(side - 1)]  # fmt: skip
    return rows + "".join("f {} {} {} {}\n".format(*one) for one in corner)


def test_quads_without_uv_are_quads_afterwards(tmp_path):
    report, source, out = painted(tmp_path, sheet(tmp_path, quads()), texture_size=128)
    assert len(source.faces) > 1000 and not any("are their triangles" in note for note in report.notes)
    assert [[word.split("/")[0] for word in row] for row in lines(out / "mesh.obj", "f")] == lines(tmp_path / "sheet.obj", "f")


def test_concave_polygon_keeps_its_outline(tmp_path):
    text = "".join(f"v {x} {y} 0\n" for x, y in ((3, 0), (3, 1), (1, 1), (1, 2), (3, 2), (3, 3), (0, 3), (0, 0)))
    text += "".join(f"vt {x / 3} {y / 3}\n" for x, y in ((3, 0), (3, 1), (1, 1), (1, 2), (3, 2), (3, 3), (0, 3), (0, 0)))
    path = sheet(tmp_path, text + "f " + " ".join(f"{i}/{i}" for i in range(1, 9)) + "\n")
    report, _, out = painted(tmp_path, path, moved(0, 0.3))
    assert report.notes == () and len(lines(out / "mesh.obj", "f")[0]) == 8
    assert read_source(out / "mesh.glb").placed[:, 0].max() == 3
    triangles = read_mesh(out / "mesh.glb").corners
    areas = np.linalg.norm(np.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0]), axis=1) / 2
    assert areas.sum() == pytest.approx(7)


def test_polygon_that_a_new_layout_cuts_through_becomes_triangles_and_the_report_says_so(tmp_path):
    text = "v 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\nv 2 0 0\nv 2 1 0\nv 3 0 0\nf 1 2 3 4\nf 2 5 6 3\nf 5 7 6\n"
    source = read_source(sheet(tmp_path, text))
    whole = paint.UvLayout(np.zeros((7, 2)), source.faces)
    assert paint._divided(source, whole)[1] == 0
    cut = source.faces.copy()
    cut[1, 2] = 6  # the last triangle of the first polygon has other uv at two of its corners
    cut[1, 0] = 5
    divided, count = paint._divided(source, paint.UvLayout(np.zeros((7, 2)), cut))
    assert count == 1 and divided.polygon.tolist() == [0, 1, 2, 2, 3]
    assert divided.place.tolist() == [[0, 1, 2], [0, 1, 2], [0, 1, 2], [0, 2, 3], [0, 1, 2]]
    twice = text + text.partition("f")[1] + text.partition("f")[2]  # each surface twice: xatlas takes them apart
    report, _, out = painted(tmp_path, sheet(tmp_path, twice), moved(0, 0.3))
    read, source = read_source(out / "mesh.obj"), read_source(tmp_path / "sheet.obj")
    assert np.array_equal(read.faces, source.faces)
    assert (len(lines(out / "mesh.obj", "f")) > 6) == any(
        "of its polygons are their triangles" in note for note in report.notes
    )


def test_vertex_that_no_triangle_uses_takes_no_room_in_the_texture(tmp_path):
    flat = "v 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\n"
    report, _, _ = painted(tmp_path, sheet(tmp_path, flat + "v 1000 0 0\nf 1 2 3 4\n"))
    assert report.texture_coverage > 0.8


@pytest.mark.parametrize(("tile", "kept"), [((1e5, -40.0), True), ((1e15, 0.0), False)])
def test_uv_far_out_are_kept_where_the_glb_can_hold_them(tmp_path, tile, kept):
    uv = [(0.1, 0.1), (0.9, 0.1), (0.1, 0.9)]
    far = "".join(f"vt {tile[0] + u!r} {tile[1] + v!r}\n" for u, v in uv) + "vt 0.95 0.95\nvt 0.95 0.5\nvt 0.5 0.95\n"
    text = CORNERS + far + WHOLE + ("" if kept else "f 1/4 2/5 4/6\n")
    report, source, out = painted(tmp_path, sheet(tmp_path, text))
    assert (report.notes == ()) is kept
    if kept:
        assert np.array_equal(read_source(out / "mesh.obj").uv, source.uv)
        np.testing.assert_allclose(read_mesh(out / "mesh.glb").uv[:3] % 1, uv, atol=1e-6)


def test_solid_that_is_wound_inwards_is_shown_from_both_sides(tmp_path):
    text = CORNERS + "f 1 2 3\nf 1 4 2\nf 2 4 3\nf 1 3 4\n"
    report, _, out = painted(tmp_path, sheet(tmp_path, text))
    assert report.watertight and report.volume < 0
    assert open_gltf(out / "mesh.glb").content.materials[0].doubleSided
