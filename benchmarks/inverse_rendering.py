"""How accurately the mesh stage reconstructs a known surface from images of it.

    python -m benchmarks.inverse_rendering MESH [--pictures normals|photographs] [--workspace DIR] [any flags of main.py]

An independent renderer (ray casting by trimesh and Embree) makes posed images of the mesh: silhouettes with normals, or
shaded photographs with masks only. ``main.py --data`` is trained on them like on any data set, and the mesh that it writes
is compared with the original as by ``scripts/evaluate_mesh.py``: the Chamfer distance as a percentage of the diagonal of the
original's bounding box. B images of H x W or S x S pixels, P points or rays.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.records import read_result
from nerf.core.cameras import look_at
from nerf.core.files import reading
from nerf.core.ranges import between
from nerf.core.script import Parser, run
from nerf.mesh import compare

Colors = Callable[[np.ndarray, np.ndarray], np.ndarray]

MAIN = Path(__file__).resolve().parent.parent / "main.py"
FOV = 40.0  # degrees, both ways
DISTANCE = 1.45  # of the cameras from the middle, in diagonals of the box
LIGHT, AMBIENT, GREY = np.array([0.4, 0.8, 0.45]), 0.3, 0.9
SUPERSAMPLE = 3  # rays per pixel along each axis


def camera_poses(count: int, centre: np.ndarray, distance: float, turned: float = 0.0) -> np.ndarray:
    """Camera-to-world matrices [B, 4, 4], OpenGL axes, on a Fibonacci sphere around ``centre``, ``turned`` by degrees."""
    index = np.arange(count) + 0.5
    height, turn = 1 - 2 * index / count, np.pi * (1 + 5**0.5) * index + np.radians(turned)
    flat = np.sqrt(1 - height**2)
    back = np.stack([flat * np.sin(turn), height, flat * np.cos(turn)], -1)
    return look_at(torch.from_numpy(centre + distance * back), torch.from_numpy(np.array(centre, np.float64))).numpy()


@dataclass(frozen=True)
class Picture:
    """What ray casting sees of a mesh, averaged over the rays of each pixel."""

    coverage: np.ndarray  # [H, W] in [0, 1]
    normal: np.ndarray  # [H, W, 3] unit, world axes, 0 where empty
    color: np.ndarray  # [H, W, 3] of what is covered, 0 where nothing is


@dataclass(frozen=True)
class Lens:
    """A pinhole in the middle of a picture."""

    width: int  # pixels
    height: int
    focal: float  # pixels
    samples: int = SUPERSAMPLE  # rays per pixel along each axis

    @property
    def blocks(self) -> tuple[int, int, int, int]:
        """The shape of values of all rays, in which axes 1 and 3 are those of one pixel."""
        return self.height, self.samples, self.width, self.samples


def square_lens(size: int) -> Lens:
    """The lens of a picture of S x S pixels that sees :data:`FOV` both ways."""
    return Lens(size, size, size / 2 / np.tan(np.radians(FOV) / 2))


def pixel_directions(pose: np.ndarray, lens: Lens) -> np.ndarray:
    """Directions [P, 3], not of unit length, of all rays through the pixels of a pose [4, 4], row by row."""
    column, row = ((np.arange(n * lens.samples) + 0.5) / lens.samples for n in (lens.width, lens.height))
    x, y = np.meshgrid(column - lens.width / 2, lens.height / 2 - row)
    local = np.stack([x, y, np.full_like(x, -lens.focal)], -1).reshape(-1, 3) / lens.focal
    directions: np.ndarray = local @ pose[:3, :3].T
    return directions


def render(mesh, pose: np.ndarray, lens: Lens, color_of: Colors | None = None) -> Picture:
    """A picture.

    Args:
        mesh: of trimesh.
        pose: camera-to-world [4, 4].
        lens: of the camera.
        color_of: colour [P, 3] of points [P, 3] in triangles [P]; None: grey.
    """
    directions = pixel_directions(pose, lens)
    hit = mesh.ray.intersects_first(np.broadcast_to(pose[:3, 3], directions.shape), directions)
    normals = np.where(hit[:, None] >= 0, mesh.face_normals[hit], 0.0)
    facing = -np.sign((normals * directions).sum(-1, keepdims=True))  # an open mesh may show its back faces
    blocks = lens.blocks
    coverage = (hit >= 0).reshape(blocks).mean((1, 3))
    mean = (normals * facing).reshape(*blocks, 3).mean((1, 3))
    colors = np.zeros((len(hit), 3))
    seen = hit >= 0
    if color_of is None:
        colors[seen] = GREY
    else:
        corner, flat, ray = mesh.triangles[hit[seen], 0], mesh.face_normals[hit[seen]], directions[seen]
        reach = ((corner - pose[:3, 3]) * flat).sum(-1) / (ray * flat).sum(-1)
        colors[seen] = color_of(hit[seen], pose[:3, 3] + reach[:, None] * ray)
    color = colors.reshape(*blocks, 3).mean((1, 3)) / np.maximum(coverage, 1e-9)[..., None]
    return Picture(coverage, mean / np.maximum(np.linalg.norm(mean, axis=-1, keepdims=True), 1e-9), color)


def poses_around(mesh, count: int, turned: float = 0.0) -> np.ndarray:
    """Camera-to-world matrices [B, 4, 4] that see all of a mesh, see :func:`camera_poses`."""
    centre, diagonal = mesh.bounds.mean(0), float(np.linalg.norm(np.ptp(mesh.bounds, axis=0)))
    return camera_poses(count, centre, DISTANCE * diagonal, turned)


def shaded(normal: np.ndarray) -> np.ndarray:
    """Brightness [...] of a matt surface with unit normals [..., 3] under the light of the photographs."""
    light = LIGHT / np.linalg.norm(LIGHT)
    brightness: np.ndarray = AMBIENT + (1 - AMBIENT) * (1 + normal @ light) / 2
    return brightness


def write_views(mesh, folder: Path, pictures: str, poses: np.ndarray, size: int, color_of: Colors | None = None) -> None:
    """Write a data set of images from poses [B, 4, 4] for ``--data``.

    Args:
        mesh: of trimesh.
        folder: gets the files.
        pictures: "normals" (colours without shading, and normals), "photographs" (shaded colours) or "unlit" (colours).
        poses: of the cameras.
        size: pixels along a side.
        color_of: see :func:`render`.
    """
    from PIL import Image

    frames = []
    for i, pose in enumerate(poses):
        seen = render(mesh, pose, square_lens(size), color_of)
        coverage, normal = seen.coverage, seen.normal
        shade = shaded(normal) if pictures == "photographs" else np.ones((size, size))
        rgba = np.concatenate([seen.color * shade[..., None], coverage[..., None]], -1)
        Image.fromarray(np.round(rgba * 255).astype(np.uint8)).save(folder / f"{i:03d}.png")
        frame = {"file_path": f"{i:03d}.png", "transform_matrix": pose.tolist()}
        if pictures == "normals":
            Image.fromarray(np.round((normal + 1) * 127.5).astype(np.uint8)).save(folder / f"{i:03d}_normal.png")
            frame["normal_path"] = f"{i:03d}_normal.png"
        frames.append(frame)
    lens = {"camera_angle_x": float(np.radians(FOV)), "w": size, "h": size}
    (folder / "transforms.json").write_text(json.dumps(lens | {"frames": frames}), encoding="utf-8")


def main(argv: list[str] | None = None) -> int:
    """Render the images, run the command line, and print the measures; returns the exit code of the run."""
    import trimesh

    parser = Parser(
        prog="benchmarks.inverse_rendering", description=__doc__.split("\n", 1)[0],
        epilog="Other flags go to main.py as they are.",
    )  # fmt: skip
    parser.add_argument("mesh", type=Path, help="the known surface, OBJ, GLB or PLY")
    parser.add_argument("--pictures", choices=("normals", "photographs"), default="normals", help="what the images show")
    parser.number("--count", int, 32, between(4, 1000), "number of images")
    parser.number("--size", int, 256, between(8, 4096), "pixels along a side")
    parser.add_argument("--workspace", help="where the run writes; a temporary folder by default")
    args, extra = parser.parse_known_args(argv)
    with reading(f"mesh {args.mesh}", "give an OBJ, GLB or PLY with triangles"):
        truth = trimesh.load(args.mesh, force="mesh", process=False)
    with tempfile.TemporaryDirectory() as temporary:
        views = Path(temporary) / "views"
        views.mkdir()
        write_views(truth, views, args.pictures, poses_around(truth, args.count), args.size)
        workspace = Path(args.workspace or Path(temporary) / "run")
        words = [sys.executable, str(MAIN), "--data", str(views), "--workspace", str(workspace), "--dmtet", "--save_mesh",
                 "--holdout", "0", "--export_frame", "source", "--ckpt", "scratch", *extra]  # fmt: skip
        print(" ".join(words), flush=True)
        code = subprocess.run(words, check=False).returncode
        if code != 0:
            return code
        result = read_result(workspace)
        found = compare.compare(compare.read_shape(workspace / "mesh" / "mesh.glb"), compare.read_shape(args.mesh), ())
    there, back = (100 * d / found.diagonal for d in (found.accuracy, found.completeness))
    print(f"Chamfer distance {found.chamfer_percent:.3f} % of the diagonal (found to true {there:.3f}, "
          f"true to found {back:.3f}), "
          f"{result.mesh.faces:,} triangles, watertight {result.mesh.watertight}, "
          f"training {result.train_seconds:.0f} s, altogether {result.seconds:.0f} s")  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
