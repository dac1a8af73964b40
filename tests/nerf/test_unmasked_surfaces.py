"""Surfaces from photographs without masks: a ball before a textured background becomes the ball, and not a fog."""

import numpy as np
import torch
from PIL import Image

import somnia
from nerf.core.cameras import view_rays
from nerf.core.structs import Rays, RenderSettings
from nerf.data.folder import read_folder
from tests.nerf import photo_folders
from tests.nerf.test_sdf_runs import TINY

SIZE, FOCAL, RADIUS = 24, 40.0, 0.8
STEPS = 80


def seen(pose):
    """Unit directions [H, W, 3] of a camera's pixels, and which of them meet the ball."""
    y, x = np.mgrid[:SIZE, :SIZE] + 0.5
    towards = np.stack([(x - SIZE / 2) / FOCAL, (SIZE / 2 - y) / FOCAL, -np.ones_like(x)], -1) @ pose[:3, :3].T
    towards /= np.linalg.norm(towards, axis=-1, keepdims=True)
    middle = -(towards @ pose[:3, 3])
    return towards, np.linalg.norm(pose[:3, 3] + middle[..., None] * towards, axis=-1) < RADIUS


def write(folder):
    """Opaque photographs of a red ball, infinitely far before waves of colour; and where they show the ball, [I H W]."""
    folder.mkdir()
    photo_folders.write(folder, [np.zeros((SIZE, SIZE, 3), np.uint8)] * 8, {"fl_x": FOCAL})
    balls = []
    for frame in read_folder(folder, 0).frames:
        towards, ball = seen(frame.pose.numpy())
        waves = 127 + 100 * np.sin(3 * towards + np.arange(3))
        Image.fromarray(np.where(ball[..., None], (200, 60, 0), waves).astype(np.uint8)).save(frame.image)
        balls.append(ball.ravel())
    return torch.tensor(np.concatenate(balls))


def trained(folder, workspace, **flags):
    """Opacity [I H W] of the surface in its photographs after a short run, its sharpness, and the start of that."""
    words = TINY.split()
    tiny = dict(zip((word[2:] for word in words[::2]), words[1::2], strict=True)) | {"iters": str(2 * STEPS)}
    options = tiny | flags | {"data": str(folder), "workspace": str(workspace)}
    with somnia.open_run(**options) as run:
        for _ in run.steps(STEPS):
            pass
        photographs = run.trainer.sources["photos"].photographs
        rays = [view_rays(photographs.view(i)) for i in range(len(photographs))]
        flat = [Rays(one.origins, one.directions, torch.zeros(len(one)).long()) for one in rays]
        opacity = [run.model.render(one, RenderSettings(training=False, view_dependent=True)).opacity for one in flat]
        return torch.cat(opacity), float(run.model.field.sharpness.detach()), run.config.field.sharpness_start


def test_without_masks_the_surface_is_the_object_and_what_is_around_it_is_the_background(tmp_path):
    ball = write(tmp_path / "photos")
    opacity, sharpness, start = trained(tmp_path / "photos", tmp_path / "w")
    # in a box that holds the cameras 0.57, 0.31 and a sharpness of 11 from 20; with the background of a density 0.11 outside
    assert opacity[ball].mean() > 0.9 and opacity[~ball].mean() < 0.06 and sharpness > 1.5 * start
