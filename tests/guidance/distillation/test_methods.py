"""Each distillation method against denoisers in closed form: what its paper claims of direction, fixed point and variance."""

import math

import pytest
import torch

from guidance.distillation import METHODS, T_SCHEDULES, NoiseSchedule, Tuning, inject, sds_gradient
from nerf.config import distillation as options
from nerf.config.presets import PRESETS
from tests.guidance.denoisers import (
    ABAR,
    conditioned,
    expressed,
    gaussian,
    gaussians,
    mixture,
    mixture_at,
    noise_like,
    posterior_mean,
    query,
    score,
    smooth_schedule,
)

MEAN, SPREAD = 0.3, 0.4
FROZEN = [name for name, method in METHODS.items() if not method.learns]
INVERTING = ["ism", "sdi"]


def distil(name, *args, **changes):
    return METHODS[name].distill(query(*args, **changes))


def points(*values):
    return torch.tensor(values, dtype=torch.float64)[:, None]


def spread_over_noise(name, model, schedule, t, count=200, **changes):
    """Standard deviation of a method's gradient at x = 0.9 over the noise, divided by its mean absolute value."""
    found = []
    for seed in range(count):
        noise = noise_like((1, 1), seed)
        found.append(distil(name, schedule, model, points(0.9), t, noise, seed=seed, weighting="uniform", **changes).gradient)
    found = torch.cat(found)
    return (found.std() / found.abs().mean()).item()


def learner(schedule, mean, log_spread, seen=None):
    """A trainable denoiser: that of Gaussian data with parameters ``mean`` and ``log_spread``."""

    def predict(noisy, t, camera):
        if seen is not None:
            seen.append(camera)
        x0 = posterior_mean(schedule, noisy, t, mean, log_spread.exp())
        return expressed(x0, noisy, *schedule.levels(t, noisy), schedule.prediction_type)

    return predict


# ---- all of them ----


def test_the_methods_and_schedules_of_the_command_line_are_those_of_the_registry():
    assert options.METHODS == tuple(METHODS) and options.T_SCHEDULES == T_SCHEDULES
    assert all(name in PRESETS for name in METHODS if name != "sds")


@pytest.mark.parametrize("weighting", ["sds", "uniform", "x0"])
@pytest.mark.parametrize("name", FROZEN)
def test_descending_moves_towards_the_mode_of_the_prompt(name, weighting):
    # Two modes without a prompt, one of them with it; x begins between them.
    schedule = smooth_schedule()
    modes = {"means": (-1.0, 1.0), "spreads": (0.2, 0.2), "shares": (0.5, 0.5)}
    model = conditioned({"null": mixture(schedule, **modes), "text": gaussian(schedule, (1.0,), 0.2)})
    pulls = []
    for seed in range(8):
        for sign in (1, -1):
            noise = sign * noise_like((1, 1), seed)
            pulls.append(
                distil(name, schedule, model, points(0.05), 700, noise, weighting=weighting, scale=7.5, seed=seed).gradient
            )
    assert torch.cat(pulls).mean() < 0


