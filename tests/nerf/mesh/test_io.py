"""Mesh files: what was written is read back, and whatever is wrong with a file is detected."""

import json
from dataclasses import replace

import numpy as np
import pytest

from nerf.core.errors import ExportError, UserError
from nerf.mesh import io as mesh_io
from nerf.mesh import mesh as meshes
from nerf.mesh.mesh import Mesh
from tests.helpers import solids

DIFFUSE = mesh_io.Material(1.0, 0.0)


@pytest.fixture
def mesh():
    """A tetrahedron, every triangle in its own quarter of the texture."""
    solid = solids.tetrahedron()
    corners, faces = solid.vertices, solid.faces
    weld = faces.reshape(-1)
    place = np.array([[0.0, 0.0], [0.5, 0.0], [0.0, 0.5], [0.5, 0.5]])
    uv = (place[:, None] + [[0.05, 0.05], [0.45, 0.05], [0.05, 0.45]]).reshape(-1, 2)
    texture = np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8)
    normals = meshes.vertex_normals(Mesh(corners, faces))[weld]
    return Mesh(corners[weld], np.arange(12).reshape(4, 3), normals, uv, weld, texture=texture)


def with_normal_map(mesh):
    """The mesh with a normal map and tangents."""
    tangents = np.tile([[1.0, 0.0, 0.0, -1.0]], (len(mesh.vertices), 1))
    return replace(mesh, normal_texture=np.full((16, 16, 3), [128, 128, 255], dtype=np.uint8), tangents=tangents)


def test_glb_and_obj_are_read_back_as_they_were_written(tmp_path, mesh):
    for path in (mesh_io.write_glb(tmp_path / "x.glb", mesh, DIFFUSE, {}), mesh_io.write_obj(tmp_path, mesh, DIFFUSE)["obj"]):
        read = mesh_io.read_mesh(path)
        np.testing.assert_allclose(read.corners, mesh.corners, atol=1e-6)
        np.testing.assert_allclose(read.uv[read.faces], mesh.uv[mesh.faces], atol=1e-6)
        np.testing.assert_array_equal(read.texture, mesh.texture)
        mesh_io.check_file(path, mesh)


def test_the_licence_of_the_weights_is_in_every_file_that_can_hold_it(tmp_path, mesh):
    said = {"prompt": "a\nb", "licence of the weights": "MIT", "copyright": "Made with the weights of X (licence: MIT)"}
    mesh_io.write_glb(tmp_path / "x.glb", mesh, DIFFUSE, said)
    data = (tmp_path / "x.glb").read_bytes()
    tree = json.loads(data[20 : 20 + int.from_bytes(data[12:16], "little")])
    assert tree["asset"]["copyright"] == said["copyright"]
    assert tree["asset"]["extras"] == {"prompt": "a\nb", "licence of the weights": "MIT"}
    files = mesh_io.write_obj(tmp_path, mesh, DIFFUSE, "\n".join(f"{key}: {value}" for key, value in said.items()))
    header = ["# prompt: a", "# b", "# licence of the weights: MIT", f"# copyright: {said['copyright']}"]
    for kind in ("obj", "mtl"):
        assert files[kind].read_text().splitlines()[:4] == header
    mesh_io.check_file(files["obj"], mesh)


def test_normal_map_is_read_back_from_the_glb_and_another_one_is_detected(tmp_path, mesh):
    bumpy = with_normal_map(mesh)
    path = mesh_io.write_glb(tmp_path / "x.glb", bumpy, DIFFUSE, {})
    mesh_io.check_file(path, bumpy)
    with pytest.raises(ExportError, match="another normal map"):
        mesh_io.check_file(path, replace(bumpy, normal_texture=255 - bumpy.normal_texture))


def test_mtl_has_an_exponent_that_blender_reads_as_the_roughness_and_no_tr():
    for roughness in (0.0, 0.3, 1.0):
        words = dict(line.split(" ", 1) for line in mesh_io.Material(roughness, 0.0).mtl(True).splitlines())
        assert 1 - np.sqrt(float(words["Ns"]) / 1000) == pytest.approx(roughness, abs=1e-5)
        assert words["d"] == "1" and float(words["Pr"]) == roughness and words["norm"] == "normal.png" and "Tr" not in words
    assert "norm" not in DIFFUSE.mtl(False)


@pytest.mark.parametrize("wrong", [(1.5, 0.0), (1.0, -0.1), (float("nan"), 0.0)])
def test_material_out_of_range_is_refused(wrong):
    with pytest.raises(ValueError, match="Material: expected"):
        mesh_io.Material(*wrong)


def test_check_detects_a_moved_vertex(tmp_path, mesh):
    path = mesh_io.write_glb(tmp_path / "x.glb", mesh, DIFFUSE, {})
    moved = mesh.vertices.copy()
    moved[5] += 1e-3
    with pytest.raises(ExportError, match="moved a vertex by 0.001"):
        mesh_io.check_file(path, replace(mesh, vertices=moved))


def test_check_detects_another_texture_and_a_missing_triangle(tmp_path, mesh):
    path = mesh_io.write_glb(tmp_path / "x.glb", mesh, DIFFUSE, {})
    with pytest.raises(ExportError, match="another texture"):
        mesh_io.check_file(path, replace(mesh, texture=255 - mesh.texture))
    with pytest.raises(ExportError, match="read back with"):
        mesh_io.check_file(path, replace(mesh, faces=mesh.faces[1:]))


def test_check_detects_a_mesh_that_is_inside_out(tmp_path, mesh):
    mesh = replace(mesh, faces=mesh.faces[:, ::-1].copy())
    path = mesh_io.write_glb(tmp_path / "x.glb", mesh, DIFFUSE, {})
    with pytest.raises(ExportError, match="inside out: its volume is -"):
        mesh_io.check_file(path, mesh)


def test_obj_without_its_texture_is_detected(tmp_path, mesh):
    obj = mesh_io.write_obj(tmp_path, mesh, DIFFUSE)["obj"]
    (tmp_path / "albedo.png").unlink()
    with pytest.raises(ExportError, match="read back without its"):
        mesh_io.check_file(obj, mesh)


@pytest.mark.parametrize("content", [b"", b"glTF\x02\x00\x00\x00rubbish", b"\x00" * 200])
def test_broken_glb_is_refused_with_a_sentence(tmp_path, content):
    (tmp_path / "x.glb").write_bytes(content)
    with pytest.raises(ExportError, match=r"x.glb (cannot be read|holds no triangles)"):
        mesh_io.read_mesh(tmp_path / "x.glb")


def test_missing_file_is_reported(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file"):
        mesh_io.read_mesh(tmp_path / "none.glb")
    with pytest.raises(UserError, match="there is no file .*none.glb"):
        mesh_io.read_parts(tmp_path / "none.glb")
