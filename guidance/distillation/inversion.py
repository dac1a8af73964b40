"""DDIM inversion: from a clean image to the noisy one that the denoiser would turn into it. B images, T timesteps."""

from collections.abc import Callable, Sequence

from torch import Tensor

from guidance.distillation.query import Query

# A prediction of x_0 says little about the noise where there is hardly any: the embedded prior's error of 0.12 is a noise
# error of 0.4 at this sigma, and four times that at a quarter of it. Such models are inverted from here on.
SAMPLE_SIGMA = 0.3


def start_of(query: Query) -> int:
    """The timestep that inversion starts at: 0, or where sigma reaches :data:`SAMPLE_SIGMA` for models that predict x_0."""
    if query.schedule.prediction_type != "sample":
        return 0
    return next(t for t, sigma in enumerate(query.schedule.sigmas) if sigma >= SAMPLE_SIGMA)


def steps_up_to(query: Query, last: int, stride: int) -> list[int]:
    """Timesteps from :func:`start_of` to ``last``, ``stride`` apart, the first step being the shorter one."""
    start = min(start_of(query), last)
    return [start, *reversed(range(last, start, -stride))] if last > start else [last]


def invert(query: Query, times: Sequence[int], denoise: Callable[[Tensor, Tensor], Tensor], eta: float = 0.0) -> Tensor:
    """x at ``times[-1]`` from the clean images, by DDIM run backwards (Song et al. 2021, arXiv 2010.02502, eq. 12 and 16).

    The images are noised to ``times[0]``, where there is next to no noise, with the noise of the query; from there on the
    noise is what the denoiser finds. One call of the denoiser for each following time.

    Args:
        query: the images.
        times: increasing timesteps.
        denoise: (x_t [B, ...], t [B]) -> x_0 prediction [B, ...].
        eta: standard deviation of fresh noise in each step, as a share of that of DDPM's step between the same times.

    Returns:
        [B, ...].
    """
    schedule = query.schedule
    noisy = schedule.add_noise(query.x, query.noise, query.at(times[0]))
    for now, following in zip(times[:-1], times[1:], strict=True):
        t, later = query.at(now), query.at(following)
        x0 = denoise(noisy, t)
        found = schedule.noise_in(noisy, x0, t)
        if eta > 0:
            (alpha, sigma), (alpha_later, sigma_later) = schedule.levels(t, noisy), schedule.levels(later, noisy)
            spread = eta * sigma / sigma_later * (1 - (alpha_later / alpha) ** 2).clamp(min=0).sqrt()
            noisy = schedule.add_noise(x0, found, later) + spread * query.drawn_noise()
        else:
            noisy = schedule.add_noise(x0, found, later)
    return noisy
