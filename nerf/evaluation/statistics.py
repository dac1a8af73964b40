"""Means with confidence intervals, so that a difference can be told from chance. N runs or views, G groups of them."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

RESAMPLES = 2_000
LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean and the interval that it lies in."""

    mean: float
    low: float
    high: float
    count: int  # N, how many numbers the mean is of

    def as_dict(self) -> dict[str, float]:
        """The interval as JSON values."""
        return asdict(self)

    def shown(self, digits: int = 3) -> str:
        """As in a table: ``0.813 [0.750, 0.875]``; of a single number it alone, which has no interval."""
        if self.count < 2:
            return f"{self.mean:.{digits}f}"
        return f"{self.mean:.{digits}f} [{self.low:.{digits}f}, {self.high:.{digits}f}]"


def interval(
    values: Sequence[float], groups: Sequence[object] | None = None, seed: int = 0, level: float = LEVEL
) -> Interval | None:
    """The mean of N numbers and its percentile bootstrap interval (Efron 1979; Efron and Tibshirani 1993, sec. 13.3).

    Where numbers are not independent (the seeds of one prompt), whole groups are drawn, G of G with replacement.

    Args:
        values: [N], NaN where there is none.
        groups: [N], what each number belongs to; None: all are independent.
        seed: of the resampling, so that the same numbers always give the same interval.
        level: share of the resampled means that lie inside.

    Returns:
        None if no value is a number. Of one group alone the interval has no width, as it cannot be known.
    """
    if not 0 < level < 1:
        raise ValueError(f"interval: expected a level between 0 and 1, got {level}")
    found = np.asarray(values, dtype=np.float64)
    names = np.arange(len(found)) if groups is None else np.unique([str(group) for group in groups], return_inverse=True)[1]
    if len(names) != len(found):
        raise ValueError(f"interval: expected a group for each of {len(found)} values, got {len(names)}")
    there = ~np.isnan(found)
    if not there.any():
        return None
    found, (_, names) = found[there], np.unique(names[there], return_inverse=True)
    totals, counts = np.bincount(names, found), np.bincount(names)
    drawn = np.random.default_rng(seed).integers(len(totals), size=(RESAMPLES, len(totals)))
    means = totals[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(found.mean()), float(low), float(high), len(found))
