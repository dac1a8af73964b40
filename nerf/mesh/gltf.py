"""Reads the surfaces of glTF 2.0 files (GLB and .gltf): triangles, normals, uv, colours, materials and placement.

What is read is section 3 of the specification and KHR_mesh_quantization, in which positions, normals and uv are small integers.
A file that requires an extension which changes its geometry otherwise is refused by the extension's name. V vertices.
"""

import base64
import logging
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import numpy as np

from nerf.core.errors import UserError
from nerf.core.files import as_shape, parse_json, read_bytes, reading
from nerf.core.pictures import open_picture
from nerf.mesh import gltf_tree as tree

if TYPE_CHECKING:
    from PIL.Image import Image
    from trimesh import Trimesh

log = logging.getLogger("somnia.mesh")

MAX_FILE = 1 << 32  # bytes of a file or buffer
MAX_COUNT = 1 << 24  # values of an accessor without data, which are zeros
MOST_PLACED = 1 << 26  # vertices and corners of all meshes, counted wherever they are placed; the largest scans have less
COMPONENTS = {5120: "<i1", 5121: "<u1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT2": 4, "MAT3": 9, "MAT4": 16}
TRIANGLES, STRIP, FAN = 4, 5, 6  # modes of a primitive; the others are points and lines
JSON_CHUNK, BINARY_CHUNK = b"JSON", b"BIN\0"
APPEARANCE = ("KHR_materials_", "KHR_lights_", "EXT_lights_", "KHR_xmp", "KHR_animation_", "EXT_texture_", "KHR_texture_basisu")
QUANTIZED = ("KHR_mesh_quantization", "KHR_texture_transform")
UNDO = {
    "KHR_draco_mesh_compression": "gltf-transform copy IN OUT, or Blender's import and export, write it without compression",
    "EXT_meshopt_compression": "gltf-transform copy IN OUT writes it without compression",
    "KHR_meshopt_compression": "gltf-transform copy IN OUT writes it without compression",
    "EXT_mesh_gpu_instancing": "gltf-transform uninstance IN OUT writes its instances as nodes",
}
TINT = "tint"  # vertex attribute: linear colours [V, 3] that multiply the texture, of COLOR_0 and the material
WAY_OUT = "export it again"
_UNMOVED = (None, tree.Node().translation, tree.Node().rotation, tree.Node().scale)
PROBLEM = "cannot be read as a mesh"


class DamagedError(ValueError):
    """What is wrong with a file; :func:`nerf.core.files.reading` makes it a sentence."""


