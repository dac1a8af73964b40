"""The divergence monitor says what is wrong, and only when it is."""

import re
from itertools import chain

import pytest
import torch

from nerf.config.config import OPTIONS, Config, with_values
from nerf.config.parser import dashed
from nerf.config.stages import DMTET, NERF, STAGE_KINDS, Failure
from nerf.core.errors import DivergenceError
from nerf.training.divergence import DivergenceMonitor, check_finite


def after(opacity, steps=120):
    monitor = DivergenceMonitor()
    for _ in range(steps):
        monitor.update(opacity)
    return monitor


def test_a_scene_with_an_object_and_clear_surroundings_is_well():
    opacity = torch.cat([torch.ones(300), torch.zeros(700)])
    assert after(opacity).diagnose(0.5) is None


@pytest.mark.parametrize(
    ("opacity", "word"),
    [(torch.zeros(100), "empty"), (torch.ones(100), "filled"), (torch.full((100,), 0.5), "fog")],
)
def test_a_scene_that_failed_is_named_with_a_way_out(opacity, word):
    sentence = after(opacity).diagnose(0.5)
    assert word in sentence and "over with --ckpt scratch and " in sentence


def test_a_young_scene_is_given_time():
    assert after(torch.zeros(100)).diagnose(0.01) is None
    assert after(torch.zeros(100), steps=3).diagnose(0.9) is None


def test_one_foggy_step_does_not_condemn_a_run():
    monitor = after(torch.cat([torch.ones(300), torch.zeros(700)]))
    monitor.update(torch.full((1000,), 0.5))
    assert monitor.diagnose(0.5) is None


def test_a_term_that_is_not_finite_is_named_with_its_step():
    check_finite({"sds": torch.tensor(1.0)}, 3, pytest.fail)
    with pytest.raises(DivergenceError, match="step 3.*entropy.*; try this$"):
        check_finite({"sds": torch.tensor(1.0), "entropy": torch.tensor(float("nan"))}, 3, lambda: "try this")


@pytest.mark.parametrize("opacity", [torch.zeros(100), torch.ones(100), torch.full((100,), 0.5)])
def test_a_mesh_that_failed_is_told_of_flags_of_its_own_stage(opacity):
    sentence = after(opacity).diagnose(0.5, DMTET)
    assert sentence.startswith("the mesh ") and "--lr_distance" in sentence and "--dmtet --ckpt scratch" in sentence
    assert not re.search("--(blob|lambda_opacity|lambda_entropy|density)", sentence)


def test_advice_against_a_loss_that_is_not_finite_names_the_rates_of_its_stage():
    assert DMTET.advice(Failure.NOT_FINITE).startswith("smaller --lr_distance, --lr_offset and --lr_coarse_sdf, ")


@pytest.mark.parametrize("mixed", [False, True])
def test_half_precision_is_blamed_only_where_it_is_used(mixed):
    for kind in STAGE_KINDS.values():
        assert ("--no_fp16" in kind.advice(Failure.NOT_FINITE, Config(), mixed)) == mixed
        assert "fp16" not in kind.advice(Failure.EMPTY, Config(), mixed)


def test_a_smaller_value_than_zero_is_not_advised():
    opaque = with_values(Config(), {"lambda_opacity": 0.1}, "typed")
    assert "a smaller --lambda_opacity" in NERF.advice(Failure.EMPTY, opaque)
    assert NERF.advice(Failure.EMPTY, Config()) == "another --seed, a larger --blob_density or a smaller --lr"
    assert "a smaller --lambda_opacity" not in after(torch.zeros(100)).diagnose(0.5, NERF, Config())


def test_every_flag_that_is_advised_exists():
    advice = " ".join(
        text for kind in STAGE_KINDS.values() for text in [*map(dashed, kind.memory), *chain(*kind.remedies.values())]
    )
    advised = re.findall("--([A-Za-z0-9_]+)", advice)
    assert {flag.removeprefix("no_") for flag in advised} <= OPTIONS.keys()


def test_steps_that_are_not_read_back_count_as_well():
    monitor = DivergenceMonitor()
    for _ in range(7):
        monitor.update(torch.zeros(100), steps=16)
    assert "empty" in monitor.diagnose(0.5)
