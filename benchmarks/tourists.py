"""Tourist photographs of a known mesh: other light, camera, size and passers-by in each, in the layout of phototourism.

The renderer is that of the other benchmarks (ray casting by trimesh and Embree) and shares nothing with the program. The mesh
stands on a plaza under a sky. H rows, W columns, P points.
"""

import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.inverse_rendering import Colors, Lens, pixel_directions, render
from nerf.core.cameras import look_at

ARC = 70.0  # degrees to either side of the front from which tourists look
DISTANCES = (1.1, 2.2)  # of the cameras from the middle, in diagonals of the mesh
HEIGHTS = (0.05, 0.45)  # of the cameras above the plaza, in diagonals
FOCALS = (0.8, 1.5)  # focal lengths, in longer sides of the picture
SIZES = (0.75, 1.0)  # of the pictures, in the size that is asked for
UPRIGHT = 0.3  # share of the pictures that are higher than wide
MOST_PEOPLE = 3
MESH_POINTS, PLAZA_POINTS = 4000, 1000  # of the reconstruction
WAVES = 24  # of which textures are made
HELD_OUT = 50  # every so many photographs one is for testing


@dataclass(frozen=True)
class Light:
    """The light of one photograph, for linear colours."""

    sun: np.ndarray  # [3] unit, towards it
    sunlight: np.ndarray  # [3]
    ambient: np.ndarray  # [3]
    sky: np.ndarray  # [3]
    exposure: float

    def of(self, color: np.ndarray, normal: np.ndarray) -> np.ndarray:
        """Matt surfaces of colours [..., 3] and unit normals [..., 3] in this light."""
        lit: np.ndarray = color * (self.ambient + self.sunlight * np.clip(normal @ self.sun, 0, None)[..., None])
        return lit

    def as_json(self) -> dict:
        """The numbers as plain lists."""
        return {name: np.asarray(value).tolist() for name, value in vars(self).items()}


def draw_light(rng: np.random.Generator) -> Light:
    """Noon, evening, clouds or night, and everything between them."""
    turn, height = rng.uniform(-1.2, 1.2), rng.uniform(0.15, 1.3)
    sun = np.array([np.sin(turn) * np.cos(height), np.sin(height), np.cos(turn) * np.cos(height)])
    warm, clouds, night = 1 - np.sin(height), rng.uniform(0, 1), rng.random() < 0.12
    tint = np.array([1.0, 1 - 0.25 * warm, 1 - 0.55 * warm])
    strength = 0.15 if night else 1.0
    sunlight = strength * (1 - 0.8 * clouds) * tint
    ambient = strength * (0.25 + 0.35 * clouds) * np.array([0.9, 0.95, 1.1])
    sky = strength * ((1 - clouds) * np.array([0.35, 0.55, 0.95]) + clouds * np.array([0.75, 0.77, 0.8])) * (1 - 0.3 * warm)
    return Light(sun, sunlight, ambient, sky, float(rng.uniform(0.7, 1.3) * (2.0 if night else 1.0)))


def waves(scale: float, seed: int) -> Callable[[np.ndarray], np.ndarray]:
    """A smooth texture: colours [P, 3] in [0.1, 0.9] of points [P, 3], with details of ``scale`` and larger ones."""
    rng = np.random.default_rng(seed)
    wave = rng.normal(size=(3, WAVES)) * np.geomspace(0.15, 1.0, WAVES) / scale
    phase, strength = rng.uniform(0, 2 * np.pi, WAVES), rng.normal(size=(WAVES, 3)) / np.sqrt(WAVES)
    return lambda points: np.clip(0.5 + 0.4 * np.sin(points @ wave + phase) @ strength, 0.1, 0.9)


