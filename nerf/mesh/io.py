"""Mesh files: OBJ with MTL and PNG, GLB, PLY, STL; written atomically, and read back to be compared.

All formats are right-handed with +Y up and the front towards +Z, as the program is, so no axis changes. OBJ and GLB
hold uv, normals, the texture and the normal map; PLY holds vertex colours, STL neither. Colours are sRGB, as glTF's base colour
texture and MTL's map_Kd are by definition; the normal map is linear data. V vertices, T triangles, S texture size.
"""

import io
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from PIL import Image

from nerf.core.errors import ExportError, UserError
from nerf.core.files import is_file, read_bytes, reading, write_atomically
from nerf.core.images import write_png
from nerf.core.pictures import open_picture
from nerf.mesh.gltf import MAX_FILE, WAY_OUT, open_gltf
from nerf.mesh.gltf_write import complete_tree
from nerf.mesh.mesh import Mesh, moved, signed_volume
from nerf.mesh.obj import obj_text

if TYPE_CHECKING:
    from trimesh import Trimesh

log = logging.getLogger("somnia.mesh")
logging.getLogger("trimesh").setLevel(logging.CRITICAL)  # it prints tracebacks of files that it leaves out; we name them

_POSITION_TOLERANCE = 2e-6  # of the longest side of the bounding box: six decimals in OBJ, float32 in GLB and PLY
_UV_TOLERANCE = 2e-6
_NORMAL_TOLERANCE = 1e-4
_HEAD = 1 << 16  # bytes of a file in which its header is looked for
# A face of an OBJ with the index 0; they count from 1.
_ZERO_INDEX = re.compile(r"^[ \t]*f(?=[ \t])[^\n]*?[ \t/][-+]?0+(?=[ \t/\r\n]|\Z)", re.MULTILINE)


@dataclass(frozen=True)
class Material:
    """How a surface reflects: constants over the whole surface, as in glTF.

    Raises:
        ValueError: one is outside [0, 1].
    """

    roughness: float  # 0 mirror, 1 fully diffuse
    metallic: float  # 0 dielectric, 1 metal
    name: str = "albedo"  # of the material and its picture: the prompt, where there is one

    def __post_init__(self):
        for name in ("roughness", "metallic"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"Material: expected {name} in [0, 1], got {getattr(self, name)}")

    @property
    def word(self) -> str:
        """The name without spaces, as OBJ and MTL need it."""
        return re.sub(r"[^\w.+-]+", "_", self.name).strip("_") or "albedo"

    def mtl(self, normal_map: bool) -> str:
        """The text of the MTL: Pr, Pm and norm are its physically based extension, Ns the exponent for older readers.

        ``Ns = 1000 (1 - roughness)^2``, which Blender's importer inverts. ``Tr`` is left out, because readers interpret it
        in two opposite ways, while ``d 1`` is opaque for all of them.
        """
        shine = 1000.0 * (1.0 - self.roughness) ** 2
        gloss = 0.04 * (1.0 - self.metallic) + self.metallic if shine > 0 or self.metallic > 0 else 0.0
        return "".join(
            [
                f"newmtl {self.word}\nKa 1 1 1\nKd 1 1 1\n",
                f"Ks {gloss:g} {gloss:g} {gloss:g}\n",
                f"Ns {shine:.6g}\n",
                f"d 1\nillum {2 if gloss > 0 else 1}\n",
                f"Pr {self.roughness:g}\nPm {self.metallic:g}\n",
                "map_Kd albedo.png\n",
                "norm normal.png\n" if normal_map else "",
            ]
        )


def text_rows(pattern: str, values: np.ndarray) -> str:
    """One formatted line for each row of ``values``."""
    return (pattern * len(values)) % tuple(values.reshape(-1).tolist())


def _comment_rows(comment: str) -> str:
    """The lines of a comment as OBJ and MTL have them."""
    return "".join(f"# {line}\n" for line in comment.splitlines())


