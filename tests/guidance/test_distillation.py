"""Score distillation with denoisers whose prediction is known in closed form."""

import math

import pytest
import torch

from guidance.distillation import (
    PREDICTION_TYPES,
    WEIGHTINGS,
    NoiseSchedule,
    classifier_free,
    inject,
    predict_x0,
    rescale_cfg,
    rescale_std,
    sample_timesteps,
    sds_gradient,
    timestep_weight,
)
from nerf.core.errors import DivergenceError
from tests.guidance.denoisers import ABAR, MEAN, SPREAD, expressed, gaussian, mixture, mixture_at, noise_like


def first(predictions):
    return predictions[0]


@pytest.mark.parametrize("t", [20, 400, 980])
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_expected_gradient_equals_the_closed_form_for_gaussian_data(t, weighting):
    # E[w (noise_hat - noise)] = w alpha sigma (x - mean) / (alpha^2 s^2 + sigma^2); antithetic noise makes it exact,
    # because the denoiser of a Gaussian is linear in the noise.
    d = NoiseSchedule(ABAR)
    x = torch.tensor([[-0.7], [0.1], [0.9]], dtype=torch.float64)
    times, noise = torch.full((3,), t), noise_like((3, 1))
    mean = sum(sds_gradient(d, weighting, x, gaussian(d), first, times, n).gradient for n in (noise, -noise)) / 2
    alpha, sigma = d.levels(times, x)
    expected = timestep_weight(weighting, alpha, sigma) * alpha * sigma * (x - MEAN) / (alpha**2 * SPREAD**2 + sigma**2)
    torch.testing.assert_close(mean, expected, rtol=1e-10, atol=1e-12)


def test_random_noise_gives_an_unbiased_gradient():
    d, count = NoiseSchedule(ABAR), 40_000
    x = torch.full((count, 1), 0.9, dtype=torch.float64)
    times = torch.full((count,), 500)
    g = sds_gradient(d, "sds", x, gaussian(d), first, times, noise_like((count, 1))).gradient
    alpha, sigma = (v[0, 0] for v in d.levels(times, x))
    expected = sigma**3 * alpha * (0.9 - MEAN) / (alpha**2 * SPREAD**2 + sigma**2)
    assert abs(g.mean() - expected) < 4 * g.std() / math.sqrt(count)  # 4 standard errors


@pytest.mark.parametrize("t", [100, 500, 900])
def test_expected_gradient_equals_that_of_the_kl_divergence_for_a_mixture(t):
    # DreamFusion eq. 4 with w = 1: E[noise_hat - noise] = sigma / alpha d/dx KL(q(x_t | x) || p_t), here by quadrature.
    d = NoiseSchedule(ABAR)
    count = 100_000
    alpha, sigma = (v.flatten()[0] for v in d.levels(torch.tensor([t]), torch.zeros(1, 1, dtype=torch.float64)))
    for value in (-1.4, 0.0, 0.8):
        x = torch.tensor(value, dtype=torch.float64, requires_grad=True)
        grid = torch.linspace(-8, 8, 4001, dtype=torch.float64)
        chance = torch.exp(-(grid**2) / 2) / math.sqrt(2 * math.pi)
        kl = -torch.trapezoid(chance * mixture_at(alpha, sigma).log_prob(alpha * x + sigma * grid), grid)
        (slope,) = torch.autograd.grad(kl, x)
        images = torch.full((count, 1), value, dtype=torch.float64)
        g = sds_gradient(
            d, "uniform", images, mixture(d), first, torch.full((count,), t), noise_like((count, 1), seed=t)
        ).gradient
        assert abs(g.mean() - sigma / alpha * slope) < 4 * g.std() / math.sqrt(count)


def test_expected_gradient_is_zero_at_the_mode():
    d = NoiseSchedule(ABAR)
    x = torch.full((2, 3, 4, 4), MEAN, dtype=torch.float64)
    t, noise = torch.tensor([100, 900]), noise_like(x.shape)
    mean = sum(sds_gradient(d, "sds", x, gaussian(d), first, t, n).gradient for n in (noise, -noise))
    assert mean.abs().max() < 1e-12


