"""Score distillation against denoisers whose answer is known in closed form."""

import math

import pytest
import torch
from torch.distributions import Categorical, MixtureSameFamily, Normal

from guidance.distillation import (
    PARAMETERISATIONS,
    WEIGHTINGS,
    Distillation,
    classifier_free,
    draw_times,
    estimate,
    inject,
    keeping_spread,
    rescaled,
    weight,
)
from nerf.core.errors import DivergenceError

ABAR = torch.linspace(0.999, 0.005, 1000, dtype=torch.float64)
MEAN, SPREAD = 0.3, 0.4


def expressed(x0, noisy, alpha, sigma, parameterisation):
    """The prediction that a perfect model of each kind would make if it believed in x0."""
    epsilon = (noisy - alpha * x0) / sigma
    return {"epsilon": epsilon, "v_prediction": alpha * epsilon - sigma * x0, "sample": x0}[parameterisation]


def gaussian(distillation, means=(MEAN,), spread=SPREAD):
    """Denoiser of data ~ N(mean, spread^2) in every dimension: E[x_0 | x_t], one branch per mean."""

    def predict(noisy, t):
        alpha, sigma = distillation.levels(t, noisy)
        gain = alpha * spread**2 / (alpha**2 * spread**2 + sigma**2)
        believed = [m + gain * (noisy - alpha * m) for m in means]
        return torch.stack([expressed(x0, noisy, alpha, sigma, distillation.parameterisation) for x0 in believed])

    return predict


def mixture_at(alpha, sigma):
    """The two-bump data of the mixture tests after noising: density of x_t."""
    means, spreads = torch.tensor([-1.0, 0.8], dtype=torch.float64), torch.tensor([0.3, 0.2], dtype=torch.float64)
    share = Categorical(torch.tensor([0.3, 0.7], dtype=torch.float64))
    return MixtureSameFamily(share, Normal(alpha * means, (alpha**2 * spreads**2 + sigma**2).sqrt()))


def mixture(distillation):
    """Its denoiser by Tweedie's formula: noise_hat = -sigma d/dx log p_t(x_t)."""

    def predict(noisy, t):
        alpha, sigma = distillation.levels(t, noisy)
        with torch.enable_grad():
            y = noisy.detach().requires_grad_()
            (score,) = torch.autograd.grad(mixture_at(alpha.flatten()[0], sigma.flatten()[0]).log_prob(y).sum(), y)
        return (-sigma * score)[None]

    return predict


def first(branches):
    return branches[0]


def noise_like(shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("t", [20, 400, 980])
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_expected_gradient_equals_the_closed_form_for_gaussian_data(t, weighting):
    # E[w (noise_hat - noise)] = w alpha sigma (x - mean) / (alpha^2 s^2 + sigma^2); antithetic noise makes it exact,
    # because the denoiser of a Gaussian is linear in the noise.
    d = Distillation(ABAR, weighting=weighting)
    x = torch.tensor([[-0.7], [0.1], [0.9]], dtype=torch.float64)
    times, noise = torch.full((3,), t), noise_like((3, 1))
    mean = sum(d.gradient(x, gaussian(d), first, times, n).gradient for n in (noise, -noise)) / 2
    alpha, sigma = d.levels(times, x)
    expected = weight(weighting, alpha, sigma) * alpha * sigma * (x - MEAN) / (alpha**2 * SPREAD**2 + sigma**2)
    torch.testing.assert_close(mean, expected, rtol=1e-10, atol=1e-12)


def test_random_noise_gives_an_unbiased_gradient():
    d, count = Distillation(ABAR), 40_000
    x = torch.full((count, 1), 0.9, dtype=torch.float64)
    times = torch.full((count,), 500)
    g = d.gradient(x, gaussian(d), first, times, noise_like((count, 1))).gradient
    alpha, sigma = (v[0, 0] for v in d.levels(times, x))
    expected = sigma**3 * alpha * (0.9 - MEAN) / (alpha**2 * SPREAD**2 + sigma**2)
    assert abs(g.mean() - expected) < 4 * g.std() / math.sqrt(count)  # 4 standard errors


@pytest.mark.parametrize("t", [100, 500, 900])
def test_expected_gradient_equals_the_slope_of_the_kl_divergence_for_a_mixture(t):
    # DreamFusion eq. 4 with w = 1: E[noise_hat - noise] = sigma / alpha d/dx KL(q(x_t | x) || p_t), here by quadrature.
    d = Distillation(ABAR, weighting="uniform")
    count = 100_000
    alpha, sigma = (v.flatten()[0] for v in d.levels(torch.tensor([t]), torch.zeros(1, 1, dtype=torch.float64)))
    for value in (-1.4, 0.0, 0.8):
        x = torch.tensor(value, dtype=torch.float64, requires_grad=True)
        grid = torch.linspace(-8, 8, 4001, dtype=torch.float64)
        chance = torch.exp(-(grid**2) / 2) / math.sqrt(2 * math.pi)
        kl = -torch.trapezoid(chance * mixture_at(alpha, sigma).log_prob(alpha * x + sigma * grid), grid)
        (slope,) = torch.autograd.grad(kl, x)
        pictures = torch.full((count, 1), value, dtype=torch.float64)
        g = d.gradient(pictures, mixture(d), first, torch.full((count,), t), noise_like((count, 1), seed=t)).gradient
        assert abs(g.mean() - sigma / alpha * slope) < 4 * g.std() / math.sqrt(count)


def test_expected_gradient_is_zero_at_the_mode():
    d = Distillation(ABAR)
    x = torch.full((2, 3, 4, 4), MEAN, dtype=torch.float64)
    t, noise = torch.tensor([100, 900]), noise_like(x.shape)
    mean = sum(d.gradient(x, gaussian(d), first, t, n).gradient for n in (noise, -noise))
    assert mean.abs().max() < 1e-12


def test_descending_the_gradient_leads_to_the_mode():
    d = Distillation(ABAR)
    x = torch.full((64, 1), -0.9, dtype=torch.float64)
    for step in range(200):
        generator = torch.Generator().manual_seed(step)
        t = draw_times(64, (0.02, 0.98), 1000, generator)
        noise = torch.randn(x.shape, generator=generator, dtype=x.dtype)
        x = x - 0.2 * d.gradient(x, gaussian(d), first, t, noise).gradient
    assert abs(x.mean() - MEAN) < 0.1


@pytest.mark.parametrize("clamp", [None, 0.5])
def test_parameterisations_give_the_same_gradient(clamp):
    x, t = noise_like((3, 2, 4, 4), seed=1), torch.tensor([20, 500, 980])
    results = []
    for name in PARAMETERISATIONS:
        d = Distillation(ABAR, parameterisation=name, clamp=clamp)
        out = d.gradient(x, gaussian(d, means=(0.0, MEAN)), classifier_free(7.5), t, noise_like(x.shape))
        results.append(out.gradient)
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=1e-6, atol=1e-9)


