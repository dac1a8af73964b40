"""What a run may be asked: progress, and the image spaces that every guidance accepts."""

import pytest

from nerf.config.config import Config, with_values
from nerf.config.stages import NERF, Stage
from nerf.training.sources import GuidanceInfo, RunInfo


def run_of(*spaces, **options):
    stage = Stage(NERF, with_values(Config(), options, "typed"))
    return RunInfo(stage, guidances=tuple(GuidanceInfo(str(i), s) for i, s in enumerate(spaces)))


def test_progress_runs_from_zero_to_one_over_the_run_and_is_clamped():
    run = run_of(iters=200)
    assert [run.fraction(step) for step in (0, 50, 200, 900)] == [0.0, 0.25, 1.0, 1.0]


@pytest.mark.parametrize(
    ("spaces", "expected"),
    [
        ((), ("rgb",)),
        ((("rgb", "latent"),), ("latent", "rgb")),
        ((("rgb", "latent"), ("rgb",)), ("rgb",)),
    ],
)
def test_the_spaces_of_a_run_are_those_that_every_guidance_accepts(spaces, expected):
    assert run_of(*spaces).spaces == expected
