"""glTF files of other programs: small integers, strips, nodes, extensions, pictures; and what is refused."""

import base64
import io
import json
import struct
import subprocess
import time

import numpy as np
import pytest
from PIL import Image

from nerf.core.errors import UserError
from nerf.mesh.gltf import COMPONENTS, open_gltf
from nerf.mesh.io import read_parts, triangles
from nerf.mesh.report import report_file
from nerf.mesh.sdf import load_mesh
from tests.helpers import solids
from tests.helpers.scripts import load_script

BOX = solids.box_mesh()
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\nshowpage\n"


class Builder:
    """A GLB in the making: arrays become accessors of one buffer."""

    def __init__(self):
        self.data = b""
        self.tree = {"asset": {"version": "2.0"}, "bufferViews": [], "accessors": [], "meshes": [], "nodes": [], "scenes": []}

    def view(self, data, **more):
        self.data += bytes(-len(self.data) % 4)
        self.tree["bufferViews"].append({"buffer": 0, "byteOffset": len(self.data), "byteLength": len(data)} | more)
        self.data += data
        return len(self.tree["bufferViews"]) - 1

    def accessor(self, values, stride=None, **more):
        width = 1 if values.ndim == 1 else values.shape[1]
        kind = next(code for code, name in COMPONENTS.items() if np.dtype(name) == values.dtype)
        rows = values.reshape(len(values), -1)
        data = rows.tobytes() if stride is None else b"".join(row.tobytes().ljust(stride, b"\xaa") for row in rows)
        view = self.view(data, **({} if stride is None else {"byteStride": stride}))
        named = {1: "SCALAR", 2: "VEC2", 3: "VEC3", 4: "VEC4"}[width]
        entry = {"bufferView": view, "componentType": kind, "count": len(values), "type": named} | more
        self.tree["accessors"].append(entry)
        return len(self.tree["accessors"]) - 1

    def mesh(self, position, faces=None, mode=4, material=None, **attributes):
        primitive = {"attributes": {"POSITION": position} | attributes, "mode": mode}
        primitive |= {} if faces is None else {"indices": faces}
        primitive |= {} if material is None else {"material": material}
        self.tree["meshes"].append({"primitives": [primitive]})
        return len(self.tree["meshes"]) - 1

    def node(self, **entry):
        self.tree["nodes"].append(entry)
        return len(self.tree["nodes"]) - 1

    def write(self, path, roots=(0,), **more):
        self.tree["scenes"] = [{"nodes": list(roots)}]
        tree = {key: value for key, value in (self.tree | more).items() if value}
        tree["buffers"] = [{"byteLength": len(self.data)}]
        text = json.dumps(tree).encode()
        text += b" " * (-len(text) % 4)
        data = self.data + bytes(-len(self.data) % 4)
        total = 12 + 8 + len(text) + 8 + len(data)
        path.write_bytes(
            struct.pack("<4sII", b"glTF", 2, total)
            + struct.pack("<I4s", len(text), b"JSON") + text
            + struct.pack("<I4s", len(data), b"BIN\0") + data
        )  # fmt: skip
        return path


def box(builder, dtype=np.float32, normalized=False, scale=1.0, **more):
    """The box of the helpers as a mesh, in integers of that type; returns the node that undoes the scale."""
    integers = np.issubdtype(dtype, np.integer)
    stored = (BOX.vertices / scale).round().astype(dtype) if integers else BOX.vertices.astype(dtype)
    factor = scale * (np.iinfo(dtype).max if normalized else 1) if integers else 1.0
    position = builder.accessor(stored, **({"normalized": True} if normalized else {}), **more)
    mesh = builder.mesh(position, builder.accessor(BOX.faces.astype(np.uint16).reshape(-1)))
    return builder.node(mesh=mesh, scale=[factor] * 3)