def test_guidance_is_linear_in_its_scale():
    d = Distillation(ABAR)
    x, t, noise = noise_like((2, 3), seed=2), torch.tensor([300, 700]), noise_like((2, 3), seed=3)
    g = {s: d.gradient(x, gaussian(d, (0.0, MEAN)), classifier_free(s), t, noise).gradient for s in (0.0, 1.0, 7.5)}
    torch.testing.assert_close(g[7.5], g[0.0] + 7.5 * (g[1.0] - g[0.0]), rtol=1e-10, atol=1e-12)


def test_guidance_of_scale_one_is_the_conditional_branch():
    branches = noise_like((2, 3, 4))
    torch.testing.assert_close(classifier_free(1.0)(branches), branches[1])
    torch.testing.assert_close(classifier_free(1.0)(branches[1:]), branches[1])


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_spread_is_pulled_back_by_the_share_that_was_asked_for(share):
    branches = noise_like((2, 3, 4, 4))
    plain = classifier_free(20.0)(branches)
    spread = share * branches[1].std((1, 2)) + (1 - share) * plain.std((1, 2))
    torch.testing.assert_close(keeping_spread(classifier_free(20.0), share)(branches).std((1, 2)), spread)


def test_keeping_the_spread_changes_the_size_of_a_picture_and_not_its_direction():
    branches = noise_like((2, 3, 4, 4))
    plain, pulled = classifier_free(20.0)(branches), keeping_spread(classifier_free(20.0), 0.7)(branches)
    ratio = (pulled / plain).flatten(1)
    torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio))


def test_weights_of_the_noise_residual_equal_their_closed_forms():
    alpha, sigma = torch.tensor([0.8], dtype=torch.float64), torch.tensor([0.6], dtype=torch.float64)
    found = {name: weight(name, alpha, sigma).item() for name in WEIGHTINGS}
    assert found == pytest.approx({"sds": 1 - 0.8**2, "uniform": 1.0, "fantasia": 0.8 * (1 - 0.8**2)})


def test_rescale_of_an_image_does_not_depend_on_its_neighbours():
    guided, conditional = noise_like((2, 8), seed=4), noise_like((2, 8), seed=5)
    torch.testing.assert_close(rescaled(guided, conditional, 0.7)[:1], rescaled(guided[:1], conditional[:1], 0.7))


def test_estimate_of_a_perfect_prediction_is_the_clean_picture():
    x, noise = noise_like((2, 3), seed=6), noise_like((2, 3), seed=7)
    d = Distillation(ABAR)
    alpha, sigma = d.levels(torch.tensor([20, 980]), x)
    noisy = alpha * x + sigma * noise
    for name in PARAMETERISATIONS:
        torch.testing.assert_close(estimate(expressed(x, noisy, alpha, sigma, name), noisy, alpha, sigma, name), x)


