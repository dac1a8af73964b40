"""How accurately --lock_geo reproduces the texture of a mesh from photographs of it, and that nothing else changes.

    python -m benchmarks.paint MESH --texture PNG [--pictures unlit|photographs] [--workspace DIR] [any flags of main.py]

An independent renderer (ray casting by trimesh and Embree) makes posed photographs of the mesh with its texture.
``main.py --data --lock_geo --init_with MESH`` is trained on them; the mesh itself is given without its texture. The texture
that it writes is compared with the original at every texel that a photograph shows: those whose surface point is not hidden
and is seen at less than 84 degrees from its normal. B views, S x S pixels or texels, P points or texels, T triangles.
"""

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from benchmarks.inverse_rendering import MAIN, Colors, poses_around, render, square_lens, write_views
from benchmarks.records import read_result
from nerf.core.errors import UserError
from nerf.core.files import reading
from nerf.core.images import contact_sheet, write_png
from nerf.core.pictures import open_picture
from nerf.core.ranges import between
from nerf.core.script import Parser, run
from nerf.mesh.mesh import Mesh, vertex_normals
from nerf.mesh.paint import UvLayout
from nerf.mesh.source import SourceMesh, read_source
from nerf.mesh.surface_colors import lookup
from nerf.mesh.texture import rasterize_uv

LEAST_COSINE = 0.1  # between the normal and the direction to a camera that shows a texel
ABOVE = 1e-4  # of the diagonal: how far above the surface the rays to the cameras begin
SHOWN = ((15, 70), (135, 70), (225, 100), (315, 120), (0, 170), (180, 10))  # azimuth, polar in degrees: all around, and below


class Result(msgspec.Struct):
    """What is read of ``result.json``."""

    seconds: float
    train_seconds: float
    test_psnr: float | None = None


class Error(NamedTuple):
    """Differences of sRGB colours in [0, 1] over visible texels."""

    mean: float  # absolute
    rms: float
    high: float  # 95 % of the texels differ less, in the mean over the channels
    visible: float  # share of the texels of the layout


def read_texture(path: Path) -> np.ndarray:
    """A picture as colours [H, W, 3] in [0, 1]."""
    with open_picture(path.read_bytes(), f"texture {path}", "give a PNG or JPEG") as picture:
        return np.asarray(picture.convert("RGB")) / 255.0


def solid_of(source: SourceMesh):
    """The mesh of trimesh with the triangles of a file, in their order."""
    import trimesh

    return trimesh.Trimesh(source.placed, source.faces, process=False, validate=False)


def colors_of(source: SourceMesh, texture: np.ndarray) -> Colors:
    """What a texture [H, W, 3] shows at points in triangles, by exact barycentric coordinates."""
    corners, uv = source.placed[source.faces], source.uv[source.uv_faces]

    def color(triangle: np.ndarray, point: np.ndarray) -> np.ndarray:
        a, b, c = np.moveaxis(corners[triangle], 1, 0)
        normal = np.cross(b - a, c - a)
        area = np.maximum((normal * normal).sum(-1), 1e-300)
        second = (np.cross(point - a, c - a) * normal).sum(-1) / area
        third = (np.cross(b - a, point - a) * normal).sum(-1) / area
        weights = np.clip(np.stack([1 - second - third, second, third], axis=1), 0, 1)
        return lookup(texture, (uv[triangle] * weights[:, :, None]).sum(1) / weights.sum(1)[:, None])

    return color