@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.uint8, np.uint16])
@pytest.mark.parametrize("stride", [None, 8])
def test_a_quantized_mesh_has_its_size(tmp_path, dtype, normalized, stride):
    builder = Builder()
    span = BOX.vertices - BOX.vertices.min(0) if np.issubdtype(dtype, np.unsignedinteger) else BOX.vertices
    scale = float(np.abs(span).max()) / np.iinfo(dtype).max
    stored = (span / scale).round().astype(dtype)
    position = builder.accessor(stored, stride, **({"normalized": True} if normalized else {}))
    mesh = builder.mesh(position, builder.accessor(BOX.faces.astype(np.uint16).reshape(-1)))
    builder.node(mesh=mesh, scale=[scale * (np.iinfo(dtype).max if normalized else 1)] * 3)
    path = builder.write(tmp_path / "a.glb", extensionsRequired=["KHR_mesh_quantization"])
    read = load_mesh(path)
    np.testing.assert_allclose(np.ptp(read.bounds, axis=0), np.ptp(BOX.vertices, axis=0), rtol=0.02)
    assert report_file(path).watertight and report_file(path).volume > 0


def test_the_least_normalised_integer_is_minus_one(tmp_path):
    builder = Builder()
    values = np.array([[-128, -127, 127], [0, 0, 0], [127, 0, 0]], dtype=np.int8)
    builder.node(mesh=builder.mesh(builder.accessor(values, normalized=True)))
    ((part, _),) = read_parts(builder.write(tmp_path / "a.glb"))
    np.testing.assert_array_equal(part.vertices[0], [-1.0, -1.0, 1.0])


def test_quantized_normals_and_uv_are_decoded(tmp_path):
    builder = Builder()
    position = builder.accessor(BOX.vertices.astype(np.float32))
    normals = builder.accessor(np.full((len(BOX.vertices), 3), [0, 0, 127], np.int8), 4, normalized=True)
    uv = builder.accessor(np.full((len(BOX.vertices), 2), [65535, 0], np.uint16), normalized=True)
    faces = builder.accessor(BOX.faces.astype(np.uint8).reshape(-1))
    builder.node(mesh=builder.mesh(position, faces, NORMAL=normals, TEXCOORD_0=uv))
    ((part, _),) = read_parts(builder.write(tmp_path / "a.glb"))
    np.testing.assert_array_equal(part.visual.uv, np.full((len(BOX.vertices), 2), [1.0, 1.0]))
    np.testing.assert_allclose(part.vertex_normals, np.full((len(BOX.vertices), 3), [0.0, 0.0, 1.0]))


def test_a_texture_transform_moves_the_uv(tmp_path):
    builder = Builder()
    placed = {"KHR_texture_transform": {"offset": [0.25, 0.5], "scale": [0.5, 2.0], "texCoord": 1}}
    material = {"pbrMetallicRoughness": {"baseColorTexture": {"index": 0, "extensions": placed}}}
    position = builder.accessor(BOX.vertices.astype(np.float32))
    uv = builder.accessor(np.full((len(BOX.vertices), 2), [0.5, 0.125], np.float32))
    builder.node(mesh=builder.mesh(position, material=0, TEXCOORD_1=uv))
    path = builder.write(tmp_path / "a.glb", materials=[material], textures=[{}])
    ((part, _),) = read_parts(path)
    np.testing.assert_allclose(part.visual.uv[0], [0.5, 1 - 0.75])


def test_strips_and_fans_keep_their_orientation(tmp_path):
    square = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0]], dtype=np.float32)
    for mode, order in ((5, [0, 1, 2, 3]), (6, [0, 1, 3, 2])):
        builder = Builder()
        builder.node(mesh=builder.mesh(builder.accessor(square[order]), mode=mode))
        vertices, faces = triangles(read_parts(builder.write(tmp_path / "a.glb")))
        corners = vertices[faces]
        area = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])[:, 2] / 2
        np.testing.assert_allclose(area, [0.5, 0.5])


def test_sparse_values_replace_those_of_their_accessor(tmp_path):
    builder = Builder()
    where, values = builder.view(np.array([1, 2], np.uint16).tobytes()), builder.view(np.eye(3, dtype=np.float32)[:2].tobytes())
    sparse = {"count": 2, "indices": {"bufferView": where, "componentType": 5123}, "values": {"bufferView": values}}
    builder.tree["accessors"].append({"componentType": 5126, "count": 3, "type": "VEC3", "sparse": sparse})
    builder.node(mesh=builder.mesh(0))
    ((part, _),) = read_parts(builder.write(tmp_path / "a.glb"))
    np.testing.assert_array_equal(part.vertices, [[0, 0, 0], [1, 0, 0], [0, 1, 0]])