def test_distilled_estimate_is_what_the_denoiser_believes():
    d = Distillation(ABAR)
    x = noise_like((2, 3), seed=8)
    out = d.gradient(x, gaussian(d, spread=1e-9), first, torch.tensor([20, 980]), noise_like((2, 3)))
    torch.testing.assert_close(out.x0, torch.full_like(x, MEAN))


def test_clamped_estimate_stays_in_the_colour_range():
    d = Distillation(ABAR, clamp=1.0)
    out = d.gradient(
        noise_like((2, 3)),
        gaussian(d, (0.0, MEAN)),
        classifier_free(100.0),
        torch.tensor([20, 980]),
        noise_like((2, 3), seed=9),
    )
    assert out.x0.abs().max() == 1.0


def test_clipping_shortens_a_gradient_and_keeps_its_direction():
    x, t, noise = noise_like((2, 8), seed=2), torch.tensor([300, 700]), noise_like((2, 8), seed=3)
    free = Distillation(ABAR)
    clipped = Distillation(ABAR, max_norm=0.01)
    long = free.gradient(x, gaussian(free), first, t, noise)
    short = clipped.gradient(x, gaussian(clipped), first, t, noise)
    torch.testing.assert_close(short.gradient, 0.01 * long.gradient / long.norm[:, None])


def test_clipping_leaves_a_short_gradient_alone():
    x, t, noise = noise_like((2, 8), seed=2), torch.tensor([300, 700]), noise_like((2, 8), seed=3)
    d = Distillation(ABAR, max_norm=1e6)
    torch.testing.assert_close(
        d.gradient(x, gaussian(d), first, t, noise).gradient,
        Distillation(ABAR).gradient(x, gaussian(d), first, t, noise).gradient,
    )


def test_injected_loss_has_exactly_the_given_gradient():
    x = torch.full((4, 3), 1000.0, requires_grad=True)
    gradient = torch.full((4, 3), 1e-5)  # vanishes beside x in float32
    inject(x, gradient).backward()
    assert torch.equal(x.grad, gradient / 4)


def test_injected_loss_is_half_the_squared_gradient_of_a_picture():
    gradient = noise_like((4, 3))
    torch.testing.assert_close(inject(torch.zeros(4, 3, dtype=torch.float64), gradient), gradient.square().sum(1).mean() / 2)


def test_injected_gradient_scales_with_the_weight_of_the_loss():
    x, gradient = torch.zeros(2, 3, requires_grad=True), torch.ones(2, 3)
    (3 * inject(x, gradient)).backward()
    torch.testing.assert_close(x.grad, 1.5 * gradient)


def test_injected_gradient_reaches_half_precision_pictures():
    x = torch.zeros(2, 3, dtype=torch.bfloat16, requires_grad=True)
    inject(x, torch.ones(2, 3)).backward()
    assert x.grad.dtype == torch.bfloat16 and (x.grad == 0.5).all()


def test_nan_from_the_denoiser_is_an_error_that_names_it():
    gradient = torch.tensor([[1.0], [float("nan")]])
    with pytest.raises(DivergenceError, match=r"pictures \[1\] of 2 is not finite though"):
        inject(torch.zeros(2, 1), gradient)


def test_nan_in_the_rendering_is_an_error_that_names_it():
    broken = torch.tensor([[float("inf")], [0.0]])
    with pytest.raises(DivergenceError, match=r"rendered pictures \[0\] of 2"):
        inject(broken, broken)


def test_times_cover_their_range_and_never_leave_it():
    t = draw_times(20_000, (0.02, 0.98), 1000, torch.Generator().manual_seed(0))
    assert t.min() == 20 and t.max() == 980


def test_times_at_the_very_end_stay_inside_the_schedule():
    assert draw_times(5, (1.0, 1.0), 1000, torch.Generator()).tolist() == [999] * 5


@pytest.mark.parametrize("t_range", [(0.9, 0.1), (-0.1, 0.5), (0.5, 1.1)])
def test_times_refuse_a_range_that_makes_no_sense(t_range):
    with pytest.raises(ValueError, match="t_range"):
        draw_times(1, t_range, 1000, torch.Generator())


def test_gradient_refuses_noise_of_another_shape():
    d = Distillation(ABAR)
    with pytest.raises(ValueError, match=r"expected noise \[2, 3\]"):
        d.gradient(torch.zeros(2, 3), gaussian(d), first, torch.tensor([1, 2]), torch.zeros(2, 4))


@pytest.mark.parametrize("wrong", [{"parameterisation": "flow"}, {"weighting": "best"}])
def test_unknown_choices_are_refused_by_name(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong.values()))):
        Distillation(ABAR, **wrong)