def write_obj(folder: Path, mesh: Mesh, material: Material, comment: str = "") -> dict[str, Path]:
    """Write the textures, ``mesh.mtl`` and ``mesh.obj``, in this order: a file comes after those that it refers to.

    Positions and normals are those of the welded surface, so a reader finds it closed; uv has its own indices.

    Args:
        folder: created if missing.
        mesh: with normals [V, 3], uv [V, 2], weld [V] and texture [S, S, 3]; optionally with a normal texture.
        material: constants for the MTL.
        comment: lines for the headers of the OBJ and the MTL.

    Returns:
        The files: "obj", "mtl", "albedo", and "normal" where there is a normal texture.
    """
    normals, weld = mesh.require("normals"), mesh.require("weld")
    files = write_look(folder, mesh, material, comment)
    first = np.zeros(int(weld.max()) + 1, dtype=np.int64)
    first[weld] = np.arange(len(weld))
    decimals = max(6, 6 - int(np.floor(np.log10(max(np.ptp(mesh.bounds, axis=0).max(), 1e-12)))))
    position = " ".join([f"%.{decimals}f"] * 3)
    welded, corner = mesh.welded_faces + 1, mesh.faces + 1
    rows = [
        text_rows(f"v {position}\n", mesh.vertices[first]),
        text_rows("vt %.7f %.7f\n", mesh.require("uv")),
        text_rows("vn %.5f %.5f %.5f\n", normals[first]),
        text_rows("f %d/%d/%d %d/%d/%d %d/%d/%d\n", np.stack([welded, corner, welded], axis=2)),
    ]
    files["obj"] = write_obj_rows(folder, rows, material, comment)
    return files


def write_look(folder: Path, mesh: Mesh, material: Material, comment: str) -> dict[str, Path]:
    """Write the textures of a mesh and, below a comment, ``mesh.mtl``: "albedo", "mtl", and "normal" where there is one."""
    files = {"albedo": write_png(folder / "albedo.png", mesh.require("texture"))}
    if mesh.normal_texture is not None:
        files["normal"] = write_png(folder / "normal.png", mesh.normal_texture)
    look = _comment_rows(comment) + material.mtl("normal" in files)
    files["mtl"] = write_atomically(folder / "mesh.mtl", lambda path: path.write_text(look, encoding="utf-8"))
    return files


def write_obj_rows(folder: Path, rows: list[str], material: Material, comment: str) -> Path:
    """Write ``mesh.obj`` of lines of its content, below a comment and the name of its material."""
    text = "".join([_comment_rows(comment), f"mtllib mesh.mtl\no mesh\nusemtl {material.word}\n", *rows])
    return write_atomically(folder / "mesh.obj", lambda path: path.write_text(text, encoding="utf-8"))


def write_glb(
    path: Path, mesh: Mesh, material: Material, extras: dict, node: np.ndarray | None = None, two_sided: bool = False
) -> Path:
    """Write a binary glTF 2.0 with NORMAL, TEXCOORD_0, one material, and TANGENT where there is a normal texture.

    Args:
        path: the .glb.
        mesh: with normals [V, 3], uv [V, 2] and texture [S, S, 3]; optionally with a normal texture and its tangents [V, 4].
        material: constants of the material.
        extras: see :func:`nerf.mesh.gltf_write.complete_tree`.
        node: matrix [4, 4] of the node that holds the mesh; by default it is where its vertices are.
        two_sided: viewers show the triangles from behind as well.
    """
    import trimesh

    bumps = None if mesh.normal_texture is None else Image.fromarray(mesh.normal_texture)
    look = trimesh.visual.material.PBRMaterial(
        name=material.name,
        baseColorTexture=Image.fromarray(mesh.require("texture")),
        baseColorFactor=[255, 255, 255, 255],
        metallicFactor=material.metallic,
        roughnessFactor=material.roughness,
        normalTexture=bumps,
        alphaMode="OPAQUE",
        doubleSided=two_sided,
    )
    solid = trimesh.Trimesh(
        mesh.vertices,
        mesh.faces,
        vertex_normals=mesh.normals,
        process=False,
        validate=False,
        visual=trimesh.visual.TextureVisuals(uv=mesh.uv, material=look),
    )
    if bumps is not None and mesh.tangents is not None:
        solid.vertex_attributes["_TANGENT"] = mesh.tangents.astype(np.float32)
    scene = trimesh.Scene()
    scene.add_geometry(solid, node_name="mesh", geom_name="mesh", transform=node)

    def stamp(tree: dict) -> None:
        complete_tree(tree, material.name, extras)

    data = trimesh.exchange.gltf.export_glb(scene, include_normals=True, tree_postprocessor=stamp)
    return write_atomically(path, lambda temporary: temporary.write_bytes(data))