@pytest.mark.parametrize("kind", ["v_prediction", "sample"])
@pytest.mark.parametrize("name", FROZEN)
def test_prediction_types_give_the_same_gradient(name, kind):
    if name in INVERTING and kind == "sample":
        pytest.skip("models that predict x_0 are inverted from another timestep on")
    found = []
    for each in ("epsilon", kind):
        schedule = NoiseSchedule(ABAR, each)
        model = gaussians(schedule, null=0.0, text=MEAN, negative=-0.2)
        found.append(distil(name, schedule, model, noise_like((2, 3), 1), 400, noise_like((2, 3)), scale=7.5, fraction=0.5))
    torch.testing.assert_close(found[1].gradient, found[0].gradient, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(found[1].x0, found[0].x0, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", METHODS)
def test_a_bound_on_x0_holds_for_what_a_method_compares(name):
    schedule = NoiseSchedule(ABAR, "sample", clamp=1.0)
    model = gaussians(schedule, spread=1e-3, null=3.0, text=5.0)
    mean = torch.tensor(3.0, dtype=torch.float64)
    model = conditioned({name: model.denoiser((name,)) for name in ("null", "text")}, learner(schedule, mean, mean - 8))
    out = distil(name, schedule, model, points(0.5, -0.5), 500, noise_like((2, 1)), weighting="x0")
    # Both predictions are cut to 1, so that no method but those that compare with x itself moves it.
    limit = {"sds": 1.5, "sjc": 1.5, "sdi": 1.5}.get(name)
    assert out.gradient.abs().max() <= (limit if limit is not None else 1e3) and torch.isfinite(out.gradient).all()
    if name in ("vsd", "csd", "nfsd"):
        assert (out.gradient == 0).all()


@pytest.mark.parametrize("name", METHODS)
def test_no_gradient_flows_through_a_method(name):
    schedule = smooth_schedule()
    mean = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    learned = learner(schedule, mean, torch.zeros((), dtype=torch.float64))
    model = conditioned({"null": gaussian(schedule, (0.0,)), "text": gaussian(schedule, (MEAN,))}, learned)
    out = distil(name, schedule, model, points(0.5), 400, scale=2.0)
    assert not any(v.requires_grad for v in (out.gradient, out.x0, out.noisy, out.norm))


@pytest.mark.parametrize("name", INVERTING)
def test_methods_that_invert_ask_for_one_timestep(name):
    assert METHODS[name].shares_t
    model = gaussians(smooth_schedule(), null=0.0, text=MEAN)
    with pytest.raises(ValueError, match="one timestep for all images"):
        distil(name, smooth_schedule(), model, points(0.1, 0.2), torch.tensor([100, 200]))


def test_a_query_refuses_noise_of_another_shape():
    with pytest.raises(ValueError, match=r"expected noise \[2, 1\]"):
        query(smooth_schedule(), gaussians(smooth_schedule(), null=0.0), points(0.1, 0.2), 5, torch.zeros(2, 4))


# ---- SDS and SJC ----


def test_sds_is_the_function_of_the_first_version_bit_for_bit():
    schedule = NoiseSchedule(ABAR)
    model, x, noise = gaussians(schedule, null=0.0, text=MEAN), noise_like((3, 2), 1), noise_like((3, 2))
    t = torch.tensor([20, 500, 980])
    expected = sds_gradient(schedule, "sds", x, *model.guided(7.5), t, noise)
    assert torch.equal(distil("sds", schedule, model, x, t, noise, scale=7.5).gradient, expected.gradient)


def test_sds_collapses_particles_to_the_mode():
    # The expected gradient, by antithetic noise, at all noise levels: what is left of 200 different particles is one point.
    schedule, generator = NoiseSchedule(ABAR), torch.Generator().manual_seed(0)
    model, x = gaussians(schedule, SPREAD, null=0.0, text=MEAN), noise_like((200, 1))
    for _ in range(400):
        t = torch.randint(20, 981, (200,), generator=generator)
        noise = torch.randn(x.shape, generator=generator, dtype=x.dtype)
        x = x - 0.2 * sum(distil("sds", schedule, model, x, t, n).gradient for n in (noise, -noise)) / 2
    assert x.std() < 0.02 and abs(x.mean() - MEAN) < 0.01


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_sjc_equals_sds_with_a_uniform_weight(kind):
    schedule = NoiseSchedule(ABAR, kind)
    model, x, noise = gaussians(schedule, null=0.0, text=MEAN), noise_like((3, 2), 1), noise_like((3, 2))
    t = torch.tensor([20, 500, 980])
    chained = distil("sjc", schedule, model, x, t, noise, scale=20.0, weighting="uniform")
    sampled = distil("sds", schedule, model, x, t, noise, scale=20.0, weighting="uniform")
    torch.testing.assert_close(chained.gradient, sampled.gradient, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("t", [100, 500, 900])
def test_sjc_is_the_score_of_the_data_smoothed_by_its_noise(t):
    # Perturb and average: E[(D(x + s n) - x) / s^2] is the score of p_s averaged over the noise; for a Gaussian, p_s is N(mean,
    # spread^2 + s^2), whose score at x itself is the average, as it is linear.
    schedule = NoiseSchedule(ABAR)
    model, x, noise = gaussians(schedule, SPREAD, null=0.0, text=MEAN), points(-0.7, 0.9), noise_like((2, 1))
    pair = [distil("sjc", schedule, model, x, t, n, weighting="uniform").gradient for n in (noise, -noise)]
    alpha, sigma = schedule.levels(torch.full((2,), t), x)
    s = sigma / alpha
    torch.testing.assert_close(-(pair[0] + pair[1]) / 2 / s, (MEAN - x) / (SPREAD**2 + s**2), rtol=1e-9, atol=1e-10)


# ---- CSD ----


def test_csd_vanishes_where_the_prompt_changes_nothing():
    schedule = NoiseSchedule(ABAR)
    model = conditioned({"null": mixture(schedule), "text": mixture(schedule)})
    assert (distil("csd", schedule, model, points(-0.5, 0.0, 2.0), 400, noise_like((3, 1))).gradient == 0).all()


@pytest.mark.parametrize("t", [100, 500, 900])
def test_csd_climbs_the_implicit_classifier(t):
    # r = -sigma d/dx_t log p(text | x_t), by Bayes log p(x_t | text) - log p(x_t); here by automatic differentiation.
    schedule = NoiseSchedule(ABAR)
    model = conditioned({"null": mixture(schedule), "text": gaussian(schedule, (0.8,), 0.2)})
    x, noise = points(-1.2, 0.1, 0.7), noise_like((3, 1))
    out = distil("csd", schedule, model, x, t, noise, weighting="uniform")
    alpha, sigma = (v.flatten()[0] for v in schedule.levels(torch.tensor([t]), x))
    one = torch.distributions.Normal(alpha * 0.8, (alpha**2 * 0.2**2 + sigma**2).sqrt())
    expected = -sigma * (score(one, out.noisy) - score(mixture_at(alpha, sigma), out.noisy))
    torch.testing.assert_close(out.gradient, expected / expected.norm(), rtol=1e-7, atol=1e-9)
    assert out.gradient.norm().item() == pytest.approx(1.0)


def test_the_negative_prompt_of_csd_takes_its_share_over_half_of_the_run():
    # Equal spreads: r is proportional to (1 - c) null + c negative - text = 0.8 c - 0.2, which changes its sign at c = 0.25.
    schedule = NoiseSchedule(ABAR)
    model = gaussians(schedule, SPREAD, null=0.0, text=0.2, negative=0.8)
    signs = [distil("csd", schedule, model, points(0.5), 400, fraction=f).gradient.sign().item() for f in (0, 0.24, 0.26, 1)]
    assert signs == [-1, -1, 1, 1]


def test_csd_has_no_noise_of_its_own():
    # Equal spreads: the difference of the predictions does not depend on x_t, while SDS holds the noise.
    schedule = NoiseSchedule(ABAR)
    model = gaussians(schedule, SPREAD, null=0.0, text=MEAN)
    assert spread_over_noise("csd", model, schedule, 400) < 1e-9
    assert spread_over_noise("sds", model, schedule, 400) > 0.25


def test_perpneg_shifts_the_prediction_of_csd_under_the_prompt():
    schedule = NoiseSchedule(ABAR)
    plain = {"null": gaussian(schedule, (0.0,)), "text": gaussian(schedule, (MEAN,)), "front": gaussian(schedule, (0.6,))}
    model = conditioned(plain, words=("front",))
    pushed = type(model)(model.denoiser, lambda scale: lambda p: p[0] + scale * (p[1] - p[0] - 2 * (p[2] - p[0])), ("front",))
    towards, away = (distil("csd", schedule, m, points(0.1), 400).gradient for m in (conditioned(plain), pushed))
    assert towards < 0 < away


# ---- NFSD ----


@pytest.mark.parametrize("t", [50, 199, 200, 700])
def test_nfsd_is_the_sum_of_its_two_terms(t):
    schedule = NoiseSchedule(ABAR)
    means = {"null": 0.0, "text": MEAN, "negative": -0.5}
    x, noise = points(-0.4, 0.6), noise_like((2, 1))
    out = distil("nfsd", schedule, gaussians(schedule, SPREAD, **means), x, t, noise, scale=7.5, weighting="uniform")
    alpha, sigma = schedule.levels(torch.full((2,), t), x)
    eps = {name: sigma * (out.noisy - alpha * mean) / (alpha**2 * SPREAD**2 + sigma**2) for name, mean in means.items()}
    domain = eps["null"] if t < 200 else eps["null"] - eps["negative"]
    torch.testing.assert_close(out.gradient, domain + 7.5 * (eps["text"] - eps["null"]), rtol=1e-8, atol=1e-10)


def test_nfsd_has_no_noise_above_its_threshold():
    schedule = NoiseSchedule(ABAR)
    model = gaussians(schedule, SPREAD, null=0.0, text=MEAN, negative=-0.5)
    assert spread_over_noise("nfsd", model, schedule, 400) < 1e-9
    assert spread_over_noise("nfsd", model, schedule, 100) > 1e-2


# ---- VSD ----


def test_vsd_vanishes_where_the_learned_model_is_that_of_the_prompt():
    schedule = NoiseSchedule(ABAR)
    mean, log_spread = (torch.tensor(v, dtype=torch.float64) for v in (MEAN, math.log(SPREAD)))
    text = gaussian(schedule, (MEAN,), SPREAD)
    model = conditioned({"null": gaussian(schedule, (0.0,)), "text": text}, learner(schedule, mean, log_spread))
    assert distil("vsd", schedule, model, points(-2.0, 0.1), 400, noise_like((2, 1))).gradient.abs().max() < 1e-12


def test_vsd_keeps_the_spread_of_the_data_where_sds_collapses():
    # Particles from N(-0.9, 0.1^2), the learned model fitted by the loss that VSD returns: they become N(mean, spread^2).
    schedule, count = NoiseSchedule(ABAR), 1000
    x = -0.9 + 0.1 * noise_like((count, 1))
    mean = torch.tensor(0.0, dtype=torch.float64, requires_grad=True)
    log_spread = torch.tensor(0.0, dtype=torch.float64, requires_grad=True)
    model = conditioned(
        {"null": gaussian(schedule, (0.0,)), "text": gaussian(schedule, (MEAN,), SPREAD)}, learner(schedule, mean, log_spread)
    )
    optimizer = torch.optim.Adam([mean, log_spread], lr=0.02)
    for seed in range(1500):
        generator = torch.Generator().manual_seed(seed)
        t = torch.randint(20, 981, (count,), generator=generator)
        noise = torch.randn(x.shape, generator=generator, dtype=x.dtype)
        out = distil("vsd", schedule, model, x, t, noise, seed=seed)
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
        x = x - 0.2 * out.gradient
    assert abs(x.mean() - MEAN) < 0.05 and abs(x.std() - SPREAD) < 0.06
    assert abs(mean.item() - MEAN) < 0.1 and abs(log_spread.exp().item() - SPREAD) < 0.1


def test_vsd_withholds_the_cameras_in_a_tenth_of_its_training_only():
    schedule, seen = NoiseSchedule(ABAR), []
    mean = torch.zeros((), dtype=torch.float64)
    model = conditioned({"null": gaussian(schedule), "text": gaussian(schedule)}, learner(schedule, mean, mean, seen))
    for seed in range(600):
        distil("vsd", schedule, model, points(0.0), 400, seed=seed)
    assert all(seen[::2])  # the gradient always knows the cameras
    assert 0.06 < 1 - sum(seen[1::2]) / 600 < 0.14  # 3.3 standard deviations


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_the_loss_of_vsd_is_least_for_the_posterior_mean_of_the_renderings(kind):
    schedule = NoiseSchedule(ABAR, kind)
    x = -0.9 + 0.1 * noise_like((4000, 1))

    def loss(mean, spread):
        model = [torch.tensor(v, dtype=torch.float64) for v in (mean, math.log(spread))]
        known = conditioned({"null": gaussian(schedule), "text": gaussian(schedule)}, learner(schedule, *model))
        return distil("vsd", schedule, known, x, 400, seed=1).loss

    best = loss(-0.9, 0.1)
    assert all(best < loss(*other) for other in ((-0.8, 0.1), (-1.0, 0.1), (-0.9, 0.2), (-0.9, 0.05)))


# ---- ISM and SDI ----


@pytest.mark.parametrize("t", [150, 400, 800])
def test_ism_compares_two_points_of_one_trajectory(t):
    # DDIM in the limit of short steps keeps (x_t - alpha mean) / sqrt(v_t) with v_t = alpha^2 spread^2 + sigma^2, so that
    # r = (sigma_t / sqrt(v_t) - sigma_s / sqrt(v_s)) (x - mean) / spread.
    schedule, x = smooth_schedule(), points(-0.5, 0.3, 1.0)
    model = gaussians(schedule, SPREAD, null=MEAN, text=MEAN)
    tuning = Tuning(ism_interval=(80, 80), ism_stride=1)
    out = distil("ism", schedule, model, x, t, tuning=tuning, weighting="uniform")

    def level(time):
        alpha, sigma = schedule.levels(torch.tensor([time]), x)
        return sigma / (alpha**2 * SPREAD**2 + sigma**2).sqrt()

    expected = (level(t) - level(t - 80)) * (x - MEAN) / SPREAD
    # One step of DDIM over the interval itself, and the start at alpha = 0.99995.
    torch.testing.assert_close(out.gradient, expected, rtol=0.1, atol=2e-3)
    assert out.gradient[1].abs() < 1e-3


def test_the_interval_of_ism_shrinks_at_the_start_of_the_run():
    schedule = smooth_schedule()
    model, calls = gaussians(schedule, SPREAD, null=MEAN, text=MEAN), []
    under = model.denoiser

    def counted(names):
        return lambda noisy, t: calls.append(int(t[0])) or under(names)(noisy, t)

    for fraction in (0.0, 0.15, 0.3, 1.0):
        distil("ism", schedule, type(model)(counted, model.mixer), points(0.0), 700, fraction=fraction)
    before = [calls[i - 1] for i, t in enumerate(calls) if t == 700]
    assert before == [600, 625, 650, 650]


@pytest.mark.parametrize("t", [150, 400, 800])
def test_sdi_returns_to_where_the_inversion_came_from(t):
    # x0_hat = mean + alpha spread / sqrt(v_t) (x - mean): the mean is the one fixed point, and at low noise every x is one.
    schedule, x = smooth_schedule(), points(-0.5, 0.3, 1.0)
    model = gaussians(schedule, SPREAD, null=MEAN, text=MEAN)
    tuning = Tuning(sdi_steps=1000, sdi_eta=0.0)
    out = distil("sdi", schedule, model, x, t, tuning=tuning, weighting="x0")
    alpha, sigma = schedule.levels(torch.tensor([t]), x)
    kept = alpha * SPREAD / (alpha**2 * SPREAD**2 + sigma**2).sqrt()
    torch.testing.assert_close(out.gradient, (x - MEAN) * (1 - kept), rtol=2e-2, atol=2e-3)
    torch.testing.assert_close(out.x0, x - out.gradient)


@pytest.mark.parametrize("name", INVERTING)
def test_inversion_gives_nearly_the_same_gradient_whatever_the_noise(name):
    schedule = smooth_schedule()
    model = gaussians(schedule, SPREAD, null=0.0, text=MEAN)
    tuning = Tuning(sdi_eta=0.0)
    still = spread_over_noise(name, model, schedule, 400, count=60, scale=2.0, tuning=tuning)
    assert still < 0.2 * spread_over_noise("sds", model, schedule, 400, count=60, scale=2.0)


def test_sdi_stays_at_the_mode_that_x_is_near_where_sds_averages_the_modes():
    schedule = smooth_schedule()
    modes = {"means": (-1.0, 1.0), "spreads": (0.1, 0.1), "shares": (0.5, 0.5)}
    model, x = conditioned({"null": mixture(schedule, **modes), "text": mixture(schedule, **modes)}), points(*[0.9] * 100)
    noise = noise_like((100, 1))
    tuning = Tuning(sdi_steps=50, sdi_eta=0.0)
    inverted = distil("sdi", schedule, model, x, 850, noise, tuning=tuning).x0
    sampled = distil("sds", schedule, model, x, 850, noise).x0
    assert (inverted > 0).all()
    assert (sampled < 0).double().mean() > 0.15


def test_an_inversion_gets_shorter_as_the_timestep_falls():
    schedule, calls = smooth_schedule(), []
    model = gaussians(schedule, SPREAD, null=MEAN, text=MEAN)
    counted = type(model)(lambda names: lambda x, t: calls.append(0) or model.denoiser(names)(x, t), model.mixer)
    lengths = []
    for t in (950, 450, 150):
        calls.clear()
        distil("sdi", schedule, counted, points(0.0), t)
        lengths.append(len(calls))
    assert lengths == [11, 6, 3]  # ten steps over all timesteps, and the prediction


def test_the_noise_of_sdis_inversion_grows_with_eta():
    schedule = smooth_schedule()
    model = gaussians(schedule, SPREAD, null=0.0, text=MEAN)
    spreads = [spread_over_noise("sdi", model, schedule, 400, count=60, tuning=Tuning(sdi_eta=eta)) for eta in (0.0, 0.3, 1.0)]
    assert spreads[0] < spreads[1] < spreads[2]


@pytest.mark.parametrize("name", INVERTING)
def test_models_that_predict_x0_are_inverted_from_where_there_is_noise(name):
    schedule = smooth_schedule("sample")
    model, times = gaussians(schedule, SPREAD, null=0.0, text=MEAN), []
    seen = type(model)(lambda names: lambda x, t: times.append(int(t[0])) or model.denoiser(names)(x, t), model.mixer)
    for t in (700, 30):  # below the first timestep with enough noise nothing is left to invert
        assert torch.isfinite(distil(name, schedule, seen, points(0.1), t, noise_like((1, 1))).gradient).all()
    assert schedule.sigmas[times[0]] >= 0.3 > schedule.sigmas[times[0] - 1]


# ---- the loss ----


def test_the_loss_of_the_learned_model_does_not_reach_the_images():
    schedule = NoiseSchedule(ABAR)
    mean = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    learned = learner(schedule, mean, torch.zeros((), dtype=torch.float64))
    model = conditioned({"null": gaussian(schedule), "text": gaussian(schedule)}, learned)
    x = points(0.5, -0.5).requires_grad_()
    out = distil("vsd", schedule, model, x.detach(), 400, noise_like((2, 1)))
    (inject(x, out.gradient) + out.loss).backward()
    torch.testing.assert_close(x.grad, out.gradient / 2)
    assert mean.grad != 0
