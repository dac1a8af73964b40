"""What an artist finds in the files of an export: the ground, names, formats, buffer targets, what the surface hides."""

import json
import struct
from functools import partial

import numpy as np
import pytest
import torch
import trimesh

from nerf.config.config import parse
from nerf.config.groups import OutputConfig
from nerf.config.kept import StoredRun
from nerf.config.mesh import MeshConfig
from nerf.config.resolve import resolve
from nerf.core.errors import UserError
from nerf.mesh.base import find_base
from nerf.mesh.export import export_level_set
from nerf.mesh.export_options import ExportOptions
from nerf.mesh.io import read_mesh, write_stl
from nerf.mesh.mesh import moved
from nerf.mesh.report import report_file
from nerf.run.mesh_evaluation import read_textured
from tests.helpers import solids

PROMPT = "a red  house, 4k"


def box_distance(points):
    """Signed distance of a box whose underside is uneven by 0.003."""
    inside = (points - torch.tensor([0.1, 0.05, 0.0])).abs() - torch.tensor([0.4, 0.35, 0.3])
    wave = 0.0015 * torch.sin(25 * points[:, 0]) * torch.cos(20 * points[:, 2])
    return inside.amax(-1) + wave


def red(points):
    """One colour everywhere."""
    return torch.tensor([0.8, 0.1, 0.1]).expand(len(points), 3)


def written(distance, folder, transform=None, metadata=None, frame="object", **mesh):
    """Export a signed distance with small settings; returns the report."""
    output = OutputConfig(mcubes_resolution=48, decimate_target=1500, texture_size=128, export_frame=frame)
    options = ExportOptions.from_config(output, MeshConfig(**mesh))
    return export_level_set(
        solids.Solid(distance, red).as_distance(),
        red,
        1.0,
        folder,
        options,
        transform=transform,
        metadata=metadata or {"prompt": PROMPT},
    )


def tree_of(path):
    """The JSON of a GLB."""
    data = path.read_bytes()
    (length,) = struct.unpack("<I", data[12:16])
    return json.loads(data[20 : 20 + length])


SCALED = np.array([[0.0, 0.0, 2.0, 1.0], [2.0, 0.0, 0.0, -3.0], [0.0, 2.0, 0.0, 0.5], [0.0, 0.0, 0.0, 1.0]])  # box to source