def test_nodes_are_placed_and_mirrored_ones_stay_outwards(tmp_path):
    builder = Builder()
    inner = box(builder)
    half = np.sqrt(0.5)
    builder.node(children=[inner], scale=[1, 1, -1], rotation=[0, half, 0, half], translation=[10, 0, 0])
    mesh = load_mesh(builder.write(tmp_path / "a.glb", roots=[1]))
    side = np.ptp(BOX.vertices, axis=0)
    np.testing.assert_allclose(np.ptp(mesh.bounds, axis=0), side[[2, 1, 0]], atol=1e-6)
    assert mesh.bounds[0][0] > 5 and report_file(tmp_path / "a.glb").volume == pytest.approx(side.prod())


@pytest.mark.parametrize("chain", [False, True])
def test_thousands_of_nodes_take_linear_time(tmp_path, chain):
    builder = Builder()
    mesh = builder.mesh(
        builder.accessor(BOX.vertices.astype(np.float32)), builder.accessor(BOX.faces.astype(np.uint16).reshape(-1))
    )
    count = 2000
    for i in range(count):
        below = {"children": [i + 1]} if chain and i + 1 < count else {}
        builder.node(mesh=mesh, translation=[3.0, 0, 0] if chain else [3.0 * i, 0, 0], **below)
    path = builder.write(tmp_path / "a.glb", roots=[0] if chain else range(count))
    began = time.perf_counter()
    read = load_mesh(path)
    assert len(read.faces) == count * len(BOX.faces) and time.perf_counter() - began < 5
    assert np.ptp(read.bounds, axis=0)[0] > 3 * (count - 1)


@pytest.mark.parametrize(
    "name, words",
    [
        ("KHR_draco_mesh_compression", "gltf-transform copy"),
        ("EXT_meshopt_compression", "gltf-transform copy"),
        ("EXT_mesh_gpu_instancing", "gltf-transform uninstance"),
        ("VENDOR_new", "export it without that extension"),
    ],
)
def test_an_extension_that_is_not_read_is_named_with_the_way_out(tmp_path, name, words):
    builder = Builder()
    box(builder)
    path = builder.write(tmp_path / "a.glb", extensionsRequired=[name])
    for read in (load_mesh, report_file):
        with pytest.raises(UserError, match=f"a.glb .*requires the glTF extension {name}, which is not read; .*{words}"):
            read(path)


@pytest.mark.parametrize(
    "break_it, words",
    [
        (lambda t: t["nodes"][0].update(children=[0]), "node 0 has two parents"),
        (lambda t: t["nodes"][0].update(mesh=9), "number 9 of 1 meshes"),
        (lambda t: t["nodes"][0].update(matrix=[1, 2]), "matrix of node 0 has 2 numbers"),
        (lambda t: t["nodes"][0].update(scale="big"), r"nodes\[0\].scale: expected array, got str"),
        (lambda t: t["accessors"][0].update(count=10**7), "do not fit"),
        (lambda t: t["accessors"][0].update(count=-1), "none of glTF's"),
        (lambda t: t["accessors"][0].update(type="VEC9"), "none of glTF's"),
        (lambda t: t["accessors"][0].update(byteOffset=-4), "do not fit"),
        (lambda t: t["accessors"][0].update(type="VEC2"), "expected an attribute"),
        (lambda t: t["accessors"][1].update(bufferView=0), "refers to vertex"),
        (lambda t: t["bufferViews"][0].update(byteLength=10**9), "cut off"),
        (lambda t: t["bufferViews"][0].update(buffer=1), "number 1 of 1 buffers"),
        (lambda t: t["meshes"][0]["primitives"][0].update(attributes={}), "has no POSITION"),
        (lambda t: t.update(asset={"version": "1.0"}), "version 1.0 of glTF"),
        (lambda t: t.update(scene=3), "number 3 of 1 scenes"),
        (lambda t: t["accessors"][0].update(bufferView=None, count=10**12), "1,000,000,000,036 vertices"),
    ],
)
def test_a_damaged_tree_is_one_sentence(tmp_path, break_it, words):
    builder = Builder()
    box(builder)
    break_it(builder.tree)
    with pytest.raises(UserError, match=f"a.glb cannot be read as a mesh.*{words}.*; export it again"):
        load_mesh(builder.write(tmp_path / "a.glb"))


