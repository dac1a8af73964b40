"""What ``--hallucinate`` writes: the camera path in the light of each picture, a sheet of them, and a walk between lights."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nerf.core import images
from nerf.core.progress import track
from nerf.core.structs import RenderOutput, RenderSettings, Views
from nerf.data.camera_path import CameraPath
from nerf.data.image_store import resample
from nerf.run.lights import Light, file_names, walk

SHOWN = 4  # frames of the path beside each picture on the sheet
Render = Callable[[Views, RenderSettings], RenderOutput]


def fitted(picture: Tensor, height: int, width: int) -> np.ndarray:
    """A picture [H, W, 3] in [0, 1] in the middle of a white frame, uint8 [height, width, 3]; its proportions stay."""
    share = min(height / picture.shape[0], width / picture.shape[1])
    h, w = (max(1, min(most, round(side * share))) for side, most in zip(picture.shape[:2], (height, width), strict=True))
    small = resample(picture.permute(2, 0, 1), h, w).permute(1, 2, 0).clamp(0, 1)
    frame = np.full((height, width, 3), 255, np.uint8)
    top, left = (height - h) // 2, (width - w) // 2
    frame[top : top + h, left : left + w] = images.to_uint8(small)
    return frame


def frames_of(render: Render, views: Views, settings: RenderSettings, vectors: Tensor, doing: str) -> list[np.ndarray]:
    """Frames uint8 [H, W, 3] of views [B], each in the light of its own vector, [B, A]."""
    shown = []
    for i in track(range(len(views)), doing):
        out = render(views[i], replace(settings, appearance=vectors[i]))
        shown.append(images.to_uint8(out.image.reshape(*out.image_shape, 3))[0])
    return shown


def write(
    lights: Sequence[Light],
    path: CameraPath,
    render: Render,
    settings: RenderSettings,
    folder: Path,
    name: str,
    walk_frames: int,
    report: Callable[[str], object],
) -> list[Path]:
    """Write ``NAME_light_PICTURE.mp4`` for each light, ``NAME_lights.png`` and, if asked for, ``NAME_light_walk.mp4``.

    Args:
        lights: at least one.
        path: of the camera.
        render: renders one view.
        settings: of the renders, without an appearance.
        folder: gets the files.
        name: that they begin with.
        walk_frames: from one light to the next; 0: no walk.
        report: told of each file.

    Returns:
        The files.
    """
    views, sheet, captions, written = path.views, [], [], []
    chosen = torch.linspace(0, len(views) - 1, min(SHOWN, len(views))).round().int().tolist()
    for light, label in zip(lights, file_names(lights), strict=True):
        frames = frames_of(render, views, settings, light.vector.expand(len(views), -1), f"rendering the light of {label}")
        written.append(images.write_video(folder / f"{name}_light_{label}.mp4", np.stack(frames), fps=path.fps))
        sheet += [fitted(light.picture, views.height, views.width), *(frames[i] for i in chosen)]
        captions += [f"light of {label}", *("" for _ in chosen)]
    picture = images.contact_sheet(sheet, columns=1 + len(chosen), captions=captions)
    written.append(images.write_png(folder / f"{name}_lights.png", picture))
    if walk_frames:
        vectors = walk(torch.stack([light.vector for light in lights]), walk_frames)
        along = views[torch.arange(len(vectors)) % len(views)]
        frames = frames_of(render, along, settings, vectors, "rendering the walk between the lights")
        written.append(images.write_video(folder / f"{name}_light_walk.mp4", np.stack(frames), fps=path.fps))
    for file in written:
        report(f"wrote {file}")
    return written
