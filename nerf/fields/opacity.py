"""Opacity of a step along a ray, from a density or from a signed distance. M samples."""

import torch
from torch import Tensor
from torch.nn import functional


def density_to_alpha(density: Tensor, dt: Tensor | float) -> Tensor:
    """Opacity of steps through a density, ``1 - exp(-density dt)`` (NeRF, eq. 3).

    Args:
        density: [M] extinction per scene unit, not negative.
        dt: [M] or one number, length of the steps in scene units.

    Returns:
        [M] in [0, 1]; differentiable in both.
    """
    return -torch.expm1(-density * dt)


def sdf_to_alpha(sdf: Tensor, slope: Tensor | float, dt: Tensor | float, sharpness: Tensor | float) -> Tensor:
    """Opacity of steps through a signed distance (NeuS, Wang et al. 2021, eq. 13).

    ``max((Phi(f_0) - Phi(f_1)) / Phi(f_0), 0)`` with the logistic function ``Phi(x) = 1 / (1 + exp(-sharpness x))`` and the
    distances ``f_0, f_1 = f -+ slope dt / 2`` at both ends of the step. Computed as ``1 - exp(log Phi(f_1) - log Phi(f_0))``,
    which is exact deep inside too, where both are too small for a division.

    Args:
        sdf: [M] distance in the middle of the step, scene units, negative inside.
        slope: [M] or one number, change of the distance per scene unit along the ray; a positive one counts as zero.
        dt: [M] or one number, length of the steps in scene units.
        sharpness: [] or one number, per scene unit, above zero: the inverse of the logistic function's width.

    Returns:
        [M] in [0, 1]; differentiable twice in everything.
    """
    half = 0.5 * dt * (slope.clamp(max=0.0) if isinstance(slope, Tensor) else min(slope, 0.0))
    return -torch.expm1(functional.logsigmoid(sharpness * (sdf + half)) - functional.logsigmoid(sharpness * (sdf - half)))


def annealed_slope(cosine: Tensor, ratio: float) -> Tensor:
    """The slope of the signed distance along a ray, as the opacity sees it at this point of training.

    ``-((1 - ratio) relu((1 - c) / 2) + ratio relu(-c))``: at first a step counts whichever way its surface faces, so that a
    shape whose normals are still wrong is not transparent; at the end only surfaces that face the camera count (the cosine
    annealing of the NeuS authors' program).

    Args:
        cosine: [M] of the angle between ray and outward normal.
        ratio: 0 at the start of the annealing, 1 from its end on.

    Returns:
        [M] in [-1, 0]; differentiable.
    """
    if ratio >= 1.0:
        return -functional.relu(-cosine)
    return -((1.0 - ratio) * functional.relu(0.5 - 0.5 * cosine) + ratio * functional.relu(-cosine))


def light_before(sdf: Tensor, t: Tensor, dt: Tensor, ray_index: Tensor, sharpness: Tensor | float) -> Tensor:
    """How much light reaches each step at most, as a logarithm, from the distances alone.

    The slope of a step is the less steep one of those to its neighbours, so that its opacity is not overestimated where the
    distance changes by no more than the distance between two points; a step without neighbours counts as transparent.

    Args:
        sdf: [M] signed distances in the middle of the steps, those of a ray next to one another and front to back.
        t: [M] distances along the rays.
        dt: [M] length of the steps, scene units.
        ray_index: [M] int64, ascending.
        sharpness: per scene unit.

    Returns:
        [M] float64, at most 0: the logarithm of an upper bound of the transmittance in front of each step.
    """
    if len(sdf) == 0:
        return sdf.double()
    apart = t.diff()
    neighbours = (ray_index.diff() == 0) & (apart < 1.5 * dt[1:])
    slope = torch.where(neighbours, (sdf.diff() / apart.clamp(min=1e-12)).clamp(-1.0, 0.0), 0.0)
    half = 0.5 * dt * torch.maximum(functional.pad(slope, (1, 0)), functional.pad(slope, (0, 1)))
    passed = functional.logsigmoid(sharpness * (sdf + half)) - functional.logsigmoid(sharpness * (sdf - half))
    behind = passed.double().cumsum(0)
    count = torch.unique_consecutive(ray_index, return_counts=True)[1]
    before = functional.pad(behind, (1, 0))
    return before[:-1] - before[count.cumsum(0) - count].repeat_interleave(count)


def section_alpha(sdf: Tensor, t: Tensor, sharpness: float) -> Tensor:
    """Opacity of the sections between neighbouring samples, from their distances alone: what up-sampling draws by.

    The slope of a section is the smaller of its own and of the one before it (both in [-1, 0]), which keeps sections behind a
    surface from being sampled (NeuS, Wang et al. 2021, appendix, sec. B.2 on hierarchical sampling).

    Args:
        sdf: [n, S] signed distances at the samples, front to back.
        t: [n, S] distances along the rays, ascending.
        sharpness: per scene unit.

    Returns:
        [n, S - 1] in [0, 1].
    """
    dt = t.diff(dim=-1)
    slope = sdf.diff(dim=-1) / dt.clamp(min=1e-6)
    before = functional.pad(slope[:, :-1], (1, 0))
    slope = torch.minimum(slope, before).clamp(-1.0, 0.0)
    return sdf_to_alpha(0.5 * (sdf[:, 1:] + sdf[:, :-1]), slope, dt, sharpness)
