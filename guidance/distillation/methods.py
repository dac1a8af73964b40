"""Every distillation method on one page: from a denoiser to a gradient on images. B images, K conditions, T timesteps.

All of them descend ``w(t) r``, and differ in the residual r and in x_t. A prediction of x_0 stands for a prediction of noise,
``eps = (x_t - alpha x0) / sigma``, so that a difference of two noise predictions at one x_t is ``alpha / sigma`` times the
opposite difference of the x_0 predictions. eps(c) is the prediction under the condition c, eps_cfg the guided one, w(t) is
``--guidance_weighting``; docs/distillation.md has the table of the methods with their published settings.

A method is a function of a :class:`Query` and an entry of :data:`METHODS`; another program may add its own.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from guidance.distillation.gradient import Distilled
from guidance.distillation.inversion import invert, start_of, steps_up_to
from guidance.distillation.query import Query
from guidance.distillation.schedule import Denoiser, Mixer, NoiseSchedule, timestep_weight
from nerf.core.transfer import upload

NFSD_LOW = 0.2  # of T; below, the empty prompt's prediction is taken for the correction towards the domain alone
CSD_ANNEALED = 0.5  # share of the run after which CSD's baseline has its share of the negative prompt
ISM_WARM_UP = 0.3  # share of the run during which ISM's interval falls
CAMERA_DROPOUT = 0.1  # share of the steps in which the model that VSD trains is not given the cameras


def sds_gradient(
    schedule: NoiseSchedule, weighting: str, x: Tensor, predict: Denoiser, mix: Mixer, t: Tensor, noise: Tensor
) -> Distilled:
    """Score distillation sampling: ``w(t) (noise_hat - noise)``, computed as ``w(t) alpha / sigma (x - x0_hat)``.

    Args:
        schedule: of the denoiser.
        weighting: one of :data:`WEIGHTINGS`.
        x: [B, ...] images or latents; no gradient flows through this function.
        predict: the denoiser.
        mix: how its predictions are combined.
        t: [B] int64 timesteps.
        noise: like x, standard normal.

    Raises:
        ValueError: shapes that do not match.
    """
    if noise.shape != x.shape or t.shape != x.shape[:1]:
        raise ValueError(
            f"sds_gradient: expected noise {list(x.shape)} and t [{x.shape[0]}], got {list(noise.shape)} and {list(t.shape)}"
        )
    x = x.detach()
    alpha, sigma = schedule.levels(t, x)
    noisy = alpha * x + sigma * noise
    x0 = schedule.denoise(noisy, t, predict, mix)
    gradient = timestep_weight(weighting, alpha, sigma) * (alpha / sigma) * (x - x0)
    return Distilled(gradient, x0, noisy, t, gradient.flatten(1).norm(dim=1))


def sds(query: Query) -> Distilled:
    """``r = eps_cfg(x_t) - noise``: score distillation sampling (Poole et al. 2022, arXiv 2209.14988, eq. 3)."""
    predict, mix = query.model.guided(query.scale)
    return sds_gradient(query.schedule, query.weighting, query.x, predict, mix, query.t, query.noise)


def sjc(query: Query) -> Distilled:
    """``r = (x - D(x + s n; s)) / s`` with s = sigma / alpha: score Jacobian chaining (Wang et al. 2023, arXiv 2212.00774).

    Their perturb-and-average score in the variance-exploding parametrisation, where D is the denoiser at ``z = x + s n``; a
    model of this program sees ``alpha z``. Equal to SDS with w(t) = 1.
    """
    alpha, sigma = query.schedule.levels(query.t, query.x)
    spread = sigma / alpha
    noisy = alpha * (query.x + spread * query.noise)
    denoised = query.guided(noisy, query.t)
    return query.result((query.x - denoised) / spread, denoised, noisy)


def csd(query: Query) -> Distilled:
    """``r = eps(text) - (1 - c) eps(null) - c eps(negative)``, over the norm of the batch: classifier score distillation.

    The gradient of L_CSD of Yu et al. 2023, arXiv 2310.19415, with their negative prompt, whose share c grows over the first
    half of the run. The noise is only in x_t, not in the residual. Under Perp-Neg, eps(text) is shifted by the view words.
    """
    model, words = query.model, query.model.words
    noisy = query.schedule.add_noise(query.x, query.noise, query.t)
    null, text, *others, negative = query.x0_under(noisy, query.t, "null", "text", *words, "negative")
    wanted = model.mixer(1.0)(torch.stack([null, text, *others]))
    share = query.tuning.csd_negative * min(1.0, query.fraction / CSD_ANNEALED)
    alpha, sigma = query.schedule.levels(query.t, query.x)
    found = query.result(alpha / sigma * ((1 - share) * null + share * negative - wanted), wanted, noisy)
    gradient = found.gradient / (found.gradient.norm() + 1e-8)
    return Distilled(gradient, wanted, noisy, query.t, gradient.flatten(1).norm(dim=1))


def nfsd(query: Query) -> Distilled:
    """``r = delta_D + s (eps(text) - eps(null))``: noise-free score distillation.

    The gradient of L_NFSD of Katzir et al. 2023, arXiv 2310.17590. delta_D, the correction towards the domain of natural
    images, is ``eps(null)`` at low noise (t < 200 of 1000), where it holds little else, and ``eps(null) - eps(negative)``
    above. s is the guidance scale.
    """
    noisy = query.schedule.add_noise(query.x, query.noise, query.t)
    null, text, negative = query.x0_under(noisy, query.t, "null", "text", "negative")
    alpha, sigma = query.schedule.levels(query.t, query.x)
    domain = query.schedule.noise_in(noisy, null, query.t)
    domain_high = alpha / sigma * (negative - null)
    low = (query.t < NFSD_LOW * query.schedule.num_timesteps).reshape(alpha.shape)
    condition = alpha / sigma * (null - text)
    residual = torch.where(low, domain, domain_high) + query.scale * condition
    return query.result(residual, null + query.scale * (text - null), noisy)


def vsd(query: Query) -> Distilled:
    """``r = eps_cfg(x_t) - eps_learned(x_t)``: variational score distillation (Wang et al. 2023, arXiv 2305.16213, eq. 9).

    eps_learned is a low-rank change of the same denoiser, given the cameras, which is trained beside the field on its
    renderings (eq. 8): the result carries that loss. In one step of ten it is not given the cameras.
    """
    model, schedule = query.model.learned, query.schedule
    assert model is not None, "the method says that it learns"
    noisy = schedule.add_noise(query.x, query.noise, query.t)
    wanted = query.guided(noisy, query.t)
    alpha, sigma = schedule.levels(query.t, query.x)
    residual = alpha / sigma * (query.learned_x0(noisy, query.t) - wanted)
    (t,) = upload([torch.randint(schedule.num_timesteps, query.t.shape, generator=query.random)], query.t.device)
    noise = query.drawn_noise()
    camera = torch.rand(1, generator=query.random).item() >= CAMERA_DROPOUT
    error = model(schedule.add_noise(query.x, noise, t), t, camera) - schedule.target(query.x, noise, t)
    return query.result(residual, wanted, noisy, error.float().square().mean())


def ism(query: Query) -> Distilled:
    """``r = eps_cfg(x_t) - eps(x_s; null)``, s a little before t: interval score matching.

    The gradient of L_ISM of Liang et al. 2023, arXiv 2311.11284. x_s is the DDIM inversion of x under the empty prompt, and
    x_t one step further, so that the same rendering gives nearly the same x_t in every step.
    """
    schedule, tuning = query.schedule, query.tuning
    level, per_step = _level(query), schedule.num_timesteps / 1000
    start, end = tuning.ism_interval
    interval = end + (start - end) * max(0.0, 1 - query.fraction / ISM_WARM_UP)
    times = steps_up_to(query, max(level - round(interval * per_step), 0), max(round(tuning.ism_stride * per_step), 1))

    def under_null(noisy: Tensor, t: Tensor) -> Tensor:
        return query.x0_under(noisy, t, "null")[0]

    earlier, s = invert(query, times, under_null), query.at(times[-1])
    x0 = under_null(earlier, s)
    noise = schedule.noise_in(earlier, x0, s)
    noisy = schedule.add_noise(x0, noise, query.t)
    wanted = query.guided(noisy, query.t)
    return query.result(schedule.noise_in(noisy, wanted, query.t) - noise, wanted, noisy)


def sdi(query: Query) -> Distilled:
    """``r = eps_cfg(x_t) - noise`` with the noise found by inversion: score distillation via inversion.

    Algorithm 1 of Lukoianov et al. 2024, arXiv 2405.15891. x is inverted by DDIM with a negative guidance scale to a
    time up to one step after t; the noise found there makes x_t.
    """
    schedule, tuning = query.schedule, query.tuning
    level, stride = _level(query), max(schedule.num_timesteps // tuning.sdi_steps, 1)
    further = int(torch.randint(stride, (1,), generator=query.random))
    last = min(level + further, schedule.num_timesteps - 1)
    start = min(start_of(query), last)
    times = [start, *(t for t in range(0, level, stride) if t > start)] + ([last] if last > start else [])
    inverted = invert(query, times, lambda noisy, t: query.guided(noisy, t, tuning.sdi_scale), tuning.sdi_eta)
    noise = schedule.noise_in(inverted, query.x, query.at(last))
    noisy = schedule.add_noise(query.x, noise, query.t)
    wanted = query.guided(noisy, query.t)
    alpha, sigma = schedule.levels(query.t, query.x)
    return query.result(alpha / sigma * (query.x - wanted), wanted, noisy)


def _level(query: Query) -> int:
    """The timestep of all images, for methods that walk through the noise levels one by one."""
    if query.level is None:
        raise ValueError("Query: this method needs one timestep for all images; give its level")
    return query.level


@dataclass(frozen=True)
class Method:
    """A distillation method."""

    name: str  # in --distillation, and of its preset
    distill: Callable[[Query], Distilled]
    shares_t: bool = False  # all images of a step have one timestep
    learns: bool = False  # it trains a version of the denoiser beside the field


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("sds", sds),
        Method("sjc", sjc),
        Method("vsd", vsd, learns=True),
        Method("csd", csd),
        Method("nfsd", nfsd),
        Method("ism", ism, shares_t=True),
        Method("sdi", sdi, shares_t=True),
    )
}
