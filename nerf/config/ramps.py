"""Weights that are constant or change linearly over steps: how they are written, and their value at a step."""

from dataclasses import dataclass

from nerf.core.errors import UserError
from nerf.core.words import number, whole_number

Weight = float | str  # annotation of an option: a number, or a ramp as it was typed
MOST_WEIGHT = 1e9
FORMS = (
    "a number, FROM:TO:STEPS or FROM:TO:FIRST:LAST with values between 0 and 1e9 and steps, or shares of the run such as 50%"
)


@dataclass(frozen=True)
class Ramp:
    """``start`` until step ``first``, ``end`` from step ``last`` on, linear in between; steps may be shares of the run."""

    start: float
    end: float
    first: tuple[float, bool]  # a step, or a percentage of the run (True)
    last: tuple[float, bool]

    def at(self, step: int, total: int) -> float:
        """The value at a 0-based step of a run of so many."""
        first, last = (place * total / 100.0 if percent else place for place, percent in (self.first, self.last))
        way = (step - first) / (last - first) if last > first else float(step >= last)
        return self.start + min(max(way, 0.0), 1.0) * (self.end - self.start)


def parse_ramp(word: str) -> Ramp:
    """Read ``FROM:TO:STEPS`` or ``FROM:TO:FIRST:LAST``; steps are whole numbers, or shares of the run with a percent sign.

    instant-nsr-pl writes the same as a list ``[first, from, to, last]``.

    Raises:
        UserError: the end of the sentence "--flag must be ...".
    """
    parts = word.split(":")
    try:
        if len(parts) not in (3, 4):
            raise UserError(FORMS)
        start, end = (number(part) for part in parts[:2])
        places = [_place(part) for part in parts[2:]]
    except UserError:
        raise UserError(FORMS) from None
    first, last = places if len(places) == 2 else ((0.0, False), places[0])
    if not all(0.0 <= value <= MOST_WEIGHT for value in (start, end)):
        raise UserError(FORMS)
    if first[1] == last[1] and first[0] > last[0]:  # a step and a share are compared when the run is known
        raise UserError(f"{FORMS}, with FIRST not after LAST")
    return Ramp(start, end, first, last)


def _place(word: str) -> tuple[float, bool]:
    """A step, or a percentage of the run."""
    percent = word.endswith("%")
    place = float((number if percent else whole_number)(word.removesuffix("%")))
    if not 0 <= place <= (100 if percent else MOST_WEIGHT):
        raise UserError(FORMS)
    return place, percent


def weight_at(weight: Weight, step: int, total: int) -> float:
    """The value of a constant or of a ramp at a step of a run of ``total``."""
    return parse_ramp(weight).at(step, total) if isinstance(weight, str) else float(weight)


def read_weight(word: str) -> Weight:
    """A word of the command line: a ramp if it has a colon, else a number."""
    return word if ":" in word else number(word)
