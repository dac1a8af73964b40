"""NeRF-W's controlled perturbation: the order of colour and square, its size, the first photograph, and the published draws."""

import numpy as np
import pytest

from nerf.data.perturbation import STRIPES, draw_perturbation, perturb


def drawn(index=3, side=200, colour=True, occluders=True, seed=0):
    return draw_perturbation(index, side, side, colour, occluders, seed)


def test_the_first_photograph_stays_as_it_is():
    pixels = np.random.default_rng(0).integers(0, 256, (20, 20, 4), dtype=np.uint8)
    changed, occluded = perturb(pixels, drawn(index=0, side=20))
    np.testing.assert_array_equal(changed, pixels)
    assert not occluded.any()


def test_seed_zero_repeats_the_published_draws():
    """The draws of the published code: everything is seeded by the position, stripes by ten times it."""
    one = drawn(index=7, side=800)
    np.random.seed(7)
    scale, offset = np.random.uniform(0.8, 1.2, 3), np.random.uniform(-0.2, 0.2, 3)
    np.random.seed(7)
    left, top = np.random.randint(200, 400), np.random.randint(200, 400)
    np.random.seed(10 * 7 + 4)
    stripe = np.random.choice(range(256), 3)
    np.testing.assert_array_equal(one.scale, scale)
    np.testing.assert_array_equal(one.offset, offset)
    assert one.square == (left, top, 200, 200)
    np.testing.assert_array_equal(one.stripes[4], stripe)


def test_another_seed_draws_something_else_and_the_same_again():
    a, b = drawn(seed=5), drawn(seed=5)
    np.testing.assert_array_equal(a.scale, b.scale)
    assert a.square == b.square and not np.array_equal(a.scale, drawn().scale)


def test_colour_comes_before_the_square_and_before_any_background():
    pixels = np.full((200, 200, 4), 100, np.uint8)
    pixels[:, :100, 3] = 0
    both = drawn()
    changed, occluded = perturb(pixels, both)
    stripes = {tuple(c) for c in changed[occluded][:, :3]}
    assert stripes <= {tuple(c) for c in both.stripes} and len(stripes) == STRIPES  # not tinted
    assert (changed[occluded][:, 3] == 255).all()
    np.testing.assert_array_equal(changed[~occluded][:, 3], pixels[~occluded][:, 3])
    lit = np.clip(100 / 255 * both.scale + both.offset, 0, 1) * 255
    assert np.abs(changed[~occluded][:, :3] - lit).max() <= 0.5 + 1e-9


@pytest.mark.parametrize("height, width", [(200, 200), (100, 50), (37, 53), (1, 1), (3, 2)])
def test_the_square_follows_the_size_of_the_picture(height, width):
    for index in range(1, 30):
        one = draw_perturbation(index, height, width, False, True)
        _, occluded = perturb(np.zeros((height, width, 3), np.uint8), one)
        left, top, columns, rows = one.square
        assert columns == max(round(width / 4), 1) and rows == max(round(height / 4), 1)
        assert occluded.sum() == columns * rows, "it lies inside"
        assert width // 4 - 1 <= left <= width // 2 and height // 4 - 1 <= top <= height // 2


def test_either_half_of_the_perturbation_alone():
    assert drawn(occluders=False).square is None and drawn(colour=False).scale is None
    np.testing.assert_array_equal(drawn(occluders=False).scale, drawn().scale)
    assert drawn(colour=False).square == drawn().square
    assert set(drawn(colour=False).as_json()) == {"square", "stripes"}
