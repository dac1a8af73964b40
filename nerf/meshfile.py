"""Mesh files: OBJ with MTL and PNG, GLB, PLY; each is written to a temporary name, renamed, and read again.

All three are right-handed with +Y up and the front towards +Z, as the program is, so nothing is turned. OBJ and GLB
hold uv, normals and the texture; PLY holds vertex colours. Colours are sRGB, as glTF's base colour texture and MTL's
map_Kd are by definition.
"""

from pathlib import Path

import numpy as np
from PIL import Image

from nerf.files import write_atomically
from nerf.lattice import ExportError
from nerf.mesh import Mesh, signed_volume
from nerf.video import write_png

_POSITION_TOLERANCE = 2e-6  # of the longest edge of the bounding box: six decimals in OBJ, float32 in GLB and PLY
_UV_TOLERANCE = 2e-6
_NORMAL_TOLERANCE = 1e-4


def _rows(pattern: str, values: np.ndarray) -> str:
    """One formatted line for each row of ``values``."""
    return (pattern * len(values)) % tuple(values.reshape(-1).tolist())


def write_obj(folder: Path, mesh: Mesh, comment: str = "") -> list[Path]:
    """Write ``albedo.png``, ``mesh.mtl`` and ``mesh.obj``, in this order; what refers to a file comes after it.

    Positions and normals are those of the welded surface, so a reader finds it closed; uv has its own indices. The MTL
    leaves out ``Tr``, which readers understand in two opposite ways.

    Args:
        folder: made if missing.
        mesh: with normals, uv, weld and texture.
        comment: lines for the head of the OBJ.
    """
    texture = write_png(folder / "albedo.png", mesh.texture)
    material = "newmtl albedo\nKa 1 1 1\nKd 1 1 1\nKs 0 0 0\nd 1\nillum 1\nmap_Kd albedo.png\n"
    mtl = write_atomically(folder / "mesh.mtl", lambda path: path.write_text(material, encoding="utf-8"))
    count = int(mesh.weld.max()) + 1
    first = np.zeros(count, dtype=np.int64)
    first[mesh.weld] = np.arange(len(mesh.weld))
    decimals = max(6, 6 - int(np.floor(np.log10(max(np.ptp(mesh.bounds, axis=0).max(), 1e-12)))))
    position = " ".join([f"%.{decimals}f"] * 3)
    welded, corner = mesh.welded_faces + 1, mesh.faces + 1
    text = "".join([
        "".join(f"# {line}\n" for line in comment.splitlines()),
        "mtllib mesh.mtl\no mesh\nusemtl albedo\n",
        _rows(f"v {position}\n", mesh.vertices[first]),
        _rows("vt %.7f %.7f\n", mesh.uv),
        _rows("vn %.5f %.5f %.5f\n", mesh.normals[first]),
        _rows("f %d/%d/%d %d/%d/%d %d/%d/%d\n", np.stack([welded, corner, welded], axis=2)),
    ])
    obj = write_atomically(folder / "mesh.obj", lambda path: path.write_text(text, encoding="utf-8"))
    return [obj, mtl, texture]


def write_glb(path: Path, mesh: Mesh, extras: dict) -> Path:
    """Write a binary glTF 2.0 with NORMAL, TEXCOORD_0 and one rough, non-metallic material.

    Args:
        path: the .glb.
        mesh: with normals, uv and texture.
        extras: JSON values for ``asset.extras``: prompt, seed, licence notes.
    """
    import trimesh

    material = trimesh.visual.material.PBRMaterial(
        name="albedo", baseColorTexture=Image.fromarray(mesh.texture), baseColorFactor=[255, 255, 255, 255],
        metallicFactor=0.0, roughnessFactor=1.0, alphaMode="OPAQUE", doubleSided=False)
    solid = trimesh.Trimesh(mesh.vertices, mesh.faces, vertex_normals=mesh.normals, process=False, validate=False,
                            visual=trimesh.visual.TextureVisuals(uv=mesh.uv, material=material))
    scene = trimesh.Scene()
    scene.add_geometry(solid, node_name="mesh", geom_name="mesh")

    def stamp(tree: dict) -> None:
        tree["asset"] = {"version": "2.0", "generator": "Somnia", "extras": extras}

    data = trimesh.exchange.gltf.export_glb(scene, include_normals=True, tree_postprocessor=stamp)
    return write_atomically(path, lambda temporary: temporary.write_bytes(data))


