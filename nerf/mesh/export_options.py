"""The options of an export, as the flags of a run give them."""

from dataclasses import dataclass

from nerf.config.groups import CameraConfig, OutputConfig
from nerf.config.mesh import MeshConfig
from nerf.mesh.hidden import Cameras, hidden_from
from nerf.mesh.io import Material

DEFAULTS, CAMERAS = MeshConfig(), CameraConfig()


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """The options of an export. Flags have their defaults and ranges in ``OutputConfig`` and ``MeshConfig`` alone.

    A texture of 1024 takes 1 s and little memory for a field of negligible cost, one of 4096 12 s of one core and 1 GB, with
    ``supersample=2`` 35 s and no more memory; a real field is evaluated once for each sample, which takes longer.
    """

    resolution: int  # grid cells along an edge from which a level set is extracted
    smooth: float  # standard deviation, in these cells, of the Gaussian that smooths the level set first; 0 for none
    denoise: float  # scene units over which bumps of the mesh are smoothed while its edges stay; 0: none
    decimate_target: int  # approximate number of triangles to keep; 0 or less keeps all
    max_error: float  # scene units by which decimation may move the surface; more triangles are kept for it; 0: any
    texture_size: int  # texels along an edge of the texture
    supersample: int  # a texel is the mean of n x n colours
    normal_map: bool  # write the normals of the surface before its decimation as a tangent-space image
    material: Material
    ply: bool  # write mesh.ply with vertex colours as well
    stl: bool  # write mesh.stl, the shape alone, as well
    ground: bool  # put the lowest point at y = 0 of the files, and a flat base into one plane
    fill_hidden: Cameras | None  # fill the hollows of a field that none of these cameras sees; None: leave them
    min_part: float  # parts of at least this share of the largest one's volume are kept
    export_frame: str  # "object": undo the data's scale and offset, keep +Y up; "source": undo all of its transform
    crop: tuple[float, ...] | None = (
        None  # x0 y0 z0 x1 y1 z1 in the coordinates of the files, outside of which nothing is written
    )

    @classmethod
    def from_config(cls, output: OutputConfig, mesh: MeshConfig = DEFAULTS, camera: CameraConfig = CAMERAS) -> "ExportOptions":
        """The options that the flags of a run give."""
        return cls(
            resolution=output.mcubes_resolution,
            smooth=output.mesh_smooth,
            denoise=mesh.mesh_denoise,
            decimate_target=output.decimate_target,
            max_error=output.decimate_error,
            texture_size=output.texture_size,
            supersample=output.texture_supersample,
            normal_map=output.normal_map,
            material=Material(output.roughness, output.metallic),
            ply=output.mesh_ply or "ply" in mesh.mesh_formats,
            stl="stl" in mesh.mesh_formats,
            ground=mesh.ground,
            export_frame=output.export_frame,
            crop=mesh.mesh_crop,
            min_part=mesh.mesh_min_part,
            fill_hidden=hidden_from(mesh, camera),
        )