@dataclass(frozen=True)
class Place:
    """What tourists look at: a mesh on a plaza."""

    mesh: object  # of trimesh
    color_of: Colors
    plaza: Callable[[np.ndarray], np.ndarray]

    @property
    def centre(self) -> np.ndarray:
        """The middle of the mesh's box [3]."""
        middle: np.ndarray = self.mesh.bounds.mean(0)  # type: ignore[attr-defined]
        return middle

    @property
    def diagonal(self) -> float:
        """Of the mesh's box."""
        return float(np.linalg.norm(np.ptp(self.mesh.bounds, axis=0)))  # type: ignore[attr-defined]

    @property
    def floor(self) -> float:
        """Height of the plaza."""
        return float(self.mesh.bounds[0, 1])  # type: ignore[attr-defined]


def place_of(mesh, color_of: Colors | None = None) -> Place:
    """A place with a mesh of trimesh; without ``color_of`` it has a texture of waves."""
    diagonal = float(np.linalg.norm(np.ptp(mesh.bounds, axis=0)))
    stone = waves(0.03 * diagonal, 1)
    return Place(mesh, color_of or (lambda triangle, points: stone(points)), waves(0.05 * diagonal, 2))


def draw_camera(place: Place, size: tuple[int, int], rng: np.random.Generator) -> tuple[np.ndarray, Lens]:
    """Pose [4, 4] and lens of a tourist; ``size`` is the largest picture, width and height."""
    turn, diagonal = np.radians(rng.uniform(-ARC, ARC)), place.diagonal
    away = rng.uniform(*DISTANCES) * diagonal
    position = place.centre + away * np.array([np.sin(turn), 0.0, np.cos(turn)])
    position[1] = place.floor + rng.uniform(*HEIGHTS) * diagonal
    target = place.centre + rng.normal(0, 0.07 * diagonal, 3)
    pose = look_at(torch.from_numpy(position)[None], torch.from_numpy(target)).numpy()[0]
    width, height = (max(32, round(side * rng.uniform(*SIZES))) for side in size)
    if rng.random() < UPRIGHT:
        width, height = height, width
    return pose, Lens(width, height, max(width, height) * rng.uniform(*FOCALS), samples=1)


def behind(place: Place, pose: np.ndarray, lens: Lens, light: Light) -> np.ndarray:
    """Plaza and sky [H, W, 3] of all rays of a camera."""
    rays = pixel_directions(pose, lens)
    rays = rays / np.linalg.norm(rays, axis=1, keepdims=True)
    down = -rays[:, 1]
    reach = (pose[1, 3] - place.floor) / np.where(down > 1e-4, down, 1.0)
    points = pose[:3, 3] + reach[:, None] * rays
    ground = light.of(place.plaza(points), np.array([0.0, 1.0, 0.0]))
    far = np.exp(-reach / (20 * place.diagonal))[:, None]  # haze
    sky = light.sky * (0.6 + 0.4 * np.clip(rays[:, 1:2], 0, 1) / 0.7)
    color: np.ndarray = np.where(down[:, None] > 1e-4, far * ground + (1 - far) * 0.6 * light.sky, sky)
    return color.reshape(lens.height, lens.width, 3)


def photograph(place: Place, pose: np.ndarray, lens: Lens, light: Light) -> np.ndarray:
    """The place without people in some light, [H, W, 3] in [0, 1]."""
    seen = render(place.mesh, pose, lens, place.color_of)
    front = light.of(seen.color, seen.normal)
    cover = seen.coverage[..., None]
    linear = light.exposure * (front * cover + behind(place, pose, lens, light) * (1 - cover))
    shown: np.ndarray = np.clip(linear, 0, 1) ** (1 / 1.6)
    return shown


