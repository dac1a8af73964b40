"""NeRF-W's controlled perturbation of photographs: an affine colour and a striped square for each, whose truth is known.

H rows, W columns, C channels. NeRF in the Wild (Martin-Brualla et al., CVPR 2021), supplementary section on the synthetic
scene; the numbers are those of 800 x 800 pixels there, and squares follow the size of the picture here.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

SCALE_RANGE = (0.8, 1.2)  # of the factor of each channel
OFFSET_RANGE = (-0.2, 0.2)  # of what is added to each channel, of colours in [0, 1]
REFERENCE_SIZE = 800  # pixels of a side to which the following numbers refer
SQUARE_SIDE = 200
SQUARE_START = (200, 400)  # of its left and upper edge: the first included, the last not
STRIPES = 10  # vertical, of one width


@dataclass(frozen=True)
class Perturbation:
    """What is done to one photograph."""

    scale: np.ndarray | None = None  # [3]; None: the colours stay as they are
    offset: np.ndarray | None = None  # [3]
    square: tuple[int, int, int, int] | None = None  # first column and row, columns and rows; None: nothing stands before it
    stripes: np.ndarray | None = None  # [STRIPES, 3] uint8

    def as_json(self) -> dict[str, Any]:
        """The numbers as plain lists, for the file of the truth."""
        said: dict[str, Any] = {}
        if self.scale is not None and self.offset is not None:
            said |= {"scale": self.scale.tolist(), "offset": self.offset.tolist()}
        if self.square is not None and self.stripes is not None:
            said |= {"square": list(self.square), "stripes": self.stripes.tolist()}
        return said


def _random(seed: int, *numbers: int) -> np.random.RandomState:
    """The random numbers of one draw. With seed 0 they are the published ones, which are seeded by the position alone."""
    return np.random.RandomState(numbers[0] if seed == 0 else [seed, *numbers])


def draw_perturbation(index: int, height: int, width: int, colour: bool, occluders: bool, seed: int = 0) -> Perturbation:
    """The perturbation of one photograph.

    Args:
        index: position of the photograph among those of training. The first, 0, is never perturbed: its light is known.
        height: rows.
        width: columns.
        colour: give it an affine colour.
        occluders: put a striped square before it.
        seed: of the run; 0 repeats the draws of the published protocol.
    """
    if index == 0:
        return Perturbation()
    scale = offset = square = stripes = None
    random = _random(seed, index)
    if colour:
        scale, offset = random.uniform(*SCALE_RANGE, 3), random.uniform(*OFFSET_RANGE, 3)
    if occluders:
        random = _random(seed, index)  # the published code seeds each of the two anew
        left, top = random.randint(*SQUARE_START), random.randint(*SQUARE_START)
        x, y = width / REFERENCE_SIZE, height / REFERENCE_SIZE
        side = max(round(SQUARE_SIDE * x), 1), max(round(SQUARE_SIDE * y), 1)
        square = (min(round(left * x), width - side[0]), min(round(top * y), height - side[1]), *side)
        stripes = np.stack([_random(seed, 10 * index + k).randint(0, 256, 3) for k in range(STRIPES)]).astype(np.uint8)
    return Perturbation(scale, offset, square, stripes)


def perturb(pixels: np.ndarray, perturbation: Perturbation) -> tuple[np.ndarray, np.ndarray]:
    """A perturbed photograph, and which of its pixels are occluded.

    Colour first, on straight colours before any background is put behind them, then the square, so that stripes have their
    own colours whatever the light.

    Args:
        pixels: [H, W, 3] or [H, W, 4] uint8, straight alpha.
        perturbation: of :func:`draw_perturbation`.

    Returns:
        [H, W, C] uint8 and [H, W] bool; the alpha of occluded pixels is opaque.
    """
    result, occluded = pixels.copy(), np.zeros(pixels.shape[:2], bool)
    if perturbation.scale is not None and perturbation.offset is not None:
        lit = np.clip(pixels[..., :3] / 255 * perturbation.scale + perturbation.offset, 0, 1)
        result[..., :3] = np.rint(lit * 255).astype(np.uint8)
    if perturbation.square is not None and perturbation.stripes is not None:
        left, top, columns, rows = perturbation.square
        inside = (slice(top, top + rows), slice(left, left + columns))
        result[inside][..., :3] = perturbation.stripes[np.arange(columns) * STRIPES // columns]
        result[inside][..., 3:] = 255
        occluded[inside] = True
    return result, occluded
