"""Which timestep a step looks at."""

import pytest
import torch

from guidance.distillation import T_SCHEDULES, TimestepSchedule, bounded, sample_timesteps
from guidance.distillation.times import dreamtime_weights

ABAR = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2, 0)  # Stable Diffusion's
TIMES = TimestepSchedule(ABAR)
FALLING = [name for name in T_SCHEDULES if name != "uniform"]


def draw(name, fraction=0.5, t_range=(0.02, 0.98), count=4, shared=False, seed=0):
    return TIMES.draw(count, name, fraction, t_range, torch.Generator().manual_seed(seed), shared)


def test_uniform_timesteps_are_those_of_the_first_version():
    expected = sample_timesteps(5, (0.1, 0.7), 1000, torch.Generator().manual_seed(3))
    assert torch.equal(draw("uniform", t_range=(0.1, 0.7), count=5, seed=3), expected)


@pytest.mark.parametrize("name", FALLING)
def test_a_falling_schedule_goes_from_the_upper_to_the_lower_end_and_never_back(name):
    found = [TIMES.falling(name, i / 500, (0.1, 0.9)) for i in range(501)]
    assert (found[0], found[-1]) == (900, 100) and found == sorted(found, reverse=True)


@pytest.mark.parametrize("name", FALLING)
def test_all_images_of_a_step_share_a_timestep_that_falls(name):
    assert draw(name).tolist() == [TIMES.falling(name, 0.5, (0.02, 0.98))] * 4


def test_a_shared_uniform_timestep_is_one_draw_for_all_images():
    assert len(set(draw("uniform", shared=True).tolist())) == 1
    assert len({draw("uniform", shared=True, seed=seed)[0].item() for seed in range(20)}) > 10


def test_linear_and_sqrt_equal_their_closed_forms():
    assert TIMES.falling("linear", 0.25, (0.2, 1.0)) == round(999 - 0.25 * 799)
    assert TIMES.falling("sqrt", 0.25, (0.2, 1.0)) == round(999 - 0.5 * 799)


def test_dreamtime_stays_at_each_timestep_as_long_as_its_weight_says():
    count = 200_000
    found = torch.tensor([TIMES.falling("dreamtime", i / count, (0.0, 1.0)) for i in range(0, count, 10)])
    share = torch.bincount(found, minlength=1000) / len(found)
    weights = dreamtime_weights(ABAR)
    torch.testing.assert_close(share.double(), weights / weights.sum(), rtol=0, atol=1e-4)  # two draws in 20,000


def test_the_weights_of_dreamtime_equal_their_closed_form():
    weights = dreamtime_weights(ABAR) / ((1 - ABAR) / ABAR).sqrt()
    torch.testing.assert_close(weights[500:801], torch.ones(301, dtype=torch.float64))
    at = torch.tensor([300.0, 950.0], dtype=torch.float64)
    expected = torch.exp(-((at - torch.tensor([500.0, 800.0])) ** 2) / (2 * torch.tensor([100.0, 300.0]) ** 2))
    torch.testing.assert_close(weights[[300, 950]], expected)


@pytest.mark.parametrize("name", FALLING)
def test_a_range_of_one_timestep_is_that_timestep(name):
    assert draw(name, 0.3, (0.5, 0.5)).unique().tolist() == [500]


def test_an_unknown_schedule_and_a_reversed_range_are_refused():
    with pytest.raises(ValueError, match="'cosine'"):
        draw("cosine")
    with pytest.raises(ValueError, match="t_range"):
        draw("linear", t_range=(0.9, 0.1))


def test_the_bound_on_a_gradient_grows_linearly():
    gradient = torch.tensor([[-9.0, 0.5, 9.0]])
    assert bounded(gradient, (2.0, 8.0), 0.5).tolist() == [[-5.0, 0.5, 5.0]]
    assert bounded(gradient, (0.0, 0.0), 0.5) is gradient