def write_ply(path: Path, mesh: Mesh) -> Path:
    """Write a welded mesh with normals [V, 3] and vertex colours [V, 3] as binary little-endian PLY."""
    columns = [
        ("x", "<f4"),
        ("y", "<f4"),
        ("z", "<f4"),
        ("nx", "<f4"),
        ("ny", "<f4"),
        ("nz", "<f4"),
        ("red", "u1"),
        ("green", "u1"),
        ("blue", "u1"),
    ]
    vertex = np.zeros(len(mesh.vertices), dtype=columns)
    values = [*mesh.vertices.T, *mesh.require("normals").T, *mesh.require("colors").T]
    for (name, _), value in zip(columns, values, strict=True):
        vertex[name] = value
    face = np.zeros(len(mesh.faces), dtype=[("count", "u1"), ("index", "<i4", 3)])
    face["count"], face["index"] = 3, mesh.faces
    kinds = {"<f4": "float", "u1": "uchar"}
    head = "".join(
        [
            "ply\nformat binary_little_endian 1.0\n",
            f"element vertex {len(vertex)}\n",
            *(f"property {kinds[kind]} {name}\n" for name, kind in columns),
            f"element face {len(face)}\n",
            "property list uchar int vertex_indices\nend_header\n",
        ]
    )
    data = head.encode("ascii") + vertex.tobytes() + face.tobytes()
    return write_atomically(path, lambda temporary: temporary.write_bytes(data))


