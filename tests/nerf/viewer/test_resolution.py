"""Dynamic resolution: scales from measured times."""

import pytest

from nerf.viewer.resolution import FIRST_PIXELS, MIN_PIXELS, DynamicResolution

FULL = 800 * 600


def measured(fixed, each, sizes=(50 * 50, 100 * 100, 200 * 200)):
    """After frames of these sizes on a machine where they take fixed + each * pixels."""
    resolution = DynamicResolution()
    resolution.observe(100, 5.0)  # the first frame loads kernels, and does not count
    for pixels in sizes * 3:
        resolution.observe(pixels, fixed + each * pixels)
    return resolution


def test_a_first_frame_is_small():
    assert DynamicResolution().scale(FULL, 0.06) ** 2 * FULL == pytest.approx(FIRST_PIXELS)


@pytest.mark.parametrize("each", [1e-6, 5e-6])
@pytest.mark.parametrize("fixed", [0.0, 0.02])
def test_the_scale_is_the_one_that_takes_the_target(fixed, each):
    resolution = measured(fixed, each)
    side = resolution.scale(FULL, 0.06)
    assert fixed + each * side**2 * FULL == pytest.approx(0.06, rel=1e-3) and side < 1.0
    assert resolution.cost() == (pytest.approx(fixed, abs=1e-6), pytest.approx(each, rel=1e-6))


def test_a_fast_machine_shows_the_full_picture():
    assert measured(0.001, 1e-8).scale(FULL, 0.06) == 1.0


def test_pixels_are_not_thrown_away_where_the_fixed_part_takes_the_time():
    resolution = measured(0.1, 1e-6)  # more than the target by itself
    assert 1e-6 * resolution.scale(FULL, 0.06) ** 2 * FULL == pytest.approx(0.1, rel=1e-3)


def test_a_slow_machine_still_shows_something():
    assert measured(0.0, 1.0).scale(FULL, 0.06) ** 2 * FULL >= MIN_PIXELS * 0.99


def test_a_machine_that_becomes_slower_is_noticed_within_a_few_frames():
    resolution = measured(0.0, 1e-6)
    fast = resolution.scale(FULL, 0.06)
    for _ in range(12):
        pixels = round(resolution.scale(FULL, 0.06) ** 2 * FULL)
        resolution.observe(pixels, 4e-6 * pixels)
    assert resolution.scale(FULL, 0.06) == pytest.approx(fast / 2, rel=0.1)


def test_frames_of_one_size_are_enough():
    resolution = measured(0.0, 2e-6, sizes=(10_000,))
    assert resolution.cost() == (0.0, pytest.approx(2e-6))


def test_times_that_fall_with_the_size_give_no_negative_cost():
    resolution = DynamicResolution()
    for pixels, seconds in ((1000, 1.0), (1000, 0.05), (40_000, 0.01)):
        resolution.observe(pixels, seconds)
    fixed, each = resolution.cost()
    assert fixed == 0.0 and each > 0.0


def test_a_chunk_takes_the_time_that_it_is_given():
    assert measured(0.0, 1e-5).chunk(0.02, 512, 4096) == pytest.approx(2000, abs=1)
    assert measured(0.0, 1e-3).chunk(0.02, 512, 4096) == 512
    assert measured(0.0, 1e-8).chunk(0.02, 512, 4096) == 4096
