"""Datasets of small photographs whose colours encode image, column and row, for tests of loading and batches."""

import json

import numpy as np
import torch
from PIL import Image

from nerf.config.inputs import DataConfig
from nerf.core.cameras import look_at
from nerf.data.folder import read_folder
from nerf.data.placement import choose_normalization
from nerf.data.posed_images import Photographs

Z_UP = (0.0, 0.0, 1.0)
SIZES = ((20, 14), (9, 16), (13, 13))  # width, height; all different


def options(**changes):
    return DataConfig(**({"holdout": 0} | changes))


def poses(count, radius=4.0, span=360.0):
    """Cameras of a z-up world on an arc of ``span`` degrees around the origin, the first at the front (-y)."""
    angle = torch.deg2rad(torch.arange(count) * span / count).double()
    offset = torch.stack([radius * angle.sin(), -radius * angle.cos(), torch.full_like(angle, 1.5)], -1)
    return look_at(offset, (0.0, 0.0, 0.0), Z_UP)


def pattern(i, width, height, channels=3):
    """An image whose colours encode photograph, column and row: (10 i, x, y[, 16 x]); uint8 [H, W, channels]."""
    y, x = np.mgrid[:height, :width]
    planes = [np.full_like(x, 10 * i), x, y, (16 * x) % 256][:channels]
    return np.stack(planes, -1).astype(np.uint8)


def write(folder, images, top=None, span=360.0, masks=None, normals=None):
    """Write images (arrays [H, W, C]) as a dataset in instant-ngp's format; ``top`` are further keys of its file."""
    frames = []
    for i, (image, pose) in enumerate(zip(images, poses(len(images), span=span), strict=True)):
        Image.fromarray(image).save(folder / f"{i:02d}.png")
        frames.append({"file_path": f"{i:02d}.png", "transform_matrix": pose.tolist()})
        if masks is not None:
            Image.fromarray(masks[i]).save(folder / f"mask_{i:02d}.png")
            frames[-1]["mask_path"] = f"mask_{i:02d}.png"
        if normals is not None:
            Image.fromarray(normals[i]).save(folder / f"normal_{i:02d}.png")
            frames[-1]["normal_path"] = f"normal_{i:02d}.png"
    (folder / "transforms.json").write_text(json.dumps({"fl_x": 15.0} | (top or {}) | {"frames": frames}))
    return folder


def load(folder, split="train", device="cpu", bound=1.0, **changes):
    config = options(**changes)
    dataset = read_folder(folder, config.holdout, config.downscale, config.depth_unit)
    return Photographs(dataset, choose_normalization(dataset, bound), split, config, device)
