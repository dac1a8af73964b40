"""The size of videos and validation pictures, where it follows the photographs."""

from typing import Protocol

from nerf.config.config import with_values
from nerf.config.stages import Stage

PIXELS = {"cpu": 1 << 17, "cuda": 1 << 20}  # most pixels of a frame that follows the photographs: a core takes seconds for it
ALONE = 800  # pixels along a side, where there are no photographs


class Sized(Protocol):
    """Photographs of known sizes."""

    def sizes(self) -> list[tuple[int, int]]:
        """Height and width of each."""


def following(sizes: list[tuple[int, int]], width: int, height: int, most: int) -> tuple[int, int]:
    """Width and height of a frame with the shape of the photographs.

    Args:
        sizes: height and width of each photograph; the frame has the shape of the one in the middle, in the order of shapes.
        width, height: in pixels, as asked for; 0: it follows.
        most: pixels of a frame where both follow, which is no larger than the photograph either.

    Returns:
        Width and height in pixels. Sides that follow are even, as video codecs need, and 2 at least.
    """
    if width and height:
        return width, height
    tall, wide = sorted(sizes, key=lambda size: size[1] / size[0])[len(sizes) // 2] if sizes else (ALONE, ALONE)
    scale = width / wide if width else height / tall if height else min(1.0, (most / (wide * tall)) ** 0.5)
    even = [max(2, 2 * int(scale * side / 2 + 1e-6)) for side in (wide, tall)]
    return width or even[0], height or even[1]


def with_video_size(stage: Stage, photographs: Sized | None, device: str) -> Stage:
    """The stage with the size of its videos filled in, where ``--W`` or ``--H`` is 0."""
    output = stage.config.output
    if output.W and output.H:
        return stage
    sizes = [] if photographs is None else photographs.sizes()
    width, height = following(sizes, output.W, output.H, PIXELS[device.partition(":")[0]])
    return Stage(stage.kind, with_values(stage.config, {"W": width, "H": height}, "preset"))