def test_descending_the_gradient_converges_to_the_mode():
    d = NoiseSchedule(ABAR)
    x = torch.full((64, 1), -0.9, dtype=torch.float64)
    for step in range(200):
        generator = torch.Generator().manual_seed(step)
        t = sample_timesteps(64, (0.02, 0.98), 1000, generator)
        noise = torch.randn(x.shape, generator=generator, dtype=x.dtype)
        x = x - 0.2 * sds_gradient(d, "sds", x, gaussian(d), first, t, noise).gradient
    assert abs(x.mean() - MEAN) < 0.1


@pytest.mark.parametrize("clamp", [None, 0.5])
def test_prediction_types_give_the_same_gradient(clamp):
    x, t = noise_like((3, 2, 4, 4), seed=1), torch.tensor([20, 500, 980])
    results = []
    for name in PREDICTION_TYPES:
        d = NoiseSchedule(ABAR, prediction_type=name, clamp=clamp)
        out = sds_gradient(d, "sds", x, gaussian(d, means=(0.0, MEAN)), classifier_free(7.5), t, noise_like(x.shape))
        results.append(out.gradient)
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=1e-6, atol=1e-9)


def test_guidance_is_linear_in_its_scale():
    d = NoiseSchedule(ABAR)
    x, t, noise = noise_like((2, 3), seed=2), torch.tensor([300, 700]), noise_like((2, 3), seed=3)
    g = {s: sds_gradient(d, "sds", x, gaussian(d, (0.0, MEAN)), classifier_free(s), t, noise).gradient for s in (0.0, 1.0, 7.5)}
    torch.testing.assert_close(g[7.5], g[0.0] + 7.5 * (g[1.0] - g[0.0]), rtol=1e-10, atol=1e-12)


def test_guidance_of_scale_one_is_the_conditional_prediction():
    predictions = noise_like((2, 3, 4))
    torch.testing.assert_close(classifier_free(1.0)(predictions), predictions[1])
    torch.testing.assert_close(classifier_free(1.0)(predictions[1:]), predictions[1])


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_rescaling_moves_the_standard_deviation_by_the_given_fraction(share):
    predictions = noise_like((2, 3, 4, 4))
    plain = classifier_free(20.0)(predictions)
    spread = share * predictions[1].std((1, 2)) + (1 - share) * plain.std((1, 2))
    torch.testing.assert_close(rescale_cfg(classifier_free(20.0), share)(predictions).std((1, 2)), spread)


def test_rescaling_scales_an_image_and_keeps_its_direction():
    predictions = noise_like((2, 3, 4, 4))
    plain, pulled = classifier_free(20.0)(predictions), rescale_cfg(classifier_free(20.0), 0.7)(predictions)
    ratio = (pulled / plain).flatten(1)
    torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio))


def test_timestep_weights_equal_their_closed_forms():
    alpha, sigma = torch.tensor([0.8], dtype=torch.float64), torch.tensor([0.6], dtype=torch.float64)
    found = {name: timestep_weight(name, alpha, sigma).item() for name in WEIGHTINGS}
    expected = {"sds": 1 - 0.8**2, "uniform": 1.0, "fantasia": 0.8 * (1 - 0.8**2), "x0": 0.6 / 0.8}
    assert found == pytest.approx(expected)


def test_rescaling_of_an_image_does_not_depend_on_the_others():
    guided, conditional = noise_like((2, 8), seed=4), noise_like((2, 8), seed=5)
    torch.testing.assert_close(rescale_std(guided, conditional, 0.7)[:1], rescale_std(guided[:1], conditional[:1], 0.7))


def test_x0_of_a_perfect_prediction_is_the_clean_image():
    x, noise = noise_like((2, 3), seed=6), noise_like((2, 3), seed=7)
    d = NoiseSchedule(ABAR)
    alpha, sigma = d.levels(torch.tensor([20, 980]), x)
    noisy = alpha * x + sigma * noise
    for name in PREDICTION_TYPES:
        torch.testing.assert_close(predict_x0(expressed(x, noisy, alpha, sigma, name), noisy, alpha, sigma, name), x)


