"""Ranges of numbers that users type: one mechanism for the flags of ``main.py`` and of every script.

Imports the standard library alone, so that a script can read its flags where packages are missing.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_PLAIN = 10**7  # whole numbers below it are shown with all digits


@dataclass(frozen=True)
class Check:
    """A test of one value and the words that finish the sentence "--flag must be ...".

    Attributes:
        holds: whether a value passes.
        expected: the words.
        span: the same in short, for a help text; empty where the value is no number.
        low, high: the ends of the range, where the value is a number or a pair of them.
    """

    holds: Callable[[Any], bool]
    expected: str
    span: str = ""
    low: float | None = None
    high: float | None = None

    @property
    def bounded(self) -> bool:
        """Whether both ends are finite numbers."""
        return self.low is not None and self.high is not None and math.isfinite(self.low) and math.isfinite(self.high)


def shown(value: float) -> str:
    """A bound as a person writes it: 8192, 0.001, 1e9, 2147483647."""
    if float(value).is_integer() and abs(value) < _PLAIN:
        return str(int(value))
    short = f"{value:g}".replace("e+0", "e").replace("e+", "e").replace("e-0", "e-")
    return short if float(short) == value else str(value)


def between(low: float, high: float) -> Check:
    """The value lies in [low, high]."""
    return Check(lambda v: low <= v <= high, f"between {shown(low)} and {shown(high)}", _span(low, high), low, high)


def above(low: float, high: float) -> Check:
    """The value lies in (low, high]."""
    expected = f"above {shown(low)} and at most {shown(high)}"
    return Check(lambda v: low < v <= high, expected, f"above {_span(low, high)}", low, high)


def ordered(low: float, high: float, what: str) -> Check:
    """The value is a pair with ``low <= first <= second <= high``."""
    expected = f"two {what} with {shown(low)} <= low <= high <= {shown(high)}"
    return Check(
        lambda v: len(v) == 2 and low <= v[0] <= v[1] <= high, expected, f"low and high, {_span(low, high)}", low, high
    )


def each(check: Check) -> Check:
    """Every value of a tuple holds to a check."""
    expected = f"{check.expected} each"
    return Check(lambda values: all(map(check.holds, values)), expected, f"each {check.span}", check.low, check.high)


def power_of_two(low: int, high: int) -> Check:
    """The value is a power of two in [low, high]."""
    expected = f"a power of two between {shown(low)} and {shown(high)}"
    return Check(lambda v: low <= v <= high and v & (v - 1) == 0, expected, f"powers of two, {_span(low, high)}", low, high)


def even(low: int, high: int) -> Check:
    """The value is an even number in [low, high]."""
    expected = f"an even number between {shown(low)} and {shown(high)}"
    return Check(lambda v: low <= v <= high and v % 2 == 0, expected, f"even, {_span(low, high)}", low, high)


def _span(low: float, high: float) -> str:
    return f"{shown(low)} to {shown(high)}"


SEEDS = 2**31  # how many there are for a run
SEED = between(0, SEEDS - 1)
