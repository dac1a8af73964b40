"""Denoisers whose prediction is known in closed form: Gaussian data, mixtures of two Gaussians, under named conditions."""

import torch
from torch.distributions import Categorical, MixtureSameFamily, Normal

from guidance.distillation import Conditioned, NoiseSchedule, Query, classifier_free

ABAR = torch.linspace(0.999, 0.005, 1000, dtype=torch.float64)
MEAN, SPREAD = 0.3, 0.4


def expressed(x0, noisy, alpha, sigma, prediction_type):
    """The prediction of each type that stands for x0."""
    epsilon = (noisy - alpha * x0) / sigma
    return {"epsilon": epsilon, "v_prediction": alpha * epsilon - sigma * x0, "sample": x0}[prediction_type]


def posterior_mean(schedule, noisy, t, mean, spread):
    """E[x_0 | x_t] for data ~ N(mean, spread^2) in every dimension."""
    alpha, sigma = schedule.levels(t, noisy)
    gain = alpha * spread**2 / (alpha**2 * spread**2 + sigma**2)
    return mean + gain * (noisy - alpha * mean)


def gaussian(schedule, means=(MEAN,), spread=SPREAD):
    """Denoiser of data ~ N(mean, spread^2), one condition per mean."""

    def predict(noisy, t):
        levels = schedule.levels(t, noisy)
        found = [posterior_mean(schedule, noisy, t, m, spread) for m in means]
        return torch.stack([expressed(x0, noisy, *levels, schedule.prediction_type) for x0 in found])

    return predict


def mixture_at(alpha, sigma, means=(-1.0, 0.8), spreads=(0.3, 0.2), shares=(0.3, 0.7)):
    """Density of x_t for data from a mixture of two Gaussians."""
    means, spreads, shares = (torch.tensor(v, dtype=torch.float64) for v in (means, spreads, shares))
    return MixtureSameFamily(Categorical(shares), Normal(alpha * means, (alpha**2 * spreads**2 + sigma**2).sqrt()))


def score(density, points):
    """d/dx log p at points [B, ...]."""
    with torch.enable_grad():
        y = points.detach().requires_grad_()
        return torch.autograd.grad(density.log_prob(y).sum(), y)[0]


def mixture(schedule, **shape):
    """The denoiser of a mixture by Tweedie's formula: noise_hat = -sigma d/dx log p_t(x_t); one t for all images."""

    def predict(noisy, t):
        alpha, sigma = schedule.levels(t, noisy)
        noise = -sigma * score(mixture_at(alpha.flatten()[0], sigma.flatten()[0], **shape), noisy)
        return expressed((noisy - sigma * noise) / alpha, noisy, alpha, sigma, schedule.prediction_type)[None]

    return predict


def conditioned(denoisers, learned=None, words=()):
    """A model of denoisers by the names of their conditions; "unconditional" is "null" unless it is given."""
    known = {"unconditional": denoisers["null"], "negative": denoisers["null"]} | denoisers

    def under(names):
        return lambda noisy, t: torch.cat([known[name](noisy, t) for name in names])

    return Conditioned(under, classifier_free, words, learned)


def gaussians(schedule, spread=SPREAD, **means):
    """A model that knows N(mean, spread^2) under each condition."""
    return conditioned({name: gaussian(schedule, (mean,), spread) for name, mean in means.items()})


def noise_like(shape, seed=0):
    """Standard normal float64 noise."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def query(schedule, model, x, t, noise=None, **changes):
    """A query about images x at one timestep (or at [B] of them)."""
    times = torch.full(x.shape[:1], t) if isinstance(t, int) else t
    level = t if isinstance(t, int) else None
    noise = torch.zeros_like(x) if noise is None else noise
    random = torch.Generator().manual_seed(changes.pop("seed", 0))
    return Query(schedule, model, x, times, noise, **{"scale": 1.0, "level": level, "random": random} | changes)


def smooth_schedule(prediction_type="epsilon"):
    """A schedule that begins with next to no noise, as inversion wants it."""
    return NoiseSchedule(torch.linspace(0.9999, 0.005, 1000, dtype=torch.float64), prediction_type)