def test_a_gltf_with_its_data_inside_or_beside_is_read(tmp_path):
    builder = Builder()
    box(builder)
    glb = builder.write(tmp_path / "a.glb")
    (tmp_path / "a b.bin").write_bytes(builder.data)
    for uri in ("data:application/octet-stream;base64," + base64.b64encode(builder.data).decode(), "a%20b.bin"):
        tree = builder.tree | {"buffers": [{"uri": uri, "byteLength": len(builder.data)}]}
        (tmp_path / "a.gltf").write_bytes(b"\xef\xbb\xbf" + json.dumps(tree).encode())
        np.testing.assert_array_equal(load_mesh(tmp_path / "a.gltf").vertices, load_mesh(glb).vertices)


def test_a_tree_that_is_no_json_is_one_sentence(tmp_path):
    (tmp_path / "a.gltf").write_text('{"asset": [')
    with pytest.raises(UserError, match="a.gltf cannot be read as a mesh: its text is not valid JSON, line 1 column"):
        load_mesh(tmp_path / "a.gltf")


@pytest.mark.parametrize("uri", ["http://127.0.0.1/a.bin", "data:;base64,%%%", "gone.bin"])
def test_data_that_is_not_there_is_one_sentence(tmp_path, uri):
    (tmp_path / "a.gltf").write_text(json.dumps({"asset": {"version": "2.0"}, "buffers": [{"uri": uri}]}))
    with pytest.raises(UserError, match="a.gltf cannot be read as a mesh"):
        load_mesh(tmp_path / "a.gltf")


def textured(tmp_path, data, kind="glb"):
    """A box with a picture of these bytes."""
    if kind == "obj":
        (tmp_path / "t.png").write_bytes(data)
        (tmp_path / "a.mtl").write_text("newmtl m\nmap_Kd t.png\n")
        uv = "".join("vt 0 0\n" for _ in BOX.vertices)
        lines = [f"v {x} {y} {z}\n" for x, y, z in BOX.vertices]
        faces = [f"f {a + 1}/1 {b + 1}/1 {c + 1}/1\n" for a, b, c in BOX.faces]
        (tmp_path / "a.obj").write_text("mtllib a.mtl\n" + "".join(lines) + uv + "usemtl m\n" + "".join(faces))
        return tmp_path / "a.obj"
    builder = Builder()
    uv = builder.accessor(np.zeros((len(BOX.vertices), 2), np.float32))
    position, faces = (
        builder.accessor(BOX.vertices.astype(np.float32)),
        builder.accessor(BOX.faces.astype(np.uint16).reshape(-1)),
    )
    builder.node(mesh=builder.mesh(position, faces, material=0, TEXCOORD_0=uv))
    images = [{"bufferView": builder.view(data), "mimeType": "image/png"}]
    material = {"pbrMetallicRoughness": {"baseColorTexture": {"index": 0}}}
    return builder.write(tmp_path / "a.glb", images=images, textures=[{"source": 0}], materials=[material])


@pytest.mark.parametrize("kind", ["glb", "obj"])
def test_a_texture_that_is_no_picture_starts_no_program_and_is_left_out_with_a_warning(tmp_path, monkeypatch, caplog, kind):
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a texture started a program"))
    path = textured(tmp_path, EPS, kind)
    assert len(load_mesh(path).faces) == len(BOX.faces)
    assert report_file(path).textures == {}
    assert "texture" in caplog.text and "not a picture in one of the formats" in caplog.text


@pytest.mark.parametrize("kind", ["glb", "obj"])
def test_a_texture_is_read(tmp_path, kind):
    data = io.BytesIO()
    Image.new("RGB", (7, 5), (1, 2, 3)).save(data, "PNG")
    assert report_file(textured(tmp_path, data.getvalue(), kind)).textures == {"color": (7, 5)}


def test_extras_are_kept(tmp_path):
    builder = Builder()
    box(builder)
    builder.tree["asset"]["extras"] = {"seed": 3}
    assert open_gltf(builder.write(tmp_path / "a.glb")).extras() == {"seed": 3}


