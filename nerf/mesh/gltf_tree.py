"""The JSON of a glTF 2.0 file as records, as far as it is read: section 5 of the specification, whose names these are."""

from typing import Any

import msgspec


class Buffer(msgspec.Struct):
    """Bytes in a file, a URI, or the binary chunk of a GLB."""

    byteLength: int = 0
    uri: str | None = None


class View(msgspec.Struct):
    """A range of a buffer."""

    buffer: int
    byteLength: int
    byteOffset: int = 0
    byteStride: int | None = None


class Part(msgspec.Struct):
    """Indices or values of a sparse accessor."""

    bufferView: int
    byteOffset: int = 0
    componentType: int = 5126


class Sparse(msgspec.Struct):
    """Entries of an accessor that differ from its data."""

    count: int
    indices: Part
    values: Part


class Accessor(msgspec.Struct):
    """Numbers in a buffer view."""

    componentType: int
    count: int
    type: str
    bufferView: int | None = None
    byteOffset: int = 0
    normalized: bool = False
    sparse: Sparse | None = None


class Source(msgspec.Struct):
    """An image."""

    uri: str | None = None
    bufferView: int | None = None


class WebP(msgspec.Struct):
    """EXT_texture_webp."""

    source: int | None = None


class TextureExtensions(msgspec.Struct):
    """The extensions of a texture that are read."""

    EXT_texture_webp: WebP = msgspec.field(default_factory=WebP)


class Texture(msgspec.Struct):
    """A picture and how it is sampled."""

    source: int | None = None
    extensions: TextureExtensions = msgspec.field(default_factory=TextureExtensions)


class Transform(msgspec.Struct):
    """KHR_texture_transform."""

    offset: tuple[float, float] = (0.0, 0.0)
    rotation: float = 0.0
    scale: tuple[float, float] = (1.0, 1.0)
    texCoord: int | None = None


class InfoExtensions(msgspec.Struct):
    """The extensions of a reference to a texture that are read."""

    KHR_texture_transform: Transform | None = None


class TextureInfo(msgspec.Struct):
    """A reference to a texture."""

    index: int
    texCoord: int = 0
    extensions: InfoExtensions = msgspec.field(default_factory=InfoExtensions)


class Surface(msgspec.Struct):
    """pbrMetallicRoughness of a material."""

    baseColorFactor: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)
    metallicFactor: float = 1.0
    roughnessFactor: float = 1.0
    baseColorTexture: TextureInfo | None = None
    metallicRoughnessTexture: TextureInfo | None = None


class Material(msgspec.Struct):
    """How a surface looks."""

    name: str = ""
    pbrMetallicRoughness: Surface = msgspec.field(default_factory=Surface)
    normalTexture: TextureInfo | None = None
    occlusionTexture: TextureInfo | None = None
    emissiveTexture: TextureInfo | None = None
    doubleSided: bool = False


class Primitive(msgspec.Struct):
    """Triangles, lines or points with one material."""

    attributes: dict[str, int]
    indices: int | None = None
    material: int | None = None
    mode: int = 4


class Mesh(msgspec.Struct):
    """Primitives."""

    primitives: list[Primitive]


class Node(msgspec.Struct):
    """A place, relative to that of its parent."""

    children: list[int] = []
    mesh: int | None = None
    matrix: list[float] | None = None
    translation: tuple[float, float, float] = (0.0, 0.0, 0.0)
    rotation: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 1.0)
    scale: tuple[float, float, float] = (1.0, 1.0, 1.0)


class Scene(msgspec.Struct):
    """The nodes at the top."""

    nodes: list[int] = []


class Asset(msgspec.Struct):
    """About the file."""

    version: str = "2.0"
    extras: Any = None


class Tree(msgspec.Struct):
    """The JSON of a glTF file, as far as it is read."""

    asset: Asset
    extensionsRequired: list[str] = []
    buffers: list[Buffer] = []
    bufferViews: list[View] = []
    accessors: list[Accessor] = []
    images: list[Source] = []
    textures: list[Texture] = []
    materials: list[Material] = []
    meshes: list[Mesh] = []
    nodes: list[Node] = []
    scenes: list[Scene] = []
    scene: int = 0
