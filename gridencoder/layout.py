"""The shape of a multiresolution grid: resolutions and rows of its levels.

Letters: D dimensions, L levels, F features a level.
"""

import math
from dataclasses import dataclass
from functools import cached_property

MAX_LEVELS = 32  # kMaxLevels of src/grid_math.h
MAX_LOG2_ROWS = 26  # of one level; 32 bits then count the rows of 32 levels
MAX_RESOLUTION = 2**20  # corners along an edge; float32 positions then keep 4 bits inside a cell
ROW_MULTIPLE = 8  # a level starts at a multiple of this many rows
_WHOLE = 1e-9  # relative slack, so that what is meant to be a whole number is not rounded up


@dataclass(frozen=True)
class GridLayout:
    """Shape and meaning of a table of features: levels, their resolutions, how they are indexed and interpolated.

    Level ``l`` has ``ceil(base * s**l)`` corners along an edge, ``s`` such that the last has
    ``desired_resolution`` (Mueller et al. 2022, equations 2 and 3), and ``min(2**log2_hashmap_size, resolution**D)``
    rows, rounded up to 8.
    A level whose corners all have a row of their own is dense; a finer one is hashed, or tiled: its row-major index
    wraps round the rows.

    Raises:
        ValueError: a number is out of range; the message says which and what is allowed.
    """

    input_dim: int = 3
    num_levels: int = 16
    level_dim: int = 2
    base_resolution: int = 16
    desired_resolution: int = 2048
    log2_hashmap_size: int = 19
    gridtype: str = "hash"
    interpolation: str = "smoothstep"
    align_corners: bool = False

    def __post_init__(self) -> None:
        _check("input_dim", self.input_dim, (2, 3, 4))
        _check("level_dim", self.level_dim, (1, 2, 4, 8))
        _check("gridtype", self.gridtype, ("hash", "tiled"))
        _check("interpolation", self.interpolation, ("smoothstep", "linear"))
        if not 1 <= self.num_levels <= MAX_LEVELS:
            raise ValueError(f"GridEncoder: num_levels must lie in [1, {MAX_LEVELS}], got {self.num_levels}")
        if not 3 <= self.log2_hashmap_size <= MAX_LOG2_ROWS:
            raise ValueError(f"GridEncoder: log2_hashmap_size must lie in [3, {MAX_LOG2_ROWS}], got {self.log2_hashmap_size}")
        if not 2 <= self.base_resolution <= self.desired_resolution <= MAX_RESOLUTION:
            raise ValueError(
                "GridEncoder: expected 2 <= base_resolution <= desired_resolution <= 2**20, "
                f"got {self.base_resolution} and {self.desired_resolution}"
            )

    @cached_property
    def resolutions(self) -> tuple[int, ...]:
        """Corners along an edge of each level."""
        growth = math.log2(self.desired_resolution / self.base_resolution) / max(self.num_levels - 1, 1)
        exact = [self.base_resolution * 2.0 ** (level * growth) for level in range(self.num_levels)]
        return tuple(math.ceil(r - _WHOLE * r) for r in exact)

    @cached_property
    def first(self) -> tuple[int, ...]:
        """[L + 1] level ``l`` owns the rows ``first[l]`` to ``first[l + 1]`` of the table."""
        first = [0]
        for resolution in self.resolutions:
            rows = min(2**self.log2_hashmap_size, resolution**self.input_dim)
            first.append(first[-1] + -(-rows // ROW_MULTIPLE) * ROW_MULTIPLE)
        return tuple(first)

    @property
    def rows(self) -> int:
        """Rows of the whole table."""
        return self.first[-1]

    @property
    def output_dim(self) -> int:
        """Features of all levels: L * F."""
        return self.num_levels * self.level_dim

    def active_levels(self, max_level: float) -> int:
        """How many levels the fraction ``max_level`` of them means: ``ceil(max_level * L)``, at least one.

        Raises:
            ValueError: ``max_level`` is not in [0, 1].
        """
        if not 0 <= max_level <= 1:
            raise ValueError(f"GridEncoder: max_level must be a fraction in [0, 1], got {max_level}")
        return max(1, math.ceil(max_level * self.num_levels - _WHOLE))


def _check(name: str, value: object, allowed: tuple[object, ...]) -> None:
    """Raise unless the value is one of those allowed."""
    if value not in allowed:
        raise ValueError(f"GridEncoder: {name} must be one of {', '.join(map(str, allowed))}, got {value}")
