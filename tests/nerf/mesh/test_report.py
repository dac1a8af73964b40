"""The mesh report: every property against a mesh of which it is known."""

import json
from dataclasses import replace

import numpy as np
import pytest

from nerf.core.errors import UserError
from nerf.mesh import io as mesh_io
from nerf.mesh import mesh as meshes
from nerf.mesh.mesh import Mesh
from nerf.mesh.report import report_file
from tests.helpers import solids

DIFFUSE = mesh_io.Material(1.0, 0.0)


@pytest.fixture
def measured(tmp_path):
    """Writes a mesh as PLY and measures the file."""

    def measure(mesh):
        normals = meshes.vertex_normals(mesh) if mesh.normals is None else mesh.normals
        colors = np.full(mesh.vertices.shape, 128, dtype=np.uint8)
        return report_file(mesh_io.write_ply(tmp_path / "mesh.ply", replace(mesh, normals=normals, colors=colors)))

    return measure


@pytest.fixture
def textured(tmp_path):
    """A box with each triangle in its own cell of a 4 x 3 grid of the texture, and a folder."""
    mesh = solids.box_mesh()
    corners = np.arange(36).reshape(12, 3)
    cell = np.stack([np.arange(12) % 4, np.arange(12) // 4], axis=1)
    uv = (cell[:, None] + [[0.1, 0.1], [0.9, 0.1], [0.1, 0.9]]).reshape(-1, 2) / [4, 3]
    normals = np.repeat(np.cross(*(mesh.corners[:, k] - mesh.corners[:, 0] for k in (1, 2))), 3, axis=0)
    flat = Mesh(
        mesh.vertices[mesh.faces.reshape(-1)],
        corners,
        normals / np.linalg.norm(normals, axis=1, keepdims=True),
        uv,
        mesh.faces.reshape(-1),
        texture=np.full((96, 96, 3), 200, dtype=np.uint8),
    )
    return flat, tmp_path


def test_box_is_found_closed_manifold_and_outwards_with_its_size_volume_and_area(measured):
    report = measured(solids.box_mesh())
    assert (report.faces, report.vertices, report.parts) == (12, 8, 1)
    assert report.watertight and report.edges_manifold and report.vertices_manifold and report.outward
    assert report.volume == pytest.approx(6.0) and report.area == pytest.approx(22.0) and report.size == (1.0, 2.0, 3.0)
    assert report.crossing == 0 and report.sampled == 12 and not report.uv and report.flat_faces == 0


def test_missing_triangle_is_an_opening(measured):
    report = measured(replace(solids.box_mesh(), faces=solids.BOX_FACES[1:]))
    assert not report.watertight and report.openings == 1 and report.edges_manifold


def test_inside_out_box_has_a_negative_volume_and_does_not_face_outwards(measured):
    report = measured(replace(solids.box_mesh(), faces=solids.BOX_FACES[:, ::-1]))
    assert report.volume == pytest.approx(-6.0) and report.watertight and not report.outward


def test_normals_that_point_inwards_are_detected(measured):
    mesh = solids.box_mesh()
    report = measured(replace(mesh, normals=-meshes.vertex_normals(mesh)))
    assert report.volume > 0 and report.normals_agreeing == 0.0 and not report.outward


def test_two_boxes_that_share_an_edge_are_not_manifold_there(measured):
    report = measured(solids.joined(solids.box_mesh((1, 1, 1)), solids.box_mesh((1, 1, 1), (1.0, 1.0, 0.0))))
    assert not report.edges_manifold and not report.watertight


def test_two_boxes_that_share_a_corner_have_a_vertex_of_two_fans(measured):
    report = measured(solids.joined(solids.box_mesh((1, 1, 1)), solids.box_mesh((1, 1, 1), (1.0, 1.0, 1.0))))
    assert report.edges_manifold and report.watertight and not report.vertices_manifold and report.vertices == 15


def test_parts_are_counted(measured):
    report = measured(solids.joined(solids.box_mesh(), solids.box_mesh(at=(5.0, 0, 0)), solids.box_mesh(at=(9.0, 0, 0))))
    assert report.parts == 3 and report.vertices_manifold


def test_uv_textures_material_and_extras_of_a_glb_are_reported(textured):
    mesh, folder = textured
    report = report_file(mesh_io.write_glb(folder / "x.glb", mesh, mesh_io.Material(0.25, 0.5), {"seed": 3}))
    assert report.watertight and report.vertices == 8 and report.extras == {"seed": 3}
    assert report.textures == {"color": (96, 96)} and report.material["roughness"] == 0.25
    assert report.uv_coverage == pytest.approx(0.32, abs=0.02) and report.uv_overlap == 0.0 and report.uv_outside == 0.0
    assert report.as_dict() == json.loads(json.dumps(report.as_dict())) | {
        k: report.as_dict()[k] for k in ("bounds", "size", "textures")
    }


def test_triangles_that_share_texels_are_an_overlap_and_uv_outside_the_square_are_reported(textured):
    mesh, folder = textured
    uv = mesh.uv.copy()
    uv[:3], uv[-3:] = uv[3:6], uv[-3:] + [0.3, 0.0]
    report = report_file(mesh_io.write_glb(folder / "x.glb", replace(mesh, uv=uv), DIFFUSE, {}))
    assert report.uv_overlap == pytest.approx(1 / 10, abs=0.03) and report.uv_outside == pytest.approx(3 / 36)


def test_constants_of_an_mtl_are_reported(textured):
    mesh, folder = textured
    report = report_file(mesh_io.write_obj(folder, mesh, mesh_io.Material(0.5, 0.0))["obj"])
    assert report.watertight and report.textures == {"color": (96, 96)}
    assert float(report.material["Pr"]) == 0.5 and float(report.material["Ns"]) == 250.0 and "Tr" not in report.material


def test_meshes_of_a_scene_are_transformed_by_their_nodes(tmp_path):
    import trimesh

    scene = trimesh.Scene()
    solid = trimesh.Trimesh(solids.box_mesh().vertices, solids.BOX_FACES, process=False)
    for shift in (0.0, 5.0):
        scene.add_geometry(solid, transform=trimesh.transformations.translation_matrix([shift, 0, 0]))
    scene.export(tmp_path / "x.glb")
    report = report_file(tmp_path / "x.glb")
    assert report.parts == 2 and report.size == (6.0, 2.0, 3.0) and report.volume == pytest.approx(12.0)


DAMAGED = [
    ("x.glb", b"glTF\x02\x00\x00\x00rubbish"),
    ("x.glb", b""),
    ("x.ply", b"ply\nrubbish"),
    ("x.obj", b"v 0 0 0\n"),
    ("x.stl", b"\x00" * 90),
    ("x.txt", b"text"),
]


@pytest.mark.parametrize("name, content", DAMAGED)
def test_file_that_is_not_a_mesh_is_refused_with_a_sentence(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match="x\\.(glb|ply|obj|stl|txt)"):
        report_file(tmp_path / name)


def test_missing_file_is_reported(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file"):
        report_file(tmp_path / "x.glb")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("number", ["nan", "inf", "1e300"])
def test_vertices_that_cannot_be_measured_are_refused_without_a_warning(tmp_path, number):
    (tmp_path / "a.obj").write_text(f"v {number} 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n")
    with pytest.raises(UserError, match="a.obj has vertices that are NaN, infinite or beyond"):
        report_file(tmp_path / "a.obj")


def test_gltf_whose_buffer_is_missing_is_named_with_it(tmp_path):
    tree = {"asset": {"version": "2.0"}, "buffers": [{"uri": "gone.bin", "byteLength": 36}], "bufferViews": [], "meshes": []}
    (tmp_path / "a.gltf").write_text(json.dumps(tree))
    with pytest.raises(UserError, match="a.gltf cannot be read as a mesh.*gone.bin"):
        report_file(tmp_path / "a.gltf")
