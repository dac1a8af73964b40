"""Every number that is typed has a range: with two ends, documented, checked, and wide enough for its own uses."""

import math

import pytest

from nerf.config.config import GROUPS, OPTIONS, Config, parse, with_preset, with_values
from nerf.config.parser import dashed, help_text, kind_of, split_each
from nerf.config.presets import PRESETS
from nerf.core.errors import UserError
from nerf.core.ranges import above, between, even, ordered, power_of_two, shown

NUMBERS = [flag for flag, (_, field) in OPTIONS.items() if kind_of(field).scalar in (int, float)]
HELP = " ".join(help_text(GROUPS, "", "").split())


def check_of(flag):
    """The range of an option."""
    return OPTIONS[flag][1].metadata["check"]


def typed(flag, *values):
    """Read a flag with some values."""
    return parse(["--text", "a", dashed(flag), *map(repr, values)]).value(flag)


def with_value(flag, value):
    """A config with one value, also of an option that is not built."""
    return with_values(Config(), {flag: value}, "typed").value(flag)


def pair(flag, low, high):
    """A value of a flag: a pair if it takes two."""
    each = OPTIONS[flag][1].metadata["each"] or kind_of(OPTIONS[flag][1]).count
    one = low if not each else (low, high)[:each]
    return (one,) if kind_of(OPTIONS[flag][1]).count is not None and not each else one


def for_each(flags, holds):
    """Ask every flag, in one test: a thousand small ones take longer to begin than to run. A failure names its flag."""
    for flag in flags:
        try:
            holds(flag)
        except BaseException as e:
            e.add_note(f"of {dashed(flag)}")
            raise


def test_every_number_has_a_range_with_two_finite_ends_that_help_gives():
    def holds(flag):
        check = check_of(flag)
        assert check is not None and check.bounded
        about = HELP.split(f" {dashed(flag)} ")[1].split(" --")[0]
        assert f"({check.span})" in about or f"({check.span})" in HELP

    assert len(NUMBERS) > 150
    for_each(NUMBERS, holds)


def ends_hold(flag):
    """The ends of a range are accepted, and what is beyond them is refused."""
    kind, check = kind_of(OPTIONS[flag][1]), check_of(flag)
    low, high = (kind.scalar(end) for end in (check.low, check.high))
    least = math.nextafter(low, high) if "above" in check.span else low
    for value in (least, high):
        with_value(flag, pair(flag, value, value))
    step = 1 if kind.scalar is int else (high - low) * 1e-6
    for value in (low - step, high + step, -1e300, 1e300) if kind.scalar is float else (low - step, high + step, 10**400):
        with pytest.raises(UserError, match=f"{dashed(flag)} must be .*{'' if value == 10**400 else 'got'}"):
            with_value(flag, pair(flag, value, value))


def test_the_ends_of_a_range_are_accepted_and_what_is_beyond_them_is_refused():
    for_each([flag for flag in NUMBERS if flag != "mesh_crop"], ends_hold)  # a box has two corners


@pytest.mark.parametrize("word", ["nan", "inf", "-inf", "1e999"])
def test_what_is_not_finite_is_refused(word):
    def holds(flag):
        words = [word] * (kind_of(OPTIONS[flag][1]).count or 1)
        with pytest.raises(UserError, match=f"{dashed(flag)} must be a (finite|whole) number, got '{word}'"):
            parse(["--text", "a", dashed(flag), *words])

    for_each(NUMBERS, holds)


def test_defaults_and_presets_are_in_their_ranges():
    def holds(flag):
        value, each = OPTIONS[flag][1].default, OPTIONS[flag][1].metadata["each"]
        assert value is None or all(map(check_of(flag).holds, split_each(value, each) if each else [value]))

    for_each(NUMBERS, holds)
    for name in PRESETS:
        with_preset(Config(), name)  # refuses what is out of range


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--grid_coarsest 1", "--grid_coarsest must be between 2 and 4096, got 1"),
        ("--radius_range 1e300 1e301", "--radius_range must be two distances with 0.001 <= low <= high <= 10000, got"),
        ("--blob_radius 0", "--blob_radius must be between 0.001 and 10000, got 0"),
        ("--checkpoint_seconds 0", "--checkpoint_seconds must be above 0 and at most 1e9, got 0"),
        ("--tet_grid_size 65", "--tet_grid_size must be an even number between 4 and 512, got 65"),
        ("--lr 10.0000001", "--lr must be between 0 and 10, got 10.0000001"),
    ],
)
def test_what_cannot_work_is_refused_at_the_door(words, sentence):
    with pytest.raises(UserError) as caught:
        parse(["--text", "a", *words.split()])
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("check", "good", "bad"),
    [
        (between(1, 3), [1, 3], [0, 4]),
        (above(0, 3), [0.1, 3], [0, 4]),
        (ordered(0, 3, "lengths"), [(0, 3), (1, 1)], [(2, 1), (0, 4), (1,), (1, 2, 3)]),
        (power_of_two(2, 8), [2, 4, 8], [1, 3, 16, 0, -2]),
        (even(4, 8), [4, 6, 8], [2, 5, 10]),
    ],
)
def test_a_range_holds_for_what_it_says(check, good, bad):
    assert all(map(check.holds, good)) and not any(map(check.holds, bad))


@pytest.mark.parametrize(
    ("value", "text"), [(8192, "8192"), (1e9, "1e9"), (0.001, "0.001"), (2**22, "4194304"), (2**31 - 1, "2147483647")]
)
def test_bounds_are_shown_as_a_person_writes_them(value, text):
    assert shown(value) == text