def add_people(picture: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The picture [H, W, 3] with passers-by, and the pixels [H, W] bool that they cover."""
    picture, covered = picture.copy(), np.zeros(picture.shape[:2], bool)
    height, width = covered.shape
    y, x = np.mgrid[:height, :width] + 0.5
    for _ in range(rng.integers(0, MOST_PEOPLE + 1)):
        tall = rng.uniform(0.25, 0.6) * height
        middle, feet = rng.uniform(0, width), height * rng.uniform(0.95, 1.1)
        body = ((x - middle) / (0.16 * tall)) ** 2 + ((y - (feet - 0.42 * tall)) / (0.42 * tall)) ** 2 < 1
        head = (x - middle) ** 2 + (y - (feet - 0.92 * tall)) ** 2 < (0.1 * tall) ** 2
        legs = body & (y > feet - 0.42 * tall)
        for part in (body, legs, head):
            picture[part] = rng.uniform(0.02, 0.95, 3)
        covered |= body | head
    return picture, covered


def write_tourists(mesh, out: Path, count: int, size: tuple[int, int], seed: int, told: Callable[[int], object]) -> None:
    """Fill an empty folder: ``dense/images``, ``dense/sparse``, ``tourists.tsv``, and ``truth`` with masks and lights.

    Args:
        mesh: of trimesh, +Y up.
        out: the folder.
        count: photographs.
        size: width and height of the largest.
        seed: of everything that is drawn.
        told: is called with the number of photographs that are written.
    """
    from PIL import Image

    place, rows, lights, shots = place_of(mesh), ["filename\tid\tsplit\tdataset"], {}, []
    for folder in ("dense/images", "dense/sparse", "truth/occluders"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    for i in range(count):
        rng, name = np.random.default_rng([seed, i]), f"{i:05d}.jpg"
        (pose, lens), light = draw_camera(place, size, rng), draw_light(rng)
        picture, covered = add_people(photograph(place, pose, lens, light), rng)
        Image.fromarray(np.rint(255 * picture).astype(np.uint8)).save(out / "dense" / "images" / name, quality=92)
        Image.fromarray(np.where(covered, np.uint8(255), np.uint8(0))).save(out / "truth" / "occluders" / f"{i:05d}.png")
        rows.append(f"{name}\t{i}\t{'test' if i % HELD_OUT == HELD_OUT - 1 else 'train'}\ttourists")
        lights[name] = light.as_json()
        shots.append((name, pose, lens))
        told(i + 1)
    write_model(out / "dense" / "sparse", shots, scene_points(place, np.random.default_rng([seed, count])))
    (out / "tourists.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    (out / "truth" / "lights.json").write_text(json.dumps(lights, indent=1), encoding="utf-8")


def scene_points(place: Place, rng: np.random.Generator) -> np.ndarray:
    """Points [P, 3] of the mesh and of the plaza around it, as a reconstruction finds them."""
    import trimesh

    on_mesh, _ = trimesh.sample.sample_surface(place.mesh, MESH_POINTS, seed=int(rng.integers(2**31)))
    flat = rng.normal(0, 0.7 * place.diagonal, (PLAZA_POINTS, 3)) + place.centre
    flat[:, 1] = place.floor
    return np.concatenate([np.asarray(on_mesh), flat])


def write_model(folder: Path, shots: list[tuple[str, np.ndarray, Lens]], points: np.ndarray) -> None:
    """Write a model of COLMAP in binary files, a PINHOLE camera for each photograph.

    Args:
        folder: gets cameras.bin, images.bin and points3D.bin.
        shots: name, pose [4, 4] with OpenGL axes, and lens of each photograph.
        points: [P, 3].
    """
    from scipy.spatial.transform import Rotation

    cameras = images = struct.pack("<Q", len(shots))
    for i, (name, pose, lens) in enumerate(shots, 1):
        cameras += struct.pack(
            "<iiQQ4d", i, 1, lens.width, lens.height, lens.focal, lens.focal, lens.width / 2, lens.height / 2
        )
        rotation = np.diag([1.0, -1.0, -1.0]) @ pose[:3, :3].T
        x, y, z, w = Rotation.from_matrix(rotation).as_quat()
        images += (
            struct.pack("<i7di", i, w, x, y, z, *(-rotation @ pose[:3, 3]), i) + name.encode() + b"\0" + struct.pack("<Q", 0)
        )
    found = b"".join(struct.pack("<Q3d3BdQ", k, *point, 128, 128, 128, 0.5, 0) for k, point in enumerate(points))
    for stem, data in (("cameras", cameras), ("images", images), ("points3D", struct.pack("<Q", len(points)) + found)):
        (folder / f"{stem}.bin").write_bytes(data)