def test_a_truncated_ply_is_one_sentence_of_the_report(tmp_path):
    import trimesh

    data = trimesh.Trimesh(BOX.vertices, BOX.faces).export(file_type="ply")
    for size in (10, 100, len(data) // 2, len(data) - 20):
        (tmp_path / "a.ply").write_bytes(data[:size])
        with pytest.raises(UserError, match="a.ply"):
            report_file(tmp_path / "a.ply")


@pytest.mark.parametrize("how", ["nodes", "primitives", "zeros"])
def test_a_small_file_that_stands_for_billions_of_vertices_is_one_sentence_at_once(tmp_path, how):
    builder = Builder()
    mesh = builder.mesh(builder.accessor(np.zeros((60_000, 3), np.float32)))
    if how == "nodes":
        for _ in range(20_000):
            builder.node(mesh=mesh)
    elif how == "primitives":
        builder.tree["meshes"][0]["primitives"] *= 20_000
        builder.node(mesh=mesh)
    else:
        builder.tree["accessors"][0] = {"componentType": 5126, "count": 1 << 28, "type": "VEC3"}
        builder.node(mesh=mesh)
    path = builder.write(tmp_path / "a.glb", roots=range(len(builder.tree["nodes"])))
    began = time.perf_counter()
    for read in (load_mesh, report_file):
        with pytest.raises(UserError, match=r"a.glb cannot be read as a mesh: its meshes have [\d,]+ vertices"):
            read(path)
    assert time.perf_counter() - began < 5


@pytest.mark.parametrize("mode", [4, 5, 6])
@pytest.mark.parametrize("count", [0, 1, 2])
def test_a_primitive_of_fewer_than_three_corners_has_no_triangle(tmp_path, mode, count):
    builder = Builder()
    builder.node(mesh=builder.mesh(builder.accessor(np.zeros((max(count, 1), 3), np.float32)), mode=mode))
    builder.tree["accessors"][0]["count"] = count
    with pytest.raises(UserError, match="a.glb holds no triangles"):
        report_file(builder.write(tmp_path / "a.glb"))


def test_a_ply_in_text_that_was_cut_off_is_one_sentence(tmp_path):
    import trimesh

    data = trimesh.Trimesh(BOX.vertices, BOX.faces).export(file_type="ply", encoding="ascii")
    data = data if isinstance(data, bytes) else data.encode()
    (tmp_path / "a.ply").write_bytes(data)
    assert report_file(tmp_path / "a.ply").faces == len(BOX.faces)
    (tmp_path / "a.ply").write_bytes(b"\n".join(data.rstrip().split(b"\n")[:-3]) + b"\n")
    for read in (load_mesh, report_file):
        with pytest.raises(UserError, match=f"a.ply cannot be read as a mesh: it was cut off, as it has 9 of {len(BOX.faces)}"):
            read(tmp_path / "a.ply")


def test_a_ply_of_polygons_is_read(tmp_path):
    corners = "".join(f"{np.cos(i):.4f} {np.sin(i):.4f} 0\n" for i in range(6))
    head = "element vertex 6\nproperty float x\nproperty float y\nproperty float z\nelement face 3\n"
    faces = "3 0 1 2\n4 0 1 2 3\n6 0 1 2 3 4 5\n"
    (tmp_path / "a.ply").write_text(
        f"ply\nformat ascii 1.0\n{head}property list uchar int vertex_indices\nend_header\n{corners}{faces}"
    )
    assert report_file(tmp_path / "a.ply").faces >= 3


@pytest.mark.parametrize("name, words", [("a.obj", "it is no text"), ("a.stl", "it was cut off, or is no STL")])
def test_a_file_of_another_kind_is_not_called_empty(tmp_path, name, words):
    builder = Builder()
    box(builder)
    builder.write(tmp_path / name)
    with pytest.raises(UserError, match=f"{name} cannot be read as a mesh: {words}"):
        report_file(tmp_path / name)


def test_a_texture_that_is_not_beside_its_mesh_is_one_line_and_no_traceback(tmp_path, caplog):
    import trimesh

    data = trimesh.Trimesh(BOX.vertices, BOX.faces).export(file_type="ply", encoding="ascii")
    data = data if isinstance(data, bytes) else data.encode()
    (tmp_path / "a.ply").write_bytes(data.replace(b"element vertex", b"comment TextureFile /dev/zero\nelement vertex"))
    assert load_script("mesh_report").main([str(tmp_path / "a.ply")]) == 0
    assert "its file /dev/zero is not beside it and is left out" in caplog.text
    assert [record.exc_info for record in caplog.records] == [None]