def write_ply(path: Path, mesh: Mesh) -> Path:
    """Write a welded mesh with normals and vertex colours as binary little-endian PLY."""
    columns = [("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("nx", "<f4"), ("ny", "<f4"), ("nz", "<f4"),
               ("red", "u1"), ("green", "u1"), ("blue", "u1")]
    vertex = np.zeros(len(mesh.vertices), dtype=columns)
    for name, value in zip(vertex.dtype.names, [*mesh.vertices.T, *mesh.normals.T, *mesh.colors.T], strict=True):
        vertex[name] = value
    face = np.zeros(len(mesh.faces), dtype=[("count", "u1"), ("index", "<i4", 3)])
    face["count"], face["index"] = 3, mesh.faces
    kinds = {"<f4": "float", "u1": "uchar"}
    head = "".join(["ply\nformat binary_little_endian 1.0\n", f"element vertex {len(vertex)}\n",
                    *(f"property {kinds[kind]} {name}\n" for name, kind in columns), f"element face {len(face)}\n",
                    "property list uchar int vertex_indices\nend_header\n"])
    data = head.encode("ascii") + vertex.tobytes() + face.tobytes()
    return write_atomically(path, lambda temporary: temporary.write_bytes(data))


def read_mesh(path: Path) -> Mesh:
    """Read an OBJ, GLB or PLY as it stands, with uv and texture where it has them; normals are computed if missing.

    The one mesh of a GLB is taken without its node's transform, which files of ours do not have.

    Raises:
        ExportError: it cannot be read or holds no triangles.
        OSError: it is missing.
    """
    import trimesh

    if not path.is_file():
        raise FileNotFoundError(f"read_mesh: there is no file {path}")
    try:
        loaded = trimesh.load(path, process=False)
        if isinstance(loaded, trimesh.Scene):  # a GLB; its one mesh as it stands keeps the normals of the file
            loaded = next(iter(loaded.geometry.values())) if len(loaded.geometry) == 1 else loaded.to_mesh()
        normals = np.asarray(loaded.vertex_normals, dtype=np.float64)
        vertices, faces = np.asarray(loaded.vertices, dtype=np.float64), np.asarray(loaded.faces, dtype=np.int64)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise ExportError(f"{path.name} cannot be read as a mesh ({error}); write it again") from error
    if len(faces) == 0:
        raise ExportError(f"{path.name} holds no triangles; write it again")
    visual = loaded.visual
    uv, texture = getattr(visual, "uv", None), None
    if uv is not None:
        material = visual.material
        image = getattr(material, "baseColorTexture", None) or getattr(material, "image", None)
        texture = None if image is None else np.asarray(image.convert("RGB"))
        uv = np.asarray(uv, dtype=np.float64)
    colors = np.asarray(visual.vertex_colors)[:, :3] if visual.kind == "vertex" else None
    return Mesh(vertices, faces, normals, uv, None, texture, colors)


def check_file(path: Path, mesh: Mesh) -> None:
    """Read a written file again and compare it, triangle by triangle, with what it should hold.

    Raises:
        ExportError: another number of triangles, another position, uv or texture, or inside out.
        OSError: the file is missing.
    """
    read = read_mesh(path)
    if len(read.faces) != len(mesh.faces):
        raise ExportError(f"{path.name} was written with {len(mesh.faces)} triangles and read back with "
                          f"{len(read.faces)}; check the disk and write it again")
    size = float(np.ptp(mesh.bounds, axis=0).max())
    worst = float(np.abs(read.corners - mesh.corners).max())
    reach = float(np.abs(mesh.bounds).max())  # float32 rounds relative to the distance from the origin
    if worst > _POSITION_TOLERANCE * max(size, reach):
        raise ExportError(f"{path.name} moved a vertex by {worst:.3g}; check the disk and write it again")
    turned = float(np.abs(read.normals[read.faces] - mesh.normals[mesh.faces]).max())
    if turned > _NORMAL_TOLERANCE:
        raise ExportError(f"{path.name} was read back with normals {turned:.2g} off; check the disk and write it again")
    if mesh.uv is not None:
        _check_texture(path, read, mesh)
    if signed_volume(read) <= 0:
        raise ExportError(f"{path.name} is inside out: its volume is {signed_volume(read):.3g}")


def _check_texture(path: Path, read: Mesh, mesh: Mesh) -> None:
    """Compare uv, corner by corner, and the texture, texel by texel."""
    if read.uv is None or read.texture is None:
        missing = "uv" if read.uv is None else "texture"
        raise ExportError(f"{path.name} was read back without its {missing}; check that all its files are in one "
                          "folder")
    worst = float(np.abs(read.uv[read.faces] - mesh.uv[mesh.faces]).max())
    if worst > _UV_TOLERANCE:
        raise ExportError(f"{path.name} moved a uv by {worst:.3g}; check the disk and write it again")
    if read.texture.shape != mesh.texture.shape or not np.array_equal(read.texture, mesh.texture):
        raise ExportError(f"{path.name} was read back with another texture; check the disk and write it again")