def write_stl(path: Path, mesh: Mesh) -> Path:
    """Write the shape alone as binary STL: float32 corners of each triangle and its unit normal."""
    corners = mesh.corners.astype("<f4")
    normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]).astype(np.float64)
    normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-300)
    rows = np.zeros(len(corners), dtype=[("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("count", "<u2")])
    rows["normal"], rows["corners"] = normal, corners
    data = b"Somnia".ljust(80) + np.uint32(len(rows)).tobytes() + rows.tobytes()
    return write_atomically(path, lambda temporary: temporary.write_bytes(data))


def read_parts(path: Path) -> list[tuple["Trimesh", np.ndarray]]:
    """The triangle meshes of a file, each with the matrix [4, 4] that places it in the file's space.

    A mesh that several nodes of a scene refer to is returned once for each. Points and lines are left out, and so are textures
    that are no pictures in one of the formats of :mod:`nerf.core.pictures`, with a warning.

    Raises:
        UserError: the file cannot be read as a mesh.
    """
    import trimesh

    if not is_file(path):
        raise UserError(f"there is no file {path}; {WAY_OUT}")
    with reading(path, WAY_OUT, problem="cannot be read as a mesh"):
        if path.suffix.lower() in (".glb", ".gltf"):
            return open_gltf(path).parts()
        given: Any = str(path)
        if path.suffix.lower() == ".obj":  # of which the library takes a byte order mark for a part of the first line
            text = obj_text(read_bytes(path, WAY_OUT, MAX_FILE), path)
            if (found := _ZERO_INDEX.search(text)) is not None:
                line = text.count("\n", 0, found.end()) + 1
                raise ValueError(f"line {line} has a face with the index 0, and the indices of an OBJ count from 1")
            given = io.StringIO(text)
        kind, beside = path.suffix.lower().lstrip("."), _pictures_only(path)
        scene, parts = trimesh.load_scene(given, file_type=kind, resolver=beside, process=False), []
        for node in scene.graph.nodes_geometry:
            matrix, name = scene.graph[node]
            part = scene.geometry[name]
            if isinstance(part, trimesh.Trimesh):
                parts.append((part, matrix))
        _check_whole(path, sum(len(part.faces) for part, _ in parts))
        return parts


def _check_whole(path: Path, faces: int) -> None:
    """Refuse a file that was cut off or is of another kind, of which the library reads what there is, or nothing.

    Args:
        path: of a mesh.
        faces: number of triangles that were read.
    """
    with open(path, "rb") as file:
        head = file.read(_HEAD)
    suffix = path.suffix.lower()
    if suffix == ".ply":
        found = re.search(rb"^element\s+face\s+(-?\d+)\s*$", head.partition(b"end_header")[0], re.MULTILINE)
        if found is not None and not 0 <= int(found[1]) <= faces:
            raise ValueError(f"it was cut off, as it has {faces:,} of {int(found[1]):,} faces")
    elif faces == 0 and suffix == ".stl" and b"facet" not in head:
        raise ValueError("it was cut off, or is no STL")


def _pictures_only(path: Path) -> Any:
    """What trimesh asks for the files that belong to a mesh: materials, and pictures in a format that is read."""
    import trimesh

    class Beside(trimesh.resolvers.FilePathResolver):
        """The files in the folder of the mesh."""

        def get(self, name: str) -> bytes:
            """The content of a file; one that is neither text of materials nor a picture is refused."""
            try:
                place = Path(self.absolute(name))
            except ValueError:
                log.warning("%s: its file %.80s is not beside it and is left out", path, name)
                raise
            data = read_bytes(place, "it is left out", MAX_FILE)
            if place.suffix.lower() == ".mtl":
                return data
            try:
                with open_picture(data, f"texture {place}", "it is left out") as picture:
                    picture.load()
            except UserError as error:
                log.warning("%s", error)
                raise
            return data

    return Beside(str(path))


def triangles(parts: list[tuple["Trimesh", np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Vertices [V, 3] and faces [T, 3] of all parts of a file in the file's space; none if there are no parts.

    A part that its matrix mirrors is turned, so that its triangles stay counter-clockwise seen from outside.
    """
    vertices, faces, count = [np.zeros((0, 3))], [np.zeros((0, 3), dtype=np.int64)], 0
    for part, matrix in parts:
        own = np.asarray(part.faces, dtype=np.int64).reshape(-1, 3)
        placed = moved(np.asarray(part.vertices, dtype=np.float64), matrix)
        vertices.append(placed)
        faces.append((own[:, ::-1] if np.linalg.det(matrix[:3, :3]) < 0 else own) + count)
        count += len(placed)
    return np.concatenate(vertices), np.concatenate(faces)


def joined(parts: list[tuple["Trimesh", np.ndarray]]) -> "Trimesh":
    """The parts of a file as one mesh, transformed by their matrices; without triangles if there are none."""
    import trimesh

    transformed = [part.copy().apply_transform(matrix) for part, matrix in parts]
    return cast("Trimesh", trimesh.util.concatenate(transformed))  # all meshes, so it is one too


def read_mesh(path: Path) -> Mesh:
    """Read an OBJ, GLB, PLY or STL unchanged, with uv and texture where it has them; normals are computed if missing.

    The single mesh of a GLB is taken without its node's transform, which our files do not have.

    Raises:
        ExportError: it cannot be read or holds no triangles.
        OSError: it is missing.
    """
    if not path.is_file():
        raise FileNotFoundError(f"read_mesh: there is no file {path}")
    try:
        with reading(path.name, WAY_OUT, problem="cannot be read as a mesh"):
            parts = read_parts(path)
            mesh = _as_mesh(parts[0][0] if len(parts) == 1 else joined(parts)) if parts else None
    except UserError as error:
        raise ExportError(str(error)) from error
    if mesh is None or len(mesh.faces) == 0:
        raise ExportError(f"{path.name} holds no triangles; write it again")
    return mesh


def _as_mesh(loaded: "Trimesh") -> Mesh:
    """A mesh as read by trimesh; one that was not transformed keeps the normals of its file."""
    normals = np.asarray(loaded.vertex_normals, dtype=np.float64)
    vertices, faces = np.asarray(loaded.vertices, dtype=np.float64), np.asarray(loaded.faces, dtype=np.int64)
    visual: Any = loaded.visual  # one of two classes without a common interface
    uv, texture, bumps = getattr(visual, "uv", None), None, None
    if uv is not None:
        material = visual.material
        image = getattr(material, "baseColorTexture", None) or getattr(material, "image", None)
        texture = None if image is None else np.asarray(image.convert("RGB"))
        image = getattr(material, "normalTexture", None)
        bumps = None if image is None else np.asarray(image.convert("RGB"))
        uv = np.asarray(uv, dtype=np.float64)
    colors = np.asarray(visual.vertex_colors)[:, :3] if visual.kind == "vertex" else None
    return Mesh(vertices, faces, normals, uv, texture=texture, normal_texture=bumps, colors=colors)


def check_file(path: Path, mesh: Mesh) -> None:
    """Read a written file back and compare it, triangle by triangle, with the mesh that it should hold.

    Raises:
        ExportError: the number of triangles, a position, a uv or the texture differs, or the mesh is inside out.
        OSError: the file is missing.
    """
    read = read_mesh(path)
    if len(read.faces) != len(mesh.faces):
        raise ExportError(
            f"{path.name} was written with {len(mesh.faces)} triangles and read back with "
            f"{len(read.faces)}; check the disk and write it again"
        )
    size = float(np.ptp(mesh.bounds, axis=0).max())
    worst = float(np.abs(read.corners - mesh.corners).max())
    reach = float(np.abs(mesh.bounds).max())  # float32 rounds relative to the distance from the origin
    if worst > _POSITION_TOLERANCE * max(size, reach):
        raise ExportError(f"{path.name} moved a vertex by {worst:.3g}; check the disk and write it again")
    smooth = path.suffix != ".stl"  # which has the normals of its triangles alone
    off = float(np.abs(read.require("normals")[read.faces] - mesh.require("normals")[mesh.faces]).max()) if smooth else 0.0
    if off > _NORMAL_TOLERANCE:
        raise ExportError(f"{path.name} was read back with normals {off:.2g} off; check the disk and write it again")
    if mesh.uv is not None and smooth:
        check_texture(path, read, mesh)
    if signed_volume(read) <= 0:
        raise ExportError(
            f"{path.name} is inside out: its volume is {signed_volume(read):.3g}; its triangles must be "
            "counter-clockwise seen from outside"
        )


def check_texture(path: Path, read: Mesh, mesh: Mesh) -> None:
    """Compare uv, corner by corner, and the texture, texel by texel."""
    uv, texture = mesh.require("uv"), mesh.require("texture")
    if read.uv is None or read.texture is None:
        missing = "uv" if read.uv is None else "texture"
        raise ExportError(f"{path.name} was read back without its {missing}; check that all its files are in one folder")
    worst = float(np.abs(read.uv[read.faces] - uv[mesh.faces]).max())
    if worst > _UV_TOLERANCE:
        raise ExportError(f"{path.name} moved a uv by {worst:.3g}; check the disk and write it again")
    if not np.array_equal(read.texture, texture):
        raise ExportError(f"{path.name} was read back with another texture; check the disk and write it again")
    if path.suffix == ".glb" and mesh.normal_texture is not None:  # trimesh does not read an MTL's norm
        if read.normal_texture is None or not np.array_equal(read.normal_texture, mesh.normal_texture):
            raise ExportError(f"{path.name} was read back with another normal map; check the disk and write it again")
