"""A small known scene, seen by known cameras: what the readers of captures are compared with."""

import numpy as np
import torch
from PIL import Image

from nerf.core.cameras import look_at

POINTS = torch.tensor([[0.1, 0.2, -0.1], [-0.3, 0.1, 0.2], [0.2, -0.25, 0.05], [0.0, 0.0, 0.0]]).double()
WIDTH, HEIGHT, FOCAL = 64, 48, 60.0


def poses(count=5, up=(0.0, 1.0, 0.0)):
    """Camera-to-world with OpenGL axes, tilted, on an arc around the points."""
    angle = torch.arange(count).double() * 0.4
    if up[1]:
        position = torch.stack([3 * angle.sin(), 0.5 + 0.2 * angle, 3 * angle.cos()], -1)
    else:
        position = torch.stack([3 * angle.sin(), -3 * angle.cos(), 0.5 + 0.2 * angle], -1)
    return look_at(position, (0.1, 0.0, 0.0), up)


def seen(pose, focal=FOCAL, centre=(WIDTH / 2, HEIGHT / 2), points=POINTS):
    """Pixels [P, 2] of points without distortion, by the pinhole's definition alone."""
    local = (points - pose[:3, 3]) @ pose[:3, :3]
    depth = -local[:, 2]
    return torch.stack([centre[0] + focal * local[:, 0] / depth, centre[1] - focal * local[:, 1] / depth], -1)


def photographs(folder, names, size=(WIDTH, HEIGHT)):
    """Pictures of one colour each."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, name in enumerate(names):
        Image.fromarray(np.full((size[1], size[0], 3), 20 * i, np.uint8)).save(folder / name)