@dataclass
class GltfFile:
    """A glTF file with its buffers, which are read when they are needed.

    Raises:
        UserError: the file is damaged, or requires an extension that is not known.
    """

    path: Path
    content: tree.Tree
    binary: bytes | None  # the second chunk of a GLB
    _buffers: dict[int, bytes] = field(default_factory=dict)
    _meshes: dict[int, list["Trimesh"]] = field(default_factory=dict)
    _materials: dict[int, Any] = field(default_factory=dict)
    _images: dict[int, "Image | None"] = field(default_factory=dict)

    def parts(self) -> list[tuple["Trimesh", np.ndarray]]:
        """The triangle meshes of the scene, each with the matrix [4, 4] from its own space to the scene's.

        A mesh that several nodes refer to is one object, returned once for each.

        Raises:
            UserError: the file is damaged.
        """
        with reading(self.path, WAY_OUT, problem=PROBLEM):
            for index, buffer in enumerate(self.content.buffers):
                if buffer.uri is not None:
                    self._buffer(index)
            placed = self._placed()
            self._check_size([index for index, _ in placed])
            return [(part, matrix) for index, matrix in placed for part in self._mesh(index)]

    def _check_size(self, placed: list[int]) -> None:
        """Refuse more vertices than memory holds: a small file can refer to one mesh, or to one buffer, thousands of times."""
        sizes = {index: sum(map(self._size, self._entry("meshes", index).primitives)) for index in set(placed)}
        total = sum(sizes[index] for index in placed)
        if total > MOST_PLACED:
            raise DamagedError(
                f"its meshes have {total:,} vertices and corners of triangles in {len(placed):,} places, and up to "
                f"{MOST_PLACED:,} are read"
            )

    def _size(self, primitive: tree.Primitive) -> int:
        """How many vertices and corners of triangles a primitive has."""
        used = [index for index in (primitive.attributes.get("POSITION"), primitive.indices) if index is not None]
        return sum(max(self._entry("accessors", index).count, 0) for index in used)

    def _mesh(self, index: int) -> list["Trimesh"]:
        """The primitives of a mesh that are made of triangles."""
        if index not in self._meshes:
            primitives = self._entry("meshes", index).primitives
            self._meshes[index] = [self._part(p) for p in primitives if p.mode in (TRIANGLES, STRIP, FAN)]
        return self._meshes[index]

    def extras(self) -> dict:
        """``asset.extras``."""
        extras = self.content.asset.extras
        return extras if isinstance(extras, dict) else {} if extras is None else {"extras": extras}

    # ---- nodes ----

    def _placed(self) -> list[tuple[int, np.ndarray]]:
        """Index and matrix [4, 4] of the mesh of every node that has one, in time linear in the nodes."""
        content, found = self.content, []
        if content.scenes:
            roots = self._entry("scenes", content.scene).nodes
        else:
            children = {child for node in content.nodes for child in node.children}
            roots = [i for i in range(len(content.nodes)) if i not in children]
        waiting, seen = [(root, np.eye(4)) for root in reversed(roots)], set()
        while waiting:
            index, parent = waiting.pop()
            if index in seen:
                raise DamagedError(f"its nodes form no tree, as node {index} has two parents")
            seen.add(index)
            node = self._entry("nodes", index)
            matrix = parent if _is_unmoved(node) else parent @ self._matrix(node, index)
            if node.mesh is not None:
                found.append((node.mesh, matrix))
            waiting += [(child, matrix) for child in reversed(node.children)]
        return found

    def _matrix(self, node: tree.Node, index: int) -> np.ndarray:
        """The matrix [4, 4] of a node, relative to its parent."""
        if node.matrix is not None:
            if len(node.matrix) != 16:
                raise DamagedError(f"the matrix of node {index} has {len(node.matrix)} numbers")
            return np.array(node.matrix, dtype=np.float64).reshape(4, 4).T
        x, y, z, w = np.array(node.rotation) / max(float(np.linalg.norm(node.rotation)), 1e-12)
        matrix = np.eye(4)
        rotation = np.array([
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ])  # fmt: skip
        matrix[:3, :3], matrix[:3, 3] = rotation * node.scale, node.translation
        return matrix

    # ---- meshes ----

    def _part(self, primitive: tree.Primitive) -> "Trimesh":
        """A primitive of triangles, with normals, uv and colours where the file has them."""
        import trimesh

        vertices = self._floats(primitive.attributes.get("POSITION"), 3)
        if vertices is None:
            raise DamagedError("a surface has no POSITION")
        faces = self._faces(primitive, len(vertices))
        normals = self._floats(primitive.attributes.get("NORMAL"), 3, len(vertices))
        solid = trimesh.Trimesh(vertices, faces, vertex_normals=normals, process=False, validate=False)
        info = None if primitive.material is None else self._entry("materials", primitive.material)
        texture = None if info is None else info.pbrMetallicRoughness.baseColorTexture
        uv = self._uv(primitive, texture, len(vertices))
        if uv is not None or info is not None:
            material = None if primitive.material is None else self._material(primitive.material)
            solid.visual = trimesh.visual.TextureVisuals(uv=uv, material=material)
        colors = self._floats(primitive.attributes.get("COLOR_0"), None, len(vertices))
        if colors is not None and uv is None and info is None:
            levels = np.clip(np.round(255 * colors), 0, 255).astype(np.uint8)
            solid.visual = trimesh.visual.ColorVisuals(solid, vertex_colors=levels)
        tint = np.ones((len(vertices), 3)) if colors is None else colors[:, :3]
        tint = tint if info is None else tint * info.pbrMetallicRoughness.baseColorFactor[:3]
        if (tint != 1.0).any():
            solid.vertex_attributes[TINT] = tint
        return solid

    def _faces(self, primitive: tree.Primitive, count: int) -> np.ndarray:
        """The triangles [T, 3] of a primitive: listed, or from a strip or fan, whose orientation they keep."""
        if primitive.indices is None:
            corners = np.arange(count, dtype=np.int64)
        else:
            corners = self._values(self._entry("accessors", primitive.indices)).reshape(-1).astype(np.int64)
        if len(corners) and not 0 <= corners.min() <= corners.max() < count:
            raise DamagedError(f"a triangle refers to vertex {corners.max()} of {count}")
        if len(corners) < 3:
            return np.zeros((0, 3), np.int64)
        if primitive.mode == TRIANGLES:
            return corners[: len(corners) // 3 * 3].reshape(-1, 3)
        if primitive.mode == FAN:
            return np.stack([np.full(len(corners) - 2, corners[0]), corners[1:-1], corners[2:]], axis=1)
        faces = np.stack([corners[:-2], corners[1:-1], corners[2:]], axis=1)
        faces[1::2] = faces[1::2, [1, 0, 2]]
        return faces

    def _uv(self, primitive: tree.Primitive, texture: tree.TextureInfo | None, count: int) -> np.ndarray | None:
        """The uv [V, 2] of the colour texture, with v up, and KHR_texture_transform applied."""
        placed = None if texture is None else texture.extensions.KHR_texture_transform
        channel = 0 if texture is None else texture.texCoord
        channel = placed.texCoord if placed is not None and placed.texCoord is not None else channel
        uv = self._floats(primitive.attributes.get(f"TEXCOORD_{channel}"), 2, count)
        if uv is None:
            return None
        if placed is not None:
            c, s = np.cos(placed.rotation), np.sin(placed.rotation)
            uv = uv * placed.scale @ np.array([[c, -s], [s, c]]) + placed.offset
        return uv * [1.0, -1.0] + [0.0, 1.0]

    # ---- materials ----

    def _material(self, index: int) -> Any:
        """A material with its pictures, as trimesh's."""
        import trimesh

        if index not in self._materials:
            found: tree.Material = self._entry("materials", index)
            surface = found.pbrMetallicRoughness
            self._materials[index] = trimesh.visual.material.PBRMaterial(
                name=found.name,
                baseColorFactor=list(surface.baseColorFactor),
                metallicFactor=surface.metallicFactor,
                roughnessFactor=surface.roughnessFactor,
                baseColorTexture=self._image(surface.baseColorTexture),
                metallicRoughnessTexture=self._image(surface.metallicRoughnessTexture),
                normalTexture=self._image(found.normalTexture),
                occlusionTexture=self._image(found.occlusionTexture),
                emissiveTexture=self._image(found.emissiveTexture),
                doubleSided=found.doubleSided,
            )
        return self._materials[index]

    def _image(self, info: tree.TextureInfo | None) -> "Image | None":
        """The picture of a texture; None, with a warning, if it cannot be read."""
        if info is None:
            return None
        texture: tree.Texture = self._entry("textures", info.index)
        source = texture.extensions.EXT_texture_webp.source
        source = texture.source if source is None else source
        if source is None:
            log.warning("%s: a texture in a format that is not read is left out", self.path)
            return None
        if source not in self._images:
            try:
                with reading(f"a texture of {self.path}", "write it again as PNG or JPEG"):
                    self._images[source] = self._picture(self._entry("images", source))
            except UserError as error:
                log.warning("%s; it is left out", error)
                self._images[source] = None
        return self._images[source]

    def _picture(self, image: tree.Source) -> "Image":
        """A decoded picture."""
        what = f"a texture of {self.path}"
        if image.uri is None and image.bufferView is None:
            raise DamagedError("it has neither a file nor data")
        data = self._fetch(image.uri) if image.uri is not None else bytes(self._view(image.bufferView))
        with open_picture(data, what, "write it again as PNG or JPEG") as picture:
            return picture.copy()

    # ---- accessors and buffers ----

    def _entry(self, kind: str, index: Any) -> Any:
        """An entry of one of the lists of the tree."""
        entries = getattr(self.content, kind)
        if not isinstance(index, int) or not 0 <= index < len(entries):
            raise DamagedError(f"it refers to number {index} of {len(entries)} {kind}")
        return entries[index]

    def _floats(self, index: int | None, width: int | None, count: int | None = None) -> np.ndarray | None:
        """An attribute as float64 [V, width].

        Normalised integers are brought to [0, 1] or [-1, 1]; others are taken as they are, as in KHR_mesh_quantization.

        Args:
            index: of the accessor; None: the primitive has no such attribute.
            width: numbers a vertex; None: any.
            count: of the vertices, if it is known.
        """
        if index is None:
            return None
        accessor: tree.Accessor = self._entry("accessors", index)
        values = self._values(accessor)
        if (width is not None and values.shape[1] != width) or (count is not None and len(values) != count):
            raise DamagedError(
                f"expected an attribute of {count or 'any number of'} vertices with {width or 'any'} numbers each, "
                f"got {values.shape[0]} with {values.shape[1]}"
            )
        floats = values.astype(np.float64)
        if accessor.normalized and values.dtype.kind in "iu":
            floats = np.maximum(floats / np.iinfo(values.dtype).max, -1.0)
        return floats

    def _values(self, accessor: tree.Accessor) -> np.ndarray:
        """The numbers [count, width] of an accessor as they are stored."""
        if accessor.componentType not in COMPONENTS or accessor.type not in WIDTHS or not 0 <= accessor.count <= MAX_COUNT:
            raise DamagedError(
                f"{accessor.count} numbers of type {accessor.componentType} {accessor.type:.20} are none of glTF's"
            )
        dtype, width = np.dtype(COMPONENTS[accessor.componentType]), WIDTHS[accessor.type]
        if accessor.bufferView is None:
            values = np.zeros((accessor.count, width), dtype)
        else:
            values = self._table(accessor.bufferView, accessor.byteOffset, dtype, accessor.count, width)
        if (sparse := accessor.sparse) is None:
            return values
        if sparse.indices.componentType not in COMPONENTS:
            raise DamagedError("its sparse indices are of an unknown type")
        kind = np.dtype(COMPONENTS[sparse.indices.componentType])
        where = self._table(sparse.indices.bufferView, sparse.indices.byteOffset, kind, sparse.count, 1)[:, 0].astype(np.int64)
        if len(where) and not 0 <= where.min() <= where.max() < accessor.count:
            raise DamagedError(f"a sparse index is {where.max()} of {accessor.count}")
        values = values.copy()
        values[where] = self._table(sparse.values.bufferView, sparse.values.byteOffset, dtype, sparse.count, width)
        return values

    def _table(self, view: int, offset: int, dtype: np.dtype, count: int, width: int) -> np.ndarray:
        """Numbers [count, width] from a buffer view."""
        data, size = self._view(view), dtype.itemsize * width
        stride = self._entry("bufferViews", view).byteStride or size
        if offset < 0 or count < 0 or not size <= stride or offset + (count - 1) * stride + size > len(data) and count:
            raise DamagedError(f"{count} entries of {size} bytes do not fit into {len(data)} bytes")
        return np.ndarray((count, width), dtype, data, offset if count else 0, (stride, dtype.itemsize))

    def _view(self, index: Any) -> memoryview:
        """The bytes of a buffer view."""
        view: tree.View = self._entry("bufferViews", index)
        data = self._buffer(view.buffer)
        if view.byteOffset < 0 or view.byteLength < 0 or view.byteOffset + view.byteLength > len(data):
            raise DamagedError(f"it was cut off, as it refers to byte {view.byteOffset + view.byteLength} of {len(data)}")
        return memoryview(data)[view.byteOffset : view.byteOffset + view.byteLength]

    def _buffer(self, index: int) -> bytes:
        """The bytes of a buffer."""
        if index not in self._buffers:
            buffer: tree.Buffer = self._entry("buffers", index)
            if buffer.uri is None and (self.binary is None or index != 0):
                raise DamagedError(f"buffer {index} has no data")
            self._buffers[index] = self.binary or b"" if buffer.uri is None else self._fetch(buffer.uri)
        return self._buffers[index]

    def _fetch(self, uri: str) -> bytes:
        """The bytes that a URI stands for: inside the URI itself, or in a file beside the glTF."""
        if uri.startswith("data:"):
            head, _, content = uri.partition(",")
            try:
                return (
                    base64.b64decode(content, validate=True) if head.endswith(";base64") else unquote(content).encode("latin-1")
                )
            except ValueError:
                raise DamagedError("the data of a URI is damaged") from None
        if ":" in uri.split("/")[0]:
            raise DamagedError(f"{uri:.80} is not beside it, and nothing is downloaded")
        place = self.path.parent / unquote(uri)
        return read_bytes(place, WAY_OUT, MAX_FILE, what=f"{self.path} {PROBLEM}: its file {place.name:.80}")


def _is_unmoved(node: tree.Node) -> bool:
    """Whether a node is where its parent is, as most nodes that only group others are."""
    return (node.matrix, node.translation, node.rotation, node.scale) == _UNMOVED


def open_gltf(path: Path) -> GltfFile:
    """Read the JSON of a GLB or .gltf file.

    Raises:
        UserError: it cannot be read, is damaged, of another version, or requires an extension that is not known.
    """
    with reading(path, WAY_OUT, problem=PROBLEM):
        data, binary = read_bytes(path, WAY_OUT, MAX_FILE), None
        text: bytes = data
        if data.startswith(b"glTF") or path.suffix.lower() == ".glb":
            text, binary = _chunks(data)
        what = f"{path} {PROBLEM}: its text"
        content = as_shape(parse_json(text, what, WAY_OUT), what, WAY_OUT, tree.Tree)
        if not content.asset.version.startswith("2."):
            raise DamagedError(f"it is of version {content.asset.version:.10} of glTF, and 2.0 is read")
    for name in content.extensionsRequired:
        if name not in QUANTIZED and not name.startswith(APPEARANCE):
            undo = UNDO.get(name, "export it without that extension")
            raise UserError(f"{path} {PROBLEM}: it requires the glTF extension {name:.80}, which is not read; {undo}")
    return GltfFile(path, content, binary)


def _chunks(data: bytes) -> tuple[bytes, bytes | None]:
    """The JSON of a GLB, and its binary chunk, if it has one."""
    if len(data) < 20 or data[:4] != b"glTF":
        raise DamagedError("it is no GLB, or was cut off")
    version, total = struct.unpack_from("<II", data, 4)
    if version != 2:
        raise DamagedError(f"it is a GLB of version {version}, and 2 is read")
    if total > len(data):
        raise DamagedError(f"it was cut off, as it has {len(data)} of {total} bytes")
    found: dict[bytes, bytes] = {}
    at = 12
    while at + 8 <= total:
        size, kind = struct.unpack_from("<I4s", data, at)
        if at + 8 + size > total:
            raise DamagedError(f"a part of {size} bytes begins at byte {at + 8} of {total}")
        found.setdefault(kind, data[at + 8 : at + 8 + size])
        at += 8 + size
    if JSON_CHUNK not in found:
        raise DamagedError("it is a GLB without JSON")
    return found[JSON_CHUNK], found.get(BINARY_CHUNK)
