"""How close a scene in the wild comes to held-out photographs, each in its own light: the protocol of half images.

The light is read from the left half of a photograph, as NeRF-W does, and once more from all of it, as Ha-NeRF does, which
leaks what is measured. Measured are the right half (columns from ``W // 2`` on) and the whole, in colours of 8 bits. H rows,
W columns, A numbers of a vector.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nerf.core import images
from nerf.core.progress import track
from nerf.core.structs import Batch
from nerf.run import metrics

LIGHTS = ("left", "whole")  # the part of a photograph that its light is read from
PARTS = ("right", "whole")  # the part that is measured
MEASURES = {"psnr": 2, "ssim": 4, "ssim3": 4, "lpips": 4}  # digits of each
SHOWN = 4  # photographs that are written beside their renders
Perceptual = Callable[[Tensor, Tensor], Tensor]
Rows = dict[str, dict[str, dict[str, list[float]]]]


@dataclass(frozen=True)
class Judge:
    """What the protocol asks of the program.

    Attributes:
        target: index of a photograph -> its batch of one view and its valid pixels [N] bool, or None: all.
        light: the batch, which of its pixels [N] bool may be looked at, and the valid ones [N] bool or None -> vector [A].
        render: the batch, vector -> colours [N, 3].
        perceptual: LPIPS of two pictures [H, W, 3]; None where its weights are not on this machine.
    """

    target: Callable[[int], tuple[Batch, Tensor | None]]
    light: Callable[[Batch, Tensor, Tensor | None], Tensor]
    render: Callable[[Batch, Tensor], Tensor]
    perceptual: Perceptual | None = None


def measure(judge: Judge, chosen: Sequence[int], pictures: Path) -> dict[str, Any]:
    """The figures of some held-out photographs, for ``result.json``; a few renders are written beside them.

    Args:
        judge: see there.
        chosen: indices of photographs.
        pictures: beginning of the names of files.

    Returns:
        ``{light: {part: {measure: mean}}}``, and ``leak``: PSNR of right halves with the light of the whole, less that with the
        light of the left half.
    """
    rows: Rows = {light: {part: {name: [] for name in MEASURES} for part in PARTS} for light in LIGHTS}
    for number, i in enumerate(track(chosen, "measuring photographs in their own light")):
        batch, valid = judge.target(i)
        assert batch.views is not None and batch.rgb is not None, "a photograph has a camera and colours"
        shape = (batch.views.height, batch.views.width)
        truth = batch.rgb.reshape(*shape, 3)
        mask = None if valid is None else valid.reshape(shape)
        column = torch.arange(shape[1], device=truth.device).expand(shape)
        shown = [images.to_uint8(truth)]
        for light, seen in (("left", column < max(shape[1] // 2, 1)), ("whole", torch.ones_like(column, dtype=torch.bool))):
            vector = judge.light(batch, seen.reshape(-1), valid)
            image = eight_bits(judge.render(batch, vector).reshape(*shape, 3)).to(truth)
            shown.append(images.to_uint8(image))
            for part, first in (("right", shape[1] // 2), ("whole", 0)):
                inside = None if mask is None else mask[:, first:]
                figures = compared(image[:, first:], truth[:, first:], inside, judge.perceptual)
                for name, value in figures.items():
                    rows[light][part][name].append(value)
        if number < SHOWN:
            images.write_png(pictures.with_name(f"{pictures.name}_{i:04d}.png"), np.concatenate(shown, axis=1))
    return means(rows)


def eight_bits(image: Tensor) -> Tensor:
    """Colours in [0, 1] as a file of 8 bits holds them."""
    return (image.clamp(0, 1) * 255).round() / 255


def compared(image: Tensor, truth: Tensor, valid: Tensor | None, perceptual: Perceptual | None) -> dict[str, float]:
    """Every measure of a picture [H, W, 3] against the truth; those over windows of pixels leave out what is not ``valid``."""
    figures = {
        "psnr": float(metrics.psnr(image, truth, valid)),
        "ssim": float(metrics.ssim(image, truth, valid)),
        "ssim3": float(metrics.ssim3(image, truth, valid)),
    }
    if perceptual is not None:
        filled = image if valid is None else torch.where(valid[..., None], image, truth)
        figures["lpips"] = float(perceptual(filled, truth))
    return figures


def means(rows: Rows) -> dict[str, Any]:
    """The mean of each measure over photographs, None where there is none; and the leak."""
    found: dict[str, Any] = {
        light: {part: {name: _mean(values) for name, values in measures.items()} for part, measures in parts.items()}
        for light, parts in rows.items()
    }
    left, whole = (found[light]["right"]["psnr"] for light in LIGHTS)
    found["leak"] = None if left is None or whole is None else whole - left
    return found


def _mean(values: Sequence[float]) -> float | None:
    """Of the finite values."""
    finite = [value for value in values if np.isfinite(value)]
    return float(np.mean(finite)) if finite else None


def table(found: dict[str, Any]) -> list[str]:
    """The figures as lines of text."""
    lines = [f"{'light from':<12}{'measured on':<13}{'PSNR':>7}{'SSIM 11x11':>12}{'SSIM 3x3':>10}{'LPIPS':>8}"]
    for light in LIGHTS:
        for part in PARTS:
            cells = [_cell(found[light][part][name], digits) for name, digits in MEASURES.items()]
            said = "left half" if light == "left" else "all of it"
            which = "right halves" if part == "right" else "all"
            lines.append(f"{said:<12}{which:<13}{cells[0]:>7}{cells[1]:>12}{cells[2]:>10}{cells[3]:>8}")
    if found["leak"] is not None:
        lines.append(f"the light of all of it sees what is measured, which is worth {found['leak']:.2f} dB on right halves")
    return lines


def _cell(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
