"""What the render paths that rasterise triangles share, and the paths of a mesh whose triangles stay as they are.

V vertices, T triangles, K normals, B views, N = B * H * W rays, M of them covered.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from nerf.core.cameras import clip_space
from nerf.core.structs import FieldOutput, Rays, RenderSettings, join_records
from nerf.fields.base import QUERY_CHUNK, Field
from nerf.mesh.mesh import Mesh, merged, moved, moved_normals, vertex_normals
from nerf.mesh.source import SourceMesh
from nerf.mesh.tetrahedra import Surface
from nerf.render.base import RaySums, RenderPath, points_on, sample_colours, split_extras
from rasterizer import antialias, edge_adjacency, interpolate, rasterize


@dataclass(frozen=True)
class Triangles:
    """What is rasterised: positions, and normals with indices of their own."""

    vertices: Tensor  # [V, 3] scene units
    faces: Tensor  # [T, 3] int64; triangles that touch share their vertices
    normals: Tensor  # [K, 3] outward, of any length
    normal_faces: Tensor  # [T, 3] int64, normal of each corner; the faces themselves where K is V
    edges: Tensor | None = None  # [T, 3] int32 of ``rasterizer.edge_adjacency``, where the faces are used more than once
    two_sided: bool = False  # normals are turned towards the camera, as sheets are seen from behind


class TrianglePath(RenderPath):
    """A path that rasterises triangles, and asks the field for the colour at the one point that each pixel shows.

    Args:
        bound: half the edge of the box that the field lives in, scene units.
        min_near: near plane of the cameras, scene units.
    """

    whole_images = True

    def __init__(self, bound: float, min_near: float):
        super().__init__()
        self.bound, self.min_near = bound, min_near

    def _rasterised(self, shape: Triangles, field: Field, rays: Rays, settings: RenderSettings) -> RaySums:
        """Sums of N rays, antialiased at silhouettes; the caller has checked that the rays are whole images."""
        assert rays.views is not None and rays.shape is not None
        b, h, w = rays.shape
        if settings.crop is not None:
            shape = cropped(shape, settings.crop)
        clip = clip_space(rays.views, shape.vertices, self.min_near, self.bound)
        raster = rasterize(clip, shape.faces, h, w)
        covered = (raster.triangle >= 0).reshape(-1).nonzero()[:, 0]
        if shape.normal_faces is shape.faces:
            attributes = torch.cat([shape.vertices, shape.normals], dim=-1)[None]
            at = interpolate(attributes, raster, shape.faces).reshape(-1, 6)[covered]
        else:
            both = ((shape.vertices, shape.faces), (shape.normals, shape.normal_faces))
            at = torch.cat([interpolate(v[None], raster, f).reshape(-1, 3)[covered] for v, f in both], dim=-1)
        points, normal = at[:, :3], functional.normalize(at[:, 3:], dim=-1)
        if shape.two_sided:
            normal = _towards_camera(normal, shape, raster.triangle.reshape(-1)[covered].long(), rays.directions[covered])
        output = _query_surface(field, points, normal, rays, covered, settings)
        depth = (points - rays.origins[covered]).norm(dim=-1, keepdim=True)
        color = sample_colours(output, rays, settings, covered)
        values = torch.cat([color, torch.ones_like(depth), depth, normal, *output.extras.values()], dim=-1)
        channels = values.shape[1]
        flat = values.new_zeros(len(rays), channels).index_copy(0, covered, values)
        smooth = antialias(flat.reshape(b, h, w, channels), raster, clip, shape.faces, shape.edges).reshape(-1, channels)
        return RaySums(
            color=smooth[:, :3],
            opacity=smooth[:, 3].clamp(0.0, 1.0),
            depth=smooth[:, 4],
            normal=smooth[:, 5:8] if settings.computes_normals else None,
            extras=split_extras(smooth[:, 8:], output),
        )


def cropped(shape: Triangles, crop: Tensor) -> Triangles:
    """The triangles whose middle is in the box ``crop`` [6], low and high corner."""
    middle = shape.vertices[shape.faces].mean(dim=1)
    kept = ((middle >= crop[:3].to(middle)) & (middle <= crop[3:].to(middle))).all(dim=-1)
    faces = shape.faces[kept]
    normal_faces = faces if shape.normal_faces is shape.faces else shape.normal_faces[kept]
    return replace(shape, faces=faces, normal_faces=normal_faces, edges=None)


def check_whole_images(rays: Rays, path: str) -> None:
    """Refuse rays that are not whole images of known cameras, which alone can be rasterised.

    Raises:
        ValueError: they are not.
    """
    if rays.views is None or rays.shape is None:
        raise ValueError(f"{path}: expected Rays of whole images with their views; make them with cameras.view_rays")


def _towards_camera(normal: Tensor, shape: Triangles, triangle: Tensor, directions: Tensor) -> Tensor:
    """Normals [M, 3] on the side of the triangles [M] that rays of directions [M, 3] come from."""
    a, b, c = shape.vertices[shape.faces[triangle]].unbind(1)
    flat = torch.linalg.cross(b - a, c - a)
    outside = torch.where((normal * flat).sum(-1) < 0, -1.0, 1.0)  # of the winding, against the normals of the file
    seen = torch.where((flat * directions).sum(-1) > 0, -1.0, 1.0)
    return normal * (outside * seen)[:, None]


def _query_surface(
    field: Field, positions: Tensor, normal: Tensor, rays: Rays, ray_index: Tensor, settings: RenderSettings
) -> FieldOutput:
    """The field's output at the visible points [M, 3] of the rays of index [M], with the surface's normals [M, 3]."""
    without_normals = replace(settings, shading="albedo", need_normals=False)
    size = max(len(positions), 1) if settings.training else QUERY_CHUNK
    outputs = []
    for place, index in zip(positions.split(size), ray_index.split(size), strict=True):
        outputs.append(field.query(points_on(place, index, rays), without_normals))
    return replace(join_records(outputs, torch.cat), normal=normal)


class StaticPath(TrianglePath):
    """Triangles that are rasterised as they are; the field is their colour, and nothing of the path is trained."""

    def _triangles(self) -> Triangles:
        """What is rasterised."""
        raise NotImplementedError

    def surface(self) -> Surface:
        """The triangles in the box, with vertices of equal positions joined; there is no grid, so no edges of one."""
        shape = self._triangles()
        return Surface(shape.vertices, shape.faces, shape.faces.new_zeros(0, 2))

    def render(self, field: Field, rays: Rays, settings: RenderSettings) -> RaySums:
        """Rasterise whole images, N = B * H * W; see :meth:`RenderPath.render`.

        Opacity is antialiased coverage, depth that of the surface. Differentiable in the field's colours alone.

        Raises:
            ValueError: the rays are not whole images of known cameras.
        """
        check_whole_images(rays, type(self).__name__)
        with torch.autocast(rays.origins.device.type, enabled=False):
            return self._rasterised(self._triangles(), field, rays, settings)


class SurfacePath(StaticPath):
    """A welded mesh with normals, such as that of an export, in place of a surface that is trained.

    Args:
        bound, min_near: see :class:`TrianglePath`.
        mesh: in the box.
        device: on which it is rasterised.
    """

    def __init__(self, bound: float, min_near: float, mesh: Mesh, device: torch.device):
        super().__init__(bound, min_near)
        vertices, normals = (torch.from_numpy(one).float().to(device) for one in (mesh.vertices, mesh.require("normals")))
        faces = torch.from_numpy(mesh.faces).to(device)
        self._shape = Triangles(vertices, faces, normals, faces, edge_adjacency(faces), two_sided=True)

    def _triangles(self) -> Triangles:
        """Those of the mesh."""
        return self._shape


_SOURCE = {
    "vertices": torch.float64,
    "faces": torch.int64,
    "polygon": torch.int64,
    "place": torch.int64,
    "uv": torch.float64,
    "uv_faces": torch.int64,
    "normals": torch.float64,
    "normal_faces": torch.int64,
    "node": torch.float64,
    "digest": torch.uint8,
}  # entries of a SourceMesh, each a buffer of that name after "source_"


class FixedMeshPath(StaticPath):
    """The triangles of a mesh file, whose numbers are those of the state.

    Args:
        bound, min_near: see :class:`TrianglePath`.

    Buffers: the numbers of the file (``source_vertices`` and so on, see :class:`SourceMesh`), so that a checkpoint needs no
    other file, and ``to_box`` [4, 4] from the space of the file to the box. Without a mesh until :meth:`set_mesh`, or until
    a checkpoint is loaded.
    """

    to_box: Tensor

    def __init__(self, bound: float, min_near: float):
        super().__init__(bound, min_near)
        for name, dtype in _SOURCE.items():
            self.register_buffer(f"source_{name}", torch.zeros(0, dtype=dtype))
        self.register_buffer("to_box", torch.eye(4, dtype=torch.float64))
        self._shape: Triangles | None = None
        self.register_load_state_dict_post_hook(lambda path, _: path.forget())

    def forget(self) -> None:
        """Compute what is rasterised anew, as the buffers have changed."""
        self._shape = None

    def set_mesh(self, source: SourceMesh, to_box: np.ndarray) -> None:
        """Render this mesh from now on; ``to_box`` [4, 4] maps the space of its file into the box."""
        for name, dtype in _SOURCE.items():
            setattr(self, f"source_{name}", torch.from_numpy(getattr(source, name).copy()).to(self.to_box.device, dtype))
        self.to_box.copy_(torch.from_numpy(to_box))
        self.forget()

    def painted(self) -> tuple[SourceMesh, np.ndarray]:
        """The mesh of the file, and the matrix [4, 4] from its space to the box."""
        arrays = {name: getattr(self, f"source_{name}").cpu().numpy() for name in _SOURCE}
        return SourceMesh(**arrays), self.to_box.cpu().numpy()

    def make_room(self, state: Mapping[str, Any]) -> None:
        """Take the shapes of the mesh in the state of a path, so that it can be loaded."""
        for name, dtype in _SOURCE.items():
            value = state.get(f"source_{name}")
            if isinstance(value, Tensor):
                setattr(self, f"source_{name}", torch.zeros(value.shape, dtype=dtype, device=self.to_box.device))
        self.forget()

    def _triangles(self) -> Triangles:
        """What is rasterised, on the device of the buffers."""
        device = self.to_box.device
        if self._shape is None or self._shape.vertices.device != device:
            source, to_box = self.painted()
            unique, index = merged(moved(source.placed, to_box))
            faces = index[source.faces]
            if len(source.normals):
                normals, normal_faces = moved_normals(source.normals, to_box @ source.node), source.normal_faces
            else:
                normals, normal_faces = vertex_normals(Mesh(unique, faces)), faces
            tensors = [torch.from_numpy(one).float().to(device) for one in (unique, normals)]
            index_of = torch.from_numpy(faces).to(device)
            corners = index_of if normal_faces is faces else torch.from_numpy(normal_faces).to(device)
            self._shape = Triangles(tensors[0], index_of, tensors[1], corners, edge_adjacency(index_of), two_sided=True)
        return self._shape
