"""The watch tells what is wrong, and only when it is."""

import pytest
import torch

from nerf.errors import DivergenceError
from nerf.watch import Watch, check_finite


def after(opacity, steps=120):
    watch = Watch()
    for _ in range(steps):
        watch.see(opacity)
    return watch


def test_a_scene_with_an_object_and_clear_surroundings_is_well():
    opacity = torch.cat([torch.ones(300), torch.zeros(700)])
    assert after(opacity).verdict(0.5) is None


@pytest.mark.parametrize(
    ("opacity", "word"),
    [(torch.zeros(100), "empty"), (torch.ones(100), "filled"), (torch.full((100,), 0.5), "fog")],
)
def test_a_scene_that_failed_is_named_with_a_way_out(opacity, word):
    sentence = after(opacity).verdict(0.5)
    assert word in sentence and "--" in sentence


def test_a_young_scene_is_given_time():
    assert after(torch.zeros(100)).verdict(0.01) is None
    assert after(torch.zeros(100), steps=3).verdict(0.9) is None


def test_one_foggy_step_does_not_condemn_a_run():
    watch = after(torch.cat([torch.ones(300), torch.zeros(700)]))
    watch.see(torch.full((1000,), 0.5))
    assert watch.verdict(0.5) is None


def test_a_term_that_is_not_finite_is_named_with_its_step():
    check_finite({"sds": torch.tensor(1.0)}, 3)
    with pytest.raises(DivergenceError, match="step 3.*entropy"):
        check_finite({"sds": torch.tensor(1.0), "entropy": torch.tensor(float("nan"))}, 3)