@pytest.fixture(scope="module")
def grounded(tmp_path_factory):
    """A box with an uneven underside, put on the ground, in all formats."""
    return written(box_distance, tmp_path_factory.mktemp("ground"), ground=True, mesh_formats=("glb", "stl", "ply"))


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The same box where it was."""
    return written(box_distance, tmp_path_factory.mktemp("plain"))


def test_on_the_ground_the_lowest_point_is_at_zero_in_every_file_and_the_base_is_even(grounded, plain):
    for name in ("obj", "glb", "ply", "stl"):
        mesh = trimesh.load_mesh(grounded.files[name], process=False)
        assert mesh.bounds[0, 1] == pytest.approx(0.0, abs=1e-6), name
    assert grounded.bounds[0][1] == pytest.approx(0.0, abs=1e-9) and plain.bounds[0][1] < -0.29
    uneven, even = (find_base(read_mesh(report.files["glb"])) for report in (plain, grounded))
    assert 0.001 < uneven.deviation < 0.004 and even.deviation < 1e-6 and even.share > 0.85
    assert grounded.watertight and grounded.soundness.genus == 0
    assert any("--ground makes it even" in note for note in plain.notes) and not any(
        "--ground" in note for note in grounded.notes
    )
    assert "transform" not in plain.files


def test_a_ball_on_the_ground_stays_round(tmp_path):
    ball = partial(solids.ball, centre=(0.0, 0.2, 0.0), radius=0.4)
    report = written(ball, tmp_path, ground=True)
    mesh = read_mesh(report.files["glb"])
    assert mesh.vertices[:, 1].min() == pytest.approx(0.0, abs=1e-6) and report.soundness.base_share is None
    assert np.abs(np.linalg.norm(mesh.vertices - [0.0, 0.4, 0.0], axis=1) - 0.4).max() < 0.01


@pytest.mark.parametrize("transform", [None, SCALED])
def test_transform_json_says_where_the_ground_was(tmp_path, transform):
    apart = [written(box_distance, tmp_path / name, transform, ground=name == "on") for name in ("on", "off")]
    matrices = json.loads(apart[0].files["transform"].read_text())
    box_to_file, box_to_source, file_to_source = (
        np.array(matrices[key]) for key in ("box_to_file", "box_to_source", "file_to_source")
    )
    assert np.allclose(file_to_source @ box_to_file, box_to_source, atol=1e-12)
    assert np.allclose(box_to_source, np.eye(4) if transform is None else transform)
    low = apart[1].bounds[0][1]
    assert np.allclose(
        np.array(apart[0].bounds) + [0.0, low, 0.0], apart[1].bounds, atol=5e-3 * (1 if transform is None else 2)
    )
    inside = read_textured(apart[0].files["glb"]).vertices.double().numpy()  # in the box again, as it is measured
    assert np.allclose(np.ptp(inside, axis=0), [0.8, 0.7, 0.6], atol=0.02) and inside[:, 1].min() == pytest.approx(
        -0.3, abs=0.02
    )
    assert np.allclose(moved(inside, box_to_file)[:, 1].min(), 0.0, atol=1e-6)


@pytest.mark.parametrize(("words", "said"), [
    ("--data x --export_frame source --ground", "--ground moves the mesh, and --export_frame source"),
    ("--text a --dmtet --init_with x.obj --init_up z --init_front=-y --ground", "--ground is along y"),
])  # fmt: skip
def test_ground_is_refused_where_up_is_another_axis(words, said):
    with pytest.raises(UserError, match=said):
        resolve(parse(words.split()), StoredRun())


def test_formats_are_those_asked_for_beside_obj_and_glb(grounded, plain):
    assert {"obj", "glb", "ply", "stl"} <= set(grounded.files) and not {"ply", "stl"} & set(plain.files)
    with pytest.raises(UserError, match="mesh_formats.*fbx"):
        parse(["--text", "a", "--mesh_formats", "fbx"])


def test_stl_holds_the_same_triangles_with_their_normals(grounded, tmp_path):
    mesh = read_mesh(grounded.files["glb"])
    stl = trimesh.load_mesh(grounded.files["stl"], process=False)
    assert np.allclose(stl.triangles, mesh.corners, atol=1e-6) and stl.volume == pytest.approx(grounded.volume, rel=1e-5)
    again = write_stl(tmp_path / "again.stl", mesh).read_bytes()
    rows = np.frombuffer(again[84:], dtype=[("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("count", "<u2")])
    front = mesh.face_normals / np.linalg.norm(mesh.face_normals, axis=1, keepdims=True)
    assert (np.einsum("tc,tc->t", rows["normal"], front) > 0.999).all() and not again.startswith(b"solid")
    assert report_file(grounded.files["stl"]).watertight


def test_a_written_stl_that_lost_a_triangle_is_noticed(grounded, tmp_path):
    from nerf.core.errors import ExportError
    from nerf.mesh.io import check_file
    from nerf.mesh.mesh import Mesh

    mesh = read_mesh(grounded.files["glb"])
    path = write_stl(tmp_path / "mesh.stl", Mesh(mesh.vertices, mesh.faces[1:]))
    with pytest.raises(ExportError, match="read back with"):
        check_file(path, mesh)


def test_every_buffer_view_of_the_glb_has_its_target_and_those_of_pictures_have_none(tmp_path):
    from dataclasses import replace

    output = OutputConfig(mcubes_resolution=24, decimate_target=300, texture_size=64, normal_map=True)
    options = replace(ExportOptions.from_config(output), ply=False)
    solid = solids.Solid(box_distance, red)
    tree = tree_of(export_level_set(solid.as_distance(), red, 1.0, tmp_path, options, metadata={"prompt": PROMPT}).files["glb"])
    (primitive,) = tree["meshes"][0]["primitives"]
    assert set(primitive["attributes"]) == {"POSITION", "NORMAL", "TEXCOORD_0", "TANGENT"}
    used = {tree["accessors"][accessor]["bufferView"]: 34962 for accessor in primitive["attributes"].values()}
    used |= {tree["accessors"][primitive["indices"]]["bufferView"]: 34963}
    pictures = {image["bufferView"] for image in tree["images"]}
    assert len(pictures) == 2 and not pictures & set(used)
    assert {index: view.get("target") for index, view in enumerate(tree["bufferViews"])} == used | dict.fromkeys(pictures)
    assert [image["name"] for image in tree["images"]] in ([n := "a red house, 4k", n + " normal"], [n + " normal", n])


def test_image_and_material_are_named_after_the_prompt_which_the_scene_has_too(plain):
    tree = tree_of(plain.files["glb"])
    assert tree["materials"][0]["name"] == tree["images"][0]["name"] == "a red house, 4k"
    assert tree["scenes"][tree["scene"]]["extras"] == {"prompt": PROMPT} and tree["asset"]["extras"]["prompt"] == PROMPT
    assert (
        "newmtl a_red_house_4k\n" in plain.files["mtl"].read_text()
        and "usemtl a_red_house_4k\n" in plain.files["obj"].read_text()
    )


def test_without_a_prompt_the_names_are_those_of_the_texture(tmp_path):
    report = written(box_distance, tmp_path, metadata={"seed": 1})
    tree = tree_of(report.files["glb"])
    assert tree["materials"][0]["name"] == tree["images"][0]["name"] == "albedo" and "extras" not in tree["scenes"][0]
    assert "newmtl albedo\n" in report.files["mtl"].read_text()


def caved(points):
    """A box with a hollow that opens downwards."""
    box = (points.abs() - 0.4).amax(-1)
    hollow = ((points - torch.tensor([0.0, -0.3, 0.0])).abs() - torch.tensor([0.25, 0.4, 0.25])).amax(-1)
    return torch.maximum(box, -hollow)


def test_the_export_tells_of_a_cave_and_not_of_closedness_alone(tmp_path, plain):
    report = written(caved, tmp_path)
    share = 0.5 * 0.5 * 0.5 / (0.8**3 - 0.5 * 0.5 * 0.5)
    assert report.soundness.caves == pytest.approx(share, abs=0.03) and "closed, genus 0, caves of 3" in str(report)
    assert any(note.startswith("caves that no camera level") for note in report.notes)
    assert report.as_dict()["soundness"]["caves"] == report.soundness.caves and json.dumps(report.as_dict()["soundness"])
    assert "caves" not in str(plain) and not any("cave" in note for note in plain.notes)


def test_the_report_of_a_file_says_the_same_as_the_export(tmp_path):
    report = written(caved, tmp_path)
    for name in ("obj", "glb"):
        found = report_file(report.files[name])
        assert found.caves == pytest.approx(report.soundness.caves, abs=5e-3) and found.genus == report.soundness.genus == 0
        assert found.base_share == pytest.approx(report.soundness.base_share, abs=5e-3)
        assert found.thin_walls == pytest.approx(report.soundness.thin_walls, abs=0.02)
        words = "\n".join(found.lines())
        assert "caves                      3" in words and "flat base" in words and "thin walls" in words
        assert {"genus", "caves", "base_share", "base_deviation", "thin_walls"} <= set(found.as_dict())
