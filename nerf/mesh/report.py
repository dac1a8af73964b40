"""Measures any mesh file: whether it is closed, manifold and free of self-intersections, its orientation, and its uv.

Letters: V vertices, T triangles. Vertices at the same position count as one, as for a reader that knows positions only.
Lengths are in the file's units; those of glTF are metres.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from nerf.core.errors import UserError
from nerf.core.files import reading
from nerf.mesh.gltf import open_gltf
from nerf.mesh.holes import boundary_loops
from nerf.mesh.intersections import self_crossings
from nerf.mesh.io import read_parts
from nerf.mesh.mesh import LARGEST, Mesh, components, half_edges, is_watertight, signed_volume
from nerf.mesh.soundness import Soundness, fans, soundness
from nerf.mesh.texture import uv_layers

FORMATS = (".glb", ".gltf", ".obj", ".ply", ".stl")
_LARGEST_GRID = 4096  # texels along an edge of the largest grid on which the coverage of the uv is counted


@dataclass(frozen=True)
class MeshReport:
    """The properties of a mesh."""

    file: str
    faces: int
    vertices: int  # distinct positions
    parts: int  # connected by edges
    watertight: bool  # every half-edge has exactly one opposite
    openings: int  # boundary loops
    genus: int | None  # this and the next four as in Soundness, with the lowest y below
    caves: float | None
    base_share: float | None
    base_deviation: float | None
    thin_walls: float | None
    edges_manifold: bool  # no edge has more than two triangles
    vertices_manifold: bool  # the triangles of every vertex form one fan
    flat_faces: int  # triangles without area
    crossing: int  # those of the sampled triangles that cross another one that they share no vertex with
    sampled: int  # triangles that were tested for crossings
    volume: float  # signed; positive where triangles are counter-clockwise seen from outside
    area: float
    normals_agreeing: float  # fraction of the area, a third for each corner whose vertex normal is on the front side
    bounds: tuple[tuple[float, ...], tuple[float, ...]]
    size: tuple[float, ...]  # along x, y, z
    uv: bool
    uv_coverage: float | None  # fraction of the unit square under a triangle; this and the next two None without uv
    uv_overlap: float | None  # fraction of the covered part under more than one triangle
    uv_outside: float | None  # fraction of uv outside the unit square, where textures repeat
    textures: dict[str, tuple[int, int]]  # width and height of each image
    material: dict  # constants of the material
    extras: dict  # asset.extras of a GLB

    @property
    def outward(self) -> bool:
        """Whether the surface encloses a positive volume, and most of its vertex normals point outwards."""
        return self.volume > 0 and self.normals_agreeing > 0.5

    def as_dict(self) -> dict:
        """The report as JSON values."""
        return asdict(self) | {"outward": self.outward}

    def lines(self) -> list[str]:
        """The report as text, a line for each property."""

        def yes(value: bool) -> str:
            return "yes" if value else "NO"

        size, uv = " x ".join(f"{side:.4g}" for side in self.size), "none"
        if self.uv_coverage is not None and self.uv_overlap is not None and self.uv_outside is not None:
            uv = f"{100 * self.uv_coverage:.1f} % covered, {100 * self.uv_overlap:.3f} % of that twice, "
            uv += f"{100 * self.uv_outside:.2f} % outside"
        found = [
            ("triangles, vertices, parts", f"{self.faces:,}, {self.vertices:,}, {self.parts:,}"),
            ("watertight", yes(self.watertight) + (f", {self.openings} openings" if self.openings else "")),
            *Soundness(self.genus, self.caves, self.base_share, self.base_deviation, self.thin_walls).lines(),
            ("manifold", f"edges {yes(self.edges_manifold)}, vertices {yes(self.vertices_manifold)}"),
            ("triangles without area", f"{self.flat_faces:,}"),
            ("crossing itself", f"{self.crossing:,} of {self.sampled:,} triangles tested"),
            (
                "faces outwards",
                f"{yes(self.outward)}; volume {self.volume:.4g}, {100 * self.normals_agreeing:.2f} % of "
                "the area agrees with its vertex normals",
            ),
            ("size (glTF: metres)", f"{size}, area {self.area:.4g}"),
            ("uv", uv),
            ("textures", ", ".join(f"{name} {w} x {h}" for name, (w, h) in self.textures.items()) or "none"),
            ("material", ", ".join(f"{name} {value}" for name, value in self.material.items()) or "none"),
            ("extras", json.dumps(self.extras, ensure_ascii=False) if self.extras else "none"),
        ]
        return [f"{name:<27}{text}" for name, text in found]


def report_file(path: str | Path, samples: int = 5_000, seed: int = 0) -> MeshReport:
    """Read a mesh file and measure it.

    Args:
        path: a GLB, glTF, OBJ, PLY or STL; the meshes of a scene are measured together, transformed by their nodes.
        samples: triangles that are tested for crossing others.
        seed: of their choice.

    Raises:
        UserError: the file is not a mesh, or holds no triangles.
        OSError: the file is missing.
    """
    path = Path(path)
    parts = _read(path)
    for part in parts:
        if not (np.abs(part.vertices) <= LARGEST).all() or not np.isin(part.faces, np.arange(len(part.vertices))).all():
            raise UserError(
                f"{path.name} has vertices that are NaN, infinite or beyond {LARGEST:g}, or triangles without a "
                "vertex; write it again"
            )
    if sum(len(part.faces) for part in parts) == 0:
        raise UserError(f"{path.name} holds no triangles; there is nothing to measure")
    with reading(path.name, "write it again", problem="cannot be measured"):
        mesh = _joined(parts)
        return MeshReport(
            file=path.name,
            textures=_textures(parts),
            material=_material(parts),
            extras=open_gltf(path).extras() if path.suffix.lower() in (".glb", ".gltf") else {},
            **_shape(mesh, samples, seed),
            **_unwrapping(mesh, parts),
        )


def _read(path: Path) -> list:
    """The meshes of a file as read by trimesh, in the file's space."""
    if path.suffix.lower() not in FORMATS:
        raise UserError(f"expected a mesh file ({', '.join(FORMATS)}), got {path.name}")
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    with reading(path.name, "write it again", problem="cannot be read as a mesh"):
        return [
            part
            if np.allclose(matrix, np.eye(4))
            else part.copy().apply_transform(matrix)  # a transform drops the normals of the file
            for part, matrix in read_parts(path)
        ]


