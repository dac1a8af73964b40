"""The scene in the light of any picture: vectors of pictures, videos in each light, and a walk between them.

K lights of A numbers, H rows, W columns.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import torch
from torch import Tensor

from nerf.core.errors import UserError
from nerf.core.pictures import open_picture
from nerf.core.structs import Batch, RenderSettings
from nerf.core.words import counted
from nerf.data.frames import list_pictures
from nerf.data.image_store import decode_image, exif_orientation, read_header
from nerf.data.patches import small_picture
from nerf.fields.appearance import Appearance
from nerf.renderer import NeRFRenderer
from nerf.run.appearance_fit import fit_appearance

LONGEST = 48  # characters of a picture's name in those of files, which may have 255 bytes
LARGEST = 2048  # pixels along the longer side of a picture as it is kept; an encoder looks at far fewer


@dataclass(frozen=True)
class Light:
    """The light of one picture."""

    name: str  # of the file, without its suffix
    picture: Tensor  # [H, W, 3] in [0, 1]
    vector: Tensor  # [A]


def find_pictures(asked: Sequence[str]) -> list[Path]:
    """The pictures that ``--hallucinate`` names: files as they are, and all pictures of a folder in the order of their names.

    Raises:
        UserError: one does not exist, is no picture or damaged, or a folder holds no picture.
    """
    found: list[Path] = []
    for path in map(Path, asked):
        inside = list_pictures(path)
        if path.is_dir() and not inside:
            raise UserError(f"--hallucinate {path}: the folder holds no picture; give pictures, or a folder of them")
        if not path.exists():
            raise UserError(f"--hallucinate {path} does not exist; give pictures, or a folder of them")
        found += inside or [path]
    for path in found:
        with open_picture(path, f"--hallucinate {path}", "replace the file, or leave it out") as picture:
            picture.load()  # now, and not after hours of training
    return found


def read_picture(path: Path) -> Tensor:
    """A picture [H, W, 3] in [0, 1] as it is shown, over white where it is transparent; large ones are reduced.

    Raises:
        UserError: it is not a picture, or is damaged.
    """
    width, height, alpha = read_header(path)
    factor = -(-max(width, height) // LARGEST)
    pixels = decode_image(path, "RGBA" if alpha else "RGB", factor, exif_orientation(path)).float() / 255
    return pixels if not alpha else pixels[..., :3] * pixels[..., 3:] + 1 - pixels[..., 3:]


def check(model: NeRFRenderer, paths: Sequence[Path]) -> None:
    """Whether :func:`lights_of` will know the lights of pictures, asked before training.

    Raises:
        UserError: the model has no appearance, or the vector of a picture is not known.
    """
    appearance = need_appearance(model, "--hallucinate")
    if appearance.encoder is None:
        training_photographs(appearance, paths)


def need_appearance(model: NeRFRenderer, why: str) -> Appearance:
    """The appearance of a model.

    Raises:
        UserError: its colours depend on none.
    """
    if model.appearance is None:
        raise UserError(
            f"{why} needs a scene whose colours depend on an appearance, and this one was trained without; train it with "
            "--wild or --appearance encoder"
        )
    return model.appearance


@torch.no_grad()
def vector_of(appearance: Appearance, picture: Tensor) -> Tensor:
    """The vector [A] of a picture [H, W, 3] by the encoder, which sees it as small as in training."""
    device = next(appearance.parameters()).device
    return appearance.encode(small_picture(picture, appearance.side)[None].to(device))[0]


def lights_of(model: NeRFRenderer, paths: Sequence[Path]) -> list[Light]:
    """The lights of pictures; of learned vectors, those of training photographs alone, which are known by their file names.

    A training photograph shows what :meth:`Appearance.light` says, another picture its own vector.

    Raises:
        UserError: the model has no appearance, a picture is unreadable, or its vector is not known.
    """
    appearance, found = need_appearance(model, "--hallucinate"), []
    indices = None if appearance.encoder is not None else training_photographs(appearance, paths)
    for i, path in enumerate(paths):
        picture = read_picture(path)
        known = appearance.photograph_of(small_picture(picture, appearance.side)) if indices is None else indices[i]
        vector = vector_of(appearance, picture) if known is None else appearance.light(known)
        found.append(Light(path.stem, picture, vector))
    return found


def training_photographs(appearance: Appearance, paths: Sequence[Path]) -> list[int]:
    """Which training photographs pictures [K] are, by their file names without suffixes.

    Raises:
        UserError: one of them is none, or two photographs have its name.
    """
    indices = []
    for path in paths:
        known = [i for i, name in enumerate(appearance.names) if Path(name).stem == path.stem]
        if len(known) != 1:
            raise UserError(
                f"--hallucinate {path}: vectors of --appearance embedding are known of the {len(appearance.names)} "
                f"training photographs alone, and {'none' if not known else 'more than one'} is called {path.stem}; give a "
                "training photograph, or train with --appearance encoder"
            )
        indices += known
    return indices


def of_part(model: NeRFRenderer, batch: Batch, seen: Tensor, valid: Tensor | None, settings: RenderSettings) -> Tensor:
    """The vector [A] of a part of a photograph: by the encoder from a picture of that part, or fitted to its valid pixels.

    Args:
        model: with an appearance.
        batch: N rays of the whole photograph, its camera and colours.
        seen: [N] bool, the part: some of its columns, in all rows.
        valid: [N] bool pixels that are not masked out; None: all. An encoder looks at all of them, as in training.
        settings: of its render.
    """
    appearance = need_appearance(model, "reading a light")
    assert batch.views is not None and batch.rgb is not None, "a photograph has a camera and colours"
    if appearance.encoder is not None:
        return vector_of(appearance, batch.rgb[seen].reshape(batch.views.height, -1, 3))
    used = seen if valid is None else seen & valid
    return fit_appearance(model, batch.rays[used], batch.rgb[used], settings) if used.any() else appearance.first_guess()


def walk(vectors: Tensor, frames: int) -> Tensor:
    """Vectors [K * frames, A] of a smooth closed walk through vectors [K, A], which rests for a moment at each.

    Between two of them the share of the next is ``3 s^2 - 2 s^3``, whose slope is 0 at both ends.
    """
    s = torch.arange(frames, device=vectors.device, dtype=vectors.dtype) / max(frames, 1)
    share = (3 * s.square() - 2 * s**3)[None, :, None]
    following = vectors.roll(-1, 0)
    return ((1 - share) * vectors[:, None] + share * following[:, None]).reshape(-1, vectors.shape[1])


def file_names(lights: Sequence[Light]) -> list[str]:
    """A name for the files of each light: that of its picture, shortened, with a number where an earlier one has it."""
    names: list[str] = []
    for light in lights:
        short = light.name[:LONGEST]
        numbered = (short if k == 1 else f"{short}_{k}" for k in count(1))
        names.append(next(name for name in numbered if name not in names))
    return names


def summary(lights: Sequence[Light]) -> str:
    """What is shown, in words."""
    return f"the scene in the light of {counted(len(lights), 'picture')}: {', '.join(light.name for light in lights[:5])}" + (
        " and others" if len(lights) > 5 else ""
    )