def visible_texels(source: SourceMesh, poses: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Where the texels of a layout are that some camera shows.

    Args:
        source: mesh with uv.
        poses: camera-to-world [B, 4, 4].
        size: S.

    Returns:
        The uv [P, 2] of the centres of all texels of the layout, and which [P] are visible.
    """
    triangle, uv = UvLayout(source.uv, source.uv_faces).copies()
    own = np.arange(3 * len(triangle)).reshape(-1, 3)
    texels = rasterize_uv(uv.reshape(-1, 2), own, size)
    corners = Mesh(source.placed[source.faces[triangle]].reshape(-1, 3), own)
    smooth = vertex_normals(Mesh(source.placed, source.faces))[source.faces[triangle]].reshape(-1, 3)
    points, normals = texels.interpolate(corners, corners.vertices), texels.interpolate(corners, smooth)
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
    solid, seen = solid_of(source), np.zeros(len(texels), dtype=bool)
    begin = points + normals * ABOVE * np.linalg.norm(np.ptp(solid.bounds, axis=0))
    for pose in poses:
        to_camera = pose[:3, 3] - begin
        to_camera /= np.linalg.norm(to_camera, axis=1, keepdims=True)
        facing = np.flatnonzero(~seen & ((to_camera * normals).sum(1) > LEAST_COSINE))
        seen[facing] = ~solid.ray.intersects_any(begin[facing], to_camera[facing])
    centre = np.stack([texels.index % size + 0.5, size - texels.index // size - 0.5], axis=1) / size
    return centre, seen


def texture_error(source: SourceMesh, found: np.ndarray, truth: np.ndarray, poses: np.ndarray) -> Error:
    """Compare a texture [S, S, 3] with the true one [H, W, 3] at the texels that cameras [B, 4, 4] show."""
    uv, seen = visible_texels(source, poses, len(found))
    away = np.abs(lookup(found, uv[seen]) - lookup(truth, uv[seen]))
    return Error(
        float(away.mean()), float(np.sqrt(np.square(away).mean())), float(np.quantile(away.mean(1), 0.95)), float(seen.mean())
    )


def unchanged(source: SourceMesh, path: Path) -> bool:
    """Whether a written OBJ or GLB has the vertices, triangles and uv of a mesh, the GLB as float32, to the bit."""
    read = read_source(path)
    if path.suffix == ".obj":
        pairs = ("vertices", "faces", "polygon", "uv", "uv_faces")
        return all(np.array_equal(getattr(read, name), getattr(source, name)) for name in pairs)
    same = np.array_equal(read.vertices[: len(source.vertices)], source.vertices.astype(np.float32).astype(np.float64))
    corners = np.array_equal(read.placed[read.faces], source.placed.astype(np.float32).astype(np.float64)[source.faces])
    return same and corners and np.allclose(read.uv[read.uv_faces], source.uv[source.uv_faces], atol=1e-6)


def sheet(solid, rows: list[Colors], size: int = 256) -> np.ndarray:
    """The mesh under textures, a row for each, from all sides."""
    import torch

    from nerf.core.cameras import look_at

    angles = np.radians(np.array(SHOWN, dtype=np.float64))
    away = np.stack(
        [np.sin(angles[:, 1]) * np.sin(angles[:, 0]), np.cos(angles[:, 1]), np.sin(angles[:, 1]) * np.cos(angles[:, 0])], 1
    )
    centre, reach = solid.bounds.mean(0), 1.45 * np.linalg.norm(np.ptp(solid.bounds, axis=0))
    poses = look_at(torch.from_numpy(centre + reach * away), torch.from_numpy(np.array(centre))).numpy()
    pictures = []
    for color_of in rows:
        for pose in poses:
            seen = render(solid, pose, square_lens(size), color_of)
            shade = 0.55 + 0.45 * np.clip((seen.normal * pose[:3, 2]).sum(-1), 0, 1)
            pictures.append(seen.color * shade[..., None] * seen.coverage[..., None] + 1 - seen.coverage[..., None])
    return contact_sheet([np.round(255 * np.clip(one, 0, 1)).astype(np.uint8) for one in pictures], columns=len(SHOWN))


def main(argv: list[str] | None = None) -> int:
    """Render the photographs, run the command line, and print the measures; returns the exit code of the run."""
    parser = Parser(
        prog="benchmarks.paint", description=__doc__.split("\n", 1)[0], epilog="Other flags go to main.py as they are."
    )
    parser.add_argument("mesh", type=Path, help="a mesh with uv, OBJ, GLB or PLY")
    parser.add_argument("--texture", type=Path, required=True, help="its true texture, PNG or JPEG")
    parser.add_argument("--pictures", choices=("unlit", "photographs"), default="unlit", help="plain colours, or shaded ones")
    parser.number("--count", int, 32, between(4, 1000), "number of photographs")
    parser.number("--size", int, 256, between(8, 4096), "pixels along a side")
    parser.number("--turned", float, 0.0, between(-360, 360), "degrees by which the cameras are turned about the mesh")
    parser.add_argument("--workspace", help="where the run writes; a temporary folder by default")
    parser.add_argument("--sheet", type=Path, help="picture to write: the truth above, what was found below")
    args, extra = parser.parse_known_args(argv)
    source = read_source(args.mesh)
    if not len(source.uv_faces):
        raise UserError(f"mesh {args.mesh} has no uv, so there is no texture to compare with; give one that has some")
    with reading(f"texture {args.texture}", "give a PNG or JPEG"):
        truth = read_texture(args.texture)
    solid = solid_of(source)
    poses = poses_around(solid, args.count, args.turned)
    with tempfile.TemporaryDirectory() as temporary:
        views = Path(temporary) / "views"
        views.mkdir()
        write_views(solid, views, args.pictures, poses, args.size, colors_of(source, truth))
        workspace = Path(args.workspace or Path(temporary) / "run")
        words = [sys.executable, str(MAIN), "--data", str(views), "--workspace", str(workspace), "--dmtet", "--lock_geo",
                 "--init_with", str(args.mesh), "--no_init_colors", "--save_mesh", "--export_frame", "source",
                 "--ckpt", "scratch", *extra]  # fmt: skip
        print(" ".join(words), flush=True)
        code = subprocess.run(words, check=False).returncode
        if code != 0:
            return code
        result, folder = read_result(workspace, Result), workspace / "mesh"
        found = read_texture(folder / "albedo.png")
        kept = {name: unchanged(source, folder / name) for name in ("mesh.obj", "mesh.glb")}
    error = texture_error(source, found, truth, poses)
    print(f"albedo error {error.mean:.4f} mean, {error.rms:.4f} rms, below {error.high:.4f} at 95 % of the visible texels "
          f"({100 * error.visible:.0f} % of the layout); {', '.join(f'{name} {_said(same)}' for name, same in kept.items())}; "
          f"{'' if result.test_psnr is None else f'held-out PSNR {result.test_psnr:.1f} dB, '}"
          f"training {result.train_seconds:.0f} s, altogether {result.seconds:.0f} s")  # fmt: skip
    if args.sheet is not None:
        write_png(args.sheet, sheet(solid, [colors_of(source, truth), colors_of(source, found)]))
    return 0 if all(kept.values()) else 1


def _said(same: bool) -> str:
    return "unchanged to the bit" if same else "CHANGED"


if __name__ == "__main__":
    sys.exit(run(main))
