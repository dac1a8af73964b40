"""DDIM against the closed form of its limit, the probability flow of a Gaussian."""

import pytest
import torch

from guidance.distillation import NoiseSchedule, ddim

SCHEDULE = NoiseSchedule(torch.linspace(0.9999, 0.005, 1000, dtype=torch.float64), "sample")


def only(predictions):
    """The one prediction."""
    return predictions[0]


def gaussian(mean, spread):
    """The optimal denoiser of images whose elements are normal, with a mean and a standard deviation."""

    def predict(noisy, t):
        alpha, sigma = SCHEDULE.levels(t, noisy)
        share = alpha * spread**2 / ((alpha * spread) ** 2 + sigma**2)
        return (mean + share * (noisy - alpha * mean))[None]

    return predict


def test_a_sample_of_a_gaussian_is_where_its_probability_flow_ends():
    mean, spread, noisy = 0.3, 0.5, torch.randn(3, 2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    alpha, sigma = SCHEDULE.levels(torch.tensor([999]), noisy)
    expected = mean + spread * (noisy - alpha * mean) / ((alpha * spread) ** 2 + sigma**2).sqrt()
    far = [(ddim(SCHEDULE, noisy, list(range(999, -1, -step)), gaussian(mean, spread), only) - expected) for step in (9, 3, 1)]
    errors = [error.abs().max().item() for error in far]
    assert errors == sorted(errors, reverse=True) and errors[-1] < 1e-2


@pytest.mark.parametrize("times", [[900, 0], [900, 400, 20]])
def test_what_is_certain_is_sampled_in_any_number_of_steps(times):
    noisy = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(ddim(SCHEDULE, noisy, times, gaussian(0.7, 0.0), only), torch.full_like(noisy, 0.7))


def test_the_denoiser_is_asked_at_all_times_but_the_last():
    asked = []

    def predict(noisy, t):
        asked.append(t.tolist())
        return noisy[None]

    ddim(SCHEDULE, torch.randn(2, 1, 2, 2, dtype=torch.float64), [970, 500, 0], predict, only)
    assert asked == [[970, 970], [500, 500]]
