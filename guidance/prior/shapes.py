"""The captioned shapes: families with random proportions, their signed distances, occupancy and colours.

A kind lists its proportions as ranges and its parts as (material, signed distance). S shapes, M points. The object sits
at the origin in a ball of radius about 0.5, +Y up, its front towards +Z. Materials 0 and 1 are the colour slots that a
caption names; the others have fixed colours.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace

import torch
from torch import Tensor

from guidance.prior.captions import COLORS, Caption, parse
from guidance.prior.kinds import BUILDERS, FIXED_COLORS

MATERIALS = 16
EMPTY = MATERIALS - 1
BOUND = 0.62


@dataclass(frozen=True)
class Kind:
    """A family of shapes.

    Attributes:
        name: as in a caption.
        ranges: each proportion and its (low, high).
        parts: ``parts(p, x, y, z) -> [(material, distance [M]), ...]`` where p holds the proportions, [M] or numbers.
        symmetry: "round" (same from every azimuth), "mirror" (same left and right), or "none".
    """

    name: str
    ranges: dict[str, tuple[float, float]]
    parts: Callable[..., list[tuple[int, Tensor]]]
    symmetry: str


KINDS: dict[str, Kind] = {name: Kind(name, *spec) for name, spec in BUILDERS.items()}


@dataclass(frozen=True)
class Shape:
    """One member of a family: its kind, its proportions and the colour of each material [16, 3]."""

    kind: str
    proportions: dict[str, float]
    palette: Tensor


def palette(caption: Caption) -> Tensor:
    """Colour of each material for a caption, [16, 3] display-encoded; unused rows are black."""
    colors = torch.zeros(MATERIALS, 3)
    colors[0], colors[1] = (torch.tensor(COLORS[name]) for name in caption.slots)
    for i, color in enumerate(FIXED_COLORS.values()):
        colors[2 + i] = torch.tensor(color)
    return colors


def canonical(caption: Caption | str) -> Shape:
    """The member with mean proportions, in the colours of the caption (or prompt)."""
    caption = caption_of(caption)
    ranges = KINDS[caption.kind].ranges
    return Shape(caption.kind, {k: (low + high) / 2 for k, (low, high) in ranges.items()}, palette(caption))


def family(caption: Caption | str, count: int, seed: int = 0) -> list[Shape]:
    """``count`` members with random proportions; the first is the canonical one."""
    caption = caption_of(caption)
    members = random_proportions(caption.kind, count, torch.Generator().manual_seed(seed))
    shapes = [Shape(caption.kind, {k: float(v[i]) for k, v in members.items()}, palette(caption)) for i in range(count)]
    return [canonical(caption), *shapes[1:]]


def random_proportions(kind: str, count: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Uniform draws from the ranges of a kind, each [count]."""
    return {
        name: low + (high - low) * torch.rand(count, generator=generator) for name, (low, high) in KINDS[kind].ranges.items()
    }


def caption_of(caption: Caption | str) -> Caption:
    """The caption of a prompt; a caption is returned as it is.

    Raises:
        ValueError: the prompt names no known kind.
    """
    if isinstance(caption, Caption):
        return caption
    parsed = parse(caption)
    if parsed.caption is None:
        raise ValueError(f"shape: expected a prompt that names one of {', '.join(KINDS)}; got {caption!r}")
    return parsed.caption


def distances(kind: str, proportions: Mapping[str, Tensor | float], points: Tensor) -> tuple[Tensor, Tensor]:
    """Signed distance [M] and material [M] uint8 of points [M, 3]; proportions are numbers or [M]."""
    p = SimpleNamespace(**proportions)
    parts = KINDS[kind].parts(p, *points.unbind(-1))
    best = parts[0][1]
    material = torch.full_like(best, parts[0][0], dtype=torch.uint8)
    for slot, distance in parts[1:]:
        nearer = distance < best
        best = torch.where(nearer, distance, best)
        material.masked_fill_(nearer, slot)
    return best, material


def signed_distance(shape: Shape, points: Tensor) -> Tensor:
    """Signed distance (a lower bound outside) of points [..., 3], negative inside."""
    return distances(shape.kind, shape.proportions, points.reshape(-1, 3))[0].reshape(points.shape[:-1])


def occupancy(shape: Shape, points: Tensor) -> Tensor:
    """Whether points [..., 3] lie inside, bool [...]."""
    return signed_distance(shape, points) <= 0


def albedo(shape: Shape, points: Tensor) -> Tensor:
    """Colour [..., 3] of the part nearest to each point [..., 3], display-encoded."""
    material = distances(shape.kind, shape.proportions, points.reshape(-1, 3))[1]
    return shape.palette.to(points)[material.long()].reshape(points.shape)
