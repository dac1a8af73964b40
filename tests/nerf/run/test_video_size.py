"""Videos have the shape of the photographs, and as many pixels as the device affords."""

import pytest

from nerf.config.config import parse, with_values
from nerf.config.stages import NERF, Stage
from nerf.run.video_size import ALONE, PIXELS, following, with_video_size

FOX = [(480, 270)] * 5


class Photographs:
    def sizes(self):
        return FOX


@pytest.mark.parametrize(
    ("sizes", "asked", "most", "frame"),
    [
        (FOX, (0, 0), 1 << 17, (270, 480)),
        (FOX, (0, 0), 32_400, (134, 240)),  # a quarter of the pixels; sides are even
        (FOX, (135, 0), 10, (135, 240)),  # what is asked for stays, whatever its size
        (FOX, (0, 960), 10, (540, 960)),
        (FOX, (64, 48), 10, (64, 48)),
        ([(100, 300), (200, 200), (300, 100)], (0, 0), 1 << 20, (200, 200)),  # the shape in the middle
        ([(3, 3000)], (0, 0), 3000, (1732, 2)),
        ([], (0, 0), 1 << 20, (ALONE, ALONE)),
    ],
)
def test_a_frame_follows_the_photographs(sizes, asked, most, frame):
    assert following(sizes, *asked, most) == frame


def test_a_size_that_is_given_stays_and_one_that_follows_is_filled_in():
    config = parse(["--data", "folder"])
    stage = Stage(NERF, config)
    assert with_video_size(stage, Photographs(), "cpu") is stage
    following_stage = Stage(NERF, with_values(config, {"W": 0, "H": 0}, "preset"))
    output = with_video_size(following_stage, Photographs(), "cpu").config.output
    assert (output.W, output.H) == (270, 480) and output.W * output.H <= PIXELS["cpu"]
    output = with_video_size(following_stage, None, "cuda:1").config.output
    assert (output.W, output.H) == (ALONE, ALONE)