def _joined(parts: list) -> Mesh:
    """All meshes as one, with normals (computed where the file has none), and with uv if all of them have uv."""
    if not parts:
        return Mesh(np.zeros((0, 3)), np.zeros((0, 3), dtype=np.int64))
    normals = np.concatenate([np.asarray(part.vertex_normals, dtype=np.float64) for part in parts])
    offset = np.cumsum([0] + [len(part.vertices) for part in parts])
    vertices = np.concatenate([np.asarray(part.vertices, dtype=np.float64) for part in parts])
    faces = np.concatenate([np.asarray(part.faces, dtype=np.int64) + o for part, o in zip(parts, offset, strict=False)])
    uvs = [uv for part in parts if (uv := getattr(part.visual, "uv", None)) is not None]
    uv = np.concatenate(uvs).astype(np.float64) if len(uvs) == len(parts) else None
    weld = np.unique(vertices.astype(np.float32), axis=0, return_inverse=True)[1].reshape(-1)
    return Mesh(vertices, faces, normals, uv, weld)


def _shape(mesh: Mesh, samples: int, seed: int) -> dict:
    """The properties of the surface."""
    welded, weld = mesh.welded_faces, mesh.require("weld")
    whole = (welded != np.roll(welded, 1, axis=1)).all(axis=1)  # slivers that the weld collapsed are not triangles
    welded, count = welded[whole], int(weld.max()) + 1
    edges = np.sort(np.stack(half_edges(welded), axis=1), axis=1)
    uses = np.unique(edges, axis=0, return_counts=True)[1]
    parts = components(edges, count)[1][welded[:, 0]]
    front = mesh.face_normals
    length = np.linalg.norm(front, axis=1)
    agreeing = (np.einsum("tkc,tc->tk", mesh.require("normals")[mesh.faces], front) > 0).mean(axis=1)
    place = np.zeros((count, 3))
    place[weld] = mesh.vertices
    surface = Mesh(place, welded)
    crossing, sampled = self_crossings(surface, samples, seed)
    corners, sound = len(np.unique(welded)), soundness(surface, seed)
    return {
        "faces": len(mesh.faces),
        "vertices": corners,
        "parts": len(np.unique(parts)),
        "watertight": is_watertight(surface),
        "openings": len(boundary_loops(welded)),
        **asdict(sound),
        "edges_manifold": bool((uses <= 2).all()),
        "vertices_manifold": fans(welded) == corners,
        "flat_faces": int((length <= 1e-12 * length.max(initial=0.0)).sum()),
        "crossing": crossing,
        "sampled": sampled,
        "volume": signed_volume(mesh),
        "area": float(0.5 * length.sum()),
        "normals_agreeing": float((agreeing * length).sum() / max(length.sum(), 1e-300)),
        "bounds": tuple(tuple(map(float, corner)) for corner in mesh.bounds),
        "size": tuple(map(float, np.ptp(mesh.bounds, axis=0))),
    }


def _unwrapping(mesh: Mesh, parts: list) -> dict:
    """The properties of the uv, counted on as many texels as the largest texture has."""
    if mesh.uv is None:
        return {"uv": False, "uv_coverage": None, "uv_overlap": None, "uv_outside": None}
    sizes = [max(size) for size in _textures(parts).values()]
    layers = uv_layers(np.clip(mesh.uv, 0.0, 1.0), mesh.faces, min(max(sizes, default=1024), _LARGEST_GRID))
    covered, twice = int((layers > 0).sum()), int((layers > 1).sum())
    outside = ((mesh.uv < -1e-6) | (mesh.uv > 1 + 1e-6)).any(axis=1)
    return {
        "uv": True,
        "uv_coverage": covered / layers.size,
        "uv_overlap": twice / max(covered, 1),
        "uv_outside": float(outside.mean()),
    }


def _materials(parts: list) -> list:
    """The material of every part that has one."""
    return [part.visual.material for part in parts if getattr(part.visual, "material", None) is not None]


def _textures(parts: list) -> dict[str, tuple[int, int]]:
    """Width and height of all images, by their purpose."""
    kinds = ("baseColorTexture", "image", "normalTexture", "metallicRoughnessTexture", "occlusionTexture", "emissiveTexture")
    names = {"baseColorTexture": "color", "image": "color", "normalTexture": "normal"}
    images: dict[str, tuple[int, int]] = {}
    for material in _materials(parts):
        for kind in kinds:
            image = getattr(material, kind, None)
            if image is not None:
                images.setdefault(names.get(kind, kind), tuple(image.size))
    return images


def _material(parts: list) -> dict:
    """Constants of the first material."""
    for material in _materials(parts):
        values = {name: getattr(material, f"{name}Factor", None) for name in ("roughness", "metallic")}
        values["double-sided"] = getattr(material, "doubleSided", None)
        words = {name: getattr(material, "kwargs", {}).get(name.lower()) for name in ("Ns", "Pr", "Pm", "d", "Tr")}
        old = {name: value[0] if isinstance(value, list) else value for name, value in words.items() if value is not None}
        return {name: value for name, value in values.items() if value is not None} | old
    return {}
