"""Photographs of known meshes for benchmarks: rendered by ray casting (trimesh and Embree), with or without masks.

The renderer shares nothing with the rasteriser of the program. B cameras, S x S pixels, P points.
"""

import json
from pathlib import Path

import numpy as np

from benchmarks.inverse_rendering import FOV, SUPERSAMPLE, Colors, pixel_directions, poses_around, render, shaded, square_lens
from nerf.core.images import write_png

SPLITS = ("train", "test")
ROOM = 4.0  # radius of the textured sphere around the scene, in distances of the cameras
WAVES = 32  # of which its texture is made
HELD_OUT_TURN = 23.0  # degrees by which the held-out cameras are turned


def backdrop(pose: np.ndarray, size: int, centre: np.ndarray, distance: float, seed: int = 0) -> np.ndarray:
    """What a camera inside a large textured sphere sees of it, [S, S, 3] in [0, 1].

    Args:
        pose: camera-to-world [4, 4].
        size: S.
        centre: of the sphere.
        distance: of the cameras from there.
        seed: of the texture: waves of random directions and colours.
    """
    rng, radius = np.random.default_rng(seed), ROOM * distance
    rays = pixel_directions(pose, square_lens(size))
    rays = rays / np.linalg.norm(rays, axis=1, keepdims=True)
    from_centre = pose[:3, 3] - centre
    along = rays @ from_centre
    reach = -along + np.sqrt(along**2 + radius**2 - from_centre @ from_centre)
    place = (from_centre + reach[:, None] * rays) / radius  # [P, 3] of unit length
    waves, phase = rng.normal(size=(3, WAVES)) * np.geomspace(2.0, 40.0, WAVES), rng.uniform(0, 2 * np.pi, WAVES)
    place, waves, phase = place.astype(np.float32), waves.astype(np.float32), phase.astype(np.float32)  # half the time
    strength = rng.normal(size=(WAVES, 3)) / np.sqrt(WAVES)
    color = 0.5 + 0.35 * np.sin(place @ waves + phase) @ strength
    blocks = (size, SUPERSAMPLE, size, SUPERSAMPLE, 3)
    mean: np.ndarray = np.clip(color, 0.05, 0.95).reshape(blocks).mean((1, 3))
    return mean


def write_scene(mesh, folder: Path, color_of: Colors | None, masks: bool, count: int, held_out: int, size: int) -> Path:
    """Write shaded photographs of a mesh as a Blender-style data set, cameras all around it, from below as well.

    Args:
        mesh: of trimesh.
        folder: gets ``transforms_train.json``, ``transforms_test.json`` and the pictures.
        color_of: see :func:`benchmarks.inverse_rendering.render`.
        masks: pictures with an alpha channel; otherwise opaque ones before a textured background.
        count, held_out: photographs to train on and to measure with.
        size: pixels along a side.
    """
    centre = np.asarray(mesh.bounds.mean(0))
    for split, number, turn in zip(SPLITS, (count, held_out), (0.0, HELD_OUT_TURN), strict=True):
        frames = []
        (folder / split).mkdir(parents=True, exist_ok=True)
        for i, pose in enumerate(poses_around(mesh, number, turn)):
            seen = render(mesh, pose, square_lens(size), color_of)
            color, cover = seen.color * shaded(seen.normal)[..., None], seen.coverage[..., None]
            if masks:
                picture = np.concatenate([color, cover], -1)
            else:
                behind = backdrop(pose, size, centre, float(np.linalg.norm(pose[:3, 3] - centre)))
                picture = color * cover + behind * (1 - cover)
            write_png(folder / split / f"{i:03d}.png", np.round(255 * np.clip(picture, 0, 1)).astype(np.uint8))
            frames.append({"file_path": f"./{split}/{i:03d}", "transform_matrix": pose.tolist()})
        lens = {"camera_angle_x": float(np.radians(FOV)), "w": size, "h": size}
        (folder / f"transforms_{split}.json").write_text(json.dumps(lens | {"frames": frames}), encoding="utf-8")
    return folder


def without_masks(source: Path, folder: Path) -> Path:
    """A folder in NeuS's format that refers to the photographs and cameras of another one, and has no masks."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("image", "cameras_sphere.npz"):
        link = folder / name
        if not link.exists():
            link.symlink_to((source / name).resolve())
    return folder


def cast_silhouette(mesh, projection: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Pixels [H, W] bool whose centres show a mesh, by ray casting.

    Args:
        mesh: of trimesh.
        projection: [3, 4] from the world to pixels, centres at + 0.5.
        shape: H and W.
    """
    inverse = np.linalg.inv(projection[:, :3])
    x, y = np.meshgrid(np.arange(shape[1]) + 0.5, np.arange(shape[0]) + 0.5)
    directions = np.stack([x, y, np.ones_like(x)], -1).reshape(-1, 3) @ inverse.T
    origins = np.broadcast_to(-inverse @ projection[:, 3], directions.shape)
    hit: np.ndarray = mesh.ray.intersects_any(origins, directions)
    return hit.reshape(shape)