def test_distilled_x0_is_the_prediction_of_the_denoiser():
    d = NoiseSchedule(ABAR)
    x = noise_like((2, 3), seed=8)
    out = sds_gradient(d, "sds", x, gaussian(d, spread=1e-9), first, torch.tensor([20, 980]), noise_like((2, 3)))
    torch.testing.assert_close(out.x0, torch.full_like(x, MEAN))


def test_clamped_x0_stays_in_the_colour_range():
    d = NoiseSchedule(ABAR, clamp=1.0)
    out = sds_gradient(
        d,
        "sds",
        noise_like((2, 3)),
        gaussian(d, (0.0, MEAN)),
        classifier_free(100.0),
        torch.tensor([20, 980]),
        noise_like((2, 3), seed=9),
    )
    assert out.x0.abs().max() == 1.0


def test_injected_loss_has_exactly_the_given_gradient():
    x = torch.full((4, 3), 1000.0, requires_grad=True)
    gradient = torch.full((4, 3), 1e-5)  # vanishes beside x in float32
    inject(x, gradient).backward()
    assert torch.equal(x.grad, gradient / 4)


def test_injected_loss_is_half_the_squared_gradient_of_an_image():
    gradient = noise_like((4, 3))
    torch.testing.assert_close(inject(torch.zeros(4, 3, dtype=torch.float64), gradient), gradient.square().sum(1).mean() / 2)


def test_injected_gradient_scales_with_the_weight_of_the_loss():
    x, gradient = torch.zeros(2, 3, requires_grad=True), torch.ones(2, 3)
    (3 * inject(x, gradient)).backward()
    torch.testing.assert_close(x.grad, 1.5 * gradient)


def test_injected_gradient_reaches_half_precision_images():
    x = torch.zeros(2, 3, dtype=torch.bfloat16, requires_grad=True)
    inject(x, torch.ones(2, 3)).backward()
    assert x.grad.dtype == torch.bfloat16 and (x.grad == 0.5).all()


def test_nan_from_the_denoiser_is_an_error_that_names_it():
    gradient = torch.tensor([[1.0], [float("nan")]])
    with pytest.raises(DivergenceError, match=r"images \[1\] of 2 is not finite though"):
        inject(torch.zeros(2, 1), gradient)


def test_nan_in_the_rendering_is_an_error_that_names_it():
    broken = torch.tensor([[float("inf")], [0.0]])
    with pytest.raises(DivergenceError, match=r"rendered images \[0\] of 2"):
        inject(broken, broken)


def test_timesteps_cover_their_range_and_never_leave_it():
    t = sample_timesteps(20_000, (0.02, 0.98), 1000, torch.Generator().manual_seed(0))
    assert t.min() == 20 and t.max() == 980


def test_timesteps_at_the_very_end_stay_inside_the_schedule():
    assert sample_timesteps(5, (1.0, 1.0), 1000, torch.Generator()).tolist() == [999] * 5


@pytest.mark.parametrize("t_range", [(0.9, 0.1), (-0.1, 0.5), (0.5, 1.1)])
def test_a_timestep_range_that_is_reversed_or_leaves_the_unit_interval_is_refused(t_range):
    with pytest.raises(ValueError, match="t_range"):
        sample_timesteps(1, t_range, 1000, torch.Generator())


def test_gradient_refuses_noise_of_another_shape():
    d = NoiseSchedule(ABAR)
    with pytest.raises(ValueError, match=r"expected noise \[2, 3\]"):
        sds_gradient(d, "sds", torch.zeros(2, 3), gaussian(d), first, torch.tensor([1, 2]), torch.zeros(2, 4))


def test_an_unknown_prediction_type_is_refused():
    with pytest.raises(ValueError, match="'flow'"):
        NoiseSchedule(ABAR, prediction_type="flow")


def test_an_unknown_weighting_is_refused():
    with pytest.raises(ValueError, match="'best'"):
        timestep_weight("best", torch.ones(1), torch.ones(1))


@pytest.mark.parametrize("wrong", [torch.tensor([1.0, 0.5]), torch.tensor([0.5, -0.1]), torch.ones(2, 2) / 2])
def test_a_noise_schedule_out_of_range_is_refused(wrong):
    with pytest.raises(ValueError, match="alphas_cumprod"):
        NoiseSchedule(wrong)
